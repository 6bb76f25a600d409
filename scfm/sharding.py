"""Training whose weights, gradients and optimizer states are shared out over processes: torch's `fully_shard`, by accelerate.

It is chosen by the environment, as `accelerate launch` with an FSDP configuration sets it: ``ACCELERATE_USE_FSDP=true``. The layers of the
stack that makes the embedding are the units, whatever their class; the rest of the model is one more. Checkpoints hold whole tensors, so
that they do not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scfm._lazy import optional

__all__ = ["copied_into", "shard_requested", "sharded_trainer", "whole"]

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


def shard_requested() -> bool:
    """Whether this process was started to hold a part of the model only."""
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return wanted and int(os.environ.get("WORLD_SIZE", "1")) > 1


def whole(value: Any) -> Any:
    """A value with its sharded tensors gathered, on the CPU; all processes must ask for it."""
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return (value.wait() if hasattr(value, "wait") else value).cpu().clone()


def copied_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of a model, sharded or not, of the same names."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own = state[name]
            if isinstance(own, DTensor):
                tensor = distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
            own.copy_(tensor)


def sharded_trainer(base: type, units: Iterable[str]) -> type:
    """A subclass of `transformers.Trainer` that trains a sharded model.

    Parameters
    ----------
    units
        Class names of the modules that are gathered one at a time.
    """
    accelerate = optional("accelerate.utils", extra="finetune", purpose="fine-tuning")
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    names, full = sorted(set(units)), StateDictOptions(full_state_dict=True)

    class Sharded(base):
        is_fsdp_enabled: bool

        def _build_accelerator_args(self, **arguments: Any) -> dict[str, Any]:
            given = super()._build_accelerator_args(**arguments)
            given["fsdp_plugin"] = accelerate.FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap" if names else "no_wrap",
                transformer_cls_names_to_wrap=names or None,
                state_dict_type="FULL_STATE_DICT",
                cpu_ram_efficient_loading=False,
            )
            return given

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if (
                not self.is_fsdp_enabled
            ):  # accelerate shards on GPUs only and says nothing; torch does it on CPUs (gloo) too
                state = self.accelerator.state
                state.fsdp_plugin = self._build_accelerator_args()["fsdp_plugin"]
                state.distributed_type = accelerate.DistributedType.FSDP
                self.is_fsdp_enabled = True

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            self._save(output_dir, state_dict=whole(self.model.kept()))

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            state = whole(get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=full))
            if self.args.should_save:
                torch.save(state, Path(output_dir) / OPTIMIZER)
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is None:
                return
            state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
            set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=full)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    return Sharded
