"""Differential expression of the cells of one condition against control cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from scfm.errors import InputError

__all__ = [
    "DE",
    "benjamini_hochberg",
    "cpm",
    "differential_expression",
    "log2_fold_change",
    "top_non_dropout",
    "welch_scores",
    "wilcoxon",
]

EPSILON = 1e-9
MIN_CPM = 5.0
_GENES = 1024  # ranked at a time


@dataclass(frozen=True)
class DE:
    """Differential expression of one condition, gene by gene.

    Parameters
    ----------
    log2fc
        (n_genes,) log2 of the ratio of mean CPM.
    p, q
        (n_genes,) two-sided p-values and their Benjamini-Hochberg adjustment; NaN where a gene is not tested.
    score
        (n_genes,) z of the rank sum, positive where the condition is higher.
    """

    log2fc: np.ndarray
    p: np.ndarray
    q: np.ndarray
    score: np.ndarray

    @property
    def tested(self) -> np.ndarray:
        """(n_genes,) bool."""
        return np.isfinite(self.p)

    def significant(self, alpha: float = 0.05) -> np.ndarray:
        """(n_genes,) bool: q below alpha."""
        return np.nan_to_num(self.q, nan=1.0) < alpha


def cpm(matrix: Any) -> np.ndarray:
    """Counts per million of every cell (n_cells, n_genes) float64, dense; empty cells stay 0."""
    dense = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float64)
    total = dense.sum(axis=1, keepdims=True)
    return np.divide(1e6 * dense, total, out=np.zeros_like(dense), where=total > 0)


def wilcoxon(perturbed: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilcoxon's rank-sum test of every gene: normal approximation, corrected for ties, no continuity correction.

    z = (R - n (n + m + 1) / 2) / sqrt(n m / 12 * ((n + m + 1) - sum(t^3 - t) / ((n + m) (n + m - 1)))), R the rank sum of the n perturbed
    among all n + m cells, t the sizes of ties. As scanpy's `rank_genes_groups(method="wilcoxon", tie_correct=True)`.

    Parameters
    ----------
    perturbed, control
        (n, n_genes) and (m, n_genes).

    Returns
    -------
    z, p
        (n_genes,) float64; a gene with one value throughout has z = 0, p = 1.
    """
    from scipy.stats import norm, rankdata

    n, m = len(perturbed), len(control)
    if n == 0 or m == 0:
        raise InputError(f"{n} perturbed and {m} control cells; each side needs some.")
    total = n + m
    z = np.zeros(perturbed.shape[1])
    for start in range(0, perturbed.shape[1], _GENES):
        genes = slice(start, start + _GENES)
        both = np.concatenate([perturbed[:, genes], control[:, genes]])
        ranks = rankdata(both, axis=0)
        ordered = np.sort(both, axis=0)
        variance = n * m / 12 * ((total + 1) - _ties(ordered) / (total * (total - 1)))
        centred = ranks[:n].sum(axis=0) - n * (total + 1) / 2
        z[genes] = np.divide(centred, np.sqrt(variance), out=np.zeros_like(centred), where=variance > 1e-12)
    return z, 2 * norm.sf(np.abs(z))


def _ties(ordered: np.ndarray) -> np.ndarray:
    """sum(t^3 - t) over the runs of equal values of each sorted column."""
    n, genes = ordered.shape
    new = np.ones((n + 1, genes), dtype=bool)
    new[1:n] = ordered[1:] != ordered[:-1]
    gene, at = np.nonzero(new.T)
    size = np.diff(at).astype(np.float64)
    size[np.diff(gene) != 0] = 0  # from the end of a column to the start of the next
    return np.bincount(gene[:-1], weights=size**3 - size, minlength=genes)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (Benjamini & Hochberg 1995) of the finite entries; NaN elsewhere."""
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    finite = np.isfinite(p)
    if finite.any():
        q[finite] = false_discovery_control(p[finite])
    return q


def log2_fold_change(perturbed: np.ndarray, control: np.ndarray) -> np.ndarray:
    """log2((mean perturbed + 1e-9) / (mean control + 1e-9)) of every gene, of linear values."""
    return np.log2((perturbed.mean(axis=0) + EPSILON) / (control.mean(axis=0) + EPSILON))


def differential_expression(perturbed: np.ndarray, control: np.ndarray, *, min_cpm: float = MIN_CPM) -> DE:
    """Rank-sum test on per-cell CPM, log2 ratio of mean CPM, Benjamini-Hochberg within the condition.

    Parameters
    ----------
    perturbed, control
        (n, n_genes) and (m, n_genes) CPM of cells, as `cpm` gives. For predictions, `control` is the measured one too.
    min_cpm
        Genes of at most this mean CPM in the control are not tested. The control alone decides, so that the set of genes says nothing
        about the condition.
    """
    z, p = wilcoxon(perturbed, control)
    p = np.where(control.mean(axis=0) > min_cpm, p, np.nan)
    return DE(log2_fold_change(perturbed, control), p, benjamini_hochberg(p), z)


def welch_scores(perturbed: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Welch's t of every gene (n_genes,), 0 where neither side varies: what GEARS ranks by (scanpy's default test).

    Parameters
    ----------
    perturbed, control
        (n, n_genes) and (m, n_genes), log-normalised.
    """
    spread = sum(x.var(axis=0, ddof=1) / len(x) for x in (perturbed, control) if len(x) > 1)
    if np.ndim(spread) == 0 or min(len(perturbed), len(control)) < 2:
        raise InputError("Welch's t needs two cells on each side.")
    difference = perturbed.mean(axis=0) - control.mean(axis=0)
    return np.divide(difference, np.sqrt(spread), out=np.zeros_like(difference), where=spread > 0)


def top_non_dropout(
    scores: np.ndarray, perturbed_mean: np.ndarray, control_mean: np.ndarray, k: int = 20
) -> np.ndarray:
    """GEARS's `top_non_dropout_de_20`: the genes of largest |score| that are expressed in the condition, or in neither.

    A gene that the condition's cells lack and the control's have may be a dropout.

    Parameters
    ----------
    scores
        (n_genes,) of a test against control.
    perturbed_mean, control_mean
        (n_genes,) mean expression.
    k
        How many genes.

    Returns
    -------
    np.ndarray
        Up to k columns, by falling |score|; equal scores in the order of the columns.
    """
    order = np.argsort(-np.abs(scores), kind="stable")
    kept = (perturbed_mean[order] != 0) | (control_mean[order] == 0)
    return order[kept][:k]
