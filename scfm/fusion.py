"""Embeddings of the same cells by several modalities -> one: concatenation, canonical correlation, weighted nearest neighbours.

Numbers in, numbers out; `scfm.embed_multi` calls these on encoders' embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
from scipy import sparse

from scfm.errors import InputError

__all__ = ["CanonicalCorrelation", "WeightedNeighbours", "concatenated", "weighted_neighbours"]

_EPSILON = 1e-4  # in the ratio of affinities, as in Seurat
_MOST = 200.0  # of that ratio, as in Seurat
_ROWS = 1024  # cells compared at a time


def _paired(embeddings: Mapping[str, np.ndarray], least: int) -> None:
    sizes = {name: len(z) for name, z in embeddings.items()}
    if len(sizes) < 2 or len(set(sizes.values())) != 1 or min(sizes.values()) < least:
        raise InputError(f"embeddings have {sizes} cells; two or more of the same at least {least} cells are needed.")
    for name, z in embeddings.items():
        if bad := int(np.isnan(z).any(axis=1).sum()):
            raise InputError(
                f"{bad} cells have NaN embeddings in {name!r}.",
                "Remove these cells (they have no feature that the encoder knows) from all modalities.",
            )


def concatenated(embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Embeddings side by side, each centred and scaled to a total variance of 1, so that neither length nor unit decides.

        z_m = (x_m - mean(x_m)) / sqrt(sum of the variances of the columns of x_m)

    Parameters
    ----------
    embeddings
        Modality -> (n_cells, dim_m).

    Returns
    -------
    np.ndarray
        (n_cells, sum of dim_m) float32.
    """
    _paired(embeddings, 2)
    parts = []
    for z in embeddings.values():
        centred = z - z.mean(axis=0, dtype=np.float64)
        spread = np.sqrt(centred.var(axis=0).sum())
        parts.append(centred / (spread if spread > 0 else 1.0))
    return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass(frozen=True)
