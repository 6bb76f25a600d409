"""The data's features aligned to a model's vocabulary, once per data set.

Matching is exact; identifiers are mapped only when asked for (`map_genes=True`), with the tables shipped in `scfm.gene_tables`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scfm.errors import CheckpointError, GeneMatchError, InputError, SpeciesError, listing
from scfm.gene_tables import id_kind, species_of, strip_version, to_ensembl, to_symbols
from scfm.orthologs import to_orthologs

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Alignment",
    "GeneReport",
    "Vocabulary",
    "align",
    "feature_names",
    "id_kind",
    "species_of",
    "strip_version",
    "to_ensembl",
    "to_orthologs",
    "to_symbols",
]

TABLES = ("human", "mouse")
"""Species with a shipped gene table."""

MIN_SHARE = 0.5
"""Below this share of the counts (or, unread, of the features) matched, data are refused, unless they have so many of the model's genes."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a model, in the order of its embedding table.

    Parameters
    ----------
    tokens
        Token strings; position = id. Genes and special tokens alike.
    ids
        Kind of identifier: "symbol", "ensembl" or "locus" (AT1G01010, of plants) of genes, or "region" (``chrom:start-end``).
    species
        Species whose genes these are.
    special
        Role -> token string, e.g. ``{"pad": "<pad>", "cls": "<cls>"}``.
    fold_case
        Match upper-cased names (only for models whose authors do).
    aliases
        Further accepted names -> token string, e.g. retired ids.
    columns
        Per-token numbers the tokenizer needs (n_tokens,) float64, e.g. medians; NaN for special tokens.
    other_species
        Species that the same checkpoint can be loaded for instead, with `scfm.load(..., species=...)`.
    build
        Genome build of regions, e.g. "hg38".
    """

    tokens: tuple[str, ...] = field(repr=False)
    ids: Literal["symbol", "ensembl", "locus", "region"]
    species: tuple[str, ...] = ("human",)
    special: Mapping[str, str] = field(default_factory=dict)
    fold_case: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict, repr=False)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    other_species: tuple[str, ...] = ()
    build: str | None = None

    def __post_init__(self) -> None:
        columns = {name: np.asarray(column, dtype=np.float64) for name, column in self.columns.items()}
        object.__setattr__(
            self, "columns", columns
        )  # the type that `load` gives: equal arithmetic before and after saving

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self.index

    @cached_property
    def index(self) -> dict[str, int]:
        """Token string -> id; with `fold_case`, upper-cased."""
        index = {(t.upper() if self.fold_case else t): i for i, t in enumerate(self.tokens)}
        if len(index) != len(self.tokens):
            raise CheckpointError(
                f"the vocabulary repeats {len(self.tokens) - len(index)} of its {len(self.tokens)} tokens."
            )
        return index

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(self.id(role) for role in self.special)

    @cached_property
    def genes(self) -> np.ndarray:
        """Ids of the tokens that are genes, ascending (n_genes,) int64."""
        return np.array([i for i in range(len(self.tokens)) if i not in self.special_ids], dtype=np.int64)

    def id(self, role: str) -> int:
        """Id of the special token with this role ("pad", "cls", ...)."""
        token = self.special[role]
        return self.index[token.upper() if self.fold_case else token]

    def lookup(self, names: Iterable[str]) -> np.ndarray:
        """Ids of gene names (n,) int64; -1 where unknown. Special tokens do not match."""
        index, special = self.index, self.special_ids
        found = []
        for name in names:
            key = name.upper() if self.fold_case else name
            token = index.get(key)
            if token is None and key in self.aliases:
                token = index.get(self.aliases[key])
            found.append(-1 if token is None or token in special else token)
        return np.array(found, dtype=np.int64).reshape(-1)

    def save(self, path: Path) -> None:
        """Write as JSON; numbers keep all their digits."""
        content = asdict(self) | {
            "columns": {name: [None if np.isnan(v) else float(v) for v in c] for name, c in self.columns.items()}
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        columns = {name: np.array(values, dtype=np.float64) for name, values in content.pop("columns").items()}
        for name in ("tokens", "species", "other_species"):
            content[name] = tuple(content.get(name, ()))
        return cls(**content, columns=columns)

    @classmethod
    def from_index(cls, index: Mapping[str, int], **settings: Any) -> Vocabulary:
        """From a mapping token -> id, whose ids must be 0..n-1.

        Raises
        ------
        CheckpointError
            Ids are not contiguous from 0.
        """
        ordered = sorted(index.items(), key=lambda item: item[1])
        if [i for _, i in ordered] != list(range(len(ordered))):
            raise CheckpointError(f"the vocabulary's {len(ordered)} ids are not 0..{len(ordered) - 1}.")
        return cls(tokens=tuple(token for token, _ in ordered), **settings)


@dataclass(frozen=True)
class GeneReport:
    """What matched, for people and provenance."""

    column: str
    """`var` column the identifiers were read from; "index" for `var_names`."""
    features: int
    matched: int
    duplicates: int
    """Matched features whose token an earlier feature has already."""
    mapped: bool
    """Whether identifiers were mapped through the shipped gene tables."""
    counts_matched: float | None = None
    """Share of the total counts that lies in matched features, where counts were read."""
    hvg_matched: tuple[int, int] | None = None
    """Matched among the flagged highly variable genes (matched, flagged), where `var["highly_variable"]` exists."""
    unmatched: tuple[str, ...] = ()
    """First few unmatched identifiers."""

    def __str__(self) -> str:
        parts = [f"{self.matched:,} of {self.features:,} features match (var {self.column!r})"]
        if self.counts_matched is not None:
            parts.append(f"{self.counts_matched:.1%} of the counts")
        if self.hvg_matched is not None:
            parts.append(f"{self.hvg_matched[0]:,} of {self.hvg_matched[1]:,} highly variable genes")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} share a token with another feature")
        return "; ".join(parts)


@dataclass(frozen=True)
class Alignment:
    """Columns of a data set in terms of a vocabulary.

    Parameters
    ----------
    tokens
        Token id of each column (n_features,) int64; -1 where the model doesn't know the feature.
    names
        The identifiers that were matched (n_features,) object.
    report
        What matched.
    projection
        Where features do not map one to one (peaks that overlap regions): the matrix to multiply the data by (n_data_features, n_features)
        float32 CSR; `tokens` are those of its columns.
    """

    tokens: np.ndarray
    names: np.ndarray
    report: GeneReport
    projection: sparse.csr_matrix | None = None

    def columns(self, matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        """The data in columns that have a token each, (n_cells, n_features) CSR with sorted indices."""
        if self.projection is None:
            return matrix
        projected = sparse.csr_matrix(matrix @ self.projection)
        projected.sort_indices()
        return projected


def feature_names(var: pd.DataFrame, gene_column: str | None) -> np.ndarray:
    """Identifiers of the features (n_features,) object: `var_names`, or a column of `var`."""
    if gene_column is None or gene_column == "index":
        return var.index.astype(str).to_numpy(dtype=object)
    if gene_column not in var.columns:
        raise InputError(
            f"gene_column={gene_column!r} is not in adata.var (columns: {listing(map(str, var.columns))}).",
            "Leave gene_column out to read var_names.",
        )
    return var[gene_column].astype(str).to_numpy(dtype=object)


def _better_column(var: pd.DataFrame, vocabulary: Vocabulary, matched: int) -> str | None:
    """The var column that matches more features than `matched`, if any."""
    best, best_column = matched, None
    for column in [
        "index",
        *(c for c in var.columns if var[c].dtype == object or str(var[c].dtype) in ("category", "string", "str")),
    ]:
        count = int((vocabulary.lookup(feature_names(var, column)) >= 0).sum())
        if count > best:
            best, best_column = count, column
    return best_column


def _mapped(names: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Identifiers in the vocabulary's kind: versions stripped, symbols <-> Ensembl through the shipped tables; unknown ones as they are."""
    bare = strip_version(names)
    kind = id_kind(bare)
    if kind == vocabulary.ids or kind == "unknown":
        return bare
    species = species_of(bare).name or vocabulary.species[0]
    if species not in TABLES:
        return bare  # no table to map with; `align` refuses the species or the poor match
    convert = to_ensembl if vocabulary.ids == "ensembl" else to_symbols
    return np.array(
        [new if new is not None else old for new, old in zip(convert(bare, species=species), bare, strict=True)],
        dtype=object,
    )


