"""Geneformer's network: BERT over ranked genes, with the masked-gene head or one of the classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import BertEmbedding, TransformerLayer, TransformerStack
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class GeneformerConfig:
    """Sizes and parts, as found in `config.json` and the tensors."""

    tokens: int  # rows of the token table, special tokens included
    context: int = 2048  # most tokens of a cell
    dim: int = 256
    layers: int = 6
    heads: int = 4
    hidden: int = 512  # of the feed-forward block
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.02
    eps: float = 1e-12
    types: int = 2  # rows of the token-type table, of which the first is used
    cls: int | None = None  # id of <cls>; V1 has none
    eos: int | None = None
    head: Literal["masked_lm", "cells", "genes", "none"] = "masked_lm"
    classes: int = 0
    labels: tuple[str, ...] = ()  # names of the classes


class MaskedGeneHead(nn.Module):
    """Logits of every token: LayerNorm(act(W h + b)) times the token embeddings, plus a bias."""

    def __init__(self, config: GeneformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.tokens))
        self.activation = F.relu if config.activation == "relu" else F.gelu

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, n_tokens)."""
        return F.linear(self.norm(self.activation(self.dense(x))), table, self.bias)


class GeneformerNetwork(Network):
    """Embedding, post-norm transformer; cells are read after the second to last layer, heads read the last."""

    token_embedding = "embedding"
    recovery = Recovery("gene_logits")

    def __init__(self, config: GeneformerConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.embedding = BertEmbedding(c.tokens, c.dim, c.context, types=c.types, eps=c.eps, dropout=c.dropout)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, activation=c.activation, dropout=c.dropout, eps=c.eps)
            for _ in range(c.layers)
        )
        self.masked_lm = MaskedGeneHead(c) if c.head == "masked_lm" else None
        self.pooler = nn.Linear(c.dim, c.dim) if c.head == "cells" else None
        self.classifier = nn.Linear(c.dim, c.classes) if c.head in ("cells", "genes") else None
        self.heads = frozenset(
            {"masked_lm": {"gene_logits"}, "cells": {"logits"}, "genes": {"class_logits"}, "none": set()}[c.head]
        )

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for. Heads: "gene_logits" (b, t, n_tokens), "logits" (b, classes) or "class_logits" (b, t, classes)."""
        pooling = request.pooling or ("mean" if self.config.cls is None else "cls")
        heads = request.wants(*self.heads)
        attention = request.attended(self.depth)
        read = self.depth - 1 if request.hidden_layer is None else request.hidden_layer
        until = max(self.depth if heads else 0, *(layer + 1 for layer in attention), 0)
        first_only = pooling == "cls" and not (request.wants("tokens") or until)
        out = Encoded()
        x, pad, depth = self.embedding(batch["ids"]), batch.pad, 0  # (b, t, dim)
        if request.wants("cells", "tokens"):
            run = self.layers.run(x, pad, layers=read, rows=1 if first_only else None, attention=attention)
            x, depth, out.attention = run.states, read, run.attention
            if request.wants("tokens"):
                out.tokens = x
            if request.wants("cells"):
                out.cells = x[:, 0] if pooling == "cls" else self._mean(x, batch)
        if until > depth:
            run = self.layers.run(x, pad, start=depth, layers=until, attention=attention)
            x, out.attention = run.states, out.attention | run.attention
        if heads:
            self._decode(out, x)
        return out

    def _mean(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean over the genes: neither padding nor <cls> and <eos>."""
        ids = batch["ids"]
        weight = torch.ones(ids.shape, dtype=x.dtype, device=x.device)
        if batch.pad is not None:
            weight = weight.masked_fill(batch.pad, 0)
        for special in (self.config.cls, self.config.eos):
            if special is not None:
                weight = weight.masked_fill(ids == special, 0)
        return (x * weight.unsqueeze(-1)).sum(dim=1) / weight.sum(dim=1, keepdim=True).clamp(min=1)

    def _decode(self, out: Encoded, x: Tensor) -> None:
        if self.masked_lm is not None:
            out.heads["gene_logits"] = self.masked_lm(x, self.embedding.words.weight)
        elif self.pooler is not None:
            assert self.classifier is not None
            out.heads["logits"] = self.classifier(torch.tanh(self.pooler(x[:, 0])))  # V1: the highest gene's state
        elif self.classifier is not None:
            out.heads["class_logits"] = self.classifier(x)
