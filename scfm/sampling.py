"""Which cells make which batch: similar lengths together, in an order that follows from seed and epoch, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from scfm.examples import HELD_OUT, Cells, Item

__all__ = ["HeldOutBatches", "LengthBuckets", "class_chances"]

POOLED_BATCHES = 50
"""Batches among which cells are sorted by length; more shuffle less, fewer pad more."""


def class_chances(labels: np.ndarray) -> np.ndarray:
    """Chance of each cell to be drawn (n_cells,), so that all classes are as frequent."""
    chances = 1 / np.bincount(labels)[labels]
    return chances / chances.sum()


def shared(batch: np.ndarray, size: int, rank: int) -> np.ndarray:
    """A process' part of a batch of all: every size-th cell, of as many in each; first ones are repeated where that does not go out."""
    short = -len(batch) % size
    return np.concatenate([batch, np.resize(batch, short)])[rank::size] if short else batch[rank::size]


class LengthBuckets(Sampler[list[Item]]):
    """Shuffled batches of cells of similar length. An epoch's batches depend on the seed and the epoch only.

    With several processes a step's cells are those that one process would take with `batch_size * processes`: each gets its part of them.

    Parameters
    ----------
    batch_size
        Cells in a step of one process; where cells see each other, a step is a group.
    weights
        (n_cells,) chance of a cell to be drawn, with replacement; None takes each cell once an epoch.
    rank, processes
        Number of this process, and of all.
    """

    drop_last = False

    def __init__(
        self,
        cells: Cells,
        batch_size: int,
        *,
        seed: int = 0,
        weights: np.ndarray | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.cells, self.batch_size, self.seed, self.weights = cells, batch_size, seed, weights
        self.rank, self.processes = rank, processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.cells.groups is not None:
            return -(-len(self.cells.groups) // self.processes)
        return -(-len(self.cells) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[Item]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._groups(rng) if self.cells.groups is not None else self._buckets(rng)
        return iter([[(int(row), self.epoch) for row in batch] for batch in batches])

    def _groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        assert self.cells.groups is not None
        order = shared(rng.permutation(len(self.cells.groups)), self.processes, self.rank)
        return [self.cells.groups[i] for i in order]

    def _buckets(self, rng: np.random.Generator) -> list[np.ndarray]:
        count, size = len(self.cells), self.batch_size * self.processes
        order = rng.permutation(count) if self.weights is None else rng.choice(count, count, p=self.weights)
        lengths, pool = self.cells.lengths, size * POOLED_BATCHES
        batches = []
        for start in range(0, count, pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
            batches += [rows[at : at + size] for at in range(0, len(rows), size)]
        return [shared(batches[i], self.processes, self.rank) for i in rng.permutation(len(batches))]


class HeldOutBatches(Sampler[list[Item]]):
    """All held-out cells, longest first; with several processes some come twice, and are counted once by their row."""

    drop_last = False

    def __init__(self, cells: Cells, batch_size: int, *, rank: int = 0, processes: int = 1) -> None:
        self.batches: list[np.ndarray]
        if cells.groups is not None:
            order = shared(np.arange(len(cells.groups)), processes, rank)
            self.batches = [cells.groups[i] for i in order]
            return
        order = np.argsort(-cells.lengths, kind="stable")
        size = batch_size * processes
        whole = [order[at : at + size] for at in range(0, len(order), size)]
        if processes > 1:  # what is gathered must be of one size
            whole = [np.concatenate([batch, np.resize(batch, size - len(batch))]) for batch in whole]
        self.batches = [shared(batch, processes, rank) for batch in whole]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Item]]:
        return iter([[(int(row), HELD_OUT) for row in batch] for batch in self.batches])
