"""Clusters of embeddings: Leiden on a graph of nearest neighbours, and k-means."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scfm._lazy import optional
from scfm.errors import InputError

__all__ = ["fuzzy_graph", "kmeans", "leiden"]


def fuzzy_graph(distances: np.ndarray, indices: np.ndarray) -> sparse.csr_matrix:
    """UMAP's neighbour weights (McInnes et al. 2018, arXiv:1802.03426, section 3.1), those of `scanpy.pp.neighbors`.

        w_ij = exp(-max(d_ij - d_i1, 0) / sigma_i), sigma_i such that the sum over j is log2(k);  w + w' - w * w'

    Parameters
    ----------
    distances, indices
        (n_cells, k - 1) of the nearest other cells; k counts the cell itself.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n_cells, n_cells), symmetric, weights in (0, 1].
    """
    n, others = indices.shape
    aim = np.log2(others + 1)
    d = np.asarray(distances, dtype=np.float64)
    positive = np.where(d > 0, d, np.inf)
    beyond = np.maximum(d - np.where(np.isfinite(positive).any(axis=1), positive.min(axis=1), 0)[:, None], 0)
    sigma, low, high = np.ones(n), np.zeros(n), np.full(n, np.inf)
    scale = beyond.mean(axis=1)
    scale[scale == 0] = 1.0
    beyond = beyond / scale[:, None]
    for _ in range(64):
        total = np.exp(-beyond / sigma[:, None]).sum(axis=1)
        high = np.where(total > aim, sigma, high)
        low = np.where(total > aim, low, sigma)
        sigma = np.where(np.isinf(high), sigma * 2, (low + np.where(np.isinf(high), 0, high)) / 2)
    mean = d.mean(axis=1) / scale
    sigma = np.maximum(sigma, 1e-3 * mean)  # umap-learn's floor
    weights = np.exp(-beyond / np.maximum(sigma, np.finfo(float).tiny)[:, None])
    rows = np.repeat(np.arange(n), others)
    directed = sparse.csr_matrix((weights.reshape(-1), (rows, indices.reshape(-1))), shape=(n, n))
    mirrored = directed.T.tocsr()
    return sparse.csr_matrix(directed + mirrored - directed.multiply(mirrored))


def leiden(graph: sparse.csr_matrix, *, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Leiden clusters (Traag et al. 2019, doi:10.1038/s41598-019-41695-z) that maximise modularity.

    Parameters
    ----------
    graph
        (n_cells, n_cells) symmetric weights, e.g. `fuzzy_graph`.
    resolution
        More, smaller clusters where it is larger.
    seed
        Of the order of cells.

    Returns
    -------
    np.ndarray
        (n_cells,) int64 from 0, the largest cluster first.

    Raises
    ------
    MissingExtraError
        graspologic-native is not installed.
    """
    if resolution <= 0:
        raise InputError(f"resolution={resolution}; it must be above 0.")
    package = optional("graspologic_native", extra="analysis", purpose="Leiden clustering")
    upper = sparse.triu(graph, format="coo")  # each edge once
    names = [str(i) for i in range(graph.shape[0])]
    edges = [
        (names[i], names[j], w)
        for i, j, w in zip(upper.row.tolist(), upper.col.tolist(), upper.data.tolist(), strict=True)
    ]
    found = package.leiden(edges, resolution=resolution, seed=seed)[1] if edges else {}
    raw = np.array([found.get(name, -1) for name in names])
    alone = raw < 0  # cells without a neighbour
    raw[alone] = raw.max(initial=-1) + 1 + np.arange(alone.sum())
    _, first, codes = np.unique(raw, return_index=True, return_inverse=True)
    order = np.lexsort((first, -np.bincount(codes)))  # of equally large clusters the one with the first cell
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes]


def kmeans(embedding: np.ndarray, clusters: int, *, seed: int = 0) -> np.ndarray:
    """k-means clusters (n_cells,), the best of ten starts (k-means++)."""
    from sklearn.cluster import KMeans

    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(embedding)
