"""Multi-head self-attention on `scaled_dot_product_attention`, with the weights on request."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SelfAttention", "take_rows"]


def take_rows(x: Tensor, rows: int | Tensor | None) -> Tensor:
    """Some positions of x (b, t, dim): the first `rows`, or each cell's own (b, rows) int64; None: all."""
    if rows is None or isinstance(rows, int):
        return x[:, :rows]
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class SelfAttention(nn.Module):
    """softmax(q kᵀ / sqrt(d_head)) v with separate q, k, v, o projections.

    Not `nn.MultiheadAttention`: its fused eval path reads raw weights, so that LoRA on it is silently ignored.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, source_dim: int | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.k = nn.Linear(source_dim or dim, dim, bias=bias)
        self.v = nn.Linear(source_dim or dim, dim, bias=bias)
        self.o = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        *,
        rows: int | Tensor | None = None,
        weights: bool = False,
        source: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Parameters
        ----------
        x
            (b, t, dim).
        pad
            (b, t) bool, True at keys nobody may attend to; or float, added to every query's score of the key (-inf: nobody may).
        rows
            Compute only these queries, see `take_rows`.
        weights
            Also return the attention probabilities.
        source
            (b, s, source_dim) what is attended to, if not `x` itself; `pad` is then (b, s).

        Returns
        -------
        out
            (b, rows or t, dim).
        weights
            (b, heads, rows or t, t), or None.
        """
        source = x if source is None else source
        q = self._split(self.q(take_rows(x, rows)))  # (b, h, r, d)
        k, v = self._split(self.k(source)), self._split(self.v(source))  # (b, h, t, d)
        probabilities = None
        if weights:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            if pad is not None and pad.dtype == torch.bool:
                scores = scores.masked_fill(pad[:, None, None, :], float("-inf"))
            elif pad is not None:
                scores = scores + pad[:, None, None, :]
            probabilities = scores.softmax(dim=-1)
            if pad is not None and pad.dtype == torch.bool:  # a query without keys gets 0, as from the fused function
                probabilities = probabilities.masked_fill(pad[:, None, None, :], 0)
            out = probabilities @ v
        else:
            mask = None if pad is None else (~pad if pad.dtype == torch.bool else pad.to(q.dtype))[:, None, None, :]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(out.transpose(1, 2).flatten(2)), probabilities

    def scores(self, x: Tensor) -> Tensor:
        """Raw q kᵀ, unscaled and before softmax (b, heads, t, t): what scGPT's attention tutorial ranks."""
        return self._split(self.q(x)) @ self._split(self.k(x)).transpose(-1, -2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
