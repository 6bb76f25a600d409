"""Nearest cells: exact in bounded memory, or approximate (HNSW) where there are many."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from scfm._lazy import optional
from scfm.errors import InputError

__all__ = ["EXACT_MOST", "Metric", "hnsw_index", "hnsw_search", "neighbours", "pair_distances", "prepared"]

Metric = Literal["euclidean", "cosine"]
EXACT_MOST = 50_000
"""Reference cells up to which `method="auto"` is exact."""

_BLOCK = 1 << 20  # distances held at a time: as many as stay in the cache
_PAIRS = 1 << 21  # numbers held while pairs are measured again
_UNIT = 2.0**-24  # rounding of float32


def neighbours(
    reference: np.ndarray,
    query: np.ndarray | None = None,
    k: int = 15,
    *,
    metric: Metric = "euclidean",
    method: Literal["auto", "exact", "hnsw"] = "auto",
    include_self: bool = False,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest reference cells of every query cell.

    Exact search filters pairs by their distances in float32, keeps all that rounding could put among the nearest, and measures these
    in float64. Memory does not grow with the number of query cells. Approximate search walks an HNSW graph (Malkov & Yashunin 2020,
    doi:10.1109/TPAMI.2018.2889473) of full float32 vectors; vectors are never quantised.

    Parameters
    ----------
    reference
        (n_reference, dim) embeddings.
    query
        (n_query, dim) embeddings; None: the reference itself.
    k
        Neighbours of each query cell, itself among them if `include_self`.
    metric
        "euclidean", or "cosine" (1 - cosine similarity).
    method
        "exact", "hnsw" (needs the extra `ann`), or "auto": exact up to 50,000 reference cells.
    include_self
        With ``query=None``: each cell is its own first neighbour at distance 0, also where others have the same embedding.
    threads
        Of building an HNSW graph. With more than one the graph, and so a neighbour here and there, differs from run to run.

    Returns
    -------
    distances
        (n_query, k) float64, rising.
    indices
        (n_query, k) int64 rows of the reference; of equal distances the lower row comes first.

    Raises
    ------
    InputError
        Shapes do not fit, there are fewer than k cells, an embedding is not finite, or is all zeros and has no direction (cosine).
    MissingExtraError
        HNSW is asked for, or the reference is large, and usearch is not installed.
    """
    if metric not in ("euclidean", "cosine"):
        raise InputError(f"metric={metric!r} is not known.", "Pass 'euclidean' or 'cosine'.")
    if method not in ("auto", "exact", "hnsw"):
        raise InputError(f"method={method!r} is not known.", "Pass 'auto', 'exact' or 'hnsw'.")
    if include_self and query is not None:
        raise InputError(
            "include_self=True with query cells, none of which is in the reference.",
            "Leave out query= or include_self=.",
        )
    itself = query is None
    targets = prepared(reference, metric, "reference")
    sources = targets if query is None else prepared(query, metric, "query")
    if targets.shape[1] != sources.shape[1]:
        raise InputError(
            f"reference embeddings have {targets.shape[1]} dimensions, query embeddings {sources.shape[1]}.",
            "Embed both with the same encoder.",
        )
    others = k - include_self
    available = len(targets) - itself
    if k < 1 or others > available:
        raise InputError(
            f"k={k} neighbours are asked for, {available + include_self} cells can be neighbours.",
            f"Pass a k from 1 to {available + include_self}.",
        )
    if others and method != "exact" and (method == "hnsw" or len(targets) > EXACT_MOST):
        graph = hnsw_index(targets.shape[1], purpose=f"neighbours among {len(targets):,} cells")
        graph.add(np.arange(len(targets)), targets.astype(np.float32), threads=threads)
        distances, indices = _approximate(graph, targets, sources, others, itself)
    else:
        distances, indices = _exact(targets, sources, others, itself)
    if metric == "cosine":
        distances = distances**2 / 2  # of unit vectors: |a - b|^2 = 2 (1 - cos)
    if include_self:
        distances = np.concatenate([np.zeros((len(sources), 1)), distances], axis=1)
        indices = np.concatenate([np.arange(len(sources))[:, None], indices], axis=1)
    return distances, indices


