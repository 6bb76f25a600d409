"""Binned expression: gene ids with the quantile bin of their value (scGPT, Cui et al. 2024, doi:10.1038/s41592-024-02201-0).

Bins are the authors' `binning`: with ``edges = quantile(x, linspace(0, 1, n_bins - 1))`` of a cell's non-zero values, a value between two
edges has one bin; a value that coincides with k edges gets one of k bins at random. Most counts of a cell are ones, so most bins are
random. `ties="cell"` (default) draws from a hash of the cell's own content, gene and seed, so that a cell's tokens depend on nothing
else; `ties="upstream"` draws from numpy's legacy stream in the order of the cells, as the original does without data loader workers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError, listing
from scfm.genes import Vocabulary
from scfm.tokenizers.base import Tokenizer, Tokens, known_entries, prepend, ragged_positions

if TYPE_CHECKING:
    import torch

    from scfm.tokenizers.base import _Stream

__all__ = ["BinTokenizer", "bin_ranges"]

_MAX_TABLE = 256  # counts below this are binned through a table, others by sorting


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
        "cell" or "upstream", see the module's text.
    torch_draws
        With `ties="upstream"`: 32-bit numbers the original's process has drawn from torch's stream before the first cell
        (initialising its model, and the data loader's seed), which decide the genes kept of cells longer than `context`.
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
    ties: Literal["cell", "upstream"] = "cell"
    torch_draws: int = 0
    batch_key: str | None = None
    batches: tuple[str, ...] = ()
    _gene_hash: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.ties not in ("cell", "upstream"):
            raise InputError(f"ties={self.ties!r} is not known.", "Pass ties='cell' or ties='upstream'.")
        hashes = _mix32(np.arange(len(self.vocabulary), dtype=np.uint32) + np.uint32(0x9E3779B9))
        object.__setattr__(self, "_gene_hash", hashes)

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        """Whether blocks must come in order."""
        return self.ties == "upstream"

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
        if self.ties == "cell":
            return lambda block: self._tokens(block, seed)
        import torch

        uniforms = np.random.RandomState(seed)
        permutations = torch.Generator().manual_seed(seed)
        for done in range(0, self.torch_draws, 1 << 20):  # one 32-bit draw each
            torch.empty(min(1 << 20, self.torch_draws - done)).uniform_(generator=permutations)
        return lambda block: self._tokens(block, seed, uniforms, permutations)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "values" float32."""
        return self.stream(seed)(block)

    def _tokens(
        self,
        block: Block,
        seed: int,
        uniforms: np.random.RandomState | None = None,
        permutations: torch.Generator | None = None,
    ) -> Tokens:
        ids, values, columns, offsets = known_entries(block)
        n = len(block)
        expressed = np.diff(offsets)
        values = self._normalised(values, offsets).astype(np.float32)
        cell_hash = _cell_hash(self._gene_hash[ids], values, offsets, seed) if uniforms is None else None
        if self.bins is not None:
            values = self._binned(ids, values, offsets, cell_hash, uniforms)
        if self.zeros:
            ids, values, offsets = _with_zeros(block.alignment.tokens, columns, values, offsets)
        room = self.context - (self.cls_value is not None)
        keep = self._subset(ids, offsets, room, cell_hash, permutations)
        if keep is not None:
            ids, values = ids[keep], values[keep]
            offsets = np.concatenate([[0], np.cumsum(np.minimum(np.diff(offsets), room))])
        if self.cls_value is not None:
            ids = prepend(ids, offsets, self.vocabulary.id("cls"))
            values = prepend(values, offsets, self.cls_value)
            offsets = offsets + np.arange(n + 1)
        return Tokens(
            fields={"ids": ids, "values": values},
            offsets=offsets,
            expressed=expressed,
            padding={"ids": self.vocabulary.id("pad"), "values": self.pad_value},
            cells={"batch": self._labels(block)} if self.batch_key is not None else {},
        )

    def _normalised(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if self.target_sum is not None:
            lengths = np.diff(offsets)
            totals = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=values, minlength=len(lengths))
            scale = np.divide(self.target_sum, totals, out=np.ones_like(totals), where=totals > 0)
            values = values * np.repeat(scale, lengths)
        return np.log1p(values) if self.log1p else values

    def _binned(
        self,
        ids: np.ndarray,
        values: np.ndarray,
        offsets: np.ndarray,
        cell_hash: np.ndarray | None,
        uniforms: np.random.RandomState | None,
    ) -> np.ndarray:
        assert self.bins is not None
        top, ties = bin_ranges(values, offsets, self.bins)
        if (
            uniforms is not None
        ):  # one uniform a value, cells in order: the draws of the original's `np.random.rand(n)` per cell
            return np.ceil(top + uniforms.rand(len(values)) * -ties).astype(np.float32)
        assert cell_hash is not None
        draw = _mix32(self._gene_hash[ids] ^ np.repeat(cell_hash, np.diff(offsets))).astype(np.uint64)
        draw *= ties.astype(np.uint64)
        draw >>= np.uint64(32)  # uniform on 0 .. ties-1
        return (top - draw.astype(np.int16)).astype(np.float32)

    def _subset(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        room: int,
        cell_hash: np.ndarray | None,
        permutations: torch.Generator | None,
    ) -> np.ndarray | None:
        """Positions kept of cells with more than `room` genes; None when none is that long."""
        lengths = np.diff(offsets)
        if not (lengths > room).any():
            return None
        kept = []
        for row in (
            range(len(lengths)) if permutations is not None else []
        ):  # the original's order of draws, cell by cell
            import torch

            begin, length = int(offsets[row]), int(lengths[row])
            chosen = (
                torch.randperm(length, generator=permutations)[:room].numpy() if length > room else np.arange(length)
            )
            kept.append(begin + chosen)
        if kept:
            return np.concatenate(kept)
        assert cell_hash is not None
        rank = _mix32(_mix32(self._gene_hash[ids] ^ np.repeat(cell_hash, lengths)) + np.uint32(1))
        long = np.flatnonzero(lengths > room)
        mask = np.ones(len(ids), dtype=bool)
        positions = ragged_positions(offsets[long], lengths[long])
        order = np.lexsort((rank[positions], np.repeat(long, lengths[long])))  # by cell, then by hash
        late = ragged_positions(np.concatenate([[0], np.cumsum(lengths[long])[:-1]]) + room, lengths[long] - room)
        mask[positions[order[late]]] = False
        return np.flatnonzero(mask)

    def _labels(self, block: Block) -> np.ndarray:
        """Batch label of each cell (n_cells,) int64."""
        known = {name: i for i, name in enumerate(self.batches)}
        names = block.obs[self.batch_key].astype(str)
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise InputError(
                f"obs[{self.batch_key!r}] has batches unknown to the checkpoint: {listing(unknown)}; it knows {listing(self.batches)}.",
                "Fine-tune on these batches, or pass a batch_key whose values are among them.",
            )
        return names.map(known).to_numpy(dtype=np.int64)


