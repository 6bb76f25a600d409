"""mini's network: genes modulated by their values, a pre-norm transformer, mean of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.nn import TransformerLayer, TransformerStack, ValueMLP, over_distinct
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class MiniConfig:
    """Sizes."""

    genes: int  # rows of the gene table, special tokens included
    dim: int = 128
    heads: int = 4
    hidden: int = 256  # of the feed-forward block
    layers: int = 3
    dropout: float = 0.0
    pad: int = 0  # id of the <pad> token


class MiniNetwork(Network):
    """x = gene * value + shift(value); transformer; the cell is the L2-normalised LayerNorm of the mean of its tokens."""

    token_embedding = "values"

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        c = config
        self.dim, self.depth = c.dim, c.layers
        self.genes = nn.Embedding(c.genes, c.dim, padding_idx=c.pad)
        self.values = ValueMLP(c.dim, dropout=c.dropout)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, activation="gelu", norm="pre", dropout=c.dropout)
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.dim)
        nn.init.normal_(self.genes.weight, std=0.1)
        nn.init.constant_(
            self.values.norm.weight, 0.02
        )  # of all tokens alike: must not drown what differs between cells

    def embed_tokens(self, batch: Batch) -> Tensor:
        """The transformer's input (b, t, dim)."""
        values = batch["values"]
        return self.genes(batch["ids"]) * values.unsqueeze(-1) + over_distinct(self.values, values)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """Cells, tokens and attention, as `request` asks."""
        attention = request.attended(self.depth)
        only_attention = request.only_attention and attention
        only_cls = request.pooling == "cls" and not request.wants("tokens") and not attention
        run = self.layers.run(
            self.embed_tokens(batch),
            batch.pad,
            layers=max(attention) + 1 if only_attention else request.hidden_layer,
            rows=1 if only_cls else None,
            attention=attention,
        )
        if only_attention:
            return Encoded(attention=run.attention)
        x = run.states  # (b, t or 1, dim)
        pooled = x[:, 0] if request.pooling == "cls" else _mean(x, batch.pad)  # (b, dim)
        return Encoded(
            cells=F.normalize(self.norm(pooled), dim=-1),
            tokens=x if request.wants("tokens") else None,
            attention=run.attention,
        )


def _mean(x: Tensor, pad: Tensor | None) -> Tensor:
    """Mean over the tokens that are no padding: (b, t, dim) -> (b, dim)."""
    if pad is None:
        return x.mean(dim=1)
    return x.masked_fill(pad.unsqueeze(-1), 0).sum(dim=1) / (~pad).sum(dim=1, keepdim=True)
