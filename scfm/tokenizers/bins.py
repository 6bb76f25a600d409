"""Binned expression: gene ids with the quantile bin of their value (scGPT, Cui et al. 2024, doi:10.1038/s41592-024-02201-0).

Bins are the authors' `binning`: with ``edges = quantile(x, linspace(0, 1, n_bins - 1))`` of a cell's non-zero values, a value between two
edges has one bin; a value that coincides with k edges gets one of k bins at random. Most counts of a cell are ones, so most bins are
random. `ties="cell"` (default) draws from a hash of the cell's own content, gene and seed, so that a cell's tokens depend on nothing
else; `ties="upstream"` draws from numpy's legacy stream in the order of the cells, as the original does without data loader workers.
`ties="highest"` draws nothing: it takes the highest of the k, as plain `digitize` does (models that bin so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers.base import (
    Hiding,
    Tokenizer,
    Tokens,
    batch_labels,
    by_value,
    known_columns,
    known_entries,
    prepend,
    ragged_positions,
)
from scfm.tokenizers.hashing import cell_hash, mix32, token_hash
from scfm.tokenizers.quantiles import bin_ranges

if TYPE_CHECKING:
    import torch

    from scfm.tokenizers.base import _Stream

__all__ = ["BinTokenizer"]


@dataclass(frozen=True)
class BinTokenizer(Tokenizer):
    """Genes with binned values, ``<cls>`` first.

    Parameters
    ----------
    vocabulary
        With the special tokens "pad" and "cls".
    bins
        The authors' `n_bins`: bins 1 .. bins-1 for expressed genes; None keeps the values as they are.
    context
        Most tokens of a cell, ``<cls>`` included; of longer cells a subset of the genes is drawn (bins are computed before).
    cls_value
        Value of the ``<cls>`` token; None for no ``<cls>``.
    pad_value
        Value of padding.
    target_sum
        Scale each cell to this total over the known genes before binning; None leaves counts.
    log1p
        Take log1p before binning.
    zeros
        Also give tokens to genes that are not expressed (value 0), in the order of the columns.
    ties
        "cell", "highest" or "upstream", see the module's text.
    torch_draws
        With `ties="upstream"`: 32-bit numbers the original's process has drawn from torch's stream before the first cell
        (initialising its model, and the data loader's seed), which decide the genes kept of cells longer than `context`.
    shuffled
        The genes kept of cells longer than `context` come in the order they were drawn, not in that of the columns: for networks that
        read the order and were trained so.
    batch_key
        Column of `obs` with the batch of each cell, for networks with batch labels.
    batches
        Names of the batches in the order of the network's labels.
    """

    vocabulary: Vocabulary
    bins: int | None = 51
    context: int = 1200
    cls_value: float | None = -2.0
    pad_value: float = -2.0
    target_sum: float | None = None
    log1p: bool = False
    zeros: bool = False
    ties: Literal["cell", "highest", "upstream"] = "cell"
    torch_draws: int = 0
    shuffled: bool = False
    batch_key: str | None = None
    batches: tuple[str, ...] = ()
    _gene_hash: np.ndarray = field(init=False, repr=False, compare=False)
    random: ClassVar[bool] = True
    draws_by_origin: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.ties not in ("cell", "highest", "upstream"):
            raise InputError(f"ties={self.ties!r} is not known.", "Pass ties='cell', 'highest' or 'upstream'.")
        object.__setattr__(self, "_gene_hash", token_hash(len(self.vocabulary)))

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        """Whether blocks must come in order."""
        return self.ties == "upstream"

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The batch key, where one is set."""
        return () if self.batch_key is None else (self.batch_key,)

    @property
    def hiding(self) -> Hiding:
        """The value, as -1: scGPT's `mask_value`, and one that networks which multiply genes by values can tell from "not there"."""
        return Hiding("values", -1.0, zeros=self.zeros)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        own = asdict(self)
        return {
            name: list(v) if isinstance(v, tuple) else v
            for name, v in own.items()
            if name not in ("vocabulary", "_gene_hash")
        }

    def stream(self, seed: int = 0) -> _Stream:
        """A function block -> Tokens; with `ties="upstream"` it continues the original's numpy and torch streams from block to block."""
        if self.ties != "upstream":
            return lambda block: self._tokens(block, seed)
        import torch

        uniforms = np.random.RandomState(seed)

        @cache  # asked for by the first cell that is too long, if any: at the released size there are 77 M draws to skip
        def permutations() -> torch.Generator:
            stream = torch.Generator().manual_seed(seed)
            for done in range(0, self.torch_draws, 1 << 20):  # one 32-bit draw each
                torch.empty(min(1 << 20, self.torch_draws - done)).uniform_(generator=stream)
            return stream

        return lambda block: self._tokens(block, seed, uniforms, permutations)

    def priority(self, tokens: Tokens) -> np.ndarray:
        """Higher values matter more."""
        return by_value(tokens, self.vocabulary)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "values" float32."""
        return self.stream(seed)(block)

    def _tokens(
        self,
        block: Block,
        seed: int,
        uniforms: np.random.RandomState | None = None,
        permutations: Callable[[], torch.Generator] | None = None,
    ) -> Tokens:
        ids, values, offsets = known_entries(block)
        expressed = np.diff(offsets)
        values = self._normalised(values, offsets).astype(np.float32, copy=False)
        numbers = self._origin_hash(block, seed)
        draws = None if uniforms is not None else self._draws(ids, values, offsets, seed, numbers)
        if self.bins is not None:
            values = self._binned(values, offsets, draws, uniforms)
        if self.zeros:
            ids, values, offsets = _with_zeros(block.alignment.tokens, known_columns(block), values, offsets)
            draws = None if draws is None else self._draws(ids, values, offsets, seed, numbers)
        room = self.context - (self.cls_value is not None)
        keep = self._subset(offsets, room, draws, permutations)
        if keep is not None:
            ids, values = ids[keep], values[keep]
            offsets = np.concatenate([[0], np.cumsum(np.minimum(np.diff(offsets), room))])
        if self.cls_value is not None:
            ids, values = prepend([(self.vocabulary.id("cls"), ids), (self.cls_value, values)], offsets)
            offsets = offsets + np.arange(len(offsets))
        return Tokens(
            fields={"ids": ids, "values": values},
            offsets=offsets,
            expressed=expressed,
            padding={"ids": self.vocabulary.id("pad"), "values": self.pad_value},
            cells=batch_labels(block, self.batch_key, self.batches),
        )

    def _normalised(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if self.target_sum is not None:
            lengths = np.diff(offsets)
            totals = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=values, minlength=len(lengths))
            scale = np.divide(self.target_sum, totals, out=np.ones_like(totals), where=totals > 0)
            values = values * np.repeat(scale, lengths)
        return np.log1p(values, dtype=np.float64) if self.log1p else values  # whatever the data's type

    def _origin_hash(self, block: Block, seed: int) -> np.ndarray | None:
        """Hashes of the cells that these were before they were perturbed (n_cells,); None where they are as they are."""
        if block.origin is None:
            return None
        ids, values, offsets = known_entries(replace(block, matrix=block.origin, origin=None))
        values = self._normalised(values, offsets).astype(np.float32, copy=False)
        return cell_hash(self._gene_hash[ids], values, offsets, seed)

    def _draws(
        self, ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, seed: int, numbers: np.ndarray | None = None
    ) -> np.ndarray:
        """A random number of each entry's own (n_entries,) uint32, by the cells' hashes."""
        genes = self._gene_hash[ids]
        if numbers is None:
            numbers = cell_hash(genes, values, offsets, seed)
        return mix32(genes ^ np.repeat(numbers, np.diff(offsets)))

    def _binned(
        self, values: np.ndarray, offsets: np.ndarray, draws: np.ndarray | None, uniforms: np.random.RandomState | None
    ) -> np.ndarray:
        assert self.bins is not None
        top, ties = bin_ranges(values, offsets, self.bins)
        if (
            uniforms is not None
        ):  # one a value, cells in order: the draws of the original's `np.random.rand(n)` per cell
            return np.ceil(top + uniforms.rand(len(values)) * -ties.astype(np.float64)).astype(np.float32)
        if self.ties == "highest":
            return top.astype(np.float32)
        assert draws is not None
        below = (draws >> np.uint32(16)) * ties >> np.uint32(16)  # uniform on 0 .. ties-1
        return (top - below.astype(np.uint8)).astype(np.float32)

    def _subset(
        self,
        offsets: np.ndarray,
        room: int,
        draws: np.ndarray | None,
        permutations: Callable[[], torch.Generator] | None,
    ) -> np.ndarray | None:
        """Which entries are kept of cells with more than `room` genes (a mask, or positions); None when no cell is that long."""
        lengths = np.diff(offsets)
        if not (lengths > room).any():
            return None
        if draws is None:
            assert permutations is not None
            return _permuted(offsets, room, permutations())
        long = np.flatnonzero(lengths > room)
        positions = ragged_positions(offsets[long], lengths[long])
        rank = mix32(draws[positions] + np.uint32(1)).astype(np.uint64)
        order = np.argsort(
            np.repeat(long.astype(np.uint64) << np.uint64(32), lengths[long]) | rank
        )  # by cell, then by draw
        late = ragged_positions(np.concatenate([[0], np.cumsum(lengths[long])[:-1]]) + room, lengths[long] - room)
        mask = np.ones(int(offsets[-1]), dtype=bool)
        if not self.shuffled:
            mask[positions[order[late]]] = False
            return mask
        mask[positions[late]] = False
        arranged = np.arange(len(mask))
        arranged[positions] = positions[order]
        return arranged[mask]


def _permuted(offsets: np.ndarray, room: int, permutations: torch.Generator) -> np.ndarray:
    """The original's subset of long cells: one torch.randperm a cell, in the order of the cells."""
    import torch

    kept = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        length = end - begin
        chosen = torch.randperm(length, generator=permutations)[:room].numpy() if length > room else np.arange(length)
        kept.append(begin + chosen)
    return np.concatenate(kept)


def _with_zeros(
    tokens: np.ndarray, columns: np.ndarray, values: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All known columns of every cell, in column order; those not expressed have value 0."""
    known = np.flatnonzero(tokens >= 0)
    place = np.full(len(tokens), -1, dtype=np.int64)
    place[known] = np.arange(len(known))
    n = len(offsets) - 1
    dense = np.zeros((n, len(known)), dtype=np.float32)
    dense[np.repeat(np.arange(n), np.diff(offsets)), place[columns]] = values
    return np.tile(tokens[known].astype(np.int32), n), dense.reshape(-1), np.arange(n + 1, dtype=np.int64) * len(known)
