"""Is the structure of the labels, or of another space, kept in the graph of nearest neighbours?"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from scfm.metrics.mixing import nearest
from scfm.metrics.scores import Score, group_means, levels, mean_of_groups

__all__ = ["graph_connectivity", "knn_graph", "knn_purity", "neighbourhood_overlap", "purities"]


def knn_graph(indices: np.ndarray) -> sparse.csr_matrix:
    """Directed graph (n_cells, n_cells) CSR of ones from each cell to its neighbours (n_cells, k)."""
    n, k = indices.shape
    return sparse.csr_matrix((np.ones(n * k), np.sort(indices).reshape(-1), np.arange(0, n * k + 1, k)), shape=(n, n))


def graph_connectivity(
    indices: np.ndarray, labels: np.ndarray, *, k: int = 15, convention: Literal["A", "B"] = "A"
) -> Score:
    """Largest connected part of each label / its cells, plain mean over labels.

    Convention A (scIB, Luecken et al. 2022): edges in either direction count. Convention B (scib-metrics): directed graph, strongly
    connected parts. It grows with k; a label of one cell has 1.

    Parameters
    ----------
    indices
        (n_cells, at least k - 1) of the nearest other cells.
    labels
        (n_cells,).
    k
        Neighbours, the cell itself counted.
    convention
        "A" or "B".
    """
    k = min(k, indices.shape[1] + 1)
    name = {"A": "A: union of directions", "B": "B: directed, strongly connected"}[convention]
    graph = knn_graph(nearest(indices, k - 1))
    names, codes = levels(labels, len(indices))
    shares = np.empty(len(names))
    for label in range(len(names)):
        rows = np.flatnonzero(codes == label)
        _, part = sparse.csgraph.connected_components(
            graph[rows][:, rows], directed=True, connection="weak" if convention == "A" else "strong"
        )
        shares[label] = np.bincount(part).max() / len(rows)
    strata = dict(zip(names.tolist(), shares.tolist(), strict=True))
    return Score(float(shares.mean()), f"{name}, k {k} with itself", len(codes), strata=strata)


def purities(indices: np.ndarray, labels: np.ndarray, *, k: int = 15) -> np.ndarray:
    """Share of a cell's k nearest other cells that have its label (n_cells,)."""
    near = nearest(indices, k)
    _, codes = levels(labels, len(near))
    return (codes[near] == codes[:, None]).mean(axis=1)


def knn_purity(
    indices: np.ndarray, labels: np.ndarray, *, k: int = 15, average: Literal["micro", "macro"] = "micro"
) -> Score:
    """Mean of `purities` over cells (micro), or over labels of the mean within each (macro: rare labels count as much).

    Parameters
    ----------
    indices
        (n_cells, at least k) of the nearest other cells.
    labels
        (n_cells,).
    k
        Neighbours, the cell itself not counted.
    average
        "micro" or "macro".
    """
    k = min(k, indices.shape[1])
    values = purities(indices, labels, k=k)
    names, codes = levels(labels, len(values))
    means = group_means(values, codes, len(names))
    strata = dict(zip(names.tolist(), means.tolist(), strict=True))
    value = values.mean() if average == "micro" else means.mean()
    statistic = mean_of_groups(values, np.zeros_like(codes) if average == "micro" else codes)
    convention = f"{average}, k {k} without itself"
    return Score(float(value), convention, len(values), strata=strata, resample=statistic)


def neighbourhood_overlap(first: np.ndarray, second: np.ndarray, *, k: int = 15) -> np.ndarray:
    """Jaccard similarity of every cell's sets of k nearest other cells in two spaces (n_cells,).

    Parameters
    ----------
    first, second
        (n_cells, at least k) indices of the same cells in both spaces.
    k
        Neighbours, the cell itself not counted.
    """
    shared = knn_graph(nearest(first, k)).multiply(knn_graph(nearest(second, k))).sum(axis=1)
    common = np.asarray(shared, dtype=np.float64).reshape(-1)
    return common / (2 * k - common)
