"""No weight of the network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scfm.adaptation.base import Adapted, Method
from scfm.encoder import Network, Request
from scfm.tokenizers.base import Batch

__all__ = ["Head"]


@dataclass(frozen=True)
class Head(Method):
    """Train the head only; the network stays as it is, and each cell is embedded once."""

    kind: ClassVar[str] = "head"
    learning_rate: ClassVar[float] = 1e-2

    def check(self) -> None:
        """There is nothing to set."""

    def adapt(self, network: Network, probe: Batch, name: str, request: Request, whole: frozenset[str]) -> Adapted:
        """Everything is frozen, dropout too."""
        network.requires_grad_(False)
        return Adapted({}, (network,))
