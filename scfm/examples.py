"""What a training run reads: labelled cells as tokens, as embeddings or with their matrix, and the batches made of them.

An item of a training set is a pair (row, draw): which cell, and which of its random versions. The draw is the epoch, or `HELD_OUT` for
cells that are only judged, so that everything random about a batch (masks, views) follows from the seed, the epoch and its cells: a resumed
run sees what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scfm.cells import Block
from scfm.encoder import CellEncoder
from scfm.inference import evaluating
from scfm.tokenizers.base import Batch, Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HELD_OUT", "Cells", "Item", "Labelled", "Matrices", "batch_of", "draws", "embeddings", "spread"]

Item = tuple[int, int]
HELD_OUT = -1
"""The draw of held-out cells: the same at every evaluation."""
SAMPLE_CELLS = 1024
"""Most cells that `spread` gives."""


@dataclass(frozen=True)
class Matrices:
    """The values of cells as the tokenizer got them: for objectives that change or predict them.

    Parameters
    ----------
    parts
        All cells of each data set that was read.
    part, row
        (n_cells,) int64: which of the parts holds a cell, and where.
    """

    parts: tuple[Block, ...]
    part: np.ndarray
    row: np.ndarray

    def select(self, rows: np.ndarray) -> Matrices:
        """Those of some cells, in the order given."""
        return replace(self, part=self.part[rows], row=self.row[rows])

    def blocks(self, rows: np.ndarray) -> list[tuple[np.ndarray, Block]]:
        """Some cells by the data set they are of: positions in `rows`, and their block."""
        found = []
        for number in np.unique(self.part[rows]):
            at = np.flatnonzero(self.part[rows] == number)
            block, own = self.parts[number], self.row[rows[at]]
            found.append((at, replace(block, matrix=block.matrix[own], obs=block.obs.iloc[own])))
        return found


@dataclass(frozen=True)
class Labelled:
    """Cells with names, obs and tokens, in the order of the data; empty ones are left out.

    Parameters
    ----------
    groups
        Rows that are computed together, where cells see each other.
    matrices
        Their values, where the objective asked for them.
    """

    names: np.ndarray
    obs: pd.DataFrame
    tokens: Tokens
    groups: list[np.ndarray] | None = None
    matrices: Matrices | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: np.ndarray) -> Labelled:
        """Some cells, in the order given; groups that are not whole are dropped."""
        groups = None
        if self.groups is not None:
            place = np.full(len(self.names), -1)
            place[rows] = np.arange(len(rows))
            groups = [place[group] for group in self.groups if (place[group] >= 0).all()]
        matrices = None if self.matrices is None else self.matrices.select(rows)
        return Labelled(self.names[rows], self.obs.iloc[rows], self.tokens.select(rows), groups, matrices)


class Cells(Dataset[Item]):
    """Labelled cells, as tokens or, where the network is frozen, as embeddings.

    Parameters
    ----------
    inputs
        Tokens of the cells, or embeddings (n_cells, dim).
    labels
        As `Target.encode` gives them.
    groups
        Rows that are computed together, where cells see each other.
    """

    def __init__(self, inputs: Tokens | np.ndarray, labels: np.ndarray, groups: list[np.ndarray] | None = None) -> None:
        self.inputs, self.labels, self.groups = inputs, labels, groups

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, item: Item) -> Item:
        return item

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each cell; 1 for an embedding."""
        return self.inputs.lengths if isinstance(self.inputs, Tokens) else np.ones(len(self.inputs), dtype=np.int64)

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """A batch as Trainer moves it: nested mappings of tensors; "rows" says which cells it holds."""
        rows = np.array([row for row, _ in items], dtype=np.int64)
        return {
            "rows": torch.from_numpy(rows),
            "labels": torch.from_numpy(self.labels[rows]),
            **self.inputs_of(rows, items[0][1]),
        }

    def inputs_of(self, rows: np.ndarray, draw: int) -> dict[str, Any]:
        """What the network reads of a batch; an objective with inputs of its own overrides this."""
        if isinstance(self.inputs, Tokens):
            return tensors_of(self.inputs.collate(rows))
        return {"embedding": torch.from_numpy(self.inputs[rows])}


def tensors_of(batch: Batch) -> dict[str, Any]:
    """A batch as nested mappings of tensors."""
    found: dict[str, Any] = {"fields": batch.fields, "cells": batch.cells}
    return found if batch.pad is None else {**found, "pad": batch.pad}


def batch_of(inputs: dict[str, Any]) -> Batch:
    """What `tensors_of` took apart."""
    pad: Tensor | None = inputs.get("pad")
    return Batch(inputs["fields"], inputs["cells"], pad)


def draws(seed: int, draw: int, rows: np.ndarray) -> np.random.Generator:
    """The random numbers of a batch: of the run's seed, the draw and the cells."""
    return np.random.default_rng((seed, draw - HELD_OUT, *rows.tolist()))


def spread(cells: Labelled, most: int = SAMPLE_CELLS) -> Labelled:
    """At most so many cells, evenly spaced; all where they are computed together."""
    if cells.groups is not None or len(cells) <= most:
        return cells
    return cells.select(np.unique(np.linspace(0, len(cells) - 1, most).astype(np.int64)))


def embeddings(encoder: CellEncoder, cells: Labelled) -> np.ndarray:
    """(n_cells, dim) float32, cells of similar length together."""
    out = np.empty((len(cells), encoder.network.dim), dtype=np.float32)
    order = np.argsort(-cells.tokens.lengths, kind="stable")
    plan = cells.groups if cells.groups is not None else [order[at : at + 16] for at in range(0, len(order), 16)]
    with evaluating(encoder.network), torch.inference_mode():
        for rows in plan:
            encoded = encoder.network(cells.tokens.collate(rows).to(encoder.device)).cells
            assert encoded is not None
            out[rows] = encoded.float().cpu().numpy()
    return out
