"""Bottleneck adapters after the attention of layers (scPEFT's "encoder adapter")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scfm.adaptation.base import Adding, check_layers, layers_with_sites, place
from scfm.adaptation.bottleneck import Bottleneck
from scfm.encoder import Network, Request
from scfm.errors import InputError
from scfm.tokenizers.base import Batch

__all__ = ["EncoderAdapter"]


@dataclass(frozen=True)
class EncoderAdapter(Adding):
    """Train bottlenecks in the residual stream, behind the attention of each layer, after its norm in post-norm layers (scPEFT, He et al.).

    Unlike scPEFT's, whose last layers are random at first, they start as the identity: training begins at the model's own embedding.

    Parameters
    ----------
    hidden
        Width of the bottleneck as a share of the states' width.
    layers
        "half": the first half of the layers, as scPEFT; "all"; or how many first ones.
    """

    hidden: float = 0.25
    layers: int | Literal["half", "all"] = "half"

    kind: ClassVar[str] = "encoder_adapter"
    learning_rate: ClassVar[float] = 1e-3

    def check(self) -> None:
        """The width is positive."""
        check_layers(self.layers)
        if not self.hidden > 0:
            raise InputError(f"hidden={self.hidden}; it must be a positive share of the states' width.")

    def plan(self, network: Network, probe: Batch, name: str, request: Request) -> dict[str, Any]:
        """Width of the states and of the bottleneck at each site."""
        layers = layers_with_sites(network, probe, name, request, self.layers)
        widths = {f"{layer}.after_attention": dims["after_attention"] for layer, dims in layers.items()}
        return {"sites": {site: [dim, max(round(self.hidden * dim), 1)] for site, dim in widths.items()}}

    @staticmethod
    def insert(network: Network, settings: Mapping[str, Any]) -> None:
        """Replace the sites."""
        for site, (dim, hidden) in settings["sites"].items():
            layer, _, which = site.rpartition(".")
            setattr(network.get_submodule(layer), which, place(network, Bottleneck(dim, hidden), layer))
