"""Embeddings of genes and of their values."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NormedEmbedding", "ValueMLP", "over_distinct"]


class NormedEmbedding(nn.Module):
    """LayerNorm(table[id])."""

    def __init__(self, count: int, dim: int, *, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(count, dim, padding_idx=padding_idx)
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., dim)."""
        return self.norm(self.table(ids))


class ValueMLP(nn.Module):
    """LayerNorm(W2 relu(W1 min(v, limit) + b1) + b2) of a scalar value."""

    def __init__(self, dim: int, *, dropout: float = 0.0, limit: float = 512.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, dim)
        self.linear2 = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.limit = limit

    def forward(self, values: Tensor) -> Tensor:
        """(...) float -> (..., dim)."""
        x = values.unsqueeze(-1).clamp(max=self.limit)
        return self.dropout(self.norm(self.linear2(F.relu(self.linear1(x)))))


def over_distinct(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """`function` (elementwise over its input) applied to the distinct values only: binned values have about fifty among thousands."""
    distinct, where = torch.unique(values, return_inverse=True)
    if distinct.numel() * 2 > values.numel():
        return function(values)
    return F.embedding(where, function(distinct))