def prepared(x: np.ndarray, metric: Metric, name: str) -> np.ndarray:
    """Embeddings as (n, dim) float64, checked; of length 1 for the cosine."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(
            f"{name} embeddings have shape {x.shape}; (cells, dimensions) is needed, at least one of each."
        )
    if bad := int((~np.isfinite(x)).any(axis=1).sum()):
        raise InputError(
            f"{bad} of {len(x)} {name} cells have embeddings that are not finite.",
            "Remove cells without any gene the model knows.",
        )
    if metric == "euclidean":
        return x
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if bad := int((length == 0).sum()):
        raise InputError(
            f"{bad} of {len(x)} {name} cells have embeddings of zeros, which have no direction.",
            "Remove these cells, or pass metric='euclidean'.",
        )
    return x / length


def _exact(targets: np.ndarray, sources: np.ndarray, k: int, itself: bool) -> tuple[np.ndarray, np.ndarray]:
    n, dim = targets.shape
    distances, indices = np.empty((len(sources), k)), np.empty((len(sources), k), dtype=np.int64)
    if k == 0:
        return distances, indices
    centre = targets.mean(axis=0)  # moving and scaling all cells changes no order, and keeps float32 in its range
    scale = max(_longest(targets - centre), _longest(sources - centre)) or 1.0
    small = ((targets - centre) / scale).astype(np.float32)
    squares = np.einsum("ij,ij->i", small, small)  # (n,)
    # |b|^2 - 2ab in float32 is off by at most rounding (|a|^2 + 2 |b|^2) (Higham 2002, section 3.1: products of vectors)
    rounding = np.float32((dim + 8) * _UNIT)
    right = np.concatenate([-2 * small, (1 + 2 * rounding) * squares[:, None]], axis=1).T.copy()  # (dim + 1, n)
    between = 4 * rounding * squares
    step = max(16, _BLOCK // n)
    for start in range(0, len(sources), step):
        rows = ((sources[start : start + step] - centre) / scale).astype(np.float32)
        # the most that |b|^2 - 2ab can be in exact arithmetic, but for what a adds; (rows, n)
        most = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1) @ right
        if itself:
            most[np.arange(len(rows)), np.arange(start, start + len(rows))] = np.inf
        limit = np.partition(most, k - 1, axis=1)[:, k - 1] + 2 * rounding * np.einsum("ij,ij->i", rows, rows)
        most -= between  # the least that it can be
        row, column = np.divmod(np.flatnonzero(most <= limit[:, None]), n)
        distance = pair_distances(sources, targets, row + start, column)
        order = np.lexsort((column, distance, row))
        row, column, distance = row[order], column[order], distance[order]
        chosen = np.searchsorted(row, np.arange(len(rows)))[:, None] + np.arange(k)  # (rows, k)
        distances[start : start + step], indices[start : start + step] = distance[chosen], column[chosen]
    return distances, indices


def _longest(x: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", x, x).max()))


def pair_distances(x: np.ndarray, y: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Euclidean distances (n_pairs,) float64 of the pairs (x[row], y[column])."""
    found = np.empty(len(row))
    step = max(1, _PAIRS // x.shape[1])
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        apart = x[row[part]] - y[column[part]]
        found[part] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    return found


def hnsw_index(dim: int, *, purpose: str, view: str | None = None) -> Any:
    """An empty HNSW graph of float32 vectors compared by squared Euclidean distance; or, memory-mapped, the one in the file `view`."""
    usearch = optional("usearch.index", extra="ann", purpose=purpose)
    index = usearch.Index(
        ndim=dim, metric="l2sq", dtype="f32", connectivity=32, expansion_add=128, expansion_search=128
    )
    if view is not None:
        index.view(view)
    return index


def hnsw_search(index: Any, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (n, k) int64 that a graph finds, nearest first, their squared distances (n, k) float32, and how many are found (n,).

    Behind what is found keys are 0 and distances infinite.
    """
    index.expansion_search = max(128, 4 * k)
    matches = index.search(np.ascontiguousarray(vectors, dtype=np.float32), k)
    keys, squared = np.zeros((len(vectors), k), dtype=np.int64), np.full((len(vectors), k), np.inf, dtype=np.float32)
    counts = np.array([len(matches)]) if len(vectors) == 1 else np.asarray(matches.counts, dtype=np.int64)
    width = min(k, np.asarray(matches.keys).shape[-1])
    found = np.arange(width) < counts[:, None]
    keys[:, :width][found] = np.asarray(matches.keys).reshape(len(vectors), -1)[:, :width][found].astype(np.int64)
    squared[:, :width][found] = np.asarray(matches.distances).reshape(len(vectors), -1)[:, :width][found]
    return keys, squared, counts


def _approximate(
    graph: Any, targets: np.ndarray, sources: np.ndarray, k: int, itself: bool
) -> tuple[np.ndarray, np.ndarray]:
    distances, indices = np.empty((len(sources), k)), np.empty((len(sources), k), dtype=np.int64)
    wide = min(k + itself + 5, len(targets))  # a few more, as float32 may order near ties otherwise
    step = max(1, _BLOCK // (targets.shape[1] + wide))
    for start in range(0, len(sources), step):
        rows = np.arange(start, min(start + step, len(sources)))
        found, _, counts = hnsw_search(graph, sources[rows], wide)
        short = np.flatnonzero(counts < wide)
        distance = pair_distances(sources, targets, np.repeat(rows, wide), found.reshape(-1)).reshape(found.shape)
        if itself:
            distance[found == rows[:, None]] = np.inf
        order = np.lexsort((found, distance))[:, :k]
        distances[rows] = np.take_along_axis(distance, order, axis=1)
        indices[rows] = np.take_along_axis(found, order, axis=1)
        for at in short:  # the graph is not connected from where the search began
            others = np.delete(np.arange(len(targets)), rows[at]) if itself else np.arange(len(targets))
            distances[rows[at]], nearest = _exact(targets[others], sources[rows[at]][None], k, False)
            indices[rows[at]] = others[nearest]
    return distances, indices
