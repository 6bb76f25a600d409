"""Which weights of a network are trained: none (`Head`), its own (`Full`), or low-rank additions to them (`LoRA`).

Everything is found by running the network once: which parameters and which Linears make a cell's embedding, and in what order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scfm._lazy import optional
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, CheckpointError, InputError, listing
from scfm.tokenizers.base import Batch

__all__ = ["Adapted", "Full", "Head", "LoRA", "Method", "adapt", "inject", "layers_of", "merge", "method_of"]

PEFT_PREFIX = "base_model.model."
"""What peft puts before the names of a module's tensors in its files."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Head:
    """Train the head only; the network stays as it is, and each cell is embedded once."""

    kind: ClassVar[str] = "head"
    learning_rate: ClassVar[float] = 1e-2


@dataclass(frozen=True)
class Full:
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


@dataclass(frozen=True)
class LoRA:
    """Train low-rank additions to the Linears that make the embedding (Hu et al. 2021, arXiv:2106.09685), by peft.

    Parameters
    ----------
    rank
        Of the additions. Linears that are no larger than it in a dimension get none.
    alpha
        Additions are multiplied by alpha / rank (alpha / sqrt(rank) with `rslora`).
    dropout
        Of their input, while training.
    dora
        Train the weights' lengths too (Liu et al. 2024, arXiv:2402.09353).
    rslora
        Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732).
    targets
        Regular expression that a Linear's whole name must match; None is all.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    targets: str | None = None

    kind: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-3


Method = Head | Full | LoRA
METHODS: dict[str, type[Method]] = {method.kind: method for method in (Head, Full, LoRA)}


def method_of(method: str | Method) -> Method:
    """A method as it is, or by its name with its defaults; settings that mean nothing are refused."""
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(
                f"method={method!r} is not known.", f"Pass {listing(METHODS)}, or one of Head(), Full(...), LoRA(...)."
            )
        method = METHODS[method]()
    if not isinstance(method, Head | Full | LoRA):
        raise InputError(
            f"method is a {type(method).__name__}.", f"Pass {listing(METHODS)}, or Head(), Full(...), LoRA(...)."
        )
    if isinstance(method, Full) and not 0 < method.layer_decay <= 1:
        raise InputError(f"layer_decay={method.layer_decay} is not in (0, 1].")
    if isinstance(method, LoRA) and (method.rank < 1 or not 0 <= method.dropout < 1 or method.alpha <= 0):
        raise InputError(f"{method}: rank must be from 1 up, alpha positive, and dropout in [0, 1).")
    return method


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
        Settings of peft, with which `inject` makes the same additions again; None without.
    """

    rates: dict[str, float]
    frozen: tuple[nn.Module, ...] = ()
    peft: dict[str, Any] | None = None


def adapt(
    network: Network,
    method: Full | LoRA,
    probe: Batch,
    *,
    name: str,
    request: Request = Request(),
    whole: frozenset[str] = frozenset(),
) -> Adapted:
    """Freeze a network but for what the method trains; for `LoRA`, put its additions in.

    Parameters
    ----------
    network
        Is changed.
    probe
        Some cells, to see what makes the outputs that the objective reads.
    name
        Of the model, for messages.
    request
        These outputs.
    whole
        Names of tensors that the objective has added: they are new, so every method trains them as they are.
    """
    if isinstance(method, LoRA):
        return _low_rank(network, method, probe, name, request, whole)
    return _own(network, method, probe, name, request)


# Own weights


def _own(network: Network, method: Full, probe: Batch, name: str, request: Request) -> Adapted:
    used = _used_parameters(network, probe, request)
    if not used:
        raise CapabilityError(f"no weight of {name} can be trained.", "Pass method='head'.")
    layers = layers_of(network, probe, request)
    if method.frozen_layers and not layers:
        raise CapabilityError(f"{name} has no stack of layers to freeze.", "Pass frozen_layers=0.")
    if not 0 <= method.frozen_layers <= len(layers):
        raise InputError(f"frozen_layers={method.frozen_layers}; {name} has {len(layers)} layers.")
    heights = _heights(network, layers, probe, request)
    rates = {}
    for parameter in used:
        height = heights.get(parameter.rpartition(".")[0], 0)  # 0 below the layers, 1 the first, len + 1 above
        if not method.frozen_layers or height > method.frozen_layers:
            rates[parameter] = method.layer_decay ** (len(layers) + 1 - height)
    if not rates:
        raise InputError(
            f"frozen_layers={method.frozen_layers} leaves no weight of {name} to train.",
            "Freeze fewer layers, or pass method='head'.",
        )
    for key, weight in network.named_parameters():
        weight.requires_grad_(key in rates)
    still = tuple(
        module
        for key, module in network.named_modules()
        if method.frozen_layers and key in heights and heights[key] <= method.frozen_layers
    )
    return Adapted(rates, still)


