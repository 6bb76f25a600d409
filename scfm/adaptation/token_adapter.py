"""A bottleneck on the embedding of a token's value (scPEFT's "token adapter")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scfm.adaptation.base import ANY_NETWORK, Adding, place
from scfm.adaptation.bottleneck import Bottleneck
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, InputError
from scfm.tokenizers.base import Batch

__all__ = ["TokenAdapter"]

ADAPTER = "token_adapter"
"""Name of the adapter within the embedding it follows."""


@dataclass(frozen=True)
class TokenAdapter(Adding):
    """Train a bottleneck behind the embedding of a token's value, or of the token itself where a model reads no values (scPEFT, He et al.).

    It follows the module that a network names as `token_embedding`, and starts as the identity, which scPEFT's does not.

    Parameters
    ----------
    hidden
        Width of the bottleneck as a share of the embedding's.
    """

    hidden: float = 1.0

    kind: ClassVar[str] = "token_adapter"
    learning_rate: ClassVar[float] = 1e-3

    def check(self) -> None:
        """The width is positive."""
        if not self.hidden > 0:
            raise InputError(f"hidden={self.hidden}; it must be a positive share of the embedding's width.")

    def plan(self, network: Network, probe: Batch, name: str, request: Request) -> dict[str, Any]:
        """Widths of the embedding and of the bottleneck."""
        where = network.token_embedding
        dim = None if where is None else _width(network, where, probe, request)
        if where is None or dim is None:
            raise CapabilityError(f"{name} has no embedding of tokens to adapt.", f"Pass {ANY_NETWORK}.")
        return {"module": where, "dim": dim, "hidden": max(round(self.hidden * dim), 1)}

    @staticmethod
    def insert(network: Network, settings: Mapping[str, Any]) -> None:
        """Put the adapter into the embedding, which calls it on its result."""
        embedding = network.get_submodule(settings["module"])
        adapter = place(network, Bottleneck(settings["dim"], settings["hidden"]), settings["module"])
        embedding.add_module(ADAPTER, adapter)
        embedding.register_forward_hook(_adapted)


def _adapted(embedding: nn.Module, _: tuple[Any, ...], result: Tensor) -> Tensor:
    return embedding.get_submodule(ADAPTER)(result)


def _width(network: Network, module: str, probe: Batch, request: Request) -> int | None:
    """Length of the module's vectors; None where it is not called."""
    seen: list[int] = []
    handle = network.get_submodule(module).register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    try:
        network.eval()
        with torch.no_grad():
            network(probe, request)
    finally:
        handle.remove()
    return seen[0] if seen else None
