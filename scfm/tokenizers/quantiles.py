"""Quantile bins of the values of many cells at once, bit-equal to numpy's, without a loop over cells."""

from __future__ import annotations

import numpy as np

__all__ = ["bin_ranges"]

_LARGEST_COUNT = 2**31
_LARGEST_TABLE = 1 << 23  # slots; data with larger counts are sorted


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
    if values.max() < _LARGEST_COUNT and values.min() >= 0:
        counts = values.astype(np.int32)
        if (counts == values).all():
            largest = np.zeros(len(lengths), dtype=np.int64)
            filled = np.flatnonzero(lengths)
            largest[filled] = np.maximum.reduceat(counts, offsets[filled])
            if int(largest.sum()) < _LARGEST_TABLE:
                return _by_counting(counts, lengths, largest + 1, n_bins)
    return _by_sorting(values, offsets, n_bins)


def _ranks(lengths: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks below and above each edge (n_cells, n_edges) int64, and the weight between them: np.quantile's linear method."""
    virtual = (lengths[:, None] - 1) * np.linspace(0, 1, n_bins - 1)
    low = virtual.astype(np.int64)
    return low, np.minimum(low + 1, lengths[:, None] - 1), virtual - low


def _lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """np.quantile's two-branch interpolation; edges equal to a value must be bit-equal to it."""
    difference = b - a
    return np.where(t >= 0.5, b - difference * (1 - t), a + difference * t)


def _by_counting(
    counts: np.ndarray, lengths: np.ndarray, widths: np.ndarray, n_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Through a table of each cell's counts 0 .. widths-1; the tables of all cells lie behind one another."""
    table = np.cumsum(widths) - widths  # where each cell's table begins
    slot = np.repeat(table, lengths) + counts  # (cell, count) of each entry
    value = np.arange(int(widths.sum())) - np.repeat(table, widths)  # the count that a slot stands for
    ordered = np.repeat(value, np.bincount(slot, minlength=len(value)))  # every cell's counts, ascending
    low, high, weight = _ranks(np.maximum(lengths, 1), n_bins)  # empty cells have edges too, that no entry asks for
    begin, last = (np.cumsum(lengths) - lengths)[:, None], len(counts) - 1
    edges = _lerp(ordered[np.minimum(begin + low, last)], ordered[np.minimum(begin + high, last)], weight)
    floor = edges.astype(np.int64)
    floor[lengths == 0] = 0
    before = np.repeat(np.arange(len(lengths)) * (n_bins - 1), widths)  # edges of the cells before
    not_above = _upto(table[:, None] + floor + (edges > floor), len(value)) - before  # edges <= the slot's count
    below = _upto(table[:, None] + floor + 1, len(value)) - before  # edges < it
    pair = (not_above * 256 + not_above - below).astype(np.uint16)[slot]
    return (pair >> np.uint16(8)).astype(np.uint8), pair.astype(np.uint8)


def _upto(slots: np.ndarray, size: int) -> np.ndarray:
    """How many of the slots are at or before each of 0 .. size-1 (size,) int64."""
    return np.cumsum(np.bincount(slots.reshape(-1), minlength=size + 1))[:size]


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
