"""scBERT's input: floor(log2(1 + counts per 10,000)), at most 5, for every gene of its list, then one more token 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, dense, ordered_entries, row_sums


@dataclass(frozen=True)
class LevelTokenizer(Tokenizer):
    """All genes of the vocabulary in its order, with coarse levels of expression, and the special token "cls" behind them.

    Parameters
    ----------
    vocabulary
        Genes, then "cls".
    levels
        Highest level (the authors' `bin_num`); values below 1, i.e. under one count in 10,000, are level 0 like genes not expressed.
    context
        Not limited: every cell has as many tokens as the vocabulary.
    """

    vocabulary: Vocabulary
    levels: int = 5
    context: int = 1_000_000
    equal_features: ClassVar[Literal["first"]] = "first"

    @property
    def hiding(self) -> Hiding:
        """The level, as the one behind the highest; level 0 never is, as in the authors' pre-training."""
        return Hiding("levels", self.levels + 1, classes=self.levels + 2)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {"levels": self.levels, "context": self.context}

    def values(self, block: Block) -> np.ndarray:
        """log2(1 + counts per 10,000 of the listed genes) (n_cells, n_genes) float32."""
        ids, counts, offsets = ordered_entries(block)
        return dense(ids, _log2_normalised(counts, offsets), offsets, len(self.vocabulary.genes))

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 (the gene) and "levels" int8."""
        ids, counts, offsets = ordered_entries(block)
        n, genes = len(block), len(self.vocabulary.genes)
        levels = np.minimum(_log2_normalised(counts, offsets), self.levels).astype(np.int8)  # truncates: floor
        return Tokens(
            fields={
                "ids": np.tile(np.arange(genes + 1, dtype=np.int32), n),
                "levels": dense(ids, levels, offsets, genes + 1).reshape(-1),  # the last stays 0
            },
            offsets=np.arange(n + 1, dtype=np.int64) * (genes + 1),
            expressed=np.diff(offsets),
        )


def _log2_normalised(counts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """In float32 and in the order of scanpy's normalize_total and log1p(base=2): a value next to a whole number must fall on its side."""
    size = (row_sums(counts, offsets) / 1e4).astype(np.float32)
    values = np.log1p(counts.astype(np.float32) / np.repeat(size, np.diff(offsets)))
    return (values / np.log(2.0)).astype(np.float32)
