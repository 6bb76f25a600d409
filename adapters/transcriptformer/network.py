"""TranscriptFormer's network: protein embeddings of genes, causal attention biased by counts, and heads for counts and genes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import SelfAttention, TransformerLayer, TransformerStack, over_distinct
from scfm.tokenizers import Batch

Link = Literal["exp", "log", "relu", "sigmoid", "softplus", "linear", "softmax"]

_QUERIES = 256  # attention is computed for so many positions at a time, over the keys up to the last of them
_LLH_EPS = 1e-6  # added to the mean count of the likelihood
_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "linear": lambda x: x,
}


@dataclass(frozen=True)
class TranscriptFormerConfig:
    """Sizes and switches, as `config.json` states them."""

    tokens: int  # rows of the protein table: special tokens and genes of the loaded species
    pad: int  # id of [PAD]
    protein_dim: int = 2560  # of a protein embedding (ESM2 3B)
    dim: int = 2048
    heads: int = 16
    hidden: int = 2048  # of the feed-forward block; the authors' model_dim
    layers: int = 12
    context: int = 2047  # genes of a cell; the authors' seq_len
    dropout: float = 0.1
    activation: Literal["relu", "gelu", "silu"] = "gelu"
    attention_bias: bool = False
    hidden_bias: bool = False
    softcap: float = 10.0  # scores lie within +- this; 0: any
    count_eps: float = 1e-6  # the authors' log_counts_eps
    clip: float = 30.0  # counts of the likelihood
    link: Link = "softmax"  # from the count head's output to the mean count
    aux: tuple[str, ...] = ()  # columns of obs with tokens before the genes,
    aux_sizes: tuple[int, ...] = ()  # what the model knows of each,
    aux_unknown: tuple[int, ...] = ()  # and which of it is "unknown"
    expression: bool = True  # has the count head
    gene_hidden: int = 2048  # of the head that predicts the next gene; 0: none
    own_count: bool = True  # a query is biased by the count of its own position; the authors' training pass has False


class MLP(nn.Module):
    """Linear, ReLU, LayerNorm, Linear."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.second(self.norm(F.relu(self.first(x))))


