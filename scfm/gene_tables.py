"""Gene names across conventions and species: Ensembl ids, symbols, human-mouse orthologs.

The tables are shipped with scfm (`scfm/data/README.md` has their origin); nothing is downloaded.

Policies, in one place
----------------------
- A symbol shared by several Ensembl ids stands for the protein-coding one; if that leaves several, for the one with
  the lowest accession, which is the oldest: the one in earlier references and in most model vocabularies, and the X
  copy of a pseudoautosomal gene.
- A gene that GENCODE has not named carries its Ensembl id as symbol, as in CELLxGENE and 10x files.
- Names are case sensitive: TP53 is human, Trp53 is mouse. There is no table of aliases or previous symbols.
- Orthology is between symbols. To the shipped table (Ensembl 105) are added genes of equal name that it lacks
  (`_namesakes`), outdated mouse symbols are renamed (`_renamed`), and predicted mouse genes (Gm3839) are left out where
  the human gene has a mouse namesake. Pairs of equal names (Actb, ACTB) come before others, then the origin's order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from scfm.errors import GeneMatchError, InputError, SpeciesError, listing

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "OrthologPolicy",
    "Species",
    "gene_table",
    "id_kind",
    "species_of",
    "strip_version",
    "to_ensembl",
    "to_orthologs",
    "to_symbols",
]

OrthologPolicy = Literal["one2one", "sum", "first"]

SPECIES = ("human", "mouse")  # those with a gene table

# Stable gene ids and what their prefix says; www.ensembl.org/info/genome/stable_ids/prefixes.html
ID_PREFIXES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSMMUG": "macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSCJAG": "marmoset",
    "ENSPTRG": "chimpanzee",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSOARG": "sheep",
    "ENSOCUG": "rabbit",
    "ENSCAFG": "dog",
    "ENSGALG": "chicken",
    "ENSXETG": "frog",
    "ENSDARG": "zebrafish",
    "FBgn": "fruit fly",
    "WBGene": "roundworm",
    "AT": "arabidopsis",
    "Os": "rice",
    "Zm": "maize",
}
STABLE_ID = re.compile(
    r"(?:(ENS[A-Z]*G)\d{11}|(FBgn)\d{7}|(WBGene)\d{8}|(AT)[1-5CM]G\d{5}|(Os)\d\dg\d{7}|(Zm)\d{5}[a-z]+\d{6})"
    r"(?:\.\d+)?(?:_PAR_Y)?"
)
ENSEMBL_ID = re.compile(r"ENS[A-Z]*G\d{11}(?:\.\d+)?(?:_PAR_Y)?")
VERSIONED = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+(_PAR_Y)?")
CLONE = re.compile(
    r"(?!ENS)[A-Z]{2,3}\d*-?[A-Z0-9]*\.\d+"
)  # names of unnamed genes in older references: RP11-34P13.7, AC012345.1

SAMPLE = 1000  # names that `id_kind` looks at
FEWEST_KNOWN = 10  # names `species_of` must know,
LEAST_KNOWN = 0.05  # and as a share of all: a fly has some 2 % of its symbols in common with mouse
CLEAR_SHARE = 0.9  # of the known names, for the leading species


@dataclass(frozen=True)
class Species:
    """The species that a list of gene names speaks for."""

    name: str | None  # "human", "mouse", "rat", ...; an Ensembl prefix we have no name for; None: can't be told
    share: float  # share of the known names that speak for the leading species, 0 if none is known
    votes: Mapping[str, int] = field(default_factory=dict)  # names per species; names in use in both don't vote
    n_names: int = 0

    @property
    def evidence(self) -> str:
        """The votes in words, for messages."""
        votes = ", ".join(f"{name} {count:,}" for name, count in self.votes.items()) or "none known"
        return f"{sum(self.votes.values()):,} of {self.n_names:,} names tell: {votes}"


def gene_table(species: str) -> pd.DataFrame:
    """Genes of a species, from GENCODE as used by CELLxGENE.

    Parameters
    ----------
    species
        "human" (78,894 genes) or "mouse" (78,317).

    Returns
    -------
    DataFrame
        Index `ensembl_id` (unique, no version, sorted), columns `symbol` and `biotype` (both str); yours to change.
        A gene without a name has its Ensembl id as symbol.
    """
    return _gene_table(_with_table(species)).copy()


def strip_version(ids: Iterable[Any]) -> np.ndarray:
    """Remove the version from Ensembl gene ids.

    Symbols that contain a dot (`RP11-34P13.7`, `AC012345.1`) and anything else are left alone. The Y copy of a
    pseudoautosomal gene keeps its mark, so that it does not become a duplicate of the X copy.

    Returns
    -------
    ndarray of object, (n,)

    Examples
    --------
    >>> strip_version(["ENSG00000141510.12", "ENSG00000182378.15_PAR_Y", "RP11-34P13.7"]).tolist()
    ['ENSG00000141510', 'ENSG00000182378_PAR_Y', 'RP11-34P13.7']
    """
    return _objects(_strip(name) for name in _names(ids))


def id_kind(names: Iterable[Any]) -> Literal["ensembl", "symbol", "unknown"]:
    """Say whether names are Ensembl gene ids or gene symbols, by the majority of up to 1,000 of them, evenly spaced.

    Symbols are those of the human and mouse tables in any case, and clone names (`RP11-34P13.7`), which older
    references use. Symbols of distant species, Entrez ids, peaks and transcripts are "unknown".

    Examples
    --------
    >>> id_kind(["ENSG00000141510.12", "ENSG00000111640"]), id_kind(["TP53", "GAPDH"]), id_kind(["gene_1", "gene_2"])
    ('ensembl', 'symbol', 'unknown')
    """
    everything = _names(names)
    spaced = np.linspace(0, len(everything) - 1, min(SAMPLE, len(everything))).astype(int)
    sample = [str(everything[i]) for i in spaced]
    if 2 * sum(ENSEMBL_ID.fullmatch(name) is not None for name in sample) > len(sample):
        return "ensembl"
    known = _lowercase_symbols()
    if 2 * sum(name.lower() in known or CLONE.fullmatch(name) is not None for name in sample) > len(sample):
        return "symbol"
    return "unknown"


def species_of(names: Iterable[Any]) -> Species:
    """Tell the species from gene names: stable ids by their prefix, symbols by the human and mouse tables.

    Symbols are case sensitive (TP53 is human, Trp53 mouse); the few in use in both species (F5, C3) say nothing.
    `name` is None unless 10 names and 5 % of all names are known, and 90 % of the known ones agree: mixtures of two
    species have no answer. Symbols of rat are read as mouse and those of other primates as human, since they are
    the same words; only their Ensembl ids tell them apart.

    Returns
    -------
    Species
        `name`, `share`, `votes` and, in words, `evidence`.
    """
    everything = _names(names)
    symbols = _species_of_symbol()
    counts: Counter[str] = Counter()
    species: str | None
    for name in everything:
        if isinstance(name, str):
            if found := STABLE_ID.fullmatch(name):
                prefix = found[found.lastindex or 0]
                species = ID_PREFIXES.get(prefix, prefix)
            else:
                species = symbols.get(name)
            if species:
                counts[species] += 1
    votes = dict(counts.most_common())
    known = sum(votes.values())
    if known == 0:
        return Species(name=None, share=0.0, n_names=len(everything))
    leading = next(iter(votes))
    share = votes[leading] / known
    clear = share >= CLEAR_SHARE and known >= max(FEWEST_KNOWN, LEAST_KNOWN * len(everything))
    return Species(name=leading if clear else None, share=share, votes=votes, n_names=len(everything))


def to_ensembl(symbols: Iterable[Any], species: str = "human") -> np.ndarray:
    """Ensembl ids of gene symbols.

    A symbol shared by several ids stands for the protein-coding one, then for the lowest accession. An Ensembl id
    of the table is returned as it is, without version: files often mix ids among symbols.

    Returns
    -------
    ndarray of object, (n,)
        Ensembl id without version, or None where the table has no such gene.

    Examples
    --------
    >>> to_ensembl(["TP53", "Trp53"]).tolist()
    ['ENSG00000141510', None]
    """
    lookup = _ensembl_of_name(_with_table(species))
    return _objects(lookup.get(_strip(name)) for name in _names(symbols))


def to_symbols(ensembl_ids: Iterable[Any], species: str = "human") -> np.ndarray:
    """Gene symbols of Ensembl ids, with or without version.

    Several ids may have the same symbol, and a gene without a name has its id as symbol.

    Returns
    -------
    ndarray of object, (n,)
        Symbol, or None where the table has no such id.

    Examples
    --------
    >>> to_symbols(["ENSMUSG00000059552.14", "ENSG00000141510"], species="mouse").tolist()
    ['Trp53', None]
    """
    lookup = _symbol_of_ensembl(_with_table(species))
    return _objects(lookup.get(_strip(name)) for name in _names(ensembl_ids))


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
    if {_with_table(source), _with_table(target)} != set(SPECIES):
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


def _with_table(species: str) -> str:
    if species not in SPECIES:
        raise InputError(f"no gene table for species {species!r}.", f"Pass one of {listing(SPECIES)}.")
    return species


def _names(names: Iterable[Any]) -> list[Any]:
    if isinstance(names, str):
        raise InputError(f"{names!r} is one name; needed is a list of names.", f"Pass [{names!r}].")
    return list(names)


def _strip(name: Any) -> Any:
    if isinstance(name, str) and name.startswith("ENS") and (found := VERSIONED.fullmatch(name)):
        return found[1] + (found[2] or "")
    return name


def _objects(values: Iterable[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object)


def _read(name: str) -> pd.DataFrame:
    with (files("scfm.data") / name).open("rb") as file:
        return pd.read_csv(file, sep="\t", compression="gzip", dtype=str, keep_default_na=False)


# What follows is loaded once and never handed out: a caller can't change it.


@cache
def _gene_table(species: str) -> pd.DataFrame:
    table = _read(f"{species}_genes.tsv.gz")
    table["symbol"] = table["symbol"].where(table["symbol"] != "", table["ensembl_id"])
    return table.set_index("ensembl_id")


@cache
def _symbol_of_ensembl(species: str) -> dict[str, str]:
    symbols = _gene_table(species)["symbol"]
    return dict(zip(symbols.index, symbols, strict=True))


@cache
def _ensembl_of_name(species: str) -> dict[str, str]:
    table = _gene_table(species).reset_index()  # sorted by accession
    coding_first = table.sort_values("biotype", key=lambda biotype: biotype != "protein_coding", kind="stable")
    chosen = coding_first.drop_duplicates("symbol")
    itself = dict(zip(table["ensembl_id"], table["ensembl_id"], strict=True))
    return itself | dict(zip(chosen["symbol"], chosen["ensembl_id"], strict=True))


@cache
def _species_of_symbol() -> dict[str, str]:
    human, mouse = (set(_gene_table(species)["symbol"]) for species in SPECIES)
    return dict.fromkeys(human - mouse, "human") | dict.fromkeys(mouse - human, "mouse")


@cache
def _lowercase_symbols() -> frozenset[str]:
    return frozenset(symbol.lower() for species in SPECIES for symbol in _gene_table(species)["symbol"])


@cache
def _orthologs() -> pd.DataFrame:
    """Pairs (human, mouse) of current symbols; those of equal names first, then in the order of the origin."""
    pairs = _read("human_mouse_orthologs.tsv.gz").replace({"mouse": _renamed("mouse")})
    # Predicted copies (GAPDH: Gapdh, Gm3839, Gm10358; S100A9: Gm5849) don't count beside the real one.
    has_namesake = pairs["human"].isin(_gene_table("mouse")["symbol"].str.upper())
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
        genes = _gene_table(species)[["symbol", "biotype"]].drop_duplicates()
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
    pairs = _read("human_mouse_orthologs.tsv.gz")
    symbols = _gene_table("mouse")["symbol"]
    by_upper = dict(zip(symbols.str.upper(), symbols, strict=True))
    gone = pairs[~pairs["mouse"].isin(set(symbols))]
    gone = gone.assign(now=gone["human"].str.upper().map(by_upper)).dropna(subset="now")
    gone = gone[~gone["now"].isin(set(pairs["mouse"]))]
    gone = gone[~gone["now"].duplicated(keep=False) & ~gone["mouse"].duplicated(keep=False)]
    return dict(zip(gone["mouse"], gone["now"], strict=True))
