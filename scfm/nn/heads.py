"""Prediction heads found in the authors' checkpoints."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

__all__ = ["MLPClassifier"]


class MLPClassifier(nn.Module):
    """(Linear, activation, LayerNorm) x (layers - 1), then Linear to the classes."""

    def __init__(
        self, dim: int, classes: int, layers: int = 3, *, activation: Literal["relu", "leaky_relu"] = "relu"
    ) -> None:
        super().__init__()
        act = nn.ReLU if activation == "relu" else nn.LeakyReLU
        self.hidden = nn.Sequential(
            *(m for _ in range(layers - 1) for m in (nn.Linear(dim, dim), act(), nn.LayerNorm(dim)))
        )
        self.out = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., classes)."""
        return self.out(self.hidden(x))
