"""Genes of one species named by those of another: human and mouse, offline.

Orthology is between symbols. To the shipped table (Ensembl 105) are added genes of equal name that it lacks
(`_namesakes`), outdated mouse symbols are renamed (`_renamed`), and predicted mouse genes (Gm3839) are left out where
the human gene has a mouse namesake. Pairs of equal names (Actb, ACTB) come before others, then the origin's order.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from scfm.errors import GeneMatchError, InputError, SpeciesError, listing
from scfm.gene_tables import (
    SPECIES,
    gene_table,
    id_kind,
    read_table,
    species_of,
    strip_version,
    to_ensembl,
    to_symbols,
    with_table,
)

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["OrthologPolicy", "to_orthologs", "ortholog_pairs"]

OrthologPolicy = Literal["one2one", "sum", "first"]


def to_orthologs(
    adata: AnnData,
    *,
    source: str = "mouse",
    target: str = "human",
    gene_column: str | None = None,
    policy: OrthologPolicy = "one2one",
) -> AnnData:
    """Name the genes of one species by their orthologs in the other, so that a model of that species can read them.

    Counts are never duplicated: each source gene goes to at most one target.

    Parameters
    ----------
    adata
        Cells x genes, symbols or Ensembl ids (version allowed); not changed.
    source, target
        "mouse" and "human", or the other way round.
    gene_column
        Column of `adata.var` with the gene names; `var_names` if None.
    policy
        "one2one": only pairs in which both genes have a single ortholog. Safe for counts and normalised values.
        "first": each source gene goes to the first of its orthologs; a target with several source genes in the data
        takes the first of them. Pairs of equal names (Hbb, HBB) are first, then the table's order.
        "sum": as "first", but source genes with the same target are added up. Raw counts only.

        When several columns carry the same source symbol, "sum" adds them; the others keep the column with the
        Ensembl id that `to_ensembl` gives the symbol, or else the first.

    Returns
    -------
    AnnData
        Cells as in `adata` (`obs`, `obsm`, `obsp`, `uns` copied; `varm`, `varp` and `raw`, which describe the
        source genes, left out). `X` and `layers` have target genes as columns, in the order of the source columns;
        sparse stays sparse, floats keep their dtype, integers become int64. `var_names` are target symbols,
        `var["source_gene"]` the names they come from, joined by ";".
        `uns["scfm_orthologs"]`: `source`, `target`, `policy`, `n_genes` of the input, of these `n_mapped` and
        `n_dropped`, `n_targets`, and `share_of_counts` of `adata.X` that was kept.

    Raises
    ------
    InputError
        Unknown species, policy or column; `adata` is backed or has no `X`; "sum" on values that are not counts.
    SpeciesError
        The gene names speak for another species than `source`.
    GeneMatchError
        No gene has an ortholog.
    """
    if {with_table(source), with_table(target)} != set(SPECIES):
        raise InputError(
            f"source and target are both {source!r}; orthologs are between two species.",
            'Pass source="mouse", target="human" or the other way round.',
        )
    if policy not in get_args(OrthologPolicy):
        raise InputError(f"policy={policy!r} is not known.", f"Pass one of {listing(get_args(OrthologPolicy))}.")
    names = _gene_names(adata, gene_column)
    _check_species(names, source, target)
    _check_matrices(adata, counts=policy == "sum")

    columns = _match_columns(names, source, target, policy)
    if columns.empty:
        raise GeneMatchError(
            f"none of {len(names):,} genes has a {target} ortholog ({policy}); the names look like"
            f" {listing(names[:3].tolist())}, the table has {source} symbols and Ensembl ids.",
            f"Pass gene_column= with one of adata.var: {listing(adata.var.columns) or 'no columns'}.",
        )
    codes, targets = pd.factorize(columns["target"])
    sources = columns.groupby(codes)["name"].agg(";".join)
    mapped = _new_genes(
        adata,
        var=pd.DataFrame({"source_gene": sources.to_numpy()}, index=pd.Index(targets, dtype=object)),
        old=columns.index.to_numpy(),
        new=codes,
    )
    total = adata.X.sum(dtype=np.float64)
    mapped.uns["scfm_orthologs"] = {
        "source": source,
        "target": target,
        "policy": policy,
        "n_genes": len(names),
        "n_mapped": len(columns),
        "n_dropped": len(names) - len(columns),
        "n_targets": len(targets),
        "share_of_counts": float(mapped.X.sum(dtype=np.float64) / total) if total else float("nan"),
    }
    return mapped


def _match_columns(names: np.ndarray, source: str, target: str, policy: OrthologPolicy) -> pd.DataFrame:
    """Columns of the data that have a target; index: position of the column, `name` as given, `target` symbol."""
    is_ensembl = id_kind(names) == "ensembl"
    symbols = to_symbols(names, source) if is_ensembl else names
    columns = pd.DataFrame({"name": names, "symbol": pd.Series(symbols, dtype=object).replace(_renamed(source))})
    pairs = _orthologs()[[source, target]]
    if policy == "one2one":
        pairs = pairs[~pairs[source].duplicated(keep=False) & ~pairs[target].duplicated(keep=False)]
    pairs = pairs.drop_duplicates(source).reset_index(names="order").set_index(source)
    columns = columns.join(pairs.rename(columns={target: "target"}), on="symbol").dropna(subset="target")
    if policy == "sum":
        return columns
    columns["second_choice"] = is_ensembl & (to_ensembl(columns["symbol"], source) != strip_version(columns["name"]))
    return columns.sort_values(["order", "second_choice"], kind="stable").drop_duplicates("target").sort_index()


def _new_genes(adata: AnnData, *, var: pd.DataFrame, old: np.ndarray, new: np.ndarray) -> AnnData:
    """A copy of `adata` with `var` as genes: column `old[i]` is added to column `new[i]`."""
    from anndata import AnnData
    from scipy import sparse

    def gather(x: Any) -> Any:
        dtype = x.dtype if x.dtype.kind == "f" else np.int64  # small integers could overflow in a sum
        member = sparse.csr_matrix((np.ones(len(old), dtype), (old, new)), shape=(adata.n_vars, len(var)))
        if not sparse.issparse(x):
            return x @ member  # (n_cells, n_targets)
        gathered = type(x)(x @ member)
        gathered.sort_indices()
        return gathered

    return AnnData(
        X=gather(adata.X),
        obs=adata.obs.copy(),
        var=var,
        layers={key: gather(layer) for key, layer in adata.layers.items()},
        obsm={key: value.copy() for key, value in adata.obsm.items()},
        obsp={key: value.copy() for key, value in adata.obsp.items()},
        uns=deepcopy(dict(adata.uns)),
    )


def _gene_names(adata: AnnData, gene_column: str | None) -> np.ndarray:
    if gene_column is None:
        return adata.var_names.to_numpy(dtype=object)
    if gene_column not in adata.var:
        raise InputError(
            f"adata.var has no column {gene_column!r}.",
            f"Pass one of: {listing(adata.var.columns) or 'there is none'}; or leave out gene_column for var_names.",
        )
    names = adata.var[gene_column].astype(object)
    return names.where(names.notna(), "").astype(str).to_numpy(dtype=object)


def _check_species(names: np.ndarray, source: str, target: str) -> None:
    species = species_of(names)
    if species.name not in (None, source):
        swapped = f'Pass source="{target}", target="{source}".' if species.name == target else None
        raise SpeciesError(f"the genes look like {species.name} ({species.evidence}); source is {source!r}.", swapped)


def _check_matrices(adata: AnnData, *, counts: bool) -> None:
    from scipy import sparse

    if adata.isbacked:
        raise InputError("adata is backed by a file; orthologs are mapped in memory.", "Pass adata.to_memory().")
    if adata.X is None:
        raise InputError("adata.X is None; orthologs are mapped in X.", 'Set adata.X = adata.layers["counts"].')
    for slot, x in {"X": adata.X, **{f"layers[{key!r}]": layer for key, layer in adata.layers.items()}}.items():
        if not (sparse.issparse(x) or isinstance(x, np.ndarray)):
            raise InputError(f"adata.{slot} is a {type(x).__name__}; needed is a numpy or scipy.sparse matrix.")
        values = x.data if sparse.issparse(x) else x
        if counts and not ((values >= 0) & (values % 1 == 0)).all():
            raise InputError(
                f'adata.{slot} holds values that are not counts; policy="sum" adds raw counts.',
                'Pass policy="one2one", or remove what is not counts (a copy with X = counts, without that layer).',
            )


def ortholog_pairs() -> pd.DataFrame:
    """All pairs of orthologs, many-to-many: columns human and mouse (symbols). Yours to change."""
    return _orthologs().copy()


@cache
def _orthologs() -> pd.DataFrame:
    """Pairs (human, mouse) of current symbols; those of equal names first, then in the order of the origin."""
    pairs = read_table("human_mouse_orthologs.tsv.gz").replace({"mouse": _renamed("mouse")})
    # Predicted copies (GAPDH: Gapdh, Gm3839, Gm10358; S100A9: Gm5849) don't count beside the real one.
    has_namesake = pairs["human"].isin(gene_table("mouse")["symbol"].str.upper())
    pairs = pairs[~(has_namesake & pairs["mouse"].str.fullmatch(r"Gm\d+"))]
    pairs = pd.concat([pairs, _namesakes(pairs)], ignore_index=True)
    unequal = pairs["human"].str.upper() != pairs["mouse"].str.upper()
    return pairs.loc[unequal.sort_values(kind="stable").index].reset_index(drop=True)


def _namesakes(pairs: pd.DataFrame) -> pd.DataFrame:
    """Genes of equal name in both species that the ortholog table lacks: RPLP0, S100A9, MALAT1 and some 570 more.

    The table misses genes with many pseudogenes and nearly all lncRNA. HGNC and MGI give orthologs the same symbol,
    so genes without any pair are paired by name, if both are protein coding or both lncRNA.
    """
    without_pair = {}
    for species in SPECIES:
        genes = gene_table(species)[["symbol", "biotype"]].drop_duplicates()
        genes = genes[genes["biotype"].isin(["protein_coding", "lncRNA"]) & ~genes["symbol"].isin(pairs[species])]
        without_pair[species] = genes.assign(name=genes["symbol"].str.upper()).rename(columns={"symbol": species})
    return without_pair["human"].merge(without_pair["mouse"], on=["name", "biotype"])[["human", "mouse"]]


@cache
def _renamed(species: str) -> dict[str, str]:
    """Mouse symbols of the ortholog table that GENCODE no longer has, and what they are called now.

    The ortholog table is older than the gene table. A gone name is taken to be the gene that now bears the human
    name (Atp5a1, paired with ATP5F1A, is now Atp5f1a), if that one has no pair and no other gone name claims it.
    """
    if species != "mouse":
        return {}
    pairs = read_table("human_mouse_orthologs.tsv.gz")
    symbols = gene_table("mouse")["symbol"]
    by_upper = dict(zip(symbols.str.upper(), symbols, strict=True))
    gone = pairs[~pairs["mouse"].isin(set(symbols))]
    gone = gone.assign(now=gone["human"].str.upper().map(by_upper)).dropna(subset="now")
    gone = gone[~gone["now"].isin(set(pairs["mouse"]))]
    gone = gone[~gone["now"].duplicated(keep=False) & ~gone["mouse"].duplicated(keep=False)]
    return dict(zip(gone["mouse"], gone["now"], strict=True))
