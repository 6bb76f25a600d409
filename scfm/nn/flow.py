"""Flow attention: attention in time linear in the tokens, by conservation of flow (Flowformer, Wu et al. 2022, arXiv:2202.06258).

With q̂ = sigmoid(q), k̂ = sigmoid(k) per head, eps = 1e-6 added to every component of a vector, and all sums over the tokens

    incoming_n = 1 / <q̂_n + eps, Σ_m k̂_m + eps>                         outgoing_m = 1 / <k̂_m + eps, Σ_n q̂_n + eps>
    sink_n     = <q̂_n + eps, Σ_m k̂_m outgoing_m + eps>                  source_m   = <k̂_m + eps, Σ_n q̂_n incoming_n + eps>, cut to [-1, 1]
    out_n      = sigmoid(sink_n) incoming_n q̂_n Σ_m k̂_mᵀ (softmax_m(source) count v_m)
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FlowAttention"]

EPS = 1e-6


class FlowAttention(nn.Module):
    """Multi-head flow self-attention with separate q, k, v, o projections; drop-in for `SelfAttention`, without weights to read out."""

    def __init__(self, dim: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.k = nn.Linear(dim, dim, bias=bias)
        self.v = nn.Linear(dim, dim, bias=bias)
        self.o = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, x: Tensor, pad: Tensor | None = None, *, rows: int | None = None, weights: bool = False
    ) -> tuple[Tensor, None]:
        """Attend.

        Parameters
        ----------
        x
            (b, t, dim).
        pad
            (b, t) bool, True at tokens that send and receive nothing.
        rows
            Give only the first `rows` tokens' output.
        weights
            Not available: flow attention forms no matrix between tokens.

        Returns
        -------
        out
            (b, rows or t, dim).
        weights
            None.
        """
        if weights:
            raise ValueError("flow attention forms no matrix of weights between tokens")
        q = self._split(self.q(x)).sigmoid()  # (b, h, t, d)
        k = self._split(self.k(x)).sigmoid()
        v = self._split(self.v(x))
        count: Tensor | int = x.shape[1]
        hidden = None
        if pad is not None:
            hidden = pad[:, None, :, None]  # (b, 1, t, 1)
            q, k = q.masked_fill(hidden, 0), k.masked_fill(hidden, 0)
            count = (~hidden).sum(dim=2, keepdim=True)
        incoming = 1 / _dot(q, k.sum(dim=2, keepdim=True))  # (b, h, t, 1)
        outgoing = 1 / _dot(k, q.sum(dim=2, keepdim=True))
        sink = _dot(q, _masked(k * outgoing, hidden).sum(dim=2, keepdim=True))
        source = _dot(k, _masked(q * incoming, hidden).sum(dim=2, keepdim=True)).clamp(-1, 1)
        if hidden is not None:
            source = source.masked_fill(hidden, float("-inf"))
        flow = k.transpose(-1, -2) @ (v * source.softmax(dim=2) * count)  # (b, h, d, d)
        part = slice(rows)
        out = (q * incoming)[:, :, part] @ flow * sink[:, :, part].sigmoid()  # (b, h, rows, d)
        return self.o(out.transpose(1, 2).flatten(2)), None

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _dot(tokens: Tensor, total: Tensor) -> Tensor:
    """<token + eps, total + eps> of every token (b, h, t, 1)."""
    return ((tokens + EPS) * (total + EPS)).sum(dim=-1, keepdim=True)


def _masked(x: Tensor, hidden: Tensor | None) -> Tensor:
    return x if hidden is None else x.masked_fill(hidden, 0)
