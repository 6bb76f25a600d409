"""FAVOR+ attention: softmax attention in time linear in the tokens (Performer, Choromanski et al. 2021, arXiv:2009.14794).

With a projection P (m, d_head), c = d_head^-1/4 and eps = 1e-4,

    phi_q(t) = exp(c t Pᵀ - |c t|²/2 - max over the features of c t Pᵀ) + eps
    phi_k(t) = exp(c t Pᵀ - |c t|²/2 - max over the features, positions and heads of c t Pᵀ) + eps
    out      = phi_q (phi_kᵀ v) / (phi_q Σ phi_k)

(the factor m^-1/2 of the paper cancels). The maximum of the keys does not cancel, because of eps. In the package that the models were
trained with (performer-pytorch) it is taken over the whole batch, so that a cell's output depends on the cells it is computed with. Here
it is taken over each cell, which is what that package gives for a batch of one; `key_maximum="batch"` is its result for a joint batch.
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["PerformerAttention", "orthogonal_features"]

EPS = 1e-4


def orthogonal_features(count: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Random projection (count, dim): orthogonal blocks of dim rows, each row as long as a Gaussian vector of that dimension."""
    blocks = [
        torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0].T[: count - start]
        for start in range(0, count, dim)
    ]
    lengths = torch.randn(count, dim, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks) * lengths


class PerformerAttention(nn.Module):
    """Multi-head FAVOR+ self-attention, not causal, with separate q, k, v, o projections; drop-in for `SelfAttention`.

    Parameters
    ----------
    dim
        Length of a token's state.
    heads, head_dim
        The inner width is heads x head_dim, whatever `dim`.
    features
        Rows m of the projection; int(head_dim ln head_dim) by default.
    bias
        Whether q, k and v have a bias.
    out_bias
        Whether o has one.
    key_maximum
        "cell": every cell's own. "batch": over all cells of the batch, as the original package has it.

    Notes
    -----
    `projection` is a buffer that belongs to the weights: it must be loaded, and is never redrawn.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int = 64,
        features: int | None = None,
        bias: bool = False,
        out_bias: bool = True,
        key_maximum: Literal["cell", "batch"] = "cell",
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.key_maximum = key_maximum
        self.q = nn.Linear(dim, inner, bias=bias)
        self.k = nn.Linear(dim, inner, bias=bias)
        self.v = nn.Linear(dim, inner, bias=bias)
        self.o = nn.Linear(inner, dim, bias=out_bias)
        self.projection: Tensor
        self.register_buffer("projection", orthogonal_features(features or int(head_dim * log(head_dim)), head_dim))

    def forward(
        self, x: Tensor, pad: Tensor | None = None, *, rows: int | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Parameters
        ----------
        x
            (b, t, dim).
        pad
            (b, t) bool, True at keys nobody may attend to.
        rows
            Compute only the first `rows` queries.
        weights
            Also return the attention that is implied, phi_q phi_kᵀ with rows normalised to 1; needs t² numbers a head, the output does not.

        Returns
        -------
        out
            (b, rows or t, dim).
        weights
            (b, heads, rows or t, t), or None.
        """
        keys = self.key_features(x, pad)  # (b, h, t, m)
        context = keys.transpose(-1, -2) @ self._split(self.v(x))  # (b, h, m, d)
        total = keys.sum(dim=-2).unsqueeze(-1)  # (b, h, m, 1)
        queries = self.query_features(x if rows is None else x[:, :rows])  # (b, h, r, m)
        norm = queries @ total  # (b, h, r, 1)
        out = queries @ context / norm
        implied = queries @ keys.transpose(-1, -2) / norm if weights else None
        return self.o(out.transpose(1, 2).flatten(2)), implied

    def query_features(self, x: Tensor) -> Tensor:
        """phi_q of states (b, t, dim) -> (b, heads, t, m)."""
        exponent, half = self._exponent(self.q(x))
        return _shifted_exp(exponent, half + exponent.amax(dim=-1, keepdim=True).detach())

    def key_features(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """phi_k of states (b, t, dim) -> (b, heads, t, m); 0 at padding."""
        exponent, half = self._exponent(self.k(x))
        if pad is None:
            best = exponent.amax(dim=(1, 2, 3), keepdim=True)
        else:
            best = exponent.amax(dim=(1, 3)).masked_fill(pad, float("-inf")).amax(dim=1)[:, None, None, None]
        if self.key_maximum == "batch":
            best = best.amax()
        keys = _shifted_exp(exponent, half + best.detach())
        return keys if pad is None else keys.masked_fill(pad[:, None, :, None], 0)

    def _exponent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """c t Pᵀ (b, heads, t, m) and |c t|²/2 (b, heads, t, 1)."""
        scaled = self._split(x) * self.projection.shape[1] ** -0.25
        return scaled @ self.projection.to(scaled.dtype).T, scaled.square().sum(dim=-1, keepdim=True) / 2

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _shifted_exp(exponent: Tensor, shift: Tensor) -> Tensor:
    """exp(exponent - shift) + eps; in place where no gradient is wanted, because these are the largest tensors of the network."""
    if torch.is_grad_enabled():
        return torch.exp(exponent - shift) + EPS
    return exponent.sub_(shift).exp_().add_(EPS)
