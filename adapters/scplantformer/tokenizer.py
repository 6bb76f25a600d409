"""scPlantFormer's input: the values of all listed genes, cut into patches of neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, ordered_entries


@dataclass(frozen=True)
class PatchTokenizer(Tokenizer):
    """All listed genes in their order, so many a token; genes that are absent or not expressed are 0.

    Parameters
    ----------
    vocabulary
        The genes, and nothing else.
    size
        Genes of a patch. Where it does not divide their number, the last patch is the last `size` genes and overlaps the one before.
    """

    vocabulary: Vocabulary
    size: int = 128
    equal_features: ClassVar[Literal["first"]] = "first"

    @property
    def context(self) -> int:  # type: ignore[override]
        """Patches of a cell."""
        return -(-len(self.vocabulary) // self.size)

    @property
    def hiding(self) -> Hiding:
        """All values of a patch, as 0."""
        return Hiding("patches", 0.0, zeros=True, width=self.size)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {"size": self.size}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: field "patches" float32 (n_tokens, size), as the authors store them."""
        genes, values, offsets = ordered_entries(block)
        n, count = len(block), self.context
        expressed = np.diff(offsets)
        dense = np.zeros((n, len(self.vocabulary)), dtype=np.float32)
        dense[np.repeat(np.arange(n), expressed), genes] = values
        patches = np.empty((n, count, self.size), dtype=np.float32)
        whole = (count - 1) * self.size
        patches[:, :-1] = dense[:, :whole].reshape(n, count - 1, self.size)
        patches[:, -1] = dense[:, len(self.vocabulary) - self.size :]
        return Tokens(
            fields={"patches": patches.reshape(n * count, self.size)},
            offsets=np.arange(n + 1, dtype=np.int64) * count,
            expressed=expressed,
        )
