"""Cells that are like nothing known, in groups."""

from __future__ import annotations

from typing import Literal

import numpy as np

from scfm.clustering import fuzzy_graph, leiden
from scfm.errors import InputError
from scfm.neighbours import neighbours

__all__ = ["novel_clusters", "type_width"]

LEAST = 5
"""Cells that make a cluster."""
MOST = 4000
"""Cells whose distances are all held; of more, so many are drawn, and the others join the nearest of them."""
_PAIRS = 2000
_WIDTH = 0.95


def type_width(embedding: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> float:
    """How far apart cells of one type are: the 95th percentile of the distances within a type, median of the types.

    Parameters
    ----------
    embedding
        (n_cells, dim) of reference cells.
    labels
        (n_cells,) their types.
    seed
        Of the pairs, up to 2,000 of each type.

    Raises
    ------
    InputError
        No type has two cells.
    """
    z, rng, widths = np.asarray(embedding, dtype=np.float64), np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            one = rng.integers(0, len(rows), _PAIRS)
            two = (one + rng.integers(1, len(rows), _PAIRS)) % len(rows)  # another cell
            widths.append(np.quantile(np.linalg.norm(z[rows[one]] - z[rows[two]], axis=1), _WIDTH))
    if not widths:
        raise InputError("no type has two reference cells; how wide a type is can't be told.")
    return float(np.median(widths))


def novel_clusters(
    embedding: np.ndarray,
    *,
    method: Literal["linkage", "leiden"] = "linkage",
    width: float | None = None,
    least: int = LEAST,
    seed: int = 0,
) -> np.ndarray:
    """Clusters of rejected cells, each perhaps a type that the reference lacks.

    Parameters
    ----------
    embedding
        (n_cells, dim).
    method
        "linkage": average linkage, cut where clusters would become wider than a type of the reference; one type stays one cluster.
        "leiden": communities of the 15-neighbour graph at resolution 1 (needs the extra `analysis`), which also cuts a single type.
    width
        For "linkage": the mean distance from which clusters stay apart, see `type_width`.
    least
        Cells that make a cluster.
    seed
        Of Leiden, and of the draw of 4,000 cells where there are more.

    Returns
    -------
    np.ndarray
        (n_cells,) int64: 0 is the largest cluster, -1 is none.
    """
    if method not in ("linkage", "leiden"):
        raise InputError(f"method={method!r} is not known.", "Pass 'linkage' or 'leiden'.")
    if least < 2:
        raise InputError(f"least={least}; a cluster has at least two cells.")
    if method == "linkage" and (width is None or not width >= 0):
        raise InputError(f"width={width!r}; 'linkage' needs the width of a type.", "Pass width=type_width(...).")
    z = np.asarray(embedding, dtype=np.float64)
    if len(z) < least:
        return np.full(len(z), -1, dtype=np.int64)
    found = _leiden(z, seed) if method == "leiden" else _linked(z, float(width or 0.0), seed)
    names, sizes = np.unique(found, return_counts=True)
    out = np.full(len(z), -1, dtype=np.int64)
    kept = names[sizes >= least][np.argsort(-sizes[sizes >= least], kind="stable")]
    for number, name in enumerate(kept):
        out[found == name] = number
    return out


def _linked(z: np.ndarray, width: float, seed: int) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(z) <= MOST:
        return fcluster(linkage(z, "average"), width, "distance")
    drawn = np.sort(np.random.default_rng(seed).choice(len(z), MOST, replace=False))
    found = fcluster(linkage(z[drawn], "average"), width, "distance")
    distance, nearest = neighbours(z[drawn], z, 1)
    return np.where(distance[:, 0] <= width, found[nearest[:, 0]], -1 - np.arange(len(z)))


def _leiden(z: np.ndarray, seed: int) -> np.ndarray:
    distances, indices = neighbours(z, k=min(14, len(z) - 1))  # 15 with the cell itself
    return leiden(fuzzy_graph(distances, indices), seed=seed)
