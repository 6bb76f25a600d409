"""Embeddings of genes and of their values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NormedEmbedding", "SoftBinEmbedding", "ValueMLP", "over_distinct", "sinusoids"]


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


class SoftBinEmbedding(nn.Module):
    """A scalar value as a mixture of learned vectors (auto-discretisation of xTrimoGene, Gong et al. 2023, arXiv:2311.15156).

    ``z = LeakyReLU(W1 u + b1, 0.1); z = alpha z + W2 z + b2; softmax(z) @ table``. The values `mask_value` and `pad_value` have vectors
    of their own.
    """

    def __init__(
        self, bins: int, dim: int, *, alpha: float = 1.0, mask_value: float = -1.0, pad_value: float = -2.0
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, bins)
        self.linear2 = nn.Linear(bins, bins)
        self.table = nn.Embedding(bins, dim)
        self.mask = nn.Embedding(1, dim)
        self.pad = nn.Embedding(1, dim)
        self.alpha, self.mask_value, self.pad_value = alpha, mask_value, pad_value

    def weights(self, values: Tensor) -> Tensor:
        """Share of every bin in values (...) -> (..., bins), rows sum to 1."""
        z = F.leaky_relu(self.linear1(values.unsqueeze(-1)), 0.1)
        return (self.alpha * z + self.linear2(z)).softmax(dim=-1)

    def forward(self, values: Tensor) -> Tensor:
        """(...) float -> (..., dim)."""
        x = self.weights(values) @ self.table.weight
        for value, vector in ((self.mask_value, self.mask), (self.pad_value, self.pad)):
            special = values == value
            if special.any():
                x = torch.where(special.unsqueeze(-1), vector.weight, x)
        return x


def over_distinct(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """`function` (elementwise over its input) applied to the distinct values only: binned values have about fifty among thousands."""
    if values.is_meta:  # shapes only
        return function(values)
    distinct, where = torch.unique(values, return_inverse=True)
    if distinct.numel() * 2 > values.numel():
        return function(values)
    return F.embedding(where, function(distinct))


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions as sines (even columns) and cosines (odd) of falling frequency (Vaswani et al. 2017, arXiv:1706.03762) (length, dim)."""
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length).unsqueeze(1) * frequency  # (length, dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
