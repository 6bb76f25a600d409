"""LangCell's networks: a BERT over ranked genes, a BERT over words that can also attend to a cell, and what compares the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.engine import plan_batches
from scfm.nn import BertEmbedding, SelfAttention, TransformerLayer, TransformerStack
from scfm.tokenizers import Batch, Tokens

_TOKEN_BUDGET = 16_384  # of texts matched to cells at a time


@dataclass(frozen=True)
class LangCellConfig:
    """Sizes, as found in the two `config.json` and the tensors."""

    tokens: int  # rows of the token table, <cls> included
    context: int = 2048  # most tokens of a cell, <cls> included
    dim: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 1024  # of the feed-forward block
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.02
    eps: float = 1e-12
    types: int = 2  # rows of the token-type table, of which the first is used
    shared: int = 256  # length of the vectors that cells and texts are compared by
    words: int = 0  # rows of the text side's token table; 0: there is no text side
    text_context: int = 512
    text_dim: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_dropout: float = 0.1
    text_eps: float = 1e-12


class Bert(nn.Module):
    """An embedding and the layers on it."""

    def __init__(self, embedding: BertEmbedding, layers: TransformerStack) -> None:
        super().__init__()
        self.embedding, self.layers = embedding, layers


class LangCellNetwork(Network):
    """Embedding and post-norm transformer over `<cls>` and genes; the cell is the L2-normalised projection of the last `<cls>` state."""

    token_embedding = "bert.embedding"

    def __init__(self, config: LangCellConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.shared, c.layers
        self.bert = Bert(
            BertEmbedding(c.tokens, c.dim, c.context, types=c.types, eps=c.eps, dropout=c.dropout),
            TransformerStack(
                TransformerLayer(c.dim, c.heads, c.hidden, activation=c.activation, dropout=c.dropout, eps=c.eps)
                for _ in range(c.layers)
            ),
        )
        self.projection = nn.Linear(c.dim, c.shared)

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.config.dim

    def width(self, request: Request) -> int:
        """Length of the shared vectors, or of a state."""
        return self.config.dim if request.pooling == "cls" else self.config.shared

    def project(self, states: Tensor) -> Tensor:
        """States of `<cls>` (b, dim) -> (b, shared), of length 1."""
        return F.normalize(self.projection(states), dim=-1)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for."""
        attention = request.attended(self.depth)
        until = max((layer + 1 for layer in attention), default=0)
        depth = request.depth(self.depth)
        x, pad, done = self.bert.embedding(batch["ids"]), batch.pad, 0  # (b, t, dim)
        out = Encoded()
        if request.wants("cells", "tokens"):
            rows = None if request.wants("tokens") or until else 1
            run = self.bert.layers.run(x, pad, layers=depth, rows=rows, attention=attention)
            x, done, out.attention = run.states, depth, run.attention
            if request.wants("tokens"):
                out.tokens = x
            if request.wants("cells"):
                out.cells = x[:, 0] if request.pooling == "cls" else self.project(x[:, 0])
        if until > done:
            run = self.bert.layers.run(x, pad, start=done, layers=until, attention=attention)
            out.attention = out.attention | run.attention
        return out


class TextLayer(TransformerLayer):
    """A post-norm layer over words, with a second attention, to the states of a cell, that plain reading of the text leaves out."""

    def __init__(self, config: LangCellConfig) -> None:
        c = config
        super().__init__(
            c.text_dim, c.text_heads, c.text_hidden, activation="gelu", dropout=c.text_dropout, eps=c.text_eps
        )
        self.cross = SelfAttention(c.text_dim, c.text_heads, source_dim=c.dim)
        self.cross_norm = nn.LayerNorm(c.text_dim, eps=c.text_eps)

    def matched(
        self, x: Tensor, pad: Tensor, cells: Tensor, cell_pad: Tensor | None, *, rows: int | None = None
    ) -> Tensor:
        """Every text read in the light of every cell.

        Parameters
        ----------
        x
            (b, k, l, text_dim) states of k texts for each of b cells.
        pad
            (k, l) bool, True at padding of the texts.
        cells
            (b, t, dim) states of the cells.
        cell_pad
            (b, t) bool, or None.
        rows
            Compute only the first words.
        """
        b, k = x.shape[:2]
        flat = x.flatten(0, 1)  # (b k, l, text_dim)
        attended, _ = self.attention(flat, pad.repeat(b, 1), rows=rows)
        flat = self.norm1((flat if rows is None else flat[:, :rows]) + self.dropout(attended))
        x = flat.view(b, -1, flat.shape[-1])  # (b, k l, text_dim): words do not see each other here
        attended, _ = self.cross(x, cell_pad, source=cells)
        x = self.cross_norm(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self._feed_forward(x))).view(b, k, -1, flat.shape[-1])


