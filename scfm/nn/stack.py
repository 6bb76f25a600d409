"""Transformer layers: post- or pre-norm, ReLU, GELU or SwiGLU, with early stop and partial last layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from scfm.nn.attention import SelfAttention

__all__ = ["StackOutput", "TransformerLayer", "TransformerStack"]


@dataclass
class StackOutput:
    """States after the last computed layer, and the attention of the layers that were asked for."""

    states: Tensor
    attention: dict[int, Tensor] = field(default_factory=dict)


class TransformerLayer(nn.Module):
    """One transformer layer.

    post-norm: ``x = norm1(x + attention(x)); x = norm2(x + ff2(act(ff1(x))))``;
    pre-norm: ``x = x + attention(norm1(x)); x = x + ff2(act(ff1(norm2(x))))``.
    With "swiglu", ``act(ff1(x))`` is ``silu(gate(x)) * ff1(x)``.

    `attention` replaces the softmax attention by another module of the same interface, e.g. `PerformerAttention`; `bias` is whether
    the Linears of attention and feed-forward have biases.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        activation: Literal["relu", "gelu", "swiglu"] = "relu",
        norm: Literal["post", "pre"] = "post",
        dropout: float = 0.0,
        eps: float = 1e-5,
        bias: bool = True,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, bias=bias) if attention is None else attention
        self.gate = nn.Linear(dim, hidden, bias=bias) if activation == "swiglu" else None
        self.ff1 = nn.Linear(dim, hidden, bias=bias)
        self.ff2 = nn.Linear(hidden, dim, bias=bias)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.activation = F.relu if activation == "relu" else F.gelu
        self.pre_norm = norm == "pre"

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        *,
        rows: int | None = None,
        weights: bool = False,
        keys: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States (b, rows or t, dim) and, on request, attention (b, heads, rows or t, keys or t); `keys`: so many are attended to."""
        normed = self.norm1(x) if self.pre_norm else x
        part = {} if keys is None else {"source": normed[:, :keys]}
        attended, probabilities = self.attention(normed, pad, rows=rows, weights=weights, **part)
        x = (x if rows is None else x[:, :rows]) + self.dropout(attended)
        if self.pre_norm:
            return x + self.dropout(self._feed_forward(self.norm2(x))), probabilities
        x = self.norm1(x)
        return self.norm2(x + self.dropout(self._feed_forward(x))), probabilities

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.ff1(x)) if self.gate is None else F.silu(self.gate(x)) * self.ff1(x)
        return self.ff2(self.dropout(hidden))


class TransformerStack(nn.ModuleList):
    """Layers one after another."""

    def run(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        *,
        layers: int | None = None,
        rows: int | None = None,
        attention: Collection[int] = (),
        start: int = 0,
        keys: int | None = None,
    ) -> StackOutput:
        """States after some layers.

        Parameters
        ----------
        x
            (b, t, dim).
        pad
            (b, t) bool, True at padding.
        layers
            How many layers to run; all by default.
        rows
            Positions needed of the last of them: its other rows are not computed.
        attention
            Numbers of the layers whose attention is returned.
        start
            First layer to run: `x` are the states after this many.
        keys
            Only the first `keys` positions are attended to; `pad` is then (b, keys).
        """
        count = len(self) if layers is None else layers
        kept: dict[int, Tensor] = {}
        for i, layer in enumerate(self):
            if i < start:
                continue
            if i >= count:
                break
            last = rows if i == count - 1 else None
            part = {} if keys is None else {"keys": keys}
            x, probabilities = layer(x, pad, rows=last, weights=i in attention, **part)
            if probabilities is not None:
                kept[i] = probabilities
        return StackOutput(x if rows is None else x[:, :rows], kept)