class CanonicalCorrelation:
    """Canonical correlation analysis (Hotelling 1936, doi:10.1093/biomet/28.3-4.321) of two views.

    U, r, V' = svd(Cxx^-1/2 Cxy Cyy^-1/2); the directions are Cxx^-1/2 U and Cyy^-1/2 V.

    Parameters
    ----------
    means
        (dim_x,) and (dim_y,).
    directions
        (dim_x, k) and (dim_y, k); the variates of the cells it was fitted on have variance 1 (without ridge).
    correlations
        (k,) canonical correlations in the cells it was fitted on, falling.
    """

    means: tuple[np.ndarray, np.ndarray]
    directions: tuple[np.ndarray, np.ndarray]
    correlations: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, *, components: int = 20, ridge: float = 1e-3) -> Self:
        """Fit on paired cells.

        Parameters
        ----------
        x, y
            (n_cells, dim_x) and (n_cells, dim_y); row i of both is the same cell.
        components
            At most min(dim_x, dim_y) are given.
        ridge
            Added to the diagonal of Cxx and Cyy, in units of their mean variance; 0 is plain CCA.
        """
        _paired({"x": x, "y": y}, 3)
        means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
        centred = x - means[0], y - means[1]
        whitening = [_inverse_root(z.T @ z / (len(z) - 1), ridge) for z in centred]
        cross = centred[0].T @ centred[1] / (len(x) - 1)
        left, correlations, right = np.linalg.svd(whitening[0] @ cross @ whitening[1], full_matrices=False)
        signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
        directions = whitening[0] @ (left * signs), whitening[1] @ (right.T * signs)
        k = min(components, len(correlations))
        return cls(means, (directions[0][:, :k], directions[1][:, :k]), correlations[:k])

    def transform(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Variates of cells in the joint space, two (n_cells, k) float32."""
        first, second = ((z - mean) @ way for z, mean, way in zip((x, y), self.means, self.directions, strict=True))
        return first.astype(np.float32), second.astype(np.float32)


def _inverse_root(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """C^-1/2 of C + ridge mean(diag C); directions without variance are left out."""
    values, vectors = np.linalg.eigh(
        covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    kept = values > max(values[-1], 0) * 1e-10
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T


@dataclass(frozen=True)
class WeightedNeighbours:
    """Neighbours by all modalities together.

    Parameters
    ----------
    modalities
        Names in the order of the columns of `weights`.
    weights
        (n_cells, n_modalities) float64, rows sum to 1: how much each modality tells about each cell.
    neighbours
        (n_cells, k) int64, the nearest first, without the cell itself.
    affinities
        (n_cells, k) float64 in [0, 1], falling.
    """

    modalities: tuple[str, ...]
    weights: np.ndarray
    neighbours: np.ndarray
    affinities: np.ndarray

    @cached_property
    def graph(self) -> sparse.csr_matrix:
        """Affinities (n_cells, n_cells) CSR, symmetric (the larger of both directions), e.g. for Leiden clustering or UMAP."""
        n, k = self.neighbours.shape
        directed = sparse.csr_matrix(
            (self.affinities.reshape(-1), self.neighbours.reshape(-1), np.arange(0, n * k + 1, k)), shape=(n, n)
        )
        return sparse.csr_matrix(directed.maximum(directed.T))


@dataclass(frozen=True)
class _View:
    """One modality: unit vectors, their nearest neighbours, and the scale of each cell's affinities."""

    x: np.ndarray
    """(n, dim)"""
    neighbours: np.ndarray
    """(n, candidates) nearest first, without the cell itself."""
    nearest: np.ndarray
    """(n,) distance to the nearest neighbour."""
    width: np.ndarray
    """(n,) sigma - nearest."""

    def affinity(self, distance: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """exp(-max(distance - nearest, 0) / (sigma - nearest)), distances (n_rows, ...)."""
        shape = (-1,) + (1,) * (distance.ndim - 1)
        beyond = np.maximum(distance - self.nearest[rows].reshape(shape), 0)
        return np.exp(-beyond / self.width[rows].reshape(shape))

    def predicted(self, neighbours: np.ndarray) -> np.ndarray:
        """Affinity (n,) of each cell to the mean of these neighbours of it."""
        mean = np.stack([self.x[row].mean(axis=0) for row in neighbours])
        return self.affinity(np.linalg.norm(self.x - mean, axis=1), np.arange(len(mean)))


def weighted_neighbours(
    embeddings: Mapping[str, np.ndarray],
    *,
    k: int = 20,
    candidates: int = 200,
    sigma_cells: int = 20,
    cross: Literal["mean", "max"] = "mean",
) -> WeightedNeighbours:
    """Weighted nearest neighbours (Hao et al. 2021, doi:10.1016/j.cell.2021.04.048, STAR Methods).

        theta_m(i, x) = exp(-max(|x_i - x| - |x_i - nearest|, 0) / (sigma_mi - |x_i - nearest|))     in modality m, on unit vectors
        s_m(i) = theta_m(i, mean of x over neighbours by m) / (theta_m(i, mean of x over neighbours by the other) + 1e-4), at most 200
        w_m(i) = exp(s_m(i)) / sum over m of exp(s_m(i))
        affinity(i, j) = sum over m of w_m(i) theta_m(i, x_j)

    sigma_mi is the mean distance to the `sigma_cells` cells with the lowest Jaccard similarity to i, above 0, of their sets of k
    neighbours (the farthest among equal ones). A joint neighbour is one of the `candidates` nearest in some modality.

    Parameters
    ----------
    embeddings
        Modality -> (n_cells, dim_m), scaled to unit length as in Seurat and muon.
    k
        Neighbours, of each modality and of the result.
    candidates
        Of each modality; fewer where there are fewer cells.
    sigma_cells
        Cells that set the scale.
    cross
        With three or more modalities, `s_m` has the "mean" or "max" of the affinities by the others; the paper has two.
    """
    if cross not in ("mean", "max"):
        raise InputError(f"cross={cross!r} is not known.", "Pass 'mean' or 'max'.")
    _paired(embeddings, k + 2)
    names = tuple(embeddings)
    views = [_view(np.asarray(embeddings[name], dtype=np.float64), k, candidates, sigma_cells) for name in names]
    scores = np.empty((len(views[0].x), len(views)))
    for m, view in enumerate(views):
        others = [view.predicted(other.neighbours[:, :k]) for j, other in enumerate(views) if j != m]
        across = np.mean(others, axis=0) if cross == "mean" else np.max(others, axis=0)
        scores[:, m] = np.minimum(view.predicted(view.neighbours[:, :k]) / (across + _EPSILON), _MOST)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    neighbours, affinities = _joint(views, weights, k)
    return WeightedNeighbours(names, weights, neighbours, affinities)


def _view(z: np.ndarray, k: int, candidates: int, sigma_cells: int) -> _View:
    from sklearn.neighbors import NearestNeighbors

    length = np.linalg.norm(z, axis=1, keepdims=True)
    x = np.divide(z, length, out=np.zeros_like(z), where=length > 0)
    n = len(x)
    width = min(max(candidates, k), n - 1)
    distance, found = (
        NearestNeighbors(n_neighbors=width, algorithm="brute").fit(x).kneighbors()
    )  # without the cell itself
    ones = np.ones(n * (k + 1))
    with_self = np.concatenate([np.arange(n)[:, None], found[:, :k]], axis=1)
    sets = sparse.csr_matrix((ones, with_self.reshape(-1), np.arange(0, len(ones) + 1, k + 1)), shape=(n, n))
    sigma = np.empty(n)
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(start + _ROWS, n))
        shared = sparse.coo_matrix(sets[rows] @ sets.T)  # > 0: the sets meet
        row, other = shared.row[shared.col != rows[shared.row]], shared.col[shared.col != rows[shared.row]]
        common = shared.data[shared.col != rows[shared.row]]
        apart = np.linalg.norm(x[rows[row]] - x[other], axis=1)
        order = np.lexsort(
            (-apart, common, row)
        )  # fewer in common: lower Jaccard similarity, as all sets have one size
        row, apart = row[order], apart[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        chosen = rank < sigma_cells
        counts = np.bincount(row[chosen], minlength=len(rows))
        sigma[rows] = np.bincount(row[chosen], weights=apart[chosen], minlength=len(rows)) / counts
    nearest = distance[:, 0]
    return _View(x, found, nearest, np.maximum(sigma - nearest, 1e-12))


def _joint(views: list[_View], weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates with the largest weighted affinity, ties to the lower row number."""
    n = len(weights)
    neighbours, affinities = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(start + _ROWS, n))
        pool = np.sort(np.concatenate([view.neighbours[rows] for view in views], axis=1), axis=1)
        joint = np.zeros(pool.shape)
        for m, view in enumerate(views):
            for at, i in enumerate(rows):
                distance = np.linalg.norm(view.x[pool[at]] - view.x[i], axis=1)
                joint[at] += weights[i, m] * view.affinity(distance[None], np.array([i]))[0]
        repeated = np.zeros(pool.shape, dtype=bool)
        repeated[:, 1:] = pool[:, 1:] == pool[:, :-1]
        joint[repeated] = -1.0
        best = np.argsort(-joint, axis=1, kind="stable")[:, :k]
        neighbours[rows] = np.take_along_axis(pool, best, axis=1)
        affinities[rows] = np.take_along_axis(joint, best, axis=1)
    return neighbours, affinities
