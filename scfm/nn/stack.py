"""Transformer layers: post- or pre-norm, ReLU, GELU or SwiGLU, with early stop and partial last layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from scfm.nn.attention import SelfAttention, take_rows
from scfm.nn.causal import KeyValues
from scfm.nn.sites import Site

__all__ = ["StackOutput", "TransformerLayer", "TransformerStack", "torch_layer_keys"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


@dataclass
class StackOutput:
    """States after the last computed layer, and the attention of the layers that were asked for."""

    states: Tensor
    attention: dict[int, Tensor] = field(default_factory=dict)


class TransformerLayer(nn.Module):
    """One transformer layer.

    post-norm: ``x = norm1(x + attention(x)); x = norm2(x + ff2(act(ff1(x))))``;
    pre-norm: ``x = x + attention(norm1(x)); x = x + ff2(act(ff1(norm2(x))))``;
    "normed": ``x = norm1(x); x = x + attention(x); x = norm2(x); x = x + ff2(act(ff1(x)))``, so that normalised states are added to.
    With "swiglu", ``act(ff1(x))`` is ``silu(gate(x)) * ff1(x)``.

    `attention` replaces the softmax attention by another module of the same interface, e.g. `PerformerAttention`; `bias` is whether
    the Linears of attention and feed-forward have biases, `norm_bias` whether the LayerNorms do.

    Fine-tuning may replace the sites `after_attention` and `after_feed_forward`, which see the residual stream after either half (in
    post-norm after its norm), and set `prefix`, called with the input of the attention and the attention, whose result is added to what
    was attended to.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu"] = "relu",
        norm: Literal["post", "pre", "normed"] = "post",
        dropout: float = 0.0,
        eps: float = 1e-5,
        bias: bool = True,
        norm_bias: bool = True,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, bias=bias) if attention is None else attention
        self.gate = nn.Linear(dim, hidden, bias=bias) if activation == "swiglu" else None
        self.ff1 = nn.Linear(dim, hidden, bias=bias)
        self.ff2 = nn.Linear(hidden, dim, bias=bias)
        self.norm1 = nn.LayerNorm(dim, eps=eps, bias=norm_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps, bias=norm_bias)
        self.dropout = nn.Dropout(dropout)
        self.after_attention, self.after_feed_forward = Site(), Site()
        self.prefix: nn.Module | None
        self.register_module("prefix", None)
        self.activation = ACTIVATIONS.get(activation, F.gelu)
        self.norm = norm

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        *,
        rows: int | Tensor | None = None,
        weights: bool = False,
        keys: int | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States (b, rows or t, dim) and, on request, attention (b, heads, rows or t, keys or t); `keys`: so many are attended to."""
        normed = x if self.norm == "post" else self.norm1(x)
        part: dict[str, Any] = {} if keys is None else {"source": normed[:, :keys]}
        if cache is not None:
            part["cache"] = cache
        attended, probabilities = self.attention(normed, pad, rows=rows, weights=weights, **part)
        if self.prefix is not None:
            attended = attended + self.prefix(take_rows(normed, rows), self.attention)
        x = take_rows(normed if self.norm == "normed" else x, rows) + self.dropout(attended)
        if self.norm == "post":
            x = self.after_attention(self.norm1(x))
            return self.after_feed_forward(self.norm2(x + self.dropout(self._feed_forward(x)))), probabilities
        x = self.after_attention(x)
        normed = self.norm2(x)
        x = (normed if self.norm == "normed" else x) + self.dropout(self._feed_forward(normed))
        return self.after_feed_forward(x), probabilities

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
        rows: int | Tensor | None = None,
        attention: Collection[int] = (),
        start: int = 0,
        keys: int | None = None,
        cache: Sequence[KeyValues] | None = None,
    ) -> StackOutput:
        """States after some layers.

        Parameters
        ----------
        x
            (b, t, dim).
        pad
            (b, t) bool, True at padding.
        layers
            After how many layers to stop; all by default.
        rows
            Positions needed of the last of them, so many first ones, or each cell's own (b, rows) int64: its other rows are not computed.
        attention
            Numbers of the layers whose attention is returned.
        start
            First layer to run: `x` are the states after this many.
        keys
            Only the first `keys` positions are attended to; `pad` is then (b, keys).
        cache
            With `CausalAttention`, one for each layer: filled by the first call; in later ones `x` is the next token of each cell.
        """
        count = len(self) if layers is None else layers
        kept: dict[int, Tensor] = {}
        for i, layer in enumerate(self):
            if i < start:
                continue
            if i >= count:
                break
            last = rows if i == count - 1 else None
            part: dict[str, Any] = {} if keys is None else {"keys": keys}
            if cache is not None:
                part["cache"] = cache[i]
            x, probabilities = layer(x, pad, rows=last, weights=i in attention, **part)
            if probabilities is not None:
                kept[i] = probabilities
        return StackOutput(take_rows(x, rows) if start >= count else x, kept)


def torch_layer_keys(theirs: str, ours: str = "layers.{i}") -> dict[str, str | tuple[str, ...] | None]:
    """Tensor names of torch's `TransformerEncoderLayer`, with its own attention or flash-attn's -> those of a `TransformerLayer`.

    Fused projections hold q, k and v behind one another: `in_proj_weight` (torch), `Wqkv` (flash-attn 1), `_impl.Wqkv` (wrapped).
    `theirs` and `ours` name a layer, e.g. "transformer_encoder.layers.{i}".
    """
    attention, (q, k, v) = f"{theirs}.self_attn", (f"{ours}.attention.{name}" for name in "qkv")
    keys: dict[str, str | tuple[str, ...] | None] = {}
    for fused in (attention, f"{attention}._impl"):
        keys[f"{fused}.Wqkv.{{p}}"] = (f"{q}.{{p}}", f"{k}.{{p}}", f"{v}.{{p}}")  # (3 dim, dim)
        keys[f"{fused}.out_proj.{{p}}"] = f"{ours}.attention.o.{{p}}"
    for p in ("weight", "bias"):
        keys[f"{attention}.in_proj_{p}"] = (f"{q}.{p}", f"{k}.{p}", f"{v}.{p}")
    for part, name in (("linear1", "ff1"), ("linear2", "ff2"), ("norm1", "norm1"), ("norm2", "norm2")):
        keys[f"{theirs}.{part}.{{p}}"] = f"{ours}.{name}.{{p}}"
    return keys
