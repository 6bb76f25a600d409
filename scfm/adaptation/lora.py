"""Low-rank additions to Linears, by peft, kept in peft's own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from scfm._lazy import optional
from scfm.adaptation.base import Adapted, Method, frozen_but_for_additions
from scfm.adaptation.walk import calls
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, CheckpointError, InputError, listing
from scfm.tokenizers.base import Batch

__all__ = ["LoRA", "insert_lora", "lora_files", "merge_lora", "read_lora"]


@dataclass(frozen=True)
class LoRA(Method):
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

    def check(self) -> None:
        """Sizes are positive."""
        if self.rank < 1 or not 0 <= self.dropout < 1 or self.alpha <= 0:
            raise InputError(f"{self}: rank must be from 1 up, alpha positive, and dropout in [0, 1).")

    def adapt(self, network: Network, probe: Batch, name: str, request: Request, whole: frozenset[str]) -> Adapted:
        """Additions to the Linears that are called; everything else is frozen."""
        used = calls(network, probe, request)
        linears = [
            key
            for key, module in network.named_modules()
            if type(module) is nn.Linear
            and key in used
            and f"{key}.weight" not in whole
            and min(module.in_features, module.out_features) > self.rank
        ]
        try:
            chosen = [key for key in linears if self.targets is None or re.fullmatch(self.targets, key)]
        except re.error as error:
            raise InputError(f"targets={self.targets!r} is no regular expression: {error}.") from error
        if not chosen and linears:
            raise InputError(
                f"targets={self.targets!r} matches none of the Linears of {name}.", f"They are {listing(linears, 20)}."
            )
        if not chosen:
            raise CapabilityError(
                f"{name} has no Linear larger than rank {self.rank} in what makes its embedding.",
                "Pass a lower LoRA(rank=...), or method='full' or 'head'.",
            )
        settings: dict[str, Any] = {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_dora": self.dora,
            "use_rslora": self.rslora,
            "target_modules": "|".join(map(re.escape, chosen)),  # peft takes list entries for endings of names
        }
        insert_lora(network, settings)
        return frozen_but_for_additions(network, settings, whole)


def insert_lora(network: Network, settings: Mapping[str, Any]) -> None:
    """Put peft's additions into a network and freeze everything else."""
    peft = optional("peft", extra="finetune", purpose="LoRA")
    peft.inject_adapter_in_model(peft.LoraConfig(**settings), network)


def lora_files(network: Network) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What peft keeps of the additions: its configuration, and tensors by the names in the network."""
    peft = optional("peft", extra="finetune", purpose="LoRA")
    config = network.peft_config["default"].to_dict()  # type: ignore[index,union-attr]
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return plain, peft.get_peft_model_state_dict(network)


def read_lora(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, by the names in the network, into the additions that `insert_lora` made; all on both sides are accounted for."""
    peft = optional("peft", extra="finetune", purpose="LoRA")
    needed = peft.get_peft_model_state_dict(network)
    if odd := sorted(set(needed) ^ set(tensors)):
        raise CheckpointError(f"the adapter's tensors are not those of its configuration: {listing(odd)}.")
    if odd := [key for key in tensors if tensors[key].shape != needed[key].shape]:
        raise CheckpointError(f"the adapter's tensors have other shapes than its configuration states: {listing(odd)}.")
    peft.set_peft_model_state_dict(network, dict(tensors))


def merge_lora(network: Network) -> None:
    """Add low-rank additions into the weights and take peft's modules out again."""
    layer = optional("peft.tuners.tuners_utils", extra="finetune", purpose="LoRA").BaseTunerLayer
    for name, module in [(key, m) for key, m in network.named_modules() if isinstance(m, layer)]:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module.get_base_layer())
    del network.peft_config
