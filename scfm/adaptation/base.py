"""What a method of fine-tuning is, and how the modules that some of them put into a network are kept and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scfm.adaptation.walk import sites
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, CheckpointError, InputError, listing
from scfm.tokenizers.base import Batch

__all__ = [
    "PEFT_PREFIX",
    "Adapted",
    "Added",
    "Adding",
    "Method",
    "check_layers",
    "frozen_but_for_additions",
    "layers_with_sites",
    "place",
]

PEFT_PREFIX = "base_model.model."
"""What peft puts before the names of a module's tensors in its files; ours are named alike."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ANY_NETWORK = "method='head', 'full' or 'lora'"


@dataclass(frozen=True)
class Adapted:
    """A network made ready for training.

    Parameters
    ----------
    rates
        Parameter's name -> factor of its learning rate; these are trained, all others are frozen.
    frozen
        Modules that stay in eval mode: their dropout does nothing, their running statistics don't move.
    peft
        Settings of what was put in, with which `inject` makes the same additions again; None without.
    """

    rates: dict[str, float]
    frozen: tuple[nn.Module, ...] = ()
    peft: dict[str, Any] | None = None


@dataclass(frozen=True)
class Method(ABC):
    """Which weights are trained."""

    kind: ClassVar[str]
    """Its name."""
    learning_rate: ClassVar[float]
    """Highest rate, unless another is asked for."""

    @abstractmethod
    def check(self) -> None:
        """Refuse settings that mean nothing."""

    @abstractmethod
    def adapt(self, network: Network, probe: Batch, name: str, request: Request, whole: frozenset[str]) -> Adapted:
        """Freeze a network but for what the method trains, and put its additions in; see `scfm.adaptation.adapt`."""


class Added(nn.Module):
    """A module that fine-tuning put into a network; all that is kept of the training is in such modules."""


@dataclass(frozen=True)
class Adding(Method):
    """A method that freezes the network and trains modules of ours that it puts in. At first they change nothing.

    peft has no such method for networks other than transformers' own, so that the files are ours: names and places as peft's.
    """

    @abstractmethod
    def plan(self, network: Network, probe: Batch, name: str, request: Request) -> dict[str, Any]:
        """Settings, of plain values, with which `insert` builds the modules."""

    @staticmethod
    @abstractmethod
    def insert(network: Network, settings: Mapping[str, Any]) -> None:
        """Put fresh modules in."""

    def adapt(self, network: Network, probe: Batch, name: str, request: Request, whole: frozenset[str]) -> Adapted:
        """Freeze all weights; the modules put in are trained."""
        settings = {"kind": self.kind, **self.plan(network, probe, name, request)}
        network.requires_grad_(False)
        self.insert(network, settings)
        network.additions = settings  # type: ignore[assignment]
        return frozen_but_for_additions(network, settings, whole)


def frozen_but_for_additions(network: nn.Module, settings: dict[str, Any], whole: frozenset[str]) -> Adapted:
    """What is trained of a network whose own weights are frozen: what was put in, and `whole`."""
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or key in whole)
    trained = {key: 1.0 for key, parameter in network.named_parameters() if parameter.requires_grad}
    return Adapted(trained, _still(network, whole), settings)


def _still(network: nn.Module, whole: frozenset[str]) -> tuple[nn.Module, ...]:
    """Batch norms, whose running statistics must not move where the network is frozen; but for those in `whole`."""
    return tuple(
        module
        for name, module in network.named_modules()
        if (isinstance(module, BATCH_NORMS) or _has_domains(module))
        and not any(tensor.startswith(f"{name}.") for tensor in whole)
    )


def _has_domains(module: nn.Module) -> bool:
    """Whether a module holds batch norms only and chooses among them by itself, by its mode."""
    parts = list(module.children())
    return bool(parts) and all(
        isinstance(part, nn.ModuleList) and len(part) and all(isinstance(m, BATCH_NORMS) for m in part)
        for part in parts
    )


def check_layers(layers: int | str) -> None:
    """Refuse what is neither a number of layers nor "half" or "all"."""
    if layers not in ("half", "all") and (not isinstance(layers, int) or layers < 1):
        raise InputError(f"layers={layers!r} is not known.", "Pass 'half', 'all', or how many first layers.")


def layers_with_sites(
    network: Network, probe: Batch, name: str, request: Request, layers: int | str
) -> dict[str, dict[str, int]]:
    """The first layers with sites: "all", "half" of them (at least one), or so many.

    Raises
    ------
    CapabilityError
        The network has no layer with sites, or what is asked for does not depend on them.
    InputError
        There are fewer layers.
    """
    found = sites(network, probe, request)
    if not found:
        raise CapabilityError(
            f"{name} is not built of attention layers that adapters can be put into.", f"Pass {ANY_NETWORK}."
        )
    wanted = {"half": max(len(found) // 2, 1), "all": len(found)}.get(str(layers), layers)
    if int(wanted) > len(found):
        raise InputError(f"layers={wanted}; {name} has {len(found)} that can be adapted.")
    return dict(list(found.items())[: int(wanted)])


def place(network: Network, module: nn.Module, beside: str) -> nn.Module:
    """A module on the device and in the type of the weights of another."""
    near = next((p for p in network.get_submodule(beside).parameters() if p.is_floating_point()), None)
    if near is None:
        near = next(p for p in network.parameters() if p.is_floating_point())
    return module.to(near.device, near.dtype)


def added(network: nn.Module) -> Iterator[tuple[str, Added]]:
    """Modules that were put in, with their names."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, Added))


def added_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Their tensors, by the names in the network."""
    parts = tuple(f"{name}." for name, _ in added(network))
    return {key: tensor for key, tensor in network.state_dict().items() if key.startswith(parts)}


def read_added(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the modules that were put in; all on both sides are accounted for."""
    needed = added_tensors(network)
    if odd := sorted(set(needed) ^ set(tensors)):
        raise CheckpointError(f"the adapter's tensors are not those of its configuration: {listing(odd)}.")
    if odd := [key for key in tensors if tensors[key].shape != needed[key].shape]:
        raise CheckpointError(f"the adapter's tensors have other shapes than its configuration states: {listing(odd)}.")
    with torch.no_grad():
        for key, tensor in tensors.items():
            needed[key].copy_(tensor)
