"""scMulan's sentence of a cell: expressed genes from Z to A with levels of expression, then ``<PCT>``, which asks for the cell type."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, append, ordered_entries


@dataclass(frozen=True)
class SentenceTokenizer(Tokenizer):
    """Expressed genes in reverse order of the vocabulary, with levels 1 .. n of equal width up to the cell's largest value.

    Parameters
    ----------
    vocabulary
        With the special tokens "prompt" and "end".
    levels
        Expression levels n: the level of x is ceil(n x / largest of the cell's listed genes).
    limit
        Values from here up are refused, as in the original: log1p of counts per 10,000 is 9.2 at most. None: no limit.
    context
        Not limited by default.
    """

    vocabulary: Vocabulary
    levels: int = 10
    limit: float | None = 10.0
    context: int = 1_000_000
    equal_features: ClassVar[Literal["first"]] = "first"

    @property
    def hiding(self) -> Hiding:
        """The bin, as 0."""
        return Hiding("bins", 0)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {name: value for name, value in asdict(self).items() if name != "vocabulary"}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "bins" int16, ``<PCT>`` last."""
        self._check(block)
        ids, values, offsets = ordered_entries(block)
        lengths = np.diff(offsets)
        bins = self._levels(values, offsets)
        reverse = np.repeat(offsets[:-1] + offsets[1:] - 1, lengths) - np.arange(len(ids))
        prompt = np.full((len(block), 1), self.vocabulary.id("prompt"))
        return Tokens(
            fields={
                "ids": append(ids[reverse], offsets, prompt),
                "bins": append(bins[reverse], offsets, np.zeros_like(prompt)),
            },
            offsets=offsets + np.arange(len(offsets)),
            expressed=lengths,
            padding={"ids": self.vocabulary.id("end"), "bins": 0},
        )

    def _check(self, block: Block) -> None:
        largest = block.matrix.data.max(initial=0)
        if self.limit is not None and largest >= self.limit:
            raise InputError(
                f"the values go up to {largest:.4g}; log1p of counts per 10,000, which scMulan reads, stays below {self.limit:g}.",
                "Normalise first: sc.pp.normalize_total(adata, target_sum=1e4); sc.pp.log1p(adata); or with_options(limit=None).",
            )

    def _levels(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Level of each value (n_entries,) int16: how many of the edges linspace(0, largest, n + 1) lie below it."""
        lengths = np.diff(offsets)
        filled = lengths > 0
        largest = np.zeros(len(lengths))
        if filled.any():
            largest[filled] = np.maximum.reduceat(values, offsets[:-1][filled])
        step = np.repeat(largest / self.levels, lengths)
        values = values.astype(np.float64)
        level = np.zeros(len(values), dtype=np.int16)
        for edge in range(self.levels):  # the last edge is the largest value itself
            level += edge * step < values
        return level
