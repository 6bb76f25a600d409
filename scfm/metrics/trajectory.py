"""Is a known course of cells, e.g. a differentiation, kept in an embedding?

Pseudotime is computed anew on the embedding's neighbours by diffusion (Haghverdi et al. 2016, doi:10.1038/nmeth.3971) and compared with
the reference within each lineage; branches are never pooled.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scfm.errors import InputError
from scfm.metrics.scores import Score, levels

__all__ = ["diffusion_map", "diffusion_pseudotime", "trajectory_spearman", "trajectory_tau"]

LEAST = 20
"""Cells that a lineage needs."""


def _kernel(distances: np.ndarray, indices: np.ndarray) -> sparse.csr_matrix:
    """Gaussian weights with a width for each cell, density taken out (Haghverdi et al. 2016, online methods).

    K_ij = sqrt(2 s_i s_j / (s_i^2 + s_j^2)) exp(-d_ij^2 / (s_i^2 + s_j^2)),  s_i^2 = median of d_ij^2 over i's neighbours
    """
    n, k = indices.shape
    squares = np.asarray(distances, dtype=np.float64) ** 2
    width = np.median(squares, axis=1)
    width = np.maximum(width, width[width > 0].min(initial=1.0) * 1e-6)  # cells among copies of themselves
    rows, columns = np.repeat(np.arange(n), k), indices.reshape(-1)
    both = width[rows] + width[columns]
    weights = np.sqrt(2 * np.sqrt(width[rows] * width[columns]) / both) * np.exp(-squares.reshape(-1) / both)
    directed = sparse.csr_matrix((weights, (rows, columns)), shape=(n, n))
    kernel = sparse.csr_matrix(directed.maximum(directed.T))
    density = np.asarray(kernel.sum(axis=0)).reshape(-1)
    scale = sparse.diags(1 / density)
    return sparse.csr_matrix(scale @ kernel @ scale)


def diffusion_map(distances: np.ndarray, indices: np.ndarray, *, components: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues and eigenvectors of the symmetric transition matrix of a connected neighbour graph, the stationary first.

    Parameters
    ----------
    distances, indices
        (n_cells, k) of the nearest other cells.
    components
        Beside the stationary one.

    Returns
    -------
    values, vectors
        (components + 1,) falling, and (n_cells, components + 1).
    """
    kernel = _kernel(distances, indices)
    root = sparse.diags(1 / np.sqrt(np.asarray(kernel.sum(axis=0)).reshape(-1)))
    transition = sparse.csr_matrix(root @ kernel @ root)
    n = transition.shape[0]
    count = min(components + 1, n - 1)
    if n <= 4 * count:  # ARPACK wants few of many
        values, vectors = np.linalg.eigh(transition.toarray())
    else:
        values, vectors = sparse.linalg.eigsh(transition, k=count, v0=np.random.default_rng(0).standard_normal(n))
    order = np.argsort(values)[::-1][:count]
    return values[order], vectors[:, order]


def diffusion_pseudotime(distances: np.ndarray, indices: np.ndarray, root: int, *, components: int = 10) -> np.ndarray:
    """Diffusion pseudotime from a root cell.

        dpt_i^2 = sum over l >= 2 of (lambda_l / (1 - lambda_l))^2 (psi_l(i) - psi_l(root))^2,  dpt_i divided by the largest

    Parameters
    ----------
    distances, indices
        (n_cells, k) of the nearest other cells.
    root
        Row of the root cell.
    components
        Of the diffusion map.

    Returns
    -------
    np.ndarray
        (n_cells,) float64 from 0 to 1; NaN for cells that are not connected with the root.
    """
    n, k = indices.shape
    graph = sparse.csr_matrix((np.ones(n * k), indices.reshape(-1), np.arange(0, n * k + 1, k)), shape=(n, n))
    part = sparse.csgraph.connected_components(graph, directed=False)[1]
    inside = np.flatnonzero(part == part[root])
    time = np.full(n, np.nan)
    number = np.full(n, -1)
    number[inside] = np.arange(len(inside))  # neighbours of cells inside are inside
    values, vectors = diffusion_map(distances[inside], number[indices[inside]], components=components)
    values, vectors = values[1:], vectors[:, 1:]
    weights = np.divide(values, 1 - values, out=np.zeros_like(values), where=values < 1 - 1e-12)
    apart = np.linalg.norm(weights * (vectors - vectors[number[root]]), axis=1)
    time[inside] = apart / apart.max() if apart.max() > 0 else apart
    return time