class TextNetwork(nn.Module):
    """The text side: descriptions -> vectors beside those of cells, and how well a description matches a cell."""

    def __init__(self, config: LangCellConfig) -> None:
        super().__init__()
        c = config
        self.bert = Bert(
            BertEmbedding(c.words, c.text_dim, c.text_context, types=0, eps=c.text_eps, dropout=c.text_dropout),
            TransformerStack(TextLayer(c) for _ in range(c.text_layers)),
        )
        self.projection = nn.Linear(c.text_dim, c.shared)
        self.match = nn.Linear(c.text_dim, 2)

    def forward(self, batch: Batch) -> Tensor:
        """Texts -> (n_texts, shared), of length 1."""
        states = self.bert.layers.run(self.bert.embedding(batch["ids"]), batch.pad, rows=1).states
        return F.normalize(self.projection(states[:, 0]), dim=-1)

    def matching(self, texts: Batch, cells: Tensor, cell_pad: Tensor | None) -> Tensor:
        """Logits of "does not match" and "matches" (b, n_texts, 2) for cell states (b, t, dim)."""
        ids = texts["ids"]
        pad = torch.zeros_like(ids, dtype=torch.bool) if texts.pad is None else texts.pad
        x = self.bert.embedding(ids).expand(len(cells), -1, -1, -1)  # (b, k, l, text_dim)
        for i, layer in enumerate(self.bert.layers):
            assert isinstance(layer, TextLayer)
            x = layer.matched(x, pad, cells, cell_pad, rows=1 if i == len(self.bert.layers) - 1 else None)
        return self.match(x[:, :, 0])


class MatchingNetwork(Network):
    """A cell encoder that also says how its cells compare with given texts.

    Parameters
    ----------
    cells, text
        The two sides.
    tokens
        Of the texts.
    vectors
        (n_texts, shared) of the texts.
    """

    heads = frozenset({"similarity", "matching"})

    def __init__(self, cells: LangCellNetwork, text: TextNetwork, tokens: Tokens, vectors: Tensor) -> None:
        super().__init__()
        self.cells, self.text, self.tokens = cells, text, tokens
        self.dim, self.depth = cells.dim, cells.depth
        self.vectors: Tensor
        self.register_buffer("vectors", vectors, persistent=False)

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.cells.token_width

    def width(self, request: Request) -> int:
        """As of the cell encoder."""
        return self.cells.width(request)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """Also "similarity" (b, n_texts), the cosine of cell and text, and "matching" (b, n_texts, 2), logits of no and yes."""
        encoded = self.cells(batch, request)
        if request.wants("similarity", "matching"):
            needed = {"tokens"} if request.wants("matching") else {"cells"}
            last = self.cells(batch, Request(frozenset(needed)))
            cells = last.cells if last.tokens is None else self.cells.project(last.tokens[:, 0])
            if request.wants("similarity"):
                encoded.heads["similarity"] = cells @ self.vectors.T
            if request.wants("matching"):
                encoded.heads["matching"] = self._matching(last.tokens, batch.pad)
        return encoded

    def _matching(self, states: Tensor, pad: Tensor | None) -> Tensor:
        """(b, t, dim) -> (b, n_texts, 2); texts of similar length together, under a token budget."""
        lengths = self.tokens.lengths
        parts = plan_batches(lengths, budget=max(_TOKEN_BUDGET // len(states), 1), most_cells=len(lengths))
        found = [self.text.matching(self.tokens.collate(part).to(states.device), states, pad) for part in parts]
        return torch.cat(found, dim=1)[:, np.argsort(np.concatenate(parts))]
