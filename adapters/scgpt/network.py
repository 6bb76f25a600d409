"""scGPT's network: gene + value embeddings, a post-norm transformer, and the heads of its checkpoint kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import (
    CellDecoder,
    DomainNorm,
    ExpressionDecoder,
    MLPClassifier,
    NormedEmbedding,
    TransformerLayer,
    TransformerStack,
    ValueMLP,
    over_distinct,
)
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class ScGPTConfig:
    """Sizes and parts, as found in `args.json` and the tensors."""

    genes: int  # rows of the gene table, special tokens included
    dim: int = 512
    heads: int = 8
    hidden: int = 512  # of the feed-forward block
    layers: int = 12
    dropout: float = 0.2
    pad: int = 0  # id of the <pad> token
    value_style: Literal["continuous", "category", "scaling"] = "continuous"
    value_bins: int = 0  # rows of the value table, category style only
    decoder: Literal["none", "expression", "affine"] = "none"  # affine: the perturbation generator's
    zero_prob: bool = False  # the decoders also predict whether a gene is expressed
    cell_decoder: bool = False  # the authors' MVC: expression from the cell embedding and the gene embeddings
    classes: int = 0
    class_layers: int = 3
    batches: int = 0  # batch labels added to what the decoders see
    domains: int = 0  # domain-specific batch normalisation of the input
    batch_norm: bool = False  # plain batch normalisation of the input, in older organ checkpoints
    discriminated: int = 0  # batches told apart by the adversarial head
    flags: int = 0  # rows of the perturbation flag table


class AffineDecoder(nn.Module):
    """coeff(h) * value + bias(h): expression after a perturbation from expression before it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.coeff = ExpressionDecoder(dim, dim, zero_prob=False)
        self.bias = ExpressionDecoder(dim, dim, zero_prob=False)

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        """States (b, t, dim) and values (b, t) -> (b, t)."""
        return self.coeff(x)[0] * values + self.bias(x)[0]


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return -gradient


