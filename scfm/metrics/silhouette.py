"""Silhouettes: are cells of a label close together, and those of its batches not apart?

    s_i = (o_i - a_i) / max(a_i, o_i)        (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7)

a_i is the mean distance to the other cells of i's group, o_i that to the nearest other group (its mean); a group of one cell has s = 0.
All of them ask for convex groups; `silhouette_batch` hardly sees batches that move apart, and rewards noise.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from scfm.errors import InputError
from scfm.metrics.scores import Score, group_means, levels, mean_of_groups

__all__ = ["bras", "silhouette_batch", "silhouette_label", "silhouettes", "stratified_rows"]

_BLOCK = 1 << 22  # distances held at a time


def silhouettes(
    embedding: np.ndarray,
    groups: np.ndarray,
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    other: Literal["nearest", "pooled"] = "nearest",
) -> np.ndarray:
    """Silhouette of every cell.

    Parameters
    ----------
    embedding
        (n_cells, dim).
    groups
        (n_cells,) at least two different ones.
    metric
        Distance.
    other
        o_i is the smallest mean distance to another group ("nearest"), or the mean distance to all cells of other groups ("pooled").

    Returns
    -------
    np.ndarray
        (n_cells,) float64 from -1 to 1.
    """
    x = np.asarray(embedding, dtype=np.float64)
    n = len(x)
    names, codes = levels(groups, n, "groups")
    if len(names) < 2:
        raise InputError(f"silhouettes of {len(names)} group; two are needed.")
    if metric == "cosine":
        length = np.linalg.norm(x, axis=1, keepdims=True)
        if (length == 0).any():
            raise InputError("embeddings of zeros have no cosine.", "Remove these cells, or pass metric='euclidean'.")
        x = x / length
    else:
        x = x - x.mean(axis=0)  # distances stay, rounding shrinks
    squares = np.einsum("ij,ij->i", x, x)
    member = np.zeros((n, len(names)))
    member[np.arange(n), codes] = 1.0
    sizes = member.sum(axis=0)
    sums = np.empty((n, len(names)))
    step = max(1, _BLOCK // n)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        product = x[rows] @ x.T  # (rows, n)
        if metric == "cosine":
            apart = np.clip(1 - product, 0, 2)
        else:
            apart = np.sqrt(np.clip(squares[rows, None] + squares - 2 * product, 0, None))
        apart[np.arange(len(rows)), rows] = 0.0
        sums[rows] = apart @ member
    every = np.arange(n)
    own = sums[every, codes]
    alone = sizes[codes] == 1
    a = own / np.maximum(sizes[codes] - 1, 1)
    if other == "pooled":
        o = (sums.sum(axis=1) - own) / (n - sizes[codes])
    else:
        means = sums / sizes
        means[every, codes] = np.inf
        o = means.min(axis=1)
    largest = np.maximum(a, o)
    s = np.divide(o - a, largest, out=np.zeros(n), where=largest > 0)
    s[alone] = 0.0
    return s


def silhouette_label(embedding: np.ndarray, labels: np.ndarray) -> Score:
    """Average silhouette width of labels, (mean s_i + 1) / 2 over all cells: 1 is compact and apart, 0.5 is overlap.

    Parameters
    ----------
    embedding
        (n_cells, dim), compared by Euclidean distance.
    labels
        (n_cells,).
    """
    convention = "(mean silhouette + 1) / 2, Euclidean"
    names, codes = levels(labels, len(embedding))
    if len(names) < 2:
        return Score(np.nan, convention, len(embedding), "one label only")
    s = (silhouettes(embedding, labels) + 1) / 2
    strata = dict(zip(names.tolist(), group_means(s, codes, len(names)).tolist(), strict=True))
    return Score(float(s.mean()), convention, len(s), strata=strata, resample=lambda rows: float(s[rows].mean()))


def silhouette_batch(embedding: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> Score:
    """Batch silhouette (Luecken et al. 2022, doi:10.1038/s41592-021-01336-8): ``1 - |s_i|`` of batches within a label.

    Mean within each label that has two batches or more and fewer batches than cells, then the plain mean over labels: rare labels weigh as
    much as common ones. 1 is well mixed.

    Parameters
    ----------
    embedding
        (n_cells, dim), compared by Euclidean distance.
    labels, batch
        (n_cells,).
    """
    return _within_labels(embedding, labels, batch, "euclidean", "nearest", "1 - |s| of batches in a label, Euclidean")


def bras(embedding: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> Score:
    """Batch removal adapted silhouette (Rautenstrauch & Ohler 2025, doi:10.1038/s41587-025-02743-4).

    As `silhouette_batch`, with cosine distance and o_i the mean distance to all cells of other batches, pooled.

    Parameters
    ----------
    embedding, labels, batch
        As for `silhouette_batch`.
    """
    convention = "1 - |s| of batches in a label, cosine, other batches pooled (mean_other)"
    return _within_labels(embedding, labels, batch, "cosine", "pooled", convention)


def _within_labels(
    embedding: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    metric: Literal["euclidean", "cosine"],
    other: Literal["nearest", "pooled"],
    convention: str,
) -> Score:
    n = len(embedding)
    names, codes = levels(labels, n)
    _, batches = levels(batch, n, "batch")
    values = np.full(n, np.nan)
    for label in range(len(names)):
        rows = np.flatnonzero(codes == label)
        if 2 <= len(np.unique(batches[rows])) < len(rows):
            values[rows] = 1 - np.abs(silhouettes(embedding[rows], batches[rows], metric=metric, other=other))
    means = group_means(values, codes, len(names))
    if not np.isfinite(means).any():
        return Score(np.nan, convention, n, "no label has two batches and more cells than batches")
    strata = dict(zip(names.tolist(), means.tolist(), strict=True))
    return Score(float(np.nanmean(means)), convention, n, strata=strata, resample=mean_of_groups(values, codes))


def stratified_rows(labels: np.ndarray, batch: np.ndarray, *, most: int, least: int = 50, seed: int = 0) -> np.ndarray:
    """Rows of a subsample (ascending int64) with the same share of each label in each batch, but at least `least` cells of it.

    Silhouettes take time with the square of the cells, and no shortcut is exact.

    Parameters
    ----------
    labels, batch
        (n_cells,).
    most
        About so many cells are kept; all if there are no more.
    least
        Cells kept of every label in every batch, where it has so many.
    seed
        Of the draw.
    """
    n = len(labels)
    if n <= most:
        return np.arange(n)
    names, codes = levels(labels, n)
    _, batches = levels(batch, n, "batch")
    stratum = batches * len(names) + codes
    rng = np.random.default_rng(seed)
    kept = []
    for number in np.unique(stratum):
        rows = np.flatnonzero(stratum == number)
        kept.append(rng.permutation(rows)[: max(round(most * len(rows) / n), least)])
    return np.sort(np.concatenate(kept))
