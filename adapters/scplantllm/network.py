"""scPlantLLM's network: genes and binned values, layers that add to the normalised state, heads for values and cell types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import (
    ExpressionDecoder,
    MLPClassifier,
    NormedEmbedding,
    TransformerLayer,
    TransformerStack,
    over_distinct,
)
from scfm.tokenizers import Batch

MAIN = "main"
"""Name of the classifier without a species in its name."""


@dataclass(frozen=True)
class ScPlantLLMConfig:
    """Sizes and parts, as found in the tensors."""

    genes: int = 185_622  # rows of the gene table, special tokens included
    value_rows: int = 103  # bins 0 .. 100, padding, mask
    dim: int = 512
    heads: int = 8
    hidden: int = 512  # of the feed-forward block
    layers: int = 6
    pad: int = 0
    norm: Literal["normed", "post"] = "normed"  # "post": what the original builds without flash-attn
    decoder: bool = True
    classifiers: tuple[str, ...] = (MAIN, "Ara", "Maize", "Rice")
    classes: tuple[int, ...] = (44, 44, 44, 44)  # of each classifier
    labels: tuple[str, ...] = ()  # cell types of the main classifier


class ScPlantLLMNetwork(Network):
    """x = genes + values; transformer; the cell is the L2-normalised state of ``<cls>``."""

    token_embedding = "values"
    recovery = Recovery("expression")

    def __init__(self, config: ScPlantLLMConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.genes = NormedEmbedding(c.genes, c.dim, padding_idx=c.pad)
        self.values = NormedEmbedding(c.value_rows, c.dim)
        self.layers = TransformerStack(TransformerLayer(c.dim, c.heads, c.hidden, norm=c.norm) for _ in range(c.layers))
        self.decoder = ExpressionDecoder(c.dim, c.dim, zero_prob=False) if c.decoder else None
        self.classifiers = nn.ModuleDict(
            {name: MLPClassifier(c.dim, count) for name, count in zip(c.classifiers, c.classes, strict=True)}
        )

    @property
    def heads(self) -> frozenset[str]:  # type: ignore[override]
        """ "expression" (b, t), the predicted bin of each token; "logits" of cell types, and "logits_<species>" of further classifiers."""
        return frozenset({head_of(name) for name in self.classifiers} | ({"expression"} if self.decoder else set()))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for. Tokens with the id of padding are attended to by nobody."""
        ids = batch["ids"]
        pad = ids == self.config.pad  # padding, and features unknown to the model that keep their places
        if batch.pad is not None:
            pad = pad | batch.pad
        attention = request.attended(self.depth)
        only_attention = request.only_attention
        depth = request.depth(self.depth)
        run = self.layers.run(
            self.genes(ids) + over_distinct(self.values, batch["bins"]),  # (b, t, dim)
            pad if bool(pad.any()) else None,
            layers=max(attention) + 1 if only_attention else depth,
            rows=None if attention or request.wants("tokens", "expression") else 1,
            attention=attention,
        )
        out = Encoded(attention=run.attention)
        if only_attention:
            return out
        x = run.states
        out.tokens = x if request.wants("tokens") else None
        out.cells = F.normalize(x[:, 0], dim=-1)
        if self.decoder is not None and request.wants("expression"):
            out.heads["expression"] = self.decoder(x)[0]
        for name, classifier in self.classifiers.items():
            if request.wants(head_of(name)):
                out.heads[head_of(name)] = classifier(x[:, 0])
        return out


def head_of(classifier: str) -> str:
    """Name of the output of a classifier."""
    return "logits" if classifier == MAIN else f"logits_{classifier.lower()}"
