"""Gradient checkpointing: layers keep what went into them and are computed again on the way back (Chen et al. 2016, arXiv:1604.06174).

About a third more time for memory that no longer grows with what a layer keeps. Gradients are the same: random numbers of dropout are drawn
again as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scfm.errors import CapabilityError, listing

__all__ = ["check_recomputable", "recomputed"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_recomputable(network: nn.Module, layers: Sequence[str], *, name: str) -> None:
    """Refuse networks without a stack of layers, and layers that computing twice would change."""
    if not layers:
        raise CapabilityError(
            f"{name} has no stack of layers that could be computed again.", "Pass gradient_checkpointing=False."
        )
    moving = [
        layer for layer in layers if any(isinstance(m, BATCH_NORMS) for m in network.get_submodule(layer).modules())
    ]
    if moving:
        raise CapabilityError(
            f"layers of {name} have batch norms ({listing(moving)}), whose running statistics would move twice.",
            "Pass gradient_checkpointing=False.",
        )


@contextmanager
def recomputed(network: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Layers by their names, computed again while gradients are; they are as before afterwards."""
    modules = [network.get_submodule(name) for name in layers]
    try:
        for module in modules:
            module.forward = _again(module.forward)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return run
