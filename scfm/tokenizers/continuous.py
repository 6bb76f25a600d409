"""Continuous expression: gene ids with normalised values, in column order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scfm.cells import Block
from scfm.genes import Vocabulary
from scfm.tokenizers.base import Hiding, Tokenizer, Tokens, known_entries

__all__ = ["ContinuousTokenizer"]


@dataclass(frozen=True)
class ContinuousTokenizer(Tokenizer):
    """Expressed genes with log1p-normalised values.

    Parameters
    ----------
    vocabulary
        Genes of the model; a token's position is its id.
    target_sum
        Counts a cell is scaled to; None leaves the values as they are.
    total
        What is scaled to `target_sum`: all features of the data, or those the model knows.
    scale
        Column of the vocabulary that values are divided by, after scaling the cell; None divides by nothing.
    log1p
        Take log1p after scaling.
    context
        Not limited by default.
    """

    vocabulary: Vocabulary
    target_sum: float | None = 1e4
    total: Literal["all", "known"] = "all"
    log1p: bool = True
    scale: str | None = None
    context: int = 1_000_000

    @property
    def hiding(self) -> Hiding:
        """The value, as 0."""
        return Hiding("values", 0.0)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {
            "target_sum": self.target_sum,
            "total": self.total,
            "log1p": self.log1p,
            "scale": self.scale,
            "context": self.context,
        }

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "values" float32; padded values are 0."""
        ids, values, offsets = known_entries(block)
        lengths = np.diff(offsets)
        if self.target_sum is not None:
            if self.total == "all":
                totals = np.asarray(block.matrix.sum(axis=1), dtype=np.float64).reshape(-1)
            else:
                cell = np.repeat(np.arange(len(lengths)), lengths)
                totals = np.bincount(cell, weights=values, minlength=len(lengths)).astype(np.float64)
            scale = np.divide(self.target_sum, totals, out=np.ones(len(totals)), where=totals > 0)
            values = values * np.repeat(scale, lengths)
        if self.scale is not None:
            values = values / self.vocabulary.columns[self.scale][ids]
        if self.log1p:
            values = np.log1p(values, dtype=np.float64)  # whatever the data's type
        return Tokens(
            fields={"ids": ids, "values": values.astype(np.float32)},
            offsets=offsets,
            expressed=lengths,
            padding={"ids": 0, "values": 0.0},
        )
