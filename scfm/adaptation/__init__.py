"""Which weights of a network are trained: one file a method.

`Head`: none. `Full`: its own. `LoRA`: low-rank additions to them. `EncoderAdapter`, `TokenAdapter`, `Prefix`: small modules beside them.
`DrugConditional`: modules that a molecule steers.

Everything is found by running the network once: which parameters, Linears and layers make what is asked for, and in what order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from scfm.adaptation.base import PEFT_PREFIX, Adapted, Adding, Method, added_tensors, read_added
from scfm.adaptation.drug_conditional import DrugConditional
from scfm.adaptation.encoder_adapter import EncoderAdapter
from scfm.adaptation.full import Full
from scfm.adaptation.head import Head
from scfm.adaptation.lora import LoRA, insert_lora, lora_files, merge_lora, read_lora
from scfm.adaptation.prefix import Prefix
from scfm.adaptation.token_adapter import TokenAdapter
from scfm.adaptation.walk import CELLS, layers_of
from scfm.encoder import Network, Request
from scfm.errors import CapabilityError, InputError, listing
from scfm.tokenizers.base import Batch

__all__ = [
    "Adapted",
    "DrugConditional",
    "EncoderAdapter",
    "Full",
    "Head",
    "LoRA",
    "Method",
    "Prefix",
    "TokenAdapter",
    "adapt",
    "inject",
    "layers_of",
    "merge",
    "method_of",
    "peft_files",
    "read_peft",
]

METHODS: dict[str, type[Method]] = {
    method.kind: method for method in (Head, Full, LoRA, EncoderAdapter, TokenAdapter, Prefix, DrugConditional)
}
ADDING: dict[str, type[Adding]] = {kind: method for kind, method in METHODS.items() if issubclass(method, Adding)}


def method_of(method: str | Method, **settings: Any) -> Method:
    """A method as it is, or by its name, with settings or its defaults; those that mean nothing are refused."""
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(
                f"method={method!r} is not known.", f"Pass {listing(METHODS)}, or one of Head(), Full(...), LoRA(...)."
            )
        known = [f.name for f in fields(METHODS[method])]
        if odd := sorted(set(settings) - set(known)):
            raise InputError(f"method {method!r} has no setting {listing(odd)}.", f"It has {listing(known) or 'none'}.")
        method = METHODS[method](**settings)
    if not isinstance(method, Method):
        raise InputError(
            f"method is a {type(method).__name__}.", f"Pass {listing(METHODS)}, or Head(), Full(...), LoRA(...)."
        )
    method.check()
    return method


def adapt(
    network: Network,
    method: Method,
    probe: Batch,
    *,
    name: str,
    request: Request = CELLS,
    whole: frozenset[str] = frozenset(),
) -> Adapted:
    """Freeze a network but for what the method trains, and put its additions in.

    Parameters
    ----------
    network
        Is changed.
    probe
        Some cells, to see what makes the result.
    name
        Of the model, for messages.
    request
        The result: embeddings of the cells, unless an objective reads another.
    whole
        Names of tensors that the objective has added: they are new, so every method trains them as they are.
    """
    return method.adapt(network, probe, name, request, whole)


def inject(network: Network, settings: Mapping[str, Any]) -> None:
    """Put the additions of `Adapted.peft` into a network and freeze everything else; `read_peft` then gives them their weights."""
    if "kind" not in settings:
        insert_lora(network, settings)
        return
    network.requires_grad_(False)
    ADDING[settings["kind"]].insert(network, settings)
    network.additions = dict(settings)  # type: ignore[assignment]


def peft_files(network: Network) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is kept of the additions: their configuration, and tensors by the names in the file. For LoRA the files are peft's."""
    if hasattr(network, "peft_config"):
        config, tensors = lora_files(network)
    else:
        settings: Mapping[str, Any] = network.additions  # type: ignore[assignment]
        config, tensors = {"peft_type": f"SCFM_{settings['kind'].upper()}", **settings}, added_tensors(network)
    return config, {f"{PEFT_PREFIX}{key}": tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def read_peft(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of a file into the additions that `inject` made; all on both sides are accounted for."""
    own = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    if hasattr(network, "peft_config"):
        read_lora(network, own)
    else:
        read_added(network, own)


def merge(network: Network) -> None:
    """Add low-rank additions into the weights and take peft's modules out again; without any, nothing is done.

    Raises
    ------
    CapabilityError
        The additions are no sums of weights.
    """
    if hasattr(network, "additions"):
        kind = network.additions["kind"]  # type: ignore[index]
        raise CapabilityError(
            f"what {kind} trains are modules between the weights, not sums of them; they cannot be merged into plain weights.",
            "Use the fine-tuned encoder itself (embed, predict, save); LoRA and Full can be merged.",
        )
    if hasattr(network, "peft_config"):
        merge_lora(network)
