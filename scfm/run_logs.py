"""Where the course of a run is written: TensorBoard or Weights & Biases, once an epoch, by the first process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scfm._lazy import optional, require
from scfm.errors import InputError, listing

__all__ = ["LOGGERS", "check_loggers", "log_callbacks"]

LOGGERS = ("tensorboard", "wandb")


def check_loggers(log: str | Sequence[str] | None, folder: Path | None) -> tuple[str, ...]:
    """Their names; refused, before any work, unless they are known and installed."""
    names = (log,) if isinstance(log, str) else tuple(log or ())
    if unknown := sorted(set(names) - set(LOGGERS)):
        raise InputError(f"log={listing(unknown)} is not known.", f"Pass {listing(LOGGERS)}.")
    for name in names:
        require(name, extra=name, purpose=f"log={name!r}")
    if "tensorboard" in names and folder is None:
        raise InputError(
            "log='tensorboard' writes beside the checkpoints, and there are none to keep.", "Pass checkpoints='folder'."
        )
    return names


def log_callbacks(names: Sequence[str], folder: Path) -> list[Any]:
    """Callbacks of Trainer: loss, learning rate, norm of the gradient and held-out scores."""
    found: list[Any] = []
    if not names:
        return found
    integrations = optional("transformers.integrations", extra="finetune", purpose="fine-tuning")
    if "tensorboard" in names:
        writer = optional("torch.utils.tensorboard", extra="tensorboard", purpose="log='tensorboard'").SummaryWriter
        found.append(integrations.TensorBoardCallback(tb_writer=writer(str(folder / "logs"))))
    if "wandb" in names:
        found.append(integrations.WandbCallback())
    return found
