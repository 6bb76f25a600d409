"""Cells of one condition as one profile: counts are summed first, logged once, in float64.

The mean of per-cell log profiles depends on the cells' depths and dispersion; the log of the summed counts does not. See "5.3" of the
definitions this follows (cell-eval2, the 2026 competition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm.errors import InputError, listing
from scfm.perturbation.conditions import Key

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["TARGET_SUM", "Profiles", "group_sums", "jackknife_variance", "log_profiles", "profiles_of", "pseudobulk"]

TARGET_SUM = 5e4
"""Counts a profile is scaled to. At the usual 1e6 the log of rare genes is noise (measured by the authors of cell-eval2)."""

_ROWS = 256  # leave-one-out profiles held at a time


@dataclass(frozen=True)
class Profiles:
    """Pseudobulk profiles, the controls among them.

    Parameters
    ----------
    genes
        (n_genes,) names.
    keys
        (context, condition) of every row, none twice.
    values
        (n_rows, n_genes) float64, log1p of expression scaled to `target_sum`.
    cells
        (n_rows,) int64 cells of each.
    control
        Name of the control condition; each context has one.
    target_sum
        Counts a profile was scaled to.
    """

    genes: np.ndarray
    keys: tuple[Key, ...]
    values: np.ndarray
    cells: np.ndarray
    control: str
    target_sum: float = TARGET_SUM

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.keys), len(self.genes)) or len(self.cells) != len(self.keys):
            raise InputError(
                f"values {self.values.shape} do not fit {len(self.keys)} rows and {len(self.genes)} genes."
            )
        if len(set(self.keys)) < len(self.keys):
            raise InputError("a context and condition has two profiles.")
        lacking = sorted({context for context, _ in self.keys} - {c for c, name in self.keys if name == self.control})
        if lacking:
            raise InputError(
                f"there are no {self.control!r} cells in context {listing(lacking)}.",
                "Name the control with control=...",
            )

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, keys: Sequence[Key]) -> np.ndarray:
        """Row numbers of these keys.

        Raises
        ------
        InputError
            There is no such profile.
        """
        index = {key: i for i, key in enumerate(self.keys)}
        if missing := [key for key in keys if key not in index]:
            raise InputError(f"no cells of {listing(missing)}.")
        return np.array([index[key] for key in keys], dtype=np.int64)

    def control_of(self, keys: Sequence[Key]) -> np.ndarray:
        """The control profile of each key's context (n_keys, n_genes)."""
        return self.values[self.rows([(context, self.control) for context, _ in keys])]

    @property
    def perturbed(self) -> tuple[Key, ...]:
        """The keys that are no control."""
        return tuple(key for key in self.keys if key[1] != self.control)

    def deltas(self, keys: Sequence[Key] | None = None) -> np.ndarray:
        """Profiles minus their control (n_keys, n_genes); of all perturbed by default."""
        keys = self.perturbed if keys is None else keys
        return self.values[self.rows(keys)] - self.control_of(keys)

    def select(self, keys: Sequence[Key]) -> Profiles:
        """These rows and all controls."""
        wanted = set(keys)
        at = [i for i, key in enumerate(self.keys) if key in wanted or key[1] == self.control]
        kept = tuple(self.keys[i] for i in at)
        return Profiles(self.genes, kept, self.values[at], self.cells[at], self.control, self.target_sum)


