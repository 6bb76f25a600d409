"""scFoundation's network: a transformer over the expressed genes, and a Performer over all genes that fills in the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import PerformerAttention, SoftBinEmbedding, TransformerLayer, TransformerStack, over_distinct
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class ScFoundationConfig:
    """Sizes, as found in the checkpoint's configuration."""

    genes: int = 19_264  # without T, S and padding
    dim: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072  # of the feed-forward block
    decoder_dim: int = 512
    decoder_layers: int = 6
    decoder_heads: int = 8
    decoder_head_dim: int = 64
    features: int = 266  # rows of the Performer's projection
    bins: int = 100
    bin_alpha: float = 1.0
    mask_value: float = 102.0
    pad_value: float = 103.0
    key_maximum: Literal["cell", "batch"] = (
        "cell"  # "batch": the decoder's cells depend on each other, as in the original
    )


class ScFoundationNetwork(Network):
    """Encoder over the expressed genes, T and S; decoder over all positions."""

    token_embedding = "values"
    recovery = Recovery("expression", "gene")
    heads = frozenset({"gene_states", "expression"})

    def __init__(self, config: ScFoundationConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = 4 * c.dim, c.layers
        self.values = SoftBinEmbedding(c.bins, c.dim, alpha=c.bin_alpha, mask_value=c.mask_value, pad_value=c.pad_value)
        self.positions = nn.Embedding(c.genes + 3, c.dim)  # genes, T, S, padding
        self.layers = TransformerStack(TransformerLayer(c.dim, c.heads, c.hidden) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.dim)
        self.decoder_input = nn.Linear(c.dim, c.decoder_dim)
        self.decoder = TransformerStack(self._decoder_layer() for _ in range(c.decoder_layers))
        self.decoder_norm = nn.LayerNorm(c.decoder_dim)
        self.output_norm = nn.LayerNorm(c.decoder_dim)
        self.output = nn.Linear(c.decoder_dim, 1)

    def _decoder_layer(self) -> TransformerLayer:
        c = self.config
        attention = PerformerAttention(
            c.decoder_dim,
            c.decoder_heads,
            head_dim=c.decoder_head_dim,
            features=c.features,
            bias=True,
            key_maximum=c.key_maximum,
        )
        return TransformerLayer(
            c.decoder_dim, c.decoder_heads, 4 * c.decoder_dim, activation="gelu", norm="pre", attention=attention
        )

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.config.dim

    def width(self, request: Request) -> int:
        """4 x dim for the pooling "all", dim for "max"."""
        return self.config.dim if request.pooling == "max" else self.dim

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for: "gene_states" (b, genes, decoder_dim), "expression" (b, genes)."""
        ids = batch["ids"] if batch.pad is None else batch["ids"].masked_fill(batch.pad, self.config.genes + 2)
        attention = request.attended(self.depth)
        only_attention = request.only_attention
        decoded = request.wants(*self.heads)
        depth = self.depth if request.hidden_layer is None or decoded else request.hidden_layer
        run = self.layers.run(
            over_distinct(self.values, batch["values"]) + self.positions(ids),  # (b, t, dim)
            batch.pad,
            layers=max(attention, default=-1) + 1 if only_attention else depth,
            attention=attention,
        )
        out = Encoded(attention=run.attention)
        if only_attention:
            return out
        x = self.norm(run.states) if depth == self.depth else run.states
        out.tokens = x if request.wants("tokens") else None
        if request.wants("cells"):
            out.cells = self._pool(x, ids, request.pooling)
        if decoded:
            states = self._decode(x, ids)  # (b, genes, decoder_dim)
            if request.wants("gene_states"):
                out.heads["gene_states"] = states
            if request.wants("expression"):
                out.heads["expression"] = self.output(states).squeeze(-1)
        return out

    def _pool(self, x: Tensor, ids: Tensor, pooling: str | None) -> Tensor:
        """ "all": the states of S and T, maximum and mean over the genes, one behind another; "max": over genes, T and S."""
        target, source, pad = self.config.genes, self.config.genes + 1, self.config.genes + 2
        if pooling == "max":
            return x.masked_fill((ids == pad).unsqueeze(-1), float("-inf")).amax(dim=1)
        other = (ids >= target).unsqueeze(-1)  # (b, t, 1): not a gene
        count = (~other).sum(dim=1)  # (b, 1)
        best = x.masked_fill(other, float("-inf")).amax(dim=1)
        best = best.masked_fill(count == 0, 0)  # a cell without genes
        mean = x.masked_fill(other, 0).sum(dim=1) / count.clamp(min=1)
        return torch.cat([x[ids == source], x[ids == target], best, mean], dim=-1)  # (b, 4 dim)

    def _decode(self, x: Tensor, ids: Tensor) -> Tensor:
        """States of all genes: those of the encoder where it has one, else the embedding of the value 0; gene embeddings added (again)."""
        places = torch.arange(self.config.genes + 2, device=ids.device)
        zero = self.values(torch.zeros(1, dtype=self.output.weight.dtype, device=ids.device))  # (1, dim)
        full = zero.to(x.dtype).expand(len(ids), len(places) + 1, -1).clone()  # one more row takes the padding
        full.scatter_(1, ids.unsqueeze(-1).expand_as(x), x)
        y = self.decoder_input(full[:, :-1] + self.positions(places))  # (b, genes + 2, decoder_dim)
        return self.output_norm(self.decoder_norm(self.decoder.run(y).states))[:, : self.config.genes]