class CountAttention(SelfAttention):
    """Causal attention with a bias for each key and capped scores: softmax(cap tanh((q kᵀ / sqrt(d_head) + bias) / cap)) v."""

    def __init__(self, dim: int, heads: int, *, bias: bool, softcap: float, own: bool) -> None:
        super().__init__(dim, heads, bias=bias)
        self.softcap, self.own = softcap, own

    def forward(  # type: ignore[override]
        self, x: Tensor, pad: Tensor, *, rows: None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Parameters
        ----------
        x
            (b, t, dim).
        pad
            (b, t), added to the score of each key, without `own` only of those before the query; -inf at keys nobody may attend to. A query
            without any key, as the hidden token of an unknown assay, gets 0 and has probabilities of 0.
        rows
            All are computed: each of them is pooled.
        weights
            Also return the attention probabilities.

        Returns
        -------
        out, weights
            (b, t, dim); (b, heads, t, t) or None.
        """
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))  # (b, h, t, d)
        q = q * q.shape[-1] ** -0.5
        hidden = pad.isneginf()
        bias = pad.masked_fill(hidden, 0.0)
        place = torch.arange(x.shape[1], device=x.device)
        states, maps = [], []
        for begin in range(0, x.shape[1], _QUERIES):
            seen = min(begin + _QUERIES, x.shape[1])
            before = place[:seen] - place[begin:seen, None]  # (r, s): 0 at the query itself, negative before it
            added = bias[:, None, None, :seen]
            if not self.own:
                added = added.masked_fill(before >= 0, 0.0)
            scores = q[:, :, begin:seen] @ k[:, :, :seen].transpose(-1, -2) + added  # (b, h, r, s)
            if self.softcap:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            blocked = (before > 0) | hidden[:, None, None, :seen]
            low = torch.finfo(scores.dtype).min
            probabilities = scores.masked_fill(blocked, low).softmax(dim=-1).masked_fill(blocked, 0.0)
            states.append(probabilities.to(v.dtype) @ v[:, :, :seen])
            if weights:
                maps.append(F.pad(probabilities, (0, x.shape[1] - seen)))
        out = torch.cat(states, dim=2).transpose(1, 2).flatten(2)
        return self.o(out), torch.cat(maps, dim=2) if weights else None


class CountHead(nn.Module):
    """A gene's mean count, before the link: mlp([state, gene]) + a bias of the gene."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * dim, dim // 2, 1)
        self.bias = nn.Embedding(tokens, 1)

    def forward(self, states: Tensor, genes: Tensor, ids: Tensor) -> Tensor:
        """States and gene embeddings (b, t, dim), token ids (b, t) -> (b, t)."""
        return (self.mlp(torch.cat([states, genes], dim=-1)) + self.bias(ids)).squeeze(-1)


def _layer(c: TranscriptFormerConfig) -> TransformerLayer:
    attention = CountAttention(c.dim, c.heads, bias=c.attention_bias, softcap=c.softcap, own=c.own_count)
    return TransformerLayer(
        c.dim,
        c.heads,
        c.hidden,
        activation=c.activation,
        norm="normed",
        dropout=c.dropout,
        bias=c.hidden_bias,
        attention=attention,
    )


class TranscriptFormerNetwork(Network):
    """The cell is the sum of the states from ``[START]`` on, divided by the most genes a cell may have."""

    token_embedding = "genes"
    recovery = Recovery("llh", "cell")

    def __init__(self, config: TranscriptFormerConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.table = nn.Embedding(c.tokens, c.protein_dim)
        self.table.weight.requires_grad_(False)  # frozen in the original
        self.genes = MLP(c.protein_dim, c.dim, c.dim)
        self.aux = nn.ModuleDict(
            {column: nn.Embedding(size, c.dim) for column, size in zip(c.aux, c.aux_sizes, strict=True)}
        )
        self.layers = TransformerStack(_layer(c) for _ in range(c.layers))
        self.counts = CountHead(c.tokens, c.dim) if c.expression else None
        self.next_gene = MLP(c.dim, c.gene_hidden, c.tokens) if c.gene_hidden else None

    @property
    def heads(self) -> frozenset[str]:  # type: ignore[override]
        """Outputs beyond the cells and tokens."""
        names = {"expression", "llh"} if self.counts is not None else set()
        return frozenset(names | ({"gene_logits"} if self.next_gene is not None else set()))

    def width(self, request: Request) -> int:
        """Length of a cell embedding: that of a protein embedding with pooling "protein"."""
        return self.config.protein_dim if request.pooling == "protein" else self.dim

    def embed_genes(self, ids: Tensor) -> Tensor:
        """Token ids (...) -> (..., dim)."""
        return over_distinct(lambda i: self.genes(self.table(i)), ids)

    def embed_tokens(self, batch: Batch) -> Tensor:
        """The first layer's input (b, t, dim)."""
        n_aux = len(self.aux)
        aux = [table(batch.cells["aux"][:, i, None]) for i, table in enumerate(self.aux.values())]  # each (b, 1, dim)
        return torch.cat([*aux, self.embed_genes(batch["ids"][:, n_aux:])], dim=1)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for.

        "tokens" (b, t, dim) are states; the one at a position predicts ``batch["targets"]`` there. "expression" (b, t) is the target's mean
        count (the authors' mu; 0 where there is no target), "gene_logits" (b, t, tokens) say which gene comes next, "llh" (b,) is the mean
        negative log-likelihood of the counts.
        """
        if request.pooling == "protein" and request.outputs == {"cells"}:
            return Encoded(cells=self._protein_mean(batch))
        attention = request.attended(self.depth)
        only_attention = request.only_attention and attention
        run = self.layers.run(
            self.embed_tokens(batch),
            self._key_scores(batch),
            layers=max(attention) + 1 if only_attention else request.hidden_layer,
            attention=attention,
        )
        x = run.states
        out = Encoded(attention=run.attention, tokens=x if request.wants("tokens") else None)
        if request.wants("cells"):
            out.cells = self._protein_mean(batch) if request.pooling == "protein" else self._pool(x, batch)
        if self.next_gene is not None and request.wants("gene_logits"):
            out.heads["gene_logits"] = self.next_gene(x)
        if self.counts is not None and request.wants("expression", "llh"):
            mean = self._mean_counts(x, batch)
            if request.wants("expression"):
                out.heads["expression"] = mean
            if request.wants("llh"):
                out.heads["llh"] = self._negative_log_likelihood(mean, batch)
        return out

    def _key_scores(self, batch: Batch) -> Tensor:
        """What is added to the scores of each key (b, t): a bias that grows with the count, -inf for padding and unknown assays."""
        bias = torch.log1p(batch["counts"] + self.config.count_eps)
        if self.config.aux:
            unknown = batch.cells["aux"] == torch.tensor(self.config.aux_unknown, device=bias.device)
            bias = bias.masked_fill(F.pad(unknown, (0, bias.shape[1] - len(self.aux))), -math.inf)
        return bias if batch.pad is None else bias.masked_fill(batch.pad, -math.inf)

    def _pool(self, x: Tensor, batch: Batch) -> Tensor:
        x = x if batch.pad is None else x.masked_fill(batch.pad.unsqueeze(-1), 0.0)
        return x[:, len(self.aux) :].sum(dim=1) / self.config.context

    def _protein_mean(self, batch: Batch) -> Tensor:
        """Sum of the genes' protein embeddings, divided as the cell embedding is (b, protein_dim)."""
        targets = batch["targets"]
        return (
            self.table(targets).masked_fill((targets == self.config.pad).unsqueeze(-1), 0.0).sum(dim=1)
            / self.config.context
        )

    def _mean_counts(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean counts of the targets (b, t); 0 where there is none, NaN in cells without any."""
        assert self.counts is not None
        targets = batch["targets"]
        logits = self.counts(x, self.embed_genes(targets), targets).float()
        nothing = targets == self.config.pad
        if self.config.link != "softmax":
            return _LINKS[self.config.link](logits).masked_fill(nothing, 0.0)
        share = logits.masked_fill(nothing, -math.inf).softmax(dim=1)
        return share * batch["target_counts"].sum(dim=1, keepdim=True)

    def _negative_log_likelihood(self, mean: Tensor, batch: Batch) -> Tensor:
        """Of zero-truncated Poisson counts, averaged over a cell's genes (b,); NaN in cells without any.

        -c log m + m - log(1 - exp(-m)) + log c!, with the logarithm's argument as the authors approximate it.
        """
        c = self.config
        m = mean + _LLH_EPS
        counts = batch["target_counts"].clone()
        if counts.shape[1] == c.context + len(self.aux):
            counts[:, -1] = 1.0  # of the last position of a full cell, the original reads a 1
        counts = counts.clamp(c.count_eps, c.clip)
        loss = -counts * torch.log(m) + (m - F.softplus(-m)).clamp(min=0) + torch.lgamma(counts + 1)
        real = batch["targets"] != c.pad
        return loss.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)
