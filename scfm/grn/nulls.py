"""What scores would be without regulation: genes shuffled among those of similar mean expression, or cells' labels shuffled."""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError

__all__ = ["false_discovery", "gene_shuffle_p", "label_shuffles", "label_shuffle_p"]

FEWEST_IN_BIN = 5


def gene_shuffle_p(scores: np.ndarray, rows: np.ndarray, means: np.ndarray, *, bins: int = 10) -> np.ndarray:
    """p of each edge among all pairs of genes with similar mean expression: the exhaustive shuffle, nothing is drawn.

    For an edge r -> t, the null are the scores of all pairs r' -> t' where r' is in the expression bin of r and t' in that of t; p is
    the share of them, the edge included, whose score is at least that of the edge. What expression alone explains is so removed; true edges
    among the pairs make it conservative.

    Parameters
    ----------
    scores
        (n_rows, n_genes): regulator -> target; NaN where there is none, a gene with itself among them.
    rows
        (n_rows,) positions among the genes of the rows.
    means
        (n_genes,) mean expression.
    bins
        Bins with equally many genes; fewer where they would hold under 5.

    Returns
    -------
    np.ndarray
        (n_rows, n_genes) float64, NaN where the score is.
    """
    count = max(1, min(bins, len(means) // FEWEST_IN_BIN))
    column_bin = np.empty(len(means), np.int64)
    column_bin[np.argsort(means, kind="stable")] = np.arange(len(means)) * count // len(means)
    row_bin = column_bin[rows]
    p = np.full(scores.shape, np.nan)
    for i in np.unique(row_bin):
        for j in range(count):
            block = np.ix_(np.flatnonzero(row_bin == i), np.flatnonzero(column_bin == j))
            values = scores[block]
            valid = np.isfinite(values)
            pool = np.sort(values[valid])
            block_p = np.full(values.shape, np.nan)
            block_p[valid] = 1 - np.searchsorted(pool, values[valid], side="left") / max(len(pool), 1)
            p[block] = block_p
    return p


def label_shuffles(perturbed: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Random relabellings with as many perturbed cells (permutations, n_cells) bool."""
    if permutations < 20:
        raise InputError(f"permutations={permutations}; at least 20 are needed for a null.", "Pass 100 or more.")
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(perturbed) for _ in range(permutations)])


def label_shuffle_p(observed: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Two-sided p of differences between conditions, from differences under shuffled labels.

    Each edge's differences, the observed one among them, are divided by their standard deviation; the standardised ones of all edges under
    all shuffles are the null of each edge (as in SAM, Tusher et al. 2001, doi:10.1073/pnas.091062498), so that p can be smaller than
    1 / permutations. p = (1 + number at least as large) / (1 + size of the null).

    Parameters
    ----------
    observed
        (...,) perturbed - control.
    shuffled
        (permutations, ...) the same under shuffled labels.

    Returns
    -------
    np.ndarray
        (...,) float64; NaN where the difference, or that of a fifth of the shuffles, is not defined, or never varies.
    """
    together = np.concatenate([observed[None], shuffled]).astype(np.float64)
    defined = np.isfinite(observed) & (np.isfinite(shuffled).mean(axis=0) >= 0.8)
    together = together[:, defined]
    p = np.full(observed.shape, np.nan)
    spread = np.nanstd(together, axis=0) if together.size else np.zeros(0)
    varies = spread > 0
    standard = np.abs(together[:, varies] / spread[varies])
    null = standard[1:].reshape(-1)
    null = np.sort(null[np.isfinite(null)])
    found = np.full(len(spread), np.nan)
    found[varies] = (1 + len(null) - np.searchsorted(null, standard[0], side="left")) / (1 + len(null))
    p[defined] = found
    return p


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q of all finite p together, same shape."""
    from scipy.stats import false_discovery_control

    q = np.full(p.shape, np.nan)
    finite = np.isfinite(p)
    if finite.any():
        q[finite] = false_discovery_control(p[finite])
    return q
