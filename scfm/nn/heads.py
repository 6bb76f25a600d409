"""Prediction heads found in the authors' checkpoints."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

__all__ = ["CellDecoder", "ExpressionDecoder", "MLPClassifier"]


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


class ExpressionDecoder(nn.Module):
    """Linear, LeakyReLU, Linear, LeakyReLU, Linear to one value a gene; optionally the same for the probability of being expressed."""

    def __init__(self, width: int, dim: int, *, zero_prob: bool) -> None:
        super().__init__()

        def layers() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(width, dim), nn.LeakyReLU(), nn.Linear(dim, dim), nn.LeakyReLU(), nn.Linear(dim, 1)
            )

        self.fc = layers()
        self.zero_logit = layers() if zero_prob else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, t, width) -> values (b, t), P(expressed) (b, t) or None."""
        return self.fc(x).squeeze(-1), None if self.zero_logit is None else self.zero_logit(x).squeeze(-1).sigmoid()


class CellDecoder(nn.Module):
    """Expression of genes from the cell embedding, the MVC decoder of Cui et al. 2024: (W q_j) . cell with q_j = sigmoid(query(gene_j))."""

    def __init__(self, dim: int, width: int, *, zero_prob: bool) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.w = nn.Linear(dim, width, bias=False)
        self.w_zero = nn.Linear(dim, width) if zero_prob else None

    def forward(self, cell: Tensor, genes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cells (b, width), gene embeddings (b, t, dim) -> values (b, t), P(expressed) (b, t) or None."""
        queries = self.query(genes).sigmoid()
        values = (self.w(queries) @ cell.unsqueeze(-1)).squeeze(-1)
        return values, None if self.w_zero is None else (self.w_zero(queries) @ cell.unsqueeze(-1)).squeeze(
            -1
        ).sigmoid()
