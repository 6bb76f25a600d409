"""The network's own weights are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scfm.adaptation.base import Adapted, Method
from scfm.adaptation.walk import heights, layers_of, used_parameters
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, InputError
from scfm.tokenizers.base import Batch

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Method):
    """Train the network's own weights.

    Parameters
    ----------
    layer_decay
        The learning rate of a layer is so many times that of the layer above, in (0, 1]; that below the first layer is the lowest.
    frozen_layers
        So many first layers, and all below them, are not trained.
    """

    layer_decay: float = 1.0
    frozen_layers: int = 0

    kind: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 1e-4

    def check(self) -> None:
        """The decay is a share."""
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay={self.layer_decay} is not in (0, 1].")

    def adapt(self, network: Network, probe: Batch, name: str, request: Request, whole: frozenset[str]) -> Adapted:
        """Weights that the result depends on are trained, at the rate of their layer."""
        used = used_parameters(network, probe, request)
        if not used:
            raise CapabilityError(f"no weight of {name} can be trained.", "Pass method='head'.")
        layers = layers_of(network, probe, request)
        if self.frozen_layers and not layers:
            raise CapabilityError(f"{name} has no stack of layers to freeze.", "Pass frozen_layers=0.")
        if not 0 <= self.frozen_layers <= len(layers):
            raise InputError(f"frozen_layers={self.frozen_layers}; {name} has {len(layers)} layers.")
        above = heights(network, layers, probe, request)
        rates = {}
        for parameter in used:
            height = above.get(parameter.rpartition(".")[0], 0)  # 0 below the layers, 1 the first, len + 1 above
            if not self.frozen_layers or height > self.frozen_layers:
                rates[parameter] = self.layer_decay ** (len(layers) + 1 - height)
        if not rates:
            raise InputError(
                f"frozen_layers={self.frozen_layers} leaves no weight of {name} to train.",
                "Freeze fewer layers, or pass method='head'.",
            )
        for key, weight in network.named_parameters():
            weight.requires_grad_(key in rates)
        frozen = tuple(
            module
            for key, module in network.named_modules()
            if self.frozen_layers and key in above and above[key] <= self.frozen_layers
        )
        return Adapted(rates, frozen)