def align(
    var: pd.DataFrame,
    vocabulary: Vocabulary,
    *,
    model: str,
    gene_column: str | None = None,
    map_genes: bool = False,
    totals: np.ndarray | None = None,
) -> Alignment:
    """Match the features of a data set to a model's vocabulary.

    Parameters
    ----------
    var
        `adata.var`.
    vocabulary
        The model's.
    model
        Name for messages.
    gene_column
        Column of `var` with the identifiers; None reads `var_names`.
    map_genes
        Strip Ensembl versions and map symbols <-> Ensembl ids with the shipped GENCODE tables before matching.
    totals
        Sum of counts of each feature (n_features,), to weigh the match.

    Returns
    -------
    Alignment

    Raises
    ------
    SpeciesError
        The identifiers are of a species the vocabulary does not cover.
    GeneMatchError
        Less than half of the counts (without `totals`: of the features) are in matched features, and less than half of the
        model's genes are among them.
    """
    raw = feature_names(var, gene_column)
    names = _mapped(raw, vocabulary) if map_genes else raw
    tokens = vocabulary.lookup(names)
    known = tokens >= 0
    share = None
    if totals is not None and (total := float(totals.sum())) > 0:
        share = float(totals[known].sum()) / total
    hvg = None
    if "highly_variable" in var.columns and var["highly_variable"].dtype == bool:
        flagged = var["highly_variable"].to_numpy()
        hvg = (int((flagged & known).sum()), int(flagged.sum()))
    report = GeneReport(
        column=gene_column or "index",
        features=len(names),
        matched=int(known.sum()),
        duplicates=int(known.sum()) - len(np.unique(tokens[known])),
        mapped=map_genes,
        counts_matched=share,
        hvg_matched=hvg,
        unmatched=tuple(str(name) for name in raw[~known][:5]),
    )
    _refuse_poor_match(report, raw, var, vocabulary, model)
    return Alignment(tokens=tokens, names=names, report=report)


