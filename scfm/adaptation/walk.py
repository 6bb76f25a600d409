"""What a network does with a batch: which parameters, modules and layers make an output, and in what order. Found by running it once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.nn import Site
from scfm.tokenizers.base import Batch

__all__ = ["CELLS", "calls", "heights", "layers_of", "sites", "used_parameters"]

CELLS = Request()
"""The embeddings of the cells."""


def _results(encoded: Encoded, request: Request) -> list[Tensor]:
    """What was asked for and can be trained; networks may give more."""
    found = {"cells": encoded.cells, "tokens": encoded.tokens, **encoded.heads}
    wanted = [found.get(name) for name in sorted(request.outputs)]
    return [tensor for tensor in wanted if tensor is not None and tensor.requires_grad]


def used_parameters(network: Network, probe: Batch, request: Request = CELLS) -> list[str]:
    """Names of the floating-point parameters that what is asked for depends on."""
    parameters = {key: p for key, p in network.named_parameters() if p.is_floating_point()}
    before = {key: p.requires_grad for key, p in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        network.eval()
        with torch.enable_grad():
            results = _results(network(probe, request), request)
            if not results:
                return []
            total = torch.stack([tensor.sum() for tensor in results]).sum()
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    finally:
        for key, parameter in parameters.items():
            parameter.requires_grad_(before[key])
    return [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def calls(network: Network, probe: Batch, request: Request = CELLS) -> dict[str, int]:
    """Name of each module that is called for what is asked for -> its place in the order of first calls."""
    order: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            order.setdefault(name, len(order))

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in network.named_modules() if name]
    try:
        network.eval()
        with torch.no_grad():
            network(probe, request)
    finally:
        for handle in handles:
            handle.remove()
    return order


def sites(network: Network, probe: Batch, request: Request = CELLS) -> dict[str, dict[str, int]]:
    """Layers with sites for additions, first to last, each with the width of the states at its sites: {layer: {site: dim}}."""
    found: dict[str, dict[str, int]] = {}

    def note(name: str) -> Any:
        layer, _, site = name.rpartition(".")

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found.setdefault(layer, {}).setdefault(site, arguments[0].shape[-1])

        return hook

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, Site)
    ]
    try:
        network.eval()
        with torch.no_grad():
            network(probe, request)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layers_of(network: Network, probe: Batch, request: Request = CELLS) -> list[str]:
    """Names of the layers that the embedding goes through, first to last; empty where the network is no stack of `depth` layers.

    They are the members of the largest `ModuleList` of `depth` members, or of all lists that together have so many.
    """
    order = calls(network, probe, request)
    lists: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            members = [key for i in range(len(module)) if (key := f"{name}.{i}") in order]
            if members:
                lists[name] = sorted(members, key=order.__getitem__)

    def size(members: list[str]) -> int:
        return sum(p.numel() for key in members for p in network.get_submodule(key).parameters())

    whole = [members for members in lists.values() if len(members) == network.depth]
    if whole:
        return max(whole, key=size)
    joined = sorted((key for members in lists.values() for key in members), key=order.__getitem__)
    return joined if len(joined) == network.depth else []


def heights(network: Network, layers: list[str], probe: Batch, request: Request = CELLS) -> dict[str, int]:
    """Module's name -> 0 if it is called before the first layer (or holds other modules), its layer's number from 1, or above all."""
    order = calls(network, probe, request)
    last = max((order[key] for key in layers), default=-1)
    found = {}
    for name, module in network.named_modules():
        inside = [i for i, key in enumerate(layers, 1) if name == key or name.startswith(f"{key}.")]
        if inside:
            found[name] = inside[0]
        elif name in order and not any(True for _ in module.children()):
            found[name] = len(layers) + 1 if order[name] > last else 0
    return found
