"""Which genes a network is among: transcription factors of a species, and genes that vary."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError, SpeciesError, listing
from scfm.gene_tables import id_kind, read_table, species_of, to_symbols, with_table

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

__all__ = ["choose_genes", "gene_symbols", "log_normalised", "read_edges", "regulators_among", "transcription_factors"]

SOURCES, TARGETS = ("source", "regulator", "tf"), ("target", "gene")


def transcription_factors(species: str) -> list[str]:
    """Symbols of the genes with a DNA-binding profile in JASPAR 2026, or whose ortholog has one: 1,079 of human, 955 of mouse.

    Proven binders only; longer lists, such as the 1,639 of Lambert et al. 2018, can be passed as `tfs=`.
    """
    table = read_table("transcription_factors.tsv.gz")
    return table.loc[table["species"] == with_table(species), "symbol"].tolist()


def gene_symbols(names: np.ndarray) -> np.ndarray:
    """Names as symbols (n,) object; Ensembl ids through the shipped tables, those without a symbol as they are."""
    if id_kind(names) != "ensembl":
        return names
    species = species_of(names).name
    if species not in ("human", "mouse"):
        return names
    symbols = to_symbols(names, species)
    return np.array([name if symbol is None else symbol for name, symbol in zip(names, symbols, strict=True)], object)


def regulators_among(names: np.ndarray, tfs: Sequence[str] | str | PathLike[str] | None) -> np.ndarray:
    """Whether each gene is a transcription factor (n_genes,) bool.

    Parameters
    ----------
    names
        (n_genes,) symbols of the data's genes.
    tfs
        Symbols, or a file with one a line; None is `transcription_factors` of the genes' species.

    Raises
    ------
    SpeciesError
        The list is of another species than the genes, or theirs is unknown and no list was given.
    InputError
        None of the list is among the genes.
    """
    species = species_of(names)
    if tfs is None:
        if species.name not in ("human", "mouse"):
            raise SpeciesError(
                f"there is a list of transcription factors for human and mouse; the genes are of {species.name or 'no known species'} "
                f"({species.evidence}).",
                "Pass tfs=, a list of symbols or a file with one a line.",
            )
        known = transcription_factors(species.name)
    else:
        known = _listed(tfs)
        theirs = species_of(known).name
        if theirs and species.name and theirs != species.name:
            raise SpeciesError(
                f"the transcription factors are of {theirs}, the genes of {species.name} ({species.evidence}).",
                f"Pass the {species.name} list; tfs=None is the one that ships with scfm.",
            )
    found = np.isin(names.astype(str), known)
    if not found.any():
        raise InputError(
            f"none of {len(known):,} transcription factors (first: {listing(known[:3])}) is among {len(names):,} genes "
            f"(first: {listing(names[:3].tolist())}).",
            "Symbols are compared, case and all. Pass gene_column= if they stand in var, or another tfs=.",
        )
    return found


def _listed(tfs: Sequence[str] | str | PathLike[str]) -> list[str]:
    if isinstance(tfs, str | PathLike):
        path = Path(tfs)
        if not path.is_file():
            raise InputError(
                f"tfs={str(tfs)!r} is no file.", "Give a file with one symbol a line, or a list of symbols."
            )
        tfs = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    known = [str(name) for name in tfs]
    if not known:
        raise InputError("tfs= is empty.", "Leave it out for the list that ships with scfm.")
    return known


def log_normalised(matrix: sparse.csr_matrix, *, counts: bool) -> sparse.csr_matrix:
    """log1p of counts per 10,000; other values as they are."""
    from scipy import sparse

    if not counts:
        return matrix
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1)
    scale = np.divide(1e4, totals, out=np.zeros_like(totals), where=totals > 0)
    return (sparse.diags(scale) @ matrix).log1p().tocsr()


def choose_genes(
    expression: sparse.csr_matrix, names: np.ndarray, regulators: np.ndarray, allowed: np.ndarray, *,
    genes: int | Sequence[str], min_cells: int,
) -> np.ndarray:  # fmt: skip
    """Columns of the chosen genes, ascending (n,) int64: regulators that are expressed, and the genes that vary most.

    Variability is the variance of log-normalised expression over what genes of such a mean have: a parabola of log variance in log mean.

    Parameters
    ----------
    expression
        (n_cells, n_genes) log-normalised.
    names
        (n_genes,) symbols.
    regulators, allowed
        (n_genes,) bool: transcription factors, and genes that may be chosen (known to the model, named once).
    genes
        How many besides the regulators; or names, then only these, regulators and others.
    min_cells
        Genes expressed in fewer cells are left out.
    """
    expressed = np.asarray((expression > 0).sum(axis=0)).reshape(-1)
    usable = allowed & (expressed >= min_cells)
    if not isinstance(genes, int | np.integer):
        wanted = [str(name) for name in genes]
        chosen = usable & np.isin(names.astype(str), wanted)
        if missing := sorted(set(wanted) - set(names[chosen].astype(str))):
            raise InputError(
                f"{len(missing):,} of genes= are not in the data, not known to the model, or in fewer than {min_cells} cells: "
                f"{listing(missing)}.",
                "Leave them out.",
            )
    else:
        score = _variability(expression, usable)
        others = np.flatnonzero(usable & ~regulators)
        best = others[np.argsort(-score[others], kind="stable")[: int(genes)]]
        chosen = usable & regulators
        chosen[best] = True
    if not (chosen & regulators).any():
        raise InputError(
            f"no transcription factor is among the chosen genes ({int(regulators.sum()):,} are in the data, each in fewer than "
            f"{min_cells} cells or unknown to the model, or left out by genes=).",
            "Pass more cells, a lower min_cells=, or a genes= with transcription factors.",
        )
    return np.flatnonzero(chosen)


def _variability(expression: sparse.csr_matrix, usable: np.ndarray) -> np.ndarray:
    mean = np.asarray(expression.mean(axis=0), dtype=np.float64).reshape(-1)
    variance = np.asarray(expression.multiply(expression).mean(axis=0)).reshape(-1) - mean**2
    fitted = usable & (mean > 0) & (variance > 0)
    score = np.zeros(len(mean))
    if fitted.sum() > 3:
        x, y = np.log(mean[fitted]), np.log(variance[fitted])
        score[fitted] = np.exp(y - np.polyval(np.polyfit(x, y, 2), x))
    return score


def read_edges(source: pd.DataFrame | str | PathLike[str], *, confidence: Sequence[str] | None = None) -> pd.DataFrame:
    """A list of known edges: columns source, target and what else it has.

    Parameters
    ----------
    source
        DataFrame, or a CSV or TSV file, gzipped or not, with columns source (or tf, regulator) and target (or gene).
    confidence
        Keep edges whose column `confidence` is one of these, e.g. ("A",) of DoRothEA.

    Raises
    ------
    InputError
        There is no such file or column, or no edge is left.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        table, label = source, "the edge list"
    else:
        path, label = Path(source), str(source)
        if not path.is_file():
            raise InputError(f"there is no file {path}.", "Give a CSV or TSV file with columns source and target.")
        table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t")
    lower = {str(column).lower(): column for column in table.columns}
    columns = [next((lower[name] for name in known if name in lower), None) for known in (SOURCES, TARGETS)]
    if None in columns:
        raise InputError(
            f"{label} has columns {listing(map(str, table.columns))}; source and target are needed.", "Rename them."
        )
    if confidence is not None:
        if "confidence" not in lower:
            raise InputError(f"{label} has no column 'confidence'.", "Leave out confidence=.")
        table = table[table[lower["confidence"]].astype(str).isin([str(level) for level in confidence])]
    edges = table.rename(columns=dict(zip(columns, ("source", "target"), strict=True)))
    edges = edges.astype({"source": str, "target": str}).drop_duplicates(["source", "target"])
    if not len(edges):
        raise InputError(f"{label} has no edge{'' if confidence is None else f' of confidence {listing(confidence)}'}.")
    return edges