def _refuse_poor_match(
    report: GeneReport, names: np.ndarray, var: pd.DataFrame, vocabulary: Vocabulary, model: str
) -> None:
    share = report.counts_matched if report.counts_matched is not None else report.matched / max(report.features, 1)
    good = report.matched > 0 and share >= MIN_SHARE
    if good and not vocabulary.fold_case:
        return  # names are spelled by species: the tables that tell species apart (0.3 s) need not be read
    species = species_of(names)
    tells = (
        id_kind(names) != "symbol" or vocabulary.ids == "locus" or any(s in TABLES for s in vocabulary.species)
    )  # symbols tell human from mouse only
    if tells and species.name is not None and not {species.name, "any"} & set(vocabulary.species):
        raise SpeciesError(
            f"the features look like {species.name} genes ({species.share:.0%} of those recognised, e.g. {names[0]!r}); "
            f"{model} knows {listing(vocabulary.species)}{_example(vocabulary)}.",
            _species_fix(species.name, vocabulary),
        )
    if good:
        return
    if report.matched - report.duplicates > MIN_SHARE * len(vocabulary.genes):
        return  # a model of few genes, e.g. a PCA of variable genes, that finds most of them
    better = _better_column(var, vocabulary, report.matched)
    kind = id_kind(names)
    own = species_of([vocabulary.tokens[i] for i in vocabulary.genes]).name if "any" in vocabulary.species else None
    if species.name in TABLES and own in TABLES and species.name != own:
        fix = _ortholog_fix(species.name, own, vocabulary)
    elif better is not None:
        fix = f"Pass gene_column={better!r} (found in adata.var)."
    elif not report.mapped and kind in ("symbol", "ensembl") and vocabulary.ids != "locus":
        fix = "Pass map_genes=True to strip versions and map identifiers with the shipped GENCODE tables, or gene_column=<var column>."
    else:
        fix = f"Put {vocabulary.ids} identifiers{_example(vocabulary)} in var_names or in a var column and pass gene_column=."
    weighed = "" if report.counts_matched is None else f" with {report.counts_matched:.1%} of the counts"
    raise GeneMatchError(
        f"{report.matched:,} of {report.features:,} features{weighed} match {model}'s {vocabulary.ids} identifiers; "
        f"those in var {report.column!r} look like {kind if kind != 'unknown' else 'neither symbols nor Ensembl'} ids "
        f"({listing([str(n) for n in names[:2]])}).",
        fix,
    )


def _example(vocabulary: Vocabulary) -> str:
    """What the identifiers look like, where the kind alone does not tell."""
    return f" (genes such as {vocabulary.tokens[vocabulary.genes[0]]!r})" if vocabulary.ids == "locus" else ""


def _species_fix(species: str, vocabulary: Vocabulary) -> str:
    if species in vocabulary.other_species:
        return f"Load the model for it: scfm.load(..., species={species!r})."
    target = vocabulary.species[0]
    if species in TABLES and target in TABLES:
        return _ortholog_fix(species, target, vocabulary)
    return f"Choose a model trained on {species}: `scfm models` lists species."


def _ortholog_fix(species: str, target: str, vocabulary: Vocabulary) -> str:
    symbols = " Then pass map_genes=True: its genes are symbols." if vocabulary.ids == "ensembl" else ""
    return f"Convert first: adata = scfm.genes.to_orthologs(adata, source={species!r}, target={target!r}).{symbols}"


def gene_rows(vocabulary: Vocabulary, genes: Sequence[str] | None) -> np.ndarray:
    """Token ids for a list of gene names, or of all genes.

    Raises
    ------
    GeneMatchError
        A name is unknown to the model.
    """
    if genes is None:
        return vocabulary.genes
    rows = vocabulary.lookup(genes)
    if (rows < 0).any():
        unknown = [name for name, row in zip(genes, rows, strict=True) if row < 0]
        raise GeneMatchError(f"{len(unknown)} of {len(rows)} genes are unknown to the model: {listing(unknown)}.")
    return rows


def gene_ids(vocabulary: Vocabulary, names: Sequence[str]) -> np.ndarray:
    """Token ids of gene names (n,) int64, -1 where unknown; symbols and Ensembl ids are mapped to each other where needed."""
    ids = vocabulary.lookup(names)
    if (unknown := ids < 0).any():
        ids[unknown] = vocabulary.lookup(_mapped(np.array(names, dtype=object)[unknown], vocabulary))
    return ids
