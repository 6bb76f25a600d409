"""Nicheformer's network: token and position embeddings, a post-norm transformer; a cell is the mean over all behind the context."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import TransformerLayer, TransformerStack
from scfm.tokenizers import Batch

_CONTEXT = 3  # species, technology, modality


@dataclass(frozen=True)
class NicheformerConfig:
    """Sizes, as found in the hyper-parameters and the tensors."""

    tokens: int  # context tokens and genes
    context: int = 1500  # tokens of a cell, padding included
    dim: int = 512
    layers: int = 12
    heads: int = 16
    hidden: int = 1024  # of the feed-forward block
    dropout: float = 0.0
    eps: float = 1e-12
    spare: int = 5  # rows of the token table that no token has
    pad: int = 1  # id of <pad>
    masked_lm: bool = True


class NicheformerNetwork(Network):
    """x = tokens + positions; transformer whose padding is attended to by nobody, but attends and is averaged over, as the authors do."""

    token_embedding = "tokens"
    recovery = Recovery("gene_logits")

    def __init__(self, config: NicheformerConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.tokens = nn.Embedding(c.tokens + c.spare, c.dim, padding_idx=c.pad)
        self.positions = nn.Embedding(c.context, c.dim)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, dropout=c.dropout, eps=c.eps) for _ in range(c.layers)
        )
        self.masked_lm = nn.Linear(c.dim, c.tokens) if c.masked_lm else None
        self.heads = frozenset({"gene_logits"} if c.masked_lm else ())

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for. Head: "gene_logits" (b, t, n_tokens), from the last layer."""
        ids = batch["ids"]
        pad = ids == self.config.pad if batch.pad is None else (ids == self.config.pad) | batch.pad  # (b, t)
        real = int((~pad).sum(dim=1).max()) if len(ids) else 0  # padding is behind
        width = ids.shape[1]
        attention = request.attended(self.depth)
        heads = request.wants(*self.heads)
        read = request.depth(self.depth)
        until = max(self.depth if heads else 0, *(layer + 1 for layer in attention), 0)
        if not request.wants("tokens") and not until and request.pooling == "genes":
            ids, pad = ids[:, :real], pad[:, :real]  # nothing of the padding is asked for
        mask = pad[:, :real] if bool(pad[:, :real].any()) else None
        place = torch.arange(ids.shape[1], device=ids.device).clamp(max=self.config.context - 1)
        x, depth = self.dropout(self.tokens(ids) + self.positions(place)), 0  # (b, t, dim)
        out = Encoded()
        if request.wants("cells", "tokens"):
            run = self.layers.run(x, mask, layers=read, attention=attention, keys=real)
            x, depth, out.attention = run.states, read, run.attention
            if request.wants("tokens"):
                out.tokens = x
            if request.wants("cells"):
                out.cells = self._pool(x, pad, batch.pad, request.pooling)
        if until > depth:
            run = self.layers.run(x, mask, start=depth, layers=until, attention=attention, keys=real)
            x, out.attention = run.states, out.attention | run.attention
        out.attention = {i: F.pad(weights, (0, width - real)) for i, weights in out.attention.items()}
        if heads and self.masked_lm is not None:
            out.heads["gene_logits"] = self.masked_lm(x)
        return out

    def _pool(self, x: Tensor, pad: Tensor, beyond: Tensor | None, pooling: str | None) -> Tensor:
        """Mean over the positions that `pooling` names; `beyond` is what a batch was padded with on top of the cells' own padding."""
        count = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if pooling == "genes":
            count = ~pad
        elif beyond is not None:
            count = ~beyond
        if pooling != "all":
            count[:, :_CONTEXT] = False
        weight = count.to(x.dtype).unsqueeze(-1)
        return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