def _mix32(x: np.ndarray) -> np.ndarray:
    """Scramble uint32 values (the finaliser "lowbias32", C. Wellons 2018); a bijection."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def _cell_hash(gene_hash: np.ndarray, values: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
    """A number of each cell's own content, whatever the order of its genes (n_cells,) uint32."""
    entries = gene_hash * (values.view(np.uint32) | np.uint32(1))
    total = np.zeros(len(entries) + 1, dtype=np.uint64)
    np.cumsum(entries, dtype=np.uint64, out=total[1:])
    sums = total[offsets[1:]] - total[offsets[:-1]]  # wraps around; differences stay exact
    folded = (sums ^ (sums >> np.uint64(32))).astype(np.uint32)
    return _mix32(folded ^ _mix32(np.array([seed & 0xFFFFFFFF], dtype=np.uint32)))


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

    Returns
    -------
    top
        (n_entries,) int16 in 1 .. n_bins-1.
    ties
        (n_entries,) int16; 0 or 1: no choice.
    """
    if len(values) == 0:
        return np.zeros(0, np.int16), np.zeros(0, np.int16)
    small = values.astype(np.uint8) if values.min() >= 0 and values.max() < _MAX_TABLE else None
    if small is not None and (small == values).all():
        return _ranges_by_counting(small, offsets, n_bins)
    return _ranges_by_sorting(values, offsets, n_bins)


def _ranks(lengths: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks below and above each edge (n_cells, n_edges) int64 and the weight between them, as np.quantile's linear method has them."""
    virtual = (lengths[:, None] - 1) * np.linspace(0, 1, n_bins - 1)
    low = np.floor(virtual)
    weight = virtual - low
    low = low.astype(np.int64)
    return low, np.minimum(low + 1, lengths[:, None] - 1), weight


def _lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """np.quantile's two-branch interpolation; edges equal to a value must be bit-equal to it."""
    return np.where(t >= 0.5, b - (b - a) * (1 - t), a + (b - a) * t)


def _ranges_by_counting(values: np.ndarray, offsets: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    n, width = len(lengths), int(values.max()) + 2  # columns 0 .. max and one beyond, for edges above
    at = np.repeat(np.arange(n, dtype=np.int32) * np.int32(width), lengths) + values  # (cell, value) of each entry
    upto = np.cumsum(np.bincount(at, minlength=n * width).reshape(n, width), axis=1)  # values <= v
    occupied = np.maximum(lengths, 1)  # empty cells have edges too, used by no entry
    low, high, weight = _ranks(occupied, n_bins)
    row = np.arange(n)[:, None]
    start = row * np.int64(offsets[-1] + n)  # one sorted sequence of all cells' cumulative counts
    flat = (upto + start).reshape(-1)
    a = np.minimum(
        np.searchsorted(flat, low + start, side="right") - row * width, width - 1
    )  # value at a rank: first v with upto[v] > rank
    b = np.minimum(np.searchsorted(flat, high + start, side="right") - row * width, width - 1)
    edges = _lerp(a.astype(np.float64), b.astype(np.float64), weight)
    size = n * (width + 1)
    base = row * (width + 1)
    not_above = (
        np.bincount((base + np.ceil(edges).astype(np.int64)).reshape(-1), minlength=size).reshape(n, -1).cumsum(axis=1)
    )
    below = (
        np.bincount((base + np.floor(edges).astype(np.int64) + 1).reshape(-1), minlength=size)
        .reshape(n, -1)
        .cumsum(axis=1)
    )
    top = not_above[:, :width].astype(np.int16)
    ties = top - below[:, :width].astype(np.int16)
    return top.reshape(-1)[at], ties.reshape(-1)[at]


def _ranges_by_sorting(values: np.ndarray, offsets: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    cell = np.repeat(np.arange(len(lengths)), lengths)
    ordered = values[np.lexsort((values, cell))]
    low, high, weight = _ranks(np.maximum(lengths, 1), n_bins)
    last = len(values) - 1
    begin = offsets[:-1, None]
    edges = _lerp(ordered[np.minimum(begin + low, last)], ordered[np.minimum(begin + high, last)], weight)
    top = np.zeros(len(values), np.int16)
    below = np.zeros(len(values), np.int16)
    for edge in edges.T:
        of_cell = edge[cell]
        top += of_cell <= values
        below += of_cell < values
    return top, top - below
