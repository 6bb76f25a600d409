"""scPlantLLM's input: expressed genes in column order with the bin of their value, ``<cls>`` first.

Bins have equal width between a smallest and a largest value. The authors take these from the file at hand, so that a cell's bins depend
on the other cells in it; here they are fixed, from 0 to log1p(10,000), the largest value that log1p of counts per 10,000 can take.
`encoder.with_options(edges=scfm.cells.value_range(adata))` gives the authors' bins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, prepend, row_sums
from scfm.tokenizers.hashing import cell_hash, drawn, mix32

LARGEST = float(np.log1p(1e4))


@dataclass(frozen=True)
class EdgeBinTokenizer(Tokenizer):
    """Expressed genes with bins 1 .. bins-1 of equal width, ``<cls>`` with bin 0 first.

    Parameters
    ----------
    vocabulary
        With the special tokens "pad" and "cls".
    bins
        The authors' `n_bins`; bin 0 is "not expressed", and `bins` is the value of padding.
    edges
        Where the lowest bin begins and the highest is reached; values beyond are in these bins.
    most
        Genes of a cell (the authors' `seq_length`); of a cell with more, `kept` are drawn at random.
    kept
        How many; the authors' three quarters of `most`.
    unknown
        "drop": features the model does not know take no part. "pad": they keep their places, as padding nobody attends to, and count
        towards `most`, as in the original; cells of at most `most` genes have the same embedding either way.
    """

    vocabulary: Vocabulary
    bins: int = 101
    edges: tuple[float, float] = (0.0, LARGEST)
    most: int = 1500
    kept: int = 1125
    unknown: Literal["drop", "pad"] = "drop"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (len(self.edges) == 2 and 0 <= self.edges[0] <= self.edges[1]):
            raise InputError(f"edges={self.edges!r} are not two ascending values from 0 up.", "Pass (lowest, highest).")
        if self.unknown not in ("drop", "pad"):
            raise InputError(f"unknown={self.unknown!r} is not known.", "Pass 'drop' or 'pad'.")

    @property
    def context(self) -> int:  # type: ignore[override]
        """Most tokens of a cell, ``<cls>`` included."""
        return self.most + 1

    @property
    def hiding(self) -> Hiding:
        """The bin, as the mask behind that of padding."""
        return Hiding("bins", self.bins + 1)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        own = asdict(self) | {"edges": list(self.edges)}
        return {name: value for name, value in own.items() if name != "vocabulary"}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "bins" int16."""
        columns, values = block.matrix.indices, block.matrix.data
        offsets = block.matrix.indptr.astype(np.int64)
        ids = block.alignment.tokens.astype(np.int32)[columns]
        expressed = row_sums(ids >= 0, offsets).astype(np.int64)
        taken = ids >= 0 if self.unknown == "drop" else np.ones(len(ids), dtype=bool)
        ids, values, columns, offsets = _kept(taken, ids, values, columns, offsets=offsets)
        if (np.diff(offsets) > self.most).any():
            taken = self._drawn(ids, values, columns, offsets, seed)
            ids, values, columns, offsets = _kept(taken, ids, values, columns, offsets=offsets)
        pad, cls = self.vocabulary.id("pad"), self.vocabulary.id("cls")
        ids, bins = prepend([(cls, np.where(ids < 0, np.int32(pad), ids)), (0, self._binned(values))], offsets)
        return Tokens(
            fields={"ids": ids, "bins": bins},
            offsets=offsets + np.arange(len(offsets)),
            expressed=expressed,
            padding={"ids": pad, "bins": self.bins},
        )

    def _binned(self, values: np.ndarray) -> np.ndarray:
        """(n_entries,) int16: how many of the bins - 1 evenly spaced edges a value has reached, one at least."""
        edges = np.linspace(*self.edges, self.bins - 1)
        return np.maximum(np.searchsorted(edges, values, side="right"), 1).astype(np.int16)

    def _drawn(
        self, ids: np.ndarray, values: np.ndarray, columns: np.ndarray, offsets: np.ndarray, seed: int
    ) -> np.ndarray:
        """Mask of the entries kept, by a draw of the cell's own."""
        keys = np.where(ids < 0, columns + len(self.vocabulary), ids).astype(np.uint32)
        hashes = mix32(keys + np.uint32(0x9E3779B9))
        of_cell = cell_hash(hashes, values.astype(np.float32), offsets, seed)
        ranks = mix32(hashes ^ np.repeat(of_cell, np.diff(offsets)))
        return drawn(ranks, offsets, most=self.most, keep=self.kept)


def _kept(mask: np.ndarray, *arrays: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ragged arrays reduced to some entries, and the offsets that then hold."""
    if mask.all():
        return *arrays, offsets
    return *(array[mask] for array in arrays), np.concatenate([[0], np.cumsum(mask)])[offsets]