def trajectory_tau(
    reference: np.ndarray,
    distances: np.ndarray,
    indices: np.ndarray,
    *,
    lineages: np.ndarray | None = None,
    k: int = 15,
) -> Score:
    """Kendall's tau-b of reference and recomputed pseudotime within each lineage, plain mean over lineages.

    The root is the cell of the lowest reference time in the largest connected part. Cells that are not connected with it are left out
    (scIB gives them time 0); `strata["share left out"]` says how many of those with a reference time.

    Parameters
    ----------
    reference
        (n_cells,) pseudotime, NaN for cells of no lineage.
    distances, indices
        (n_cells, at least k - 1) of the nearest other cells; k counts the cell itself.
    lineages
        (n_cells,) branch of each cell; None: there is one.
    k
        Neighbours.
    """
    from scipy.stats import kendalltau

    def tau(t: np.ndarray, u: np.ndarray) -> float:
        return float(kendalltau(t, u).statistic)

    return _trajectory(reference, distances, indices, lineages, k, tau, "Kendall tau-b, DPT on 10 components")


def trajectory_spearman(
    reference: np.ndarray,
    distances: np.ndarray,
    indices: np.ndarray,
    *,
    lineages: np.ndarray | None = None,
    k: int = 15,
) -> Score:
    """(Spearman's rho + 1) / 2 of reference and recomputed pseudotime, as scIB scales it; otherwise as `trajectory_tau`.

    Parameters
    ----------
    reference, distances, indices, lineages, k
        As for `trajectory_tau`.
    """
    from scipy.stats import rankdata

    def rho(t: np.ndarray, u: np.ndarray) -> float:
        return float((np.corrcoef(rankdata(t), rankdata(u))[0, 1] + 1) / 2)

    return _trajectory(reference, distances, indices, lineages, k, rho, "(Spearman + 1) / 2, DPT on 10 components")


def _trajectory(reference, distances, indices, lineages, k, correlation, convention) -> Score:  # type: ignore[no-untyped-def]
    t = np.asarray(reference, dtype=np.float64)
    n = len(t)
    if t.shape != (len(indices),):
        raise InputError(f"reference pseudotime has shape {t.shape}, there are {len(indices)} cells.")
    k = min(k, indices.shape[1] + 1)
    convention = f"{convention}, k {k} with itself, root: lowest reference time"
    timed = np.isfinite(t)
    if timed.sum() < LEAST:
        return Score(np.nan, convention, n, f"{int(timed.sum())} cells have a reference time, {LEAST} are needed")
    names, codes = (
        (np.array(["all"]), np.zeros(n, dtype=np.int64))
        if lineages is None
        else levels(np.where(timed, np.asarray(lineages).astype(str), ""), n, "lineages")
    )
    near = indices[:, : k - 1]
    graph = sparse.csr_matrix((np.ones(near.size), near.reshape(-1), np.arange(0, near.size + 1, k - 1)), shape=(n, n))
    part = sparse.csgraph.connected_components(graph, directed=False)[1]
    largest = np.flatnonzero((part == np.bincount(part).argmax()) & timed)
    if not len(largest):
        return Score(np.nan, convention, n, "no cell of the largest connected part has a reference time")
    u = diffusion_pseudotime(distances[:, : k - 1], near, int(largest[t[largest].argmin()]))
    known = timed & np.isfinite(u)

    def each(rows: np.ndarray) -> dict[str, float]:
        rows = rows[known[rows]]
        found = {}
        for number, name in enumerate(names):
            cells = rows[codes[rows] == number]
            if len(cells) >= LEAST and np.ptp(u[cells]) > 0 and np.ptp(t[cells]) > 0:
                found[str(name)] = correlation(t[cells], u[cells])
        return found

    whole = each(np.arange(n))
    if not whole:
        return Score(np.nan, convention, n, f"no lineage has {LEAST} cells connected with the root and a varying time")
    left_out = float(1 - known[timed].mean())
    return Score(
        float(np.mean(list(whole.values()))),
        convention,
        n,
        strata={**whole, "share left out": left_out},
        resample=lambda rows: float(np.mean(list(found.values()))) if (found := each(rows)) else np.nan,
    )
