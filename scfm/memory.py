"""How much memory a training run will need: counted on the real network, from the tensors that autograd keeps for a few cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["TrainingMemory", "kept_for_backward", "resident", "training_memory"]

ADAM_STATES = 2
"""Tensors that AdamW keeps of each weight: running mean and mean square of its gradient."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, in one process.

    Parameters
    ----------
    weights
        All of the network, trained or not.
    training
        Gradients and the optimizer's states of the trained weights.
    activations
        What autograd keeps of a batch of the longest cells until the backward pass.
    """

    weights: int
    training: int
    activations: int

    @property
    def total(self) -> int:
        """Together."""
        return self.weights + self.training + self.activations


def kept_for_backward(forward: Callable[[], Tensor], weights: nn.Module) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass; weights and buffers are not counted, shared storage once."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*weights.parameters(), *weights.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
        found = sum(kept.values())
        del loss  # until here nothing is freed, so that no address is counted for two
    return found


def training_memory(
    model: nn.Module, forward: Callable[[int], Tensor], *, cells: int, sample: int = 2
) -> TrainingMemory:
    """The memory of a training step.

    Parameters
    ----------
    model
        As it is trained: weights that are frozen have ``requires_grad=False``.
    forward
        Gives the loss of so many of the longest cells.
    cells
        In a batch.
    sample
        Cells that are really computed; what they keep is scaled to the batch.
    """
    parameters = list(model.parameters())
    state = [*parameters, *model.buffers()]
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    sample = min(sample, cells)
    was = model.training
    model.train()
    try:
        activations = kept_for_backward(lambda: forward(sample), model)
    finally:
        model.train(was)
    return TrainingMemory(
        weights=sum(t.numel() * t.element_size() for t in state),
        training=trained * (1 + ADAM_STATES),
        activations=activations * cells // sample,
    )


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    from pathlib import Path

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()
