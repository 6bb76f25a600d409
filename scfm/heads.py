"""The head in front of an embedding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["PredictionHead"]


class PredictionHead(nn.Module):
    """Linear(dropout((cell - mean) / scale)): `mean` and `scale` are those of the training cells before training.

    Embeddings of different models differ in size by orders; standardised ones need no learning rate of their own.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def standardise(self, cells: np.ndarray) -> None:
        """Take mean and scale from embeddings (n_cells, dim)."""
        spread = cells.std(axis=0, dtype=np.float64)
        spread[spread <= 1e-6 * max(float(np.abs(cells).max(initial=0.0)), 1e-30)] = 1.0  # constant dimensions stay
        self.mean.copy_(torch.from_numpy(cells.mean(axis=0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(spread))

    def forward(self, cells: Tensor) -> Tensor:
        """(b, dim) -> (b, outputs)."""
        return self.linear(
            self.dropout((cells.to(self.mean.dtype) - self.mean) / self.scale)
        )  # some encoders give float64