def _used_parameters(network: Network, probe: Batch, request: Request) -> list[str]:
    """Names of the floating-point parameters that the outputs depend on."""
    parameters = {key: p for key, p in network.named_parameters() if p.is_floating_point()}
    before = {key: p.requires_grad for key, p in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        network.eval()
        with torch.enable_grad():
            found = network(probe, request)
            read = {"cells": found.cells, "tokens": found.tokens, **found.heads}
            sums = [x.sum() for name in request.outputs if (x := read.get(name)) is not None and x.requires_grad]
            if not sums:
                return []
            gradients = torch.autograd.grad(torch.stack(sums).sum(), list(parameters.values()), allow_unused=True)
    finally:
        for key, parameter in parameters.items():
            parameter.requires_grad_(before[key])
    return [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def layers_of(network: Network, probe: Batch, request: Request = Request()) -> list[str]:
    """Names of the layers that the outputs go through, first to last; empty where the network is no stack of `depth` layers.

    They are the members of the largest `ModuleList` of `depth` members, or of all lists that together have so many.
    """
    order = _calls(network, probe, request)
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


def _calls(network: Network, probe: Batch, request: Request) -> dict[str, int]:
    """Name of each module that is called for the outputs -> its place in the order of first calls."""
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


def _heights(network: Network, layers: list[str], probe: Batch, request: Request) -> dict[str, int]:
    """Module's name -> 0 if it is called before the first layer (or holds other modules), its layer's number from 1, or above all."""
    order = _calls(network, probe, request)
    last = max((order[key] for key in layers), default=-1)
    heights = {}
    for name, module in network.named_modules():
        inside = [i for i, key in enumerate(layers, 1) if name == key or name.startswith(f"{key}.")]
        if inside:
            heights[name] = inside[0]
        elif name in order and not any(True for _ in module.children()):
            heights[name] = len(layers) + 1 if order[name] > last else 0
    return heights


# Low-rank additions


def _low_rank(
    network: Network, method: LoRA, probe: Batch, name: str, request: Request, whole: frozenset[str]
) -> Adapted:
    called = _calls(network, probe, request)
    linears = [
        key
        for key, module in network.named_modules()
        if type(module) is nn.Linear
        and key in called
        and f"{key}.weight" not in whole
        and min(module.in_features, module.out_features) > method.rank
    ]
    try:
        chosen = [key for key in linears if method.targets is None or re.fullmatch(method.targets, key)]
    except re.error as error:
        raise InputError(f"targets={method.targets!r} is no regular expression: {error}.") from error
    if not chosen and linears:
        raise InputError(
            f"targets={method.targets!r} matches none of the Linears of {name}.", f"They are {listing(linears, 20)}."
        )
    if not chosen:
        raise CapabilityError(
            f"{name} has no Linear larger than rank {method.rank} in what makes its embedding.",
            "Pass a lower LoRA(rank=...), or method='full' or 'head'.",
        )
    settings: dict[str, Any] = {
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "use_dora": method.dora,
        "use_rslora": method.rslora,
        "target_modules": "|".join(map(re.escape, chosen)),  # peft takes list entries for endings of names
    }
    inject(network, settings)
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or key in whole)
    trained = {key: 1.0 for key, parameter in network.named_parameters() if parameter.requires_grad}
    still = tuple(
        module
        for key, module in network.named_modules()
        if (isinstance(module, BATCH_NORMS) or _has_domains(module))
        and not any(tensor.startswith(f"{key}.") for tensor in whole)
    )
    return Adapted(trained, still, settings)


def _has_domains(module: nn.Module) -> bool:
    """Whether a module holds batch norms only and chooses among them by itself, by its mode."""
    parts = list(module.children())
    return bool(parts) and all(
        isinstance(part, nn.ModuleList) and len(part) and all(isinstance(m, BATCH_NORMS) for m in part)
        for part in parts
    )


def inject(network: Network, settings: Mapping[str, Any]) -> None:
    """Put peft's additions into a network and freeze everything else."""
    peft = optional("peft", extra="finetune", purpose="LoRA")
    peft.inject_adapter_in_model(peft.LoraConfig(**settings), network)


def peft_files(network: Network) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What peft keeps of the additions: its configuration, and tensors by the names of its files."""
    peft = optional("peft", extra="finetune", purpose="LoRA")
    config = network.peft_config["default"].to_dict()  # type: ignore[index,union-attr]
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    tensors = peft.get_peft_model_state_dict(network)
    return plain, {f"{PEFT_PREFIX}{key}": tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def read_peft(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of a peft file into the additions that `inject` made; all on both sides are accounted for."""
    peft = optional("peft", extra="finetune", purpose="LoRA")
    own = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    needed = peft.get_peft_model_state_dict(network)
    if odd := sorted(set(needed) ^ set(own)):
        raise CheckpointError(f"the adapter's tensors are not those of its configuration: {listing(odd)}.")
    if odd := [key for key in own if own[key].shape != needed[key].shape]:
        raise CheckpointError(f"the adapter's tensors have other shapes than its configuration states: {listing(odd)}.")
    peft.set_peft_model_state_dict(network, own)


def merge(network: Network) -> None:
    """Add low-rank additions into the weights and take peft's modules out again; without any, nothing is done."""
    if not hasattr(network, "peft_config"):
        return
    layer = optional("peft.tuners.tuners_utils", extra="finetune", purpose="LoRA").BaseTunerLayer
    for name, module in [(key, m) for key, m in network.named_modules() if isinstance(m, layer)]:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module.get_base_layer())
    del network.peft_config
