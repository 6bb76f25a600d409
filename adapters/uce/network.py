"""UCE's network: protein embeddings of tokens, projected; a post-norm transformer; a decoder of the ``<cls>`` state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.nn import TransformerLayer, TransformerStack, over_distinct, sinusoids
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class UCEConfig:
    """Sizes, as found in the tensors; the head count is the authors' constant."""

    tokens: int  # rows kept of the token table: special tokens, the genes and chromosomes of one species
    token_dim: int = 5120  # of a protein embedding (ESM2 15B)
    dim: int = 1280
    heads: int = 20
    hidden: int = 5120  # of the feed-forward block
    layers: int = 4
    output_dim: int = 1280  # of a cell embedding
    decoder_hidden: int = 1024
    expressed_hidden: tuple[int, ...] = (2048, 512, 128)  # of the head that tells whether a gene is expressed
    context: int = 1536  # positions
    dropout: float = 0.05


def _blocks(*widths: int, dropout: float) -> list[nn.Module]:
    """Linear, LayerNorm, GELU between each two widths."""
    return [
        nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Dropout(dropout)) for a, b in pairwise(widths)
    ]


class Projection(nn.Module):
    """LayerNorm(GELU(W x + b))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.norm(F.gelu(self.linear(x)))


class UCENetwork(Network):
    """The cell is the L2-normalised decoder output at ``<cls>``."""

    token_embedding = "project"
    heads = frozenset({"gene_output", "expressed"})

    def __init__(self, config: UCEConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.output_dim, c.layers
        self.table = nn.Embedding(c.tokens, c.token_dim)
        self.table.weight.requires_grad_(False)  # frozen in the original
        self.project = Projection(c.token_dim, c.dim)
        self.register_buffer(
            "positions", sinusoids(c.context, c.dim).unsqueeze(1)
        )  # (context, 1, dim), as the authors keep it
        self.dropout = nn.Dropout(c.dropout)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, dropout=c.dropout) for _ in range(c.layers)
        )
        self.decoder = nn.Sequential(
            *_blocks(c.dim, c.decoder_hidden, c.output_dim, c.output_dim, dropout=c.dropout),
            nn.Linear(c.output_dim, c.output_dim),
        )
        self.expressed = nn.Sequential(
            *_blocks(c.output_dim + c.dim, *c.expressed_hidden, dropout=c.dropout), nn.Linear(c.expressed_hidden[-1], 1)
        )
        self.genes = Projection(c.token_dim, c.dim)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (b, t) -> the transformer's input (b, t, dim)."""
        x = over_distinct(lambda i: self.project(F.normalize(self.table(i), dim=-1)), ids) * math.sqrt(self.config.dim)
        return self.dropout(x + self.get_buffer("positions")[: ids.shape[1], 0])

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.config.dim

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for.

        "tokens" are the transformer's states, "gene_output" (b, t, output_dim) the decoder's at every token; "expressed" (b, t) the
        logits that the sentence's own genes are expressed.
        """
        attention = request.attended(self.depth)
        only_attention = request.only_attention and attention
        every = request.wants("tokens", "gene_output") or bool(attention)
        run = self.layers.run(
            self.embed_tokens(batch["ids"]),
            _key_scores(batch),
            layers=max(attention) + 1 if only_attention else request.hidden_layer,
            rows=None if every else 1,
            attention=attention,
        )
        out = Encoded(attention=run.attention, tokens=run.states if request.wants("tokens") else None)
        if request.wants("gene_output"):
            out.heads["gene_output"] = self.decoder(run.states)
        if request.wants("cells", "expressed"):
            out.cells = F.normalize(self.decoder(run.states[:, 0]), dim=-1)  # (b, output_dim)
            if request.wants("expressed"):
                out.heads["expressed"] = self.predict_expressed(out.cells, batch["ids"])
        return out

    def predict_expressed(self, cells: Tensor, genes: Tensor) -> Tensor:
        """Logits that genes, token ids (b, g) or the same of all cells (1, g), are expressed in cells (b, output_dim) -> (b, g)."""
        vectors = self.genes(self.table(genes)).expand(len(cells), -1, -1)  # (b, g, dim)
        both = torch.cat([cells[:, None].expand(-1, vectors.shape[1], -1), vectors], dim=-1)
        return self.expressed(both).squeeze(-1)


def _key_scores(batch: Batch) -> Tensor | None:
    """What keys nobody may attend to, or what is added to their scores (b, t)."""
    bonus = batch.fields.get("bonus")
    if bonus is None:
        return batch.pad
    return bonus if batch.pad is None else bonus.masked_fill(batch.pad, float("-inf"))
