"""AIDO.Cell's input: a value for each gene of its list, zeros included, then the read depth twice.

With x the counts of the listed genes and N their sum, both over one cell: v = min(ln(1 + 1e4 x / N), 20), depth = max(log10 N, 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.genes import Vocabulary, gene_rows
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, dense, ordered_entries, row_sums

DEPTH_FLOOR = 5.0  # so that the depth tokens are the same for all cells below 100,000 counts
MASK = -1.0


@dataclass(frozen=True)
class DenseTokenizer(Tokenizer):
    """All genes of the vocabulary in its order, then two depth tokens.

    Parameters
    ----------
    vocabulary
        Genes, then the special tokens "source" and "target" (the depth of the input and the depth asked for; equal here).
    masked
        Genes whose values are hidden from the network, which predicts them (output "expression").
    context
        Not limited: every cell has as many tokens as the vocabulary.
    """

    vocabulary: Vocabulary
    masked: tuple[str, ...] = ()
    context: int = 1_000_000
    equal_features: ClassVar[Literal["first"]] = "first"

    def __post_init__(self) -> None:
        gene_rows(self.vocabulary, self.masked)  # unknown names are refused

    @property
    def hiding(self) -> Hiding:
        """The value, as the mask of the value embedding."""
        return Hiding("values", MASK)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {"masked": list(self.masked), "context": self.context}

    def counts(self, block: Block) -> np.ndarray:
        """Counts of the listed genes (n_cells, n_genes) float32; 0 where the data have no such gene."""
        ids, values, offsets = ordered_entries(block)
        return dense(ids, values.astype(np.float32), offsets, len(self.vocabulary.genes))

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32, "values" float32, and "present" uint8, 1 where the data have the gene."""
        import torch

        ids, counts, offsets = ordered_entries(block)
        n, genes = len(block), len(self.vocabulary.genes)
        expressed = np.diff(offsets)
        totals = row_sums(counts, offsets)
        share = counts.astype(np.float32) / np.repeat(totals.astype(np.float32), expressed)
        values = torch.log1p(torch.from_numpy(share * np.float32(1e4))).numpy()  # numpy's log1p has other last bits
        depth = np.maximum(np.log10(np.maximum(totals, 1)), DEPTH_FLOOR).astype(np.float32)
        full = np.empty((n, genes + 2), dtype=np.float32)
        full[:, :genes] = dense(ids, values, offsets, genes)
        full[:, gene_rows(self.vocabulary, self.masked)] = MASK
        full[:, genes:] = depth[:, None]
        present = np.zeros(genes + 2, dtype=np.uint8)
        present[block.alignment.tokens[block.alignment.tokens >= 0]] = 1
        present[genes:] = 1
        return Tokens(
            fields={
                "ids": np.tile(np.arange(genes + 2, dtype=np.int32), n),
                "values": full.reshape(-1),
                "present": np.tile(present, n),
            },
            offsets=np.arange(n + 1, dtype=np.int64) * (genes + 2),
            expressed=expressed,
        )
