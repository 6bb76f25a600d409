"""What a good score may hide: mixed cell types, and a source of data that harms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scfm.errors import InputError
from scfm.metrics.estimates import Estimate, bootstrap
from scfm.metrics.graphs import purities
from scfm.metrics.scores import group_means, levels

__all__ = ["Overmixing", "negative_transfer", "overmixing", "random_embedding"]

RARE_SHARE, RARE_CELLS = 0.01, 50
RATIO = 0.8


@dataclass(frozen=True)
class Overmixing:
    """k-NN purity of each label after / before integration.

    Parameters
    ----------
    ratios
        Label -> purity after / before; NaN where it was 0 before.
    rare
        Labels of fewer than 50 cells or 1 % of them.
    flagged
        Labels whose ratio is below 0.8.
    """

    ratios: dict[str, float]
    rare: tuple[str, ...]
    flagged: tuple[str, ...]


def overmixing(before: np.ndarray, after: np.ndarray, labels: np.ndarray, *, k: int = 15) -> Overmixing:
    """Which labels are less pure in their neighbourhoods after integration than before.

    Parameters
    ----------
    before, after
        (n_cells, at least k) indices of the nearest other cells in both embeddings.
    labels
        (n_cells,).
    k
        Neighbours, the cell itself not counted.
    """
    names, codes = levels(labels, len(before))
    pure = [group_means(purities(near, labels, k=k), codes, len(names)) for near in (before, after)]
    ratios = np.divide(pure[1], pure[0], out=np.full(len(names), np.nan), where=pure[0] > 0)
    sizes = np.bincount(codes)
    rare = names[(sizes < RARE_CELLS) | (sizes < RARE_SHARE * len(codes))]
    with np.errstate(invalid="ignore"):
        flagged = names[ratios < RATIO]
    return Overmixing(
        dict(zip(names.tolist(), ratios.tolist(), strict=True)), tuple(rare.tolist()), tuple(flagged.tolist())
    )


def negative_transfer(
    with_source: np.ndarray, without: np.ndarray, *, donors: np.ndarray | None = None, seed: int = 0
) -> Estimate:
    """Mean difference of a per-cell score with and without a source of data, both resampled alike.

    An interval below 0 (``estimate.high < 0``) says that the source harms.

    Parameters
    ----------
    with_source, without
        (n_cells,) e.g. whether each cell was labelled correctly.
    donors
        (n_cells,) whole donors are resampled; with fewer than five of them, or None, cells are.
    seed
        Of the draws.
    """
    first, second = np.asarray(with_source, dtype=np.float64), np.asarray(without, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"scores have shapes {first.shape} and {second.shape}; both are of the same cells.")
    difference = first - second
    return bootstrap(lambda rows: float(difference[rows].mean()), len(difference), groups=donors, seed=seed)


def random_embedding(n_cells: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Standard normal numbers (n_cells, dim) float32: the floor, which knows nothing of cells and mixes batches perfectly."""
    return np.random.default_rng(seed).standard_normal((n_cells, dim)).astype(np.float32)
