"""mini: a small transformer of ours that ships with scfm, so that everything runs without a download.

It is pre-trained by `recipes/pretrain_mini` and its files are those that `CellEncoder.save` writes, with weights in float16.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from scfm.adapters.mini.network import MiniConfig, MiniNetwork
from scfm.cards import ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.genes import Vocabulary
from scfm.tokenizers import BinTokenizer

CONTEXT = 1024
"""Tokens of a cell, <cls> included. Trained on fewer; a longer cell is represented by a random subset of its genes."""


class Mini(CellEncoder):
    """Human cells from raw counts and gene symbols."""

    Config = MiniConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION})
    poolings = ("mean", "cls")

    @classmethod
    def build(cls, config: MiniConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = BinTokenizer(vocabulary, bins=None, context=CONTEXT, cls_value=0.0, pad_value=0.0, log1p=True)
        return cls(config=config, network=MiniNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read a folder that `save` wrote; there is no other format."""
        return cls.restore(checkpoint)

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene table (n_tokens, dim)."""
        return self.network.genes.weight  # type: ignore[return-value,union-attr]
