"""SC-MAMBA2's network: gene + value embeddings, Mamba-2 layers run in both directions with the same weights, and heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import (
    CellDecoder,
    DomainNorm,
    ExpressionDecoder,
    Mamba2,
    MLPClassifier,
    NormedEmbedding,
    ValueMLP,
    over_distinct,
)
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class SCMamba2Config:
    """Sizes and parts, as found in `args.json` and the tensors."""

    genes: int  # rows of the gene table, special tokens included
    dim: int = 1536
    layers: int = 36
    states: int = 64
    kernel: int = 4
    dropout: float = 0.2
    pad: int = 0  # id of the <pad> token
    batch_norm: bool = True  # of the input
    domains: int = 0  # domain-specific batch normalisation of the input
    batches: int = 0  # batch labels added to what the decoders see
    decoder: bool = False
    zero_prob: bool = False  # the decoders also predict whether a gene is expressed
    cell_decoder: bool = False  # the authors' MVC
    classes: int = 0
    class_layers: int = 3


class BidirectionalLayer(nn.Module):
    """(L(x) + flip(L(flip(x)))) / 2 with L(x) = x + Mamba2(x); flip turns the tokens of a cell around and leaves its padding at the end."""

    def __init__(self, c: SCMamba2Config) -> None:
        super().__init__()
        self.mixer = Mamba2(c.dim, states=c.states, kernel=c.kernel)

    def one_way(self, x: Tensor) -> Tensor:
        """L: (b, t, dim) -> (b, t, dim); a token sees those before it."""
        return x + self.mixer(x)

    def forward(self, x: Tensor, turned: Tensor, *, first: bool = False) -> Tensor:
        """States (b, t, dim), or those of the first token alone (b, 1, dim); `turned` (b, t) are the positions in reverse."""
        if first:  # the forward direction has seen nothing but this token, the backward one everything
            at = turned[:, :1]  # where the first token ends up
            return (self.one_way(x[:, :1]) + _take(self.one_way(_take(x, turned)), at)) / 2
        ahead, back = self.one_way(torch.cat([x, _take(x, turned)])).chunk(2)
        return (ahead + _take(back, turned)) / 2


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """x (b, t, dim) at positions (b, n) -> (b, n, dim)."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def turned_positions(length: int, pad: Tensor | None, cells: int, device: torch.device) -> Tensor:
    """Positions with each cell's tokens in reverse and its padding where it is (cells, length)."""
    position = torch.arange(length, device=device).expand(cells, -1)
    if pad is None:
        return position.flip(1)
    tokens = (~pad).sum(dim=1, keepdim=True)
    return torch.where(pad, position, tokens - 1 - position)


class SCMamba2Network(Network):
    """x = norm(genes + values); bidirectional Mamba-2 layers; the cell is the L2-normalised first state."""

    token_embedding = "values"
    recovery = Recovery("expression", from_cell="expression_from_cell")

    def __init__(self, config: SCMamba2Config) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.genes = NormedEmbedding(c.genes, c.dim, padding_idx=c.pad)
        self.values = ValueMLP(c.dim, dropout=c.dropout)
        self.batch_norm = nn.BatchNorm1d(c.dim, eps=6.1e-5) if c.batch_norm else None
        self.domain_norm = DomainNorm(c.domains, c.dim) if c.domains else None
        self.batches = NormedEmbedding(c.batches, c.dim) if c.batches else None
        self.layers = nn.ModuleList(BidirectionalLayer(c) for _ in range(c.layers))
        width = 2 * c.dim if c.batches else c.dim  # decoders see the batch embedding behind the state
        self.decoder = ExpressionDecoder(width, c.dim, zero_prob=c.zero_prob) if c.decoder else None
        self.cell_decoder = CellDecoder(c.dim, width, zero_prob=c.zero_prob) if c.cell_decoder else None
        self.classifier = MLPClassifier(c.dim, c.classes, c.class_layers) if c.classes else None

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
        return frozenset(names)

    def embed_tokens(self, batch: Batch) -> Tensor:
        """The first layer's input (b, t, dim)."""
        x = self.genes(batch["ids"]) + over_distinct(self.values, batch["values"])
        if self.domain_norm is not None:
            x = self.domain_norm(x, batch.cells["batch"])
        if self.batch_norm is not None:
            x = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        return x

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for; see `heads` for the further outputs."""
        whole = request.pooling == "mean" or request.wants("tokens", "expression", "expression_probability")
        x = self.embed_tokens(batch)
        turned = turned_positions(x.shape[1], batch.pad, len(x), x.device)
        depth = request.depth(self.depth)
        for i, layer in enumerate(self.layers[:depth], start=1):
            x = layer(x, turned, first=i == depth and not whole)
        state = x[:, 0]  # (b, dim)
        out = Encoded(cells=self._pool(x, batch, request.pooling), tokens=x if request.wants("tokens") else None)
        if request.wants("cell_state"):
            out.heads["cell_state"] = state
        self._decode(out, x, state, batch, request)
        return out

    @staticmethod
    def _pool(x: Tensor, batch: Batch, pooling: str | None) -> Tensor:
        if pooling in (None, "cls"):
            return F.normalize(x[:, 0], dim=-1)
        if batch.pad is not None:
            x = x.masked_fill(batch.pad.unsqueeze(-1), 0)  # the sum has the direction of the mean
        return F.normalize(x.sum(dim=1), dim=-1)

    def _decode(self, out: Encoded, x: Tensor, state: Tensor, batch: Batch, request: Request) -> None:
        label = None if self.batches is None else self.batches(batch.cells["batch"])  # (b, dim)
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        if self.decoder is not None and request.wants("expression", "expression_probability"):
            seen = x if label is None else torch.cat([x, label[:, None].expand_as(x)], dim=-1)
            found["expression"] = self.decoder(seen)
        if self.cell_decoder is not None and request.wants("expression_from_cell", "expression_from_cell_probability"):
            cell = state if label is None else torch.cat([state, label], dim=-1)
            found["expression_from_cell"] = self.cell_decoder(cell, self.genes(batch["ids"]))
        for name, (values, probability) in found.items():
            out.heads[name] = values
            if probability is not None:
                out.heads[f"{name}_probability"] = probability
        if self.classifier is not None and request.wants("logits"):
            out.heads["logits"] = self.classifier(state)