class ScGPTNetwork(Network):
    """x = genes + values (+ flags); transformer; the cell is the L2-normalised first state."""

    recovery = Recovery("expression", from_cell="expression_from_cell")

    def __init__(self, config: ScGPTConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.genes = NormedEmbedding(c.genes, c.dim, padding_idx=c.pad)
        self.values: nn.Module | None = None
        if c.value_style == "continuous":
            self.values = ValueMLP(c.dim, dropout=c.dropout)
        elif c.value_style == "category":
            self.values = NormedEmbedding(c.value_bins, c.dim)
        self.perturbation_flags = c.flags > 0 and c.decoder == "affine"
        self.token_embedding = "genes" if self.values is None else "values"
        self.flags = nn.Embedding(c.flags, c.dim) if c.flags else None
        self.batches = NormedEmbedding(c.batches, c.dim) if c.batches else None
        self.domain_norm = DomainNorm(c.domains, c.dim) if c.domains else None
        self.batch_norm = nn.BatchNorm1d(c.dim, eps=6.1e-5) if c.batch_norm else None
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, dropout=c.dropout) for _ in range(c.layers)
        )
        width = 2 * c.dim if c.batches else c.dim  # decoders see the batch embedding behind the state
        self.decoder: nn.Module | None = None
        if c.decoder == "expression":
            self.decoder = ExpressionDecoder(width, c.dim, zero_prob=c.zero_prob)
        elif c.decoder == "affine":
            self.decoder = AffineDecoder(c.dim)
        self.cell_decoder = CellDecoder(c.dim, width, zero_prob=c.zero_prob) if c.cell_decoder else None
        self.classifier = MLPClassifier(c.dim, c.classes, c.class_layers) if c.classes else None
        self.discriminator = (
            MLPClassifier(c.dim, c.discriminated, 3, activation="leaky_relu") if c.discriminated else None
        )

    @property
    def heads(self) -> frozenset[str]:  # type: ignore[override]
        """Outputs beyond the cells and tokens that this checkpoint's heads give."""
        names = {"cell_state"}
        if self.decoder is not None:
            names.add("expression")
        if self.cell_decoder is not None:
            names.add("expression_from_cell")
        if self.config.zero_prob:
            names |= {f"{name}_probability" for name in names if name.startswith("expression")}
        if self.classifier is not None:
            names.add("logits")
        if self.discriminator is not None:
            names.add("batch_logits")
        return frozenset(names)

    def embed_tokens(self, batch: Batch) -> Tensor:
        """The transformer's input (b, t, dim)."""
        ids, values = batch["ids"], batch["values"]
        x = self.genes(ids)  # (b, t, dim)
        if self.config.value_style == "scaling":
            x = x * values.unsqueeze(-1)
        elif self.config.value_style == "category":
            assert self.values is not None
            x = x + self.values(values.long())
        else:
            assert self.values is not None
            x = x + over_distinct(self.values, values)
        if self.flags is not None and "flags" in batch.fields:
            x = x + self.flags(batch["flags"])
        if self.domain_norm is not None:
            x = self.domain_norm(x, batch.cells["batch"])
        if self.batch_norm is not None:
            x = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        return x

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for; see `heads` for the further outputs."""
        per_token = request.wants("tokens", "expression", "expression_probability") or request.pooling in (
            "mean",
            "weighted",
        )
        attention = request.attended(self.depth)
        depth = request.depth(self.depth)
        only_attention = request.only_attention and attention
        run = self.layers.run(
            self.embed_tokens(batch),
            batch.pad,
            layers=max(attention) + 1 if only_attention else depth,
            rows=None if per_token or attention else 1,
            attention=attention,
        )
        x = run.states
        out = Encoded(attention=run.attention, tokens=x if request.wants("tokens") else None)
        if only_attention:
            return out
        state = x[:, 0]  # (b, dim)
        out.cells = self._pool(x, batch, request.pooling)
        if request.wants("cell_state"):
            out.heads["cell_state"] = state
        self._decode(out, x, state, batch, request)
        return out

    def _pool(self, x: Tensor, batch: Batch, pooling: str | None) -> Tensor:
        if pooling in (None, "cls"):
            return F.normalize(x[:, 0], dim=-1)
        weight = batch["values"] if pooling == "weighted" else torch.ones_like(batch["values"])
        if batch.pad is not None:
            weight = weight.masked_fill(batch.pad, 0)
        total = (x * weight.unsqueeze(-1)).sum(dim=1)
        return F.normalize(total if pooling == "weighted" else total / weight.sum(dim=1, keepdim=True), dim=-1)

    def _decode(self, out: Encoded, x: Tensor, state: Tensor, batch: Batch, request: Request) -> None:
        label = None if self.batches is None else self.batches(batch.cells["batch"])  # (b, dim)
        if self.decoder is not None and request.wants("expression", "expression_probability"):
            if isinstance(self.decoder, AffineDecoder):
                out.heads["expression"] = self.decoder(x, batch["values"])
            else:
                seen = x if label is None else torch.cat([x, label[:, None].expand_as(x)], dim=-1)
                self._keep(out, "expression", *self.decoder(seen))
        if self.cell_decoder is not None and request.wants("expression_from_cell", "expression_from_cell_probability"):
            cell = state if label is None else torch.cat([state, label], dim=-1)
            self._keep(out, "expression_from_cell", *self.cell_decoder(cell, self.genes(batch["ids"])))
        if self.classifier is not None and request.wants("logits"):
            out.heads["logits"] = self.classifier(state)
        if self.discriminator is not None and request.wants("batch_logits"):
            out.heads["batch_logits"] = self.discriminator(_ReverseGradient.apply(state))

    @staticmethod
    def _keep(out: Encoded, name: str, values: Tensor, probability: Tensor | None) -> None:
        out.heads[name] = values
        if probability is not None:
            out.heads[f"{name}_probability"] = probability
