"""Quantile bins of the values of many cells at once, bit-equal to numpy's, without a loop over cells."""

from __future__ import annotations

import numpy as np

__all__ = ["bin_ranges"]

_TABLES = (255, 4095)  # cells with counts up to these are counted in tables so wide; others are sorted


def bin_ranges(values: np.ndarray, offsets: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Highest possible bin of each value, and among how many it is drawn.

    Equals, per cell, ``np.digitize(x, edges)`` and ``np.digitize(x, edges) - np.digitize(x, edges, right=True)`` with
    ``edges = np.quantile(x, np.linspace(0, 1, n_bins - 1))``. Small integer counts are counted, not sorted.

    Parameters
    ----------
    values
        (n_entries,) float32, positive.
    offsets
        (n_cells + 1,) int64.
    n_bins
        At most 256.

    Returns
    -------
    top
        (n_entries,) uint8 in 1 .. n_bins-1.
    ties
        (n_entries,) uint8; 0 or 1: no choice.
    """
    if len(values) == 0:
        return np.zeros(0, np.uint8), np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    kind = np.full(len(lengths), len(_TABLES))  # the first table wide enough for the cell, or none: sorted
    if values.max() < 2**31 and values.min() >= 0 and ((counts := values.astype(np.int32)) == values).all():
        filled = np.flatnonzero(lengths)
        kind[filled] = np.searchsorted(_TABLES, np.maximum.reduceat(counts, offsets[filled]))
    kinds = np.unique(kind[lengths > 0])
    if len(kinds) == 1:
        return _ranges(values, offsets, n_bins, int(kinds[0]))
    top, ties = np.empty(len(values), np.uint8), np.empty(len(values), np.uint8)
    kind_of_entry = np.repeat(kind.astype(np.uint8), lengths)
    for each in kinds:
        entries = np.flatnonzero(kind_of_entry == each)
        part = np.concatenate([[0], np.cumsum(lengths[(kind == each) & (lengths > 0)])])
        top[entries], ties[entries] = _ranges(values[entries], part, n_bins, int(each))
    return top, ties


def _ranges(values: np.ndarray, offsets: np.ndarray, n_bins: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
    if kind == len(_TABLES):
        return _by_sorting(values, offsets, n_bins)
    return _by_counting(values.astype(np.uint8 if kind == 0 else np.uint16), offsets, n_bins)


def _ranks(lengths: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks below and above each edge (n_cells, n_edges) int64, and the weight between them: np.quantile's linear method."""
    virtual = (lengths[:, None] - 1) * np.linspace(0, 1, n_bins - 1)
    low = virtual.astype(np.int64)
    return low, np.minimum(low + 1, lengths[:, None] - 1), virtual - low


def _lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """np.quantile's two-branch interpolation; edges equal to a value must be bit-equal to it."""
    difference = b - a
    return np.where(t >= 0.5, b - difference * (1 - t), a + difference * t)


def _by_counting(values: np.ndarray, offsets: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    n, width = len(lengths), int(values.max()) + 1
    at = np.repeat(np.arange(n, dtype=np.int64) * width, lengths)
    at += values  # (cell, value) of each entry
    counts = np.bincount(at, minlength=n * width)
    ordered = np.repeat(np.tile(np.arange(width, dtype=values.dtype), n), counts)  # every cell's values, ascending
    low, high, weight = _ranks(np.maximum(lengths, 1), n_bins)  # empty cells have edges too, that no entry asks for
    begin = np.minimum(offsets[:-1, None], len(values) - 1)
    a = ordered[begin + low].astype(np.float64)
    b = ordered[np.minimum(begin + high, len(values) - 1)].astype(np.float64)
    edges = _lerp(a, b, weight)  # (n_cells, n_edges)
    floor = edges.astype(np.int64)
    cell = np.arange(n)[:, None] * (width + 1)
    below = _upto(cell + floor + 1, n, width)  # edges < v, for integer v
    not_above = _upto(cell + floor + (edges > floor), n, width)  # edges <= v
    pair = (not_above.astype(np.uint16) << np.uint16(8)) | (not_above - below)
    found = pair.reshape(-1)[at]
    return (found >> np.uint16(8)).astype(np.uint8), found.astype(np.uint8)


def _upto(places: np.ndarray, n: int, width: int) -> np.ndarray:
    """How many of each row's places are at most v, for v in 0 .. width-1 (n, width) uint8."""
    counts = np.bincount(places.reshape(-1), minlength=n * (width + 1)).astype(np.uint8).reshape(n, width + 1)
    return np.cumsum(counts, axis=1, dtype=np.uint8)[:, :width]


def _by_sorting(values: np.ndarray, offsets: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    cell = np.repeat(np.arange(len(lengths)), lengths)
    ordered = values[np.lexsort((values, cell))]
    low, high, weight = _ranks(np.maximum(lengths, 1), n_bins)
    last = len(values) - 1
    begin = offsets[:-1, None]
    edges = _lerp(ordered[np.minimum(begin + low, last)], ordered[np.minimum(begin + high, last)], weight)
    top = np.zeros(len(values), np.uint8)
    below = np.zeros(len(values), np.uint8)
    for edge in edges.T:
        of_cell = edge[cell]
        top += of_cell <= values
        below += of_cell < values
    return top, top - below
