"""Faster and not exact, each only where it is asked for: 8-bit weights, a compiled network, fewer tokens.

What each costs in agreement is measured in docs/scale.md; none is a default.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from scfm.errors import CapabilityError, InputError
from scfm.tokenizers.base import Tokens, ragged_positions

if TYPE_CHECKING:
    from scfm.encoder import CellEncoder, Network

__all__ = ["compiled", "quantised", "shortened"]


def quantised(network: Network, name: str) -> Network:
    """A copy whose Linears hold 8-bit weights and quantise their inputs as they come (torch's dynamic quantisation); CPU only.

    On the machine measured it is faster than torchao's eager int8 (docs/performance.md), though torch announces its removal.

    Raises
    ------
    CapabilityError
        The network has no Linear, or reads their weights itself.
    InputError
        This torch has no dynamic quantisation any more.
    """
    if not any(type(module) is nn.Linear for module in network.modules()):
        raise CapabilityError(f"{name} has no Linear whose weights could be 8-bit.", "Leave precision='float32'.")
    if not hasattr(getattr(torch, "ao", None), "quantization"):
        raise InputError(f"torch {torch.__version__} has no dynamic quantisation.", "Pass precision='bfloat16'.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor
        made: Any = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    return cast("Network", made.eval())


def compiled(network: Network) -> Network:
    """The same network run through ``torch.compile`` with dynamic shapes; needs a C++ compiler on a CPU.

    The first batches take minutes: it pays on long runs only.
    """
    fast: Any = torch.compile(network, dynamic=True)
    return cast("Network", fast)


def shortened(tokens: Tokens, most: int, encoder: CellEncoder) -> Tokens:
    """At most so many tokens a cell: special ones, then those of highest priority, in the order they had.

    Parameters
    ----------
    tokens
        Of some cells.
    most
        Tokens a cell may keep.
    encoder
        Whose tokens they are; its tokenizer says what comes first (`Tokenizer.priority`).

    Raises
    ------
    CapabilityError
        The tokens have no order of importance, or must be complete.
    """
    if int(tokens.lengths.max(initial=0)) <= most:
        return tokens
    priority = encoder.tokenizer.priority(tokens)
    if priority is None or encoder.tokenizer.grouped:
        raise CapabilityError(
            f"max_tokens= can't shorten the cells of {encoder.name}: its tokens have no order of importance, or all are needed.",
            "Leave it out.",
        )
    lengths = tokens.lengths
    cell = np.repeat(np.arange(len(tokens)), lengths)
    order = np.lexsort((-priority, cell))  # stable: of equal ones the first counts
    kept = np.minimum(lengths, most)
    chosen = np.sort(order[ragged_positions(tokens.offsets[:-1], kept)])
    return replace(
        tokens,
        fields={name: array[chosen] for name, array in tokens.fields.items()},
        offsets=np.concatenate([[0], np.cumsum(kept)]),
    )