def group_sums(matrix: Any, codes: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum of the rows of each group (n_groups, n_genes) float64; rows with a negative code are left out."""
    rows = np.flatnonzero(codes >= 0)
    member = sparse.csr_matrix((np.ones(len(rows)), (codes[rows], rows)), shape=(n_groups, matrix.shape[0]))
    product = member @ (matrix.astype(np.float64) if sparse.issparse(matrix) else np.asarray(matrix, np.float64))
    return np.asarray(product.toarray() if sparse.issparse(product) else product)


def log_profiles(sums: np.ndarray, target_sum: float = TARGET_SUM) -> np.ndarray:
    """log1p(target_sum * sum / total) of each row (n_rows, n_genes).

    Raises
    ------
    InputError
        A row is empty or negative.
    """
    total = sums.sum(axis=1, keepdims=True)
    if not np.isfinite(sums).all() or (sums < 0).any() or (total <= 0).any():
        raise InputError("a group of cells has no counts, or negative or missing ones.", "Pass raw counts.")
    return np.log1p(target_sum * sums / total)


def profiles_of(
    matrix: Any, keys: Sequence[Key], genes: Any, *, control: str, target_sum: float = TARGET_SUM
) -> Profiles:
    """Profiles of cells.

    Parameters
    ----------
    matrix
        (n_cells, n_genes) counts, or linear normalised expression; sparse or dense.
    keys
        (context, condition) of every cell.
    genes
        (n_genes,) names.
    control
        Name of the control condition.
    target_sum
        Counts a profile is scaled to.
    """
    distinct = sorted(set(keys))
    number = {key: i for i, key in enumerate(distinct)}
    codes = np.array([number[key] for key in keys], dtype=np.int64)
    values = log_profiles(group_sums(matrix, codes, len(distinct)), target_sum)
    cells = np.bincount(codes, minlength=len(distinct))
    return Profiles(np.asarray(genes, dtype=object), tuple(distinct), values, cells, control, target_sum)


def pseudobulk(
    adata: AnnData,
    *,
    condition: str = "condition",
    control: str = "ctrl",
    context: str | None = None,
    layer: str | None = None,
    target_sum: float = TARGET_SUM,
) -> Profiles:
    """Profiles of an AnnData of counts.

    Parameters
    ----------
    adata
        Raw counts in `X` or in `layer`; not changed.
    condition, context
        Columns of `obs`: the perturbation, and the cell line or donor it was done in (None: one).
    control
        Name of the control condition.
    layer
        Key of `layers`; None reads `X`.
    target_sum
        Counts a profile is scaled to.

    Raises
    ------
    InputError
        A column, the layer or the control is missing, or the matrix holds no counts.
    """
    matrix, keys, genes = screen_cells(adata, condition, control, context, layer, "pseudobulk")
    return profiles_of(matrix, keys, genes, control=control, target_sum=target_sum)


def screen_cells(
    adata: AnnData, condition: str, control: str, context: str | None, layer: str | None, reader: str
) -> tuple[sparse.csr_matrix, list[Key], np.ndarray]:
    """Counts, (context, condition) and genes of a screen's cells; the arguments are those of `pseudobulk`, `reader` is named in errors.

    Raises
    ------
    InputError
        A column, the layer or the control is missing, or the matrix holds no counts.
    """
    from scfm.cells import Source, check_values

    source = Source(adata, layer)
    columns = [condition, *([context] if context else [])]
    source.require_obs(columns, "Pass condition= and context= as they are called there.")
    if source.obs[columns].isna().to_numpy().any():
        raise InputError(f"obs[{columns}] has missing values.", "Remove these cells.")
    everything = slice(0, source.shape[0])
    matrix = source.take(everything)
    check_values(matrix, "counts", source, everything, reader)
    names = source.obs[condition].astype(str)
    if control not in set(names):
        raise InputError(
            f"obs[{condition!r}] has no {control!r}; it has {listing(sorted(set(names)))}.", "Pass control=."
        )
    if not source.var.index.is_unique:
        raise InputError("var_names are repeated.", "Call adata.var_names_make_unique().")
    contexts = source.obs[context].astype(str) if context else [""] * len(names)
    return matrix, list(zip(contexts, names, strict=True)), np.asarray(source.var.index, dtype=object)


def jackknife_variance(matrix: Any, target_sum: float = TARGET_SUM) -> float:
    """Sampling variance of a pseudobulk profile, summed over genes, by leaving out one cell at a time (Efron & Stein 1981).

    With theta_i the profile without cell i: (n - 1) / n * sum_i ||theta_i - mean theta||^2. Costs n_cells x n_genes logarithms.

    Parameters
    ----------
    matrix
        (n_cells, n_genes) counts of the cells of one condition.

    Returns
    -------
    float
        0 for one cell, whose variance is not known.
    """
    n = matrix.shape[0]
    if n < 2:
        return 0.0
    total = np.asarray(matrix.sum(axis=0), dtype=np.float64).reshape(-1)
    first = np.zeros_like(total)
    second = np.zeros_like(total)
    origin = np.log1p(target_sum * total / total.sum())  # so that the squares below are of small numbers
    for start in range(0, n, _ROWS):
        block = matrix[start : start + _ROWS]
        dense = np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)
        rest = total - dense
        depth = rest.sum(axis=1, keepdims=True)
        if (depth <= 0).any():
            raise InputError("all counts of a condition are in one cell.", "Remove conditions of so few counts.")
        moved = np.log1p(target_sum * rest.clip(min=0) / depth) - origin
        first += moved.sum(axis=0)
        second += (moved**2).sum(axis=0)
    return float((n - 1) / n * np.maximum(second - first**2 / n, 0).sum())
