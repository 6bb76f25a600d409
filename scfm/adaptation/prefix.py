"""Learned vectors that the attention of layers reads beside the cell's own tokens (scPEFT's "prefix")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.adaptation.base import ANY_NETWORK, Added, Adding, check_layers, layers_with_sites, place
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, InputError
from scfm.tokenizers.base import Batch

__all__ = ["Prefix", "PrefixVectors"]


class PrefixVectors(Added):
    """tanh(gate) softmax(q kᵀ / sqrt(d_head)) v over learned vectors P, k and v being those of the attention beside it.

    Its result is added to what the attention gives for the cell's own tokens. With the gate at zero, at first, nothing is changed (Zhang
    et al. 2023, arXiv:2303.16199): tokens in the same softmax would change it at any value, zeros too.
    """

    def __init__(self, dim: int, heads: int, count: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(count, dim).normal_(std=0.02))  # (n, dim)
        self.gate = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor, attention: Any) -> Tensor:
        """Input of the attention (b, r, dim) and the attention, with `q`, `k`, `v`, `o` and `heads` -> (b, r, dim)."""

        def split(states: Tensor) -> Tensor:
            return states.unflatten(-1, (attention.heads, -1)).transpose(-3, -2)

        q = split(attention.q(x))  # (b, h, r, d)
        k, v = (split(linear(self.vectors)).expand(len(x), -1, -1, -1) for linear in (attention.k, attention.v))
        read = F.scaled_dot_product_attention(q, k, v) * self.gate.tanh()[:, None, None]
        return F.linear(read.transpose(1, 2).flatten(2), attention.o.weight)  # its bias is added to the cell's own


@dataclass(frozen=True)
class Prefix(Adding):
    """Train vectors that the attention reads beside the cell's own tokens, others in each layer (scPEFT, He et al.; Li and Liang 2021,
    arXiv:2101.00190).

    scPEFT inserts tokens, all zeros, and replaces them at each layer. Here the vectors have a softmax of their own, behind a gate that
    starts at zero, so that training begins at the model's own embedding.

    Parameters
    ----------
    vectors
        In each layer.
    layers
        "half": the first half of the layers, as scPEFT; "all"; or how many first ones.
    """

    vectors: int = 8
    layers: int | Literal["half", "all"] = "half"

    kind: ClassVar[str] = "prefix"
    learning_rate: ClassVar[float] = 1e-2

    def check(self) -> None:
        """There are vectors."""
        check_layers(self.layers)
        if self.vectors < 1:
            raise InputError(f"vectors={self.vectors}; it must be from 1 up.")

    def plan(self, network: Network, probe: Batch, name: str, request: Request) -> dict[str, Any]:
        """Length of the vectors in each layer."""
        layers = list(layers_with_sites(network, probe, name, request, self.layers))
        found = {layer: getattr(network.get_submodule(layer), "attention", None) for layer in layers}
        if odd := [layer for layer, a in found.items() if not all(hasattr(a, part) for part in ("q", "k", "v", "o"))]:
            raise CapabilityError(f"{name} has no keys and values to add to in {odd[0]}.", f"Pass {ANY_NETWORK}.")
        return {"vectors": self.vectors, "layers": {layer: a.k.in_features for layer, a in found.items()}}  # type: ignore[union-attr]

    @staticmethod
    def insert(network: Network, settings: Mapping[str, Any]) -> None:
        """Set the layers' prefixes."""
        for name, dim in settings["layers"].items():
            layer: Any = network.get_submodule(name)
            layer.prefix = place(network, PrefixVectors(dim, layer.attention.heads, settings["vectors"]), name)
