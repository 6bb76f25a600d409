"""Randomness of a cell's own: numbers that depend on the cell's content and a seed, and on nothing around it."""

from __future__ import annotations

import numpy as np

__all__ = ["cell_hash", "drawn", "mix32", "token_hash"]


def mix32(x: np.ndarray) -> np.ndarray:
    """Scramble uint32 values in place and return them (the bijection "lowbias32", C. Wellons 2018)."""
    scratch = np.empty_like(x)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        np.right_shift(x, np.uint32(shift), out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        np.multiply(x, np.uint32(factor), out=x)
    np.right_shift(x, np.uint32(16), out=scratch)
    return np.bitwise_xor(x, scratch, out=x)


def token_hash(count: int) -> np.ndarray:
    """A scrambled number for each token id (count,) uint32."""
    return mix32(np.arange(count, dtype=np.uint32) + np.uint32(0x9E3779B9))


def cell_hash(tokens: np.ndarray, values: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
    """A number of each cell's content, whatever the order of its genes.

    Parameters
    ----------
    tokens
        (n_entries,) uint32, `token_hash` of each entry.
    values
        (n_entries,) float32.
    offsets
        (n_cells + 1,) int64.
    seed
        Any integer.

    Returns
    -------
    np.ndarray
        (n_cells,) uint32.
    """
    entries = tokens * (values.view(np.uint32) | np.uint32(1))
    sums = np.zeros(len(offsets) - 1, dtype=np.uint64)
    filled = np.flatnonzero(np.diff(offsets))
    sums[filled] = np.add.reduceat(entries, offsets[filled], dtype=np.uint64) if len(filled) else 0
    folded = (sums ^ (sums >> np.uint64(32))).astype(np.uint32)
    return mix32(folded ^ mix32(np.array([seed & 0xFFFFFFFF], dtype=np.uint32)))


def drawn(ranks: np.ndarray, offsets: np.ndarray, *, most: int, keep: int) -> np.ndarray:
    """Which entries stay (n_entries,) bool, where cells with more than `most` keep only `keep` of them: those of the lowest ranks.

    Parameters
    ----------
    ranks
        (n_entries,) uint32, a random number of each entry's own.
    offsets
        (n_cells + 1,) int64.
    """
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    order = np.argsort(row << np.uint64(32) | ranks, kind="stable")  # by cell, then by rank
    place = np.empty(len(ranks), dtype=np.int64)
    place[order] = np.arange(len(ranks)) - np.repeat(offsets[:-1], lengths)
    return place < np.repeat(np.where(lengths > most, keep, lengths), lengths)
