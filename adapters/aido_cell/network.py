"""AIDO.Cell's network: a pre-norm transformer with SwiGLU over all genes."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import SoftBinEmbedding, TransformerLayer, TransformerStack, over_distinct
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class AIDOCellConfig:
    """Sizes, as found in config.json; the defaults are those of the 100M model."""

    genes: int = 19_264  # without the two depth tokens
    dim: int = 640
    layers: int = 18
    heads: int = 20
    hidden: int = 1664  # inner width of SwiGLU
    bins: int = 100
    bin_alpha: float = 1.0
    mask_value: float = -1.0
    pad_value: float = -2.0
    eps: float = 1e-5
    bias: bool = False  # biases on the Linears of the layers; the head's are always there
    head: bool = True  # the checkpoint holds the expression head


class ExpressionHead(nn.Module):
    """Linear, GELU, LayerNorm, Linear to the value of each gene."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.output = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t), in ln(1 + counts per 10,000)."""
        return self.output(self.norm(F.gelu(self.dense(x)))).squeeze(-1)


class AIDOCellNetwork(Network):
    """Encoder over all genes and the two depth tokens, and the expression head."""

    token_embedding = "values"
    recovery = Recovery("expression", "gene")

    def __init__(self, config: AIDOCellConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.heads = frozenset({"expression"}) if c.head else frozenset()
        self.values = SoftBinEmbedding(c.bins, c.dim, alpha=c.bin_alpha, mask_value=c.mask_value, pad_value=c.pad_value)
        self.positions = nn.Embedding(c.genes + 2, c.dim)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, activation="swiglu", norm="pre", eps=c.eps, bias=c.bias)
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.head = ExpressionHead(c.dim, c.eps) if c.head else None

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for: "expression" (b, genes). All cells have the same genes, so that there is no padding."""
        attention = request.attended(self.depth)
        only_attention = request.only_attention
        depth = request.depth(self.depth)
        run = self.layers.run(
            over_distinct(self.values, batch["values"]) + self.positions(batch["ids"]),  # (b, t, dim)
            layers=max(attention, default=-1) + 1 if only_attention else depth,
            attention=attention,
        )
        out = Encoded(attention=run.attention)
        if only_attention:
            return out
        x = self.norm(run.states) if depth == self.depth else run.states
        out.tokens = x if request.wants("tokens") else None
        if request.wants("cells"):
            out.cells = self._pool(x, batch["present"], request.pooling)
        if request.wants("expression") and self.head is not None:
            out.heads["expression"] = self.head(x[:, : self.config.genes])
        return out

    def _pool(self, x: Tensor, present: Tensor, pooling: str | None) -> Tensor:
        """ "present": mean over the genes of the data and the depth tokens; "genes", "max": mean, maximum over all genes."""
        genes = x[:, : self.config.genes]
        if pooling == "max":
            return genes.amax(dim=1)
        if pooling == "genes":
            return genes.mean(dim=1)
        weight = present.to(x.dtype)  # (b, t)
        return (weight.unsqueeze(1) @ x).squeeze(1) / weight.sum(dim=1, keepdim=True)
