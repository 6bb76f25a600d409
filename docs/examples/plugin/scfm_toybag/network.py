"""ToyBag's network: the mean of a cell's gene vectors, weighted by expression, through two linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from scfm.encoder import Encoded, Network, Request
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class ToyBagConfig:
    """Sizes."""

    genes: int
    hidden: int
    dim: int


class ToyBagNetwork(Network):
    """cell = out(relu(inner(sum_g value_g gene_g / sum_g value_g)))."""

    def __init__(self, config: ToyBagConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.genes = nn.Embedding(config.genes, config.hidden)
        self.inner = nn.Linear(config.hidden, config.hidden)
        self.out = nn.Linear(config.hidden, config.dim)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """Cells (b, dim), and the gene vectors as tokens (b, t, hidden) when asked for."""
        tokens = self.genes(batch["ids"])  # (b, t, hidden)
        weights = batch["values"]  # (b, t)
        if batch.pad is not None:
            weights = weights.masked_fill(batch.pad, 0)
        total = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)  # an empty cell is the mean of nothing: zeros
        mean = (tokens * weights.unsqueeze(-1)).sum(dim=1) / total  # (b, hidden)
        cells = self.out(torch.relu(self.inner(mean)))
        return Encoded(cells=cells, tokens=tokens if request.wants("tokens") else None)
