"""Tokens of many cells as flat arrays with row offsets, and batches made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from scipy import sparse

from scfm.cells import Block
from scfm.errors import InputError, listing
from scfm.genes import Vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Batch",
    "Hiding",
    "Tokenizer",
    "Tokens",
    "batch_labels",
    "by_value",
    "batch_options",
    "append",
    "dense",
    "first_columns",
    "known_columns",
    "known_entries",
    "ordered_entries",
    "prepend",
    "ragged_positions",
    "row_sums",
]


@dataclass
class Batch:
    """Padded tensors of a few cells.

    Parameters
    ----------
    fields
        Per-token tensors (b, t), e.g. "ids" int64 and "values" float32.
    cells
        Per-cell tensors (b, ...), e.g. a batch label.
    pad
        (b, t) bool, True at padding; None when no cell is padded.
    """

    fields: dict[str, Tensor]
    cells: dict[str, Tensor]
    pad: Tensor | None

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __len__(self) -> int:
        return next(iter({**self.fields, **self.cells}.values())).shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return Batch(move(self.fields), move(self.cells), None if self.pad is None else self.pad.to(device))


@dataclass(frozen=True)
class Tokens:
    """Tokens of n cells.

    Parameters
    ----------
    fields
        Name -> per-token array (n_tokens, ...) of all cells behind one another.
    offsets
        Where each cell begins (n_cells + 1,) int64.
    expressed
        Features of each cell known to the model and not zero, before any truncation (n_cells,) int64.
    padding
        Name -> value that pads this field.
    cells
        Name -> per-cell array (n_cells, ...).
    """

    fields: Mapping[str, np.ndarray]
    offsets: np.ndarray
    expressed: np.ndarray
    padding: Mapping[str, float] = field(default_factory=dict)
    cells: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each cell (n_cells,) int64."""
        return np.diff(self.offsets)

    def cell(self, row: int) -> dict[str, np.ndarray]:
        """The fields of one cell."""
        return {name: array[self.offsets[row] : self.offsets[row + 1]] for name, array in self.fields.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self.cell(row) for row in range(len(self)))

    def padded(self, name: str, length: int | None = None) -> np.ndarray:
        """One field of all cells as a padded array (n_cells, length)."""
        lengths = self.lengths
        width = int(lengths.max(initial=0)) if length is None else length
        array = self.fields[name]
        out = np.full((len(self), width, *array.shape[1:]), self.padding.get(name, 0), dtype=array.dtype)
        out[np.arange(width) < lengths[:, None]] = array
        return out

    def lengthened(self, width: int) -> Tokens:
        """The same with padding behind every cell as ordinary tokens, up to `width`; for models whose original attends to it."""
        lengths = np.maximum(self.lengths, width)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = ragged_positions(offsets[:-1], self.lengths)
        fields = {}
        for name, array in self.fields.items():
            fields[name] = np.full((int(offsets[-1]), *array.shape[1:]), self.padding.get(name, 0), dtype=array.dtype)
            fields[name][at] = array
        return replace(self, fields=fields, offsets=offsets)

    def select(self, rows: np.ndarray) -> Tokens:
        """The tokens of some cells, in the order given."""
        lengths = self.lengths[rows]
        positions = ragged_positions(self.offsets[rows], lengths)
        return Tokens(
            fields={name: array[positions] for name, array in self.fields.items()},
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            expressed=self.expressed[rows],
            padding=self.padding,
            cells={name: array[rows] for name, array in self.cells.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The cells of several, behind one another; all come from one tokenizer."""
        first = parts[0]
        ends = np.cumsum([part.offsets[-1] for part in parts])
        return cls(
            fields={name: np.concatenate([part.fields[name] for part in parts]) for name in first.fields},
            offsets=np.concatenate(
                [first.offsets, *(part.offsets[1:] + end for part, end in zip(parts[1:], ends, strict=False))]
            ),
            expressed=np.concatenate([part.expressed for part in parts]),
            padding=first.padding,
            cells={name: np.concatenate([part.cells[name] for part in parts]) for name in first.cells},
        )

    def collate(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """A padded batch of some cells, in the order given."""
        import torch

        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        width = int(lengths.max(initial=0))
        positions = ragged_positions(self.offsets[rows], lengths)
        full = bool((lengths == width).all())
        real = None if full else np.arange(width) < lengths[:, None]
        fields = {}
        for name, array in self.fields.items():
            if real is None:
                dense = array[positions].reshape(len(rows), width, *array.shape[1:])
            else:
                dense = np.full((len(rows), width, *array.shape[1:]), self.padding.get(name, 0), dtype=array.dtype)
                dense[real] = array[positions]
            tensor = torch.from_numpy(dense)
            fields[name] = tensor if tensor.is_floating_point() else tensor.long()
        cells = {name: torch.from_numpy(np.ascontiguousarray(array[rows])) for name, array in self.cells.items()}
        return Batch(fields, cells, None if real is None else torch.from_numpy(~real))


@dataclass(frozen=True)
class Hiding:
    """How a token's content is hidden from the network, so that it can be asked for it.

    Parameters
    ----------
    field
        The field that is hidden.
    value
        What stands in its place; None takes the token out.
    classes
        Contents are whole numbers below this, to be told apart; 0: they are numbers.
    zeros
        Contents of 0 are hidden too; else only those of expressed features.
    width
        Numbers in the content of a token.
    """

    field: str
    value: float | None
    classes: int = 0
    zeros: bool = False
    width: int = 1


class Tokenizer(ABC):
    """How a cell becomes tokens.

    A tokenizer holds settings only. `stream` gives a function over blocks, so that randomness, where the authors have it, lives in
    one run and never in the tokenizer or the process.
    """

    vocabulary: Vocabulary
    context: int
    """Most tokens of a cell, special ones included."""
    equal_features: ClassVar[Literal["first", "sum", "each"]] = "each"
    """Of features that share a token: only the first counts (`ordered_entries`), their values are added, or each has a token of its own."""
    sequential: bool = False
    """Blocks must be tokenized in order (an upstream random stream is reproduced)."""
    random: ClassVar[bool] = False
    """Tokens depend on `seed`, because the authors draw them at random; other tokenizers ignore it."""
    draws_by_origin: ClassVar[bool] = False
    """Of random tokenizers: perturbed copies of a cell get its draws (`Block.origin`)."""

    group_key: str | None = None
    """Column of `obs` with the groups of a `grouped` tokenizer; None: all cells of a data set are one group."""
    group_size: int | None = None
    """Cut groups into runs of so many cells, in the order of the data; None: whole groups."""

    @property
    def grouped(self) -> bool:
        """Whether cells see each other: those of one group are read as one block and computed as one batch."""
        return False

    @property
    def hiding(self) -> Hiding | None:
        """How the content of tokens is hidden, for training on masked expression; None where that means nothing."""
        return None

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Columns of `obs` that `tokenize` reads; the data must have them."""
        return ()

    @property
    def obs_values(self) -> Mapping[str, tuple[str, ...]]:
        """Column among `obs_columns` -> what it may hold, where the model knows certain values only."""
        return {}

    @property
    def obs_fix(self) -> str:
        """What to type where a column of `obs_columns` is missing."""
        return "name another with with_options(...)"

    def stream(self, seed: int = 0) -> _Stream:
        """A function block -> Tokens for one run over a data set."""
        return lambda block: self.tokenize(block, seed)

    def priority(self, tokens: Tokens) -> np.ndarray | None:
        """Which tokens matter most (n_tokens,) float64, higher is more, infinite for special ones; None where a cell needs all of them."""
        return None

    @abstractmethod
    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block; a cell's depend on the cell, the settings and the seed alone."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer: for `save` and provenance."""


if TYPE_CHECKING:
    from collections.abc import Callable

    _Stream = Callable[[Block], Tokens]


def by_value(tokens: Tokens, vocabulary: Vocabulary) -> np.ndarray:
    """Priority of tokens by their field "values" (n_tokens,); special tokens first."""
    special = np.isin(tokens.fields["ids"], list(vocabulary.special_ids))
    return np.where(special, np.inf, tokens.fields["values"].astype(np.float64))


def ragged_positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions starts[i] .. starts[i] + lengths[i] - 1 of every row, behind one another (sum(lengths),) int64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def batch_options(names: Sequence[str] | None, count: int) -> dict[str, Any]:
    """Tokenizer options of a checkpoint with so many batch labels; files hold numbers only, so that users give the names.

    Raises
    ------
    InputError
        There are more or fewer names than labels.
    """
    if names is not None and len(names) != count:
        raise InputError(f"batches= names {len(names)} batches; the checkpoint has {count}.")
    return {"batch_key": "batch", "batches": tuple(map(str, range(count) if names is None else names))}


def batch_labels(block: Block, key: str | None, batches: Sequence[str]) -> dict[str, np.ndarray]:
    """The batch label of each cell, as `Tokens.cells` holds it: {"batch": (n_cells,) int64}, or nothing without a key.

    Raises
    ------
    InputError
        A cell is of a batch the checkpoint does not know.
    """
    if key is None:
        return {}
    known = {name: i for i, name in enumerate(batches)}
    names = block.obs[key].astype(str)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(
            f"obs[{key!r}] has batches unknown to the checkpoint: {listing(unknown)}; it knows {listing(batches)}.",
            "Fine-tune on these batches, or pass a batch_key whose values are among them.",
        )
    return {"batch": names.map(known).to_numpy(dtype=np.int64)}


def known_entries(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expressed features known to the model.

    Returns
    -------
    tokens, values
        (n_entries,) int32 token ids and float values, cells behind one another, column order within a cell.
    offsets
        (n_cells + 1,) int64.
    """
    matrix = block.matrix
    tokens = block.alignment.tokens.astype(np.int32)[matrix.indices]
    if len(tokens) == 0 or tokens.min() >= 0:
        return tokens, matrix.data, matrix.indptr.astype(np.int64)
    known = np.flatnonzero(tokens >= 0)
    return tokens[known], matrix.data[known], np.searchsorted(known, matrix.indptr)


def known_columns(block: Block) -> np.ndarray:
    """The columns of `known_entries` (n_entries,)."""
    indices = block.matrix.indices
    return indices[block.alignment.tokens[indices] >= 0]


def first_columns(block: Block) -> Block:
    """The same block where only the first of several columns with the same token is known to the model."""
    tokens = block.alignment.tokens
    first = np.zeros(len(tokens), dtype=bool)
    first[np.unique(tokens, return_index=True)[1]] = True
    if first[tokens >= 0].all():
        return block
    return replace(block, alignment=replace(block.alignment, tokens=np.where(first, tokens, -1)))


def ordered_entries(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expressed features known to the model in the order of its vocabulary; of columns that share a token the first one counts.

    Returns
    -------
    tokens, values
        (n_entries,) int32 token ids, ascending within a cell, and float values, cells behind one another.
    offsets
        (n_cells + 1,) int64.
    """
    block = first_columns(block)
    tokens, values, offsets = known_entries(block)
    known = block.alignment.tokens[block.alignment.tokens >= 0]
    if (np.diff(known) > 0).all():
        return tokens, values, offsets
    rows = sparse.csr_matrix((values, tokens, offsets), shape=(len(block), int(known.max()) + 1))
    rows.sort_indices()
    return rows.indices.astype(np.int32), rows.data, offsets


def row_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum of every row of a ragged array (n_rows,) float64."""
    lengths = np.diff(offsets)
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=values, minlength=len(lengths))


def dense(ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, width: int) -> np.ndarray:
    """Ragged rows as a matrix (n_rows, width) with 0 where a row has no entry; `ids` are the columns."""
    out = np.zeros((len(offsets) - 1, width), dtype=values.dtype)
    out[np.repeat(np.arange(len(out)), np.diff(offsets)), ids] = values
    return out


def append(array: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """k more entries (n_rows, k) behind every row of a ragged array (n_entries,) -> (n_entries + n_rows * k,)."""
    n, k = values.shape
    out = np.empty(len(array) + n * k, dtype=array.dtype)
    last = offsets[1:, None] + k * np.arange(n)[:, None] + np.arange(k)
    body = np.ones(len(out), dtype=bool)
    body[last] = False
    out[last] = values
    out[body] = array
    return out


def prepend(first: Sequence[tuple[float, np.ndarray]], offsets: np.ndarray) -> list[np.ndarray]:
    """Ragged arrays (n_entries,) with one more entry in front of every row (n_entries + n_rows,).

    Parameters
    ----------
    first
        (value put in front, array) of each array.
    offsets
        (n_rows + 1,) int64, of all of them.
    """
    rows = len(offsets) - 1
    at = offsets[:-1] + np.arange(rows)
    body = np.ones(int(offsets[-1]) + rows, dtype=bool)
    body[at] = False
    longer = []
    for value, array in first:
        out = np.empty(len(body), dtype=array.dtype)
        out[at] = value
        out[body] = array
        longer.append(out)
    return longer
