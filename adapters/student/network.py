"""Counts in, the teacher's embedding out: a sum over the expressed genes, and a small MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.tokenizers import Batch

__all__ = ["CALIBRATION", "StudentNetwork"]

CALIBRATION = 512
"""Quantiles of the held-out cells' distances that are kept."""


class StudentNetwork(Network):
    """``y = mean + scale * (linear(b) + mlp(b))``, with b the standardised sum of the genes' vectors, each times log1p of its counts per
    10,000. The vectors are principal axes of the training cells.

    The head "novelty" compares a cell with held-out ones in two ways: how far it is from the mean of the training cells along their
    axes, each divided by its spread (Mahalanobis), and what share of its squared values the axes leave out. Both become shares of
    held-out cells that have less; the larger of the two is calibrated alike.
    """

    heads = frozenset({"novelty"})
    token_cost = 1 / 64  # a token is a lookup and an addition

    middle: Tensor
    spread: Tensor
    mean: Tensor
    scale: Tensor
    quantiles: Tensor

    def __init__(self, genes: int, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.dim, self.depth = dim, 0
        self.genes = nn.Embedding(genes, width)
        nn.init.normal_(self.genes.weight, std=width**-0.5)
        self.register_buffer("middle", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.linear = nn.Linear(width, dim)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("quantiles", torch.linspace(0, 1, CALIBRATION).repeat(3, 1))

    @property
    def token_width(self) -> int:
        """Length of a gene's vector."""
        return self.genes.embedding_dim

    def sums(self, batch: Batch) -> Tensor:
        """The sum of the genes' vectors, each times its value (b, width)."""
        if batch["ids"].shape[1] == 0:  # nothing but empty cells
            return self.genes.weight.new_zeros(len(batch), self.genes.embedding_dim)
        values = _values(batch).to(self.genes.weight.dtype)
        return F.embedding_bag(batch["ids"], self.genes.weight, per_sample_weights=values, mode="sum")

    def standard(self, sums: Tensor) -> Tensor:
        """The standardised sums (b, width)."""
        return (sums - self.middle) / self.spread

    def hidden(self, bag: Tensor) -> Tensor:
        """The last hidden layer (b, hidden)."""
        return F.gelu(self.second(F.gelu(self.first(bag))))

    def standardised(self, bag: Tensor) -> Tensor:
        """The output before it gets the teacher's mean and scale (b, dim)."""
        return self.linear(bag) + self.out(self.hidden(bag))

    def oddness(self, batch: Batch, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Distance along the axes, and share of the squared values that they leave out: (b,), (b,)."""
        squares = _values(batch).float().square().sum(dim=1)
        left = 1 - sums.float().square().sum(dim=1) / squares.clamp_min(1e-12)
        return self.standard(sums).float().norm(dim=1), left

    def rank(self, values: Tensor, table: int) -> Tensor:
        """Share of the held-out cells that have less (b,)."""
        return torch.searchsorted(self.quantiles[table], values.contiguous()).float() / CALIBRATION

    def novelty(self, batch: Batch, sums: Tensor) -> Tensor:
        """Share of the held-out cells that are less odd (b,)."""
        distance, left = self.oddness(batch, sums)
        return self.rank(torch.maximum(self.rank(distance, 0), self.rank(left, 1)), 2)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for."""
        sums = self.sums(batch)
        encoded = Encoded()
        if request.wants("cells"):
            encoded.cells = self.mean + self.scale * self.standardised(self.standard(sums))
        if request.wants("tokens"):
            encoded.tokens = self.genes(batch["ids"]) * _values(batch).unsqueeze(-1)  # (b, t, width)
        if request.wants("novelty"):
            encoded.heads["novelty"] = self.novelty(batch, sums)
        return encoded


def _values(batch: Batch) -> Tensor:
    """Values (b, t), 0 at padding."""
    return batch["values"] if batch.pad is None else batch["values"].masked_fill(batch.pad, 0)
