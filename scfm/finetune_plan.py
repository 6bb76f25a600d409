"""What a fine-tuning recipe would do, worked out on the data and the network themselves, without a step of training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scfm.encoder import CellEncoder
from scfm.errors import listing
from scfm.examples import Cells
from scfm.finetuning import _Parts as Parts
from scfm.labelled import Sides, divide, made_ready, read_labelled
from scfm.memory import TrainingMemory, resident, training_memory
from scfm.plans import Plan
from scfm.runs import guest, processes
from scfm.sampling import LengthBuckets
from scfm.sharding import shard_requested

if TYPE_CHECKING:
    from scfm.finetune_recipe import TuningRecipe

__all__ = ["planned"]


def planned(recipe: TuningRecipe) -> Plan:
    """Read the data, split them, make the network ready, and count."""
    given = recipe.arguments()
    encoder, settings, seed = recipe.encoder(), recipe.train, int(recipe.train["seed"])
    reading = {key: given[key] for key in ("layer", "gene_column", "map_genes", "values")}
    with ExitStack() as stack:
        stack.enter_context(guest(encoder.device, seed))
        groups = given["groups"]
        also = [] if groups is None else [groups]
        keep = getattr(given["objective"], "reads_matrix", False)
        cells = read_labelled(encoder, given["train"], reading, given["objective"], also=also, keep=keep, seed=seed)
        sides = divide(encoder, cells, given["valid"], given["objective"], reading, groups=groups, seed=seed)
        ready, sides = made_ready(encoder, sides, given["train"], given["valid"], reading, groups=groups, seed=seed)
        parts = Parts.made(encoder, ready, given["method"], sides, settings["head_dropout"], seed)
        memory = _memory(parts, settings["batch_size"], encoder.device)
    return Plan(
        recipe.title,
        {
            "model": _model(encoder, parts),
            "data": _data(recipe, sides, groups),
            "training": _training(recipe, given["method"], parts.training),
            "memory": _told(memory, parts.base.device),
            "result": {"out": recipe.folder(), "checkpoints": given["checkpoints"]},
        },
    )


def _model(encoder: CellEncoder, parts: Parts) -> dict[str, Any]:
    everything = [*parts.base.network.parameters(), *parts.head.parameters()]
    total = sum(p.numel() for p in everything)
    trained = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    return {
        "name": encoder.name,
        "from": encoder.origin.get("source", "?"),
        "device": str(encoder.device),
        "parameters": f"{total:,}",
        "trained": f"{trained:,} ({trained / total:.2%})",
    }


def _data(recipe: TuningRecipe, sides: Sides, groups: str | None) -> dict[str, Any]:
    """What is trained on and what is held out."""
    lengths = sides.training.tokens.lengths
    found = {
        "files": listing(map(str, recipe.files())),
        "trained on": _cells(sides, recipe.unit, held_out=False, groups=groups),
        "held out": "nothing" if sides.held_out is None else _cells(sides, recipe.unit, held_out=True, groups=groups),
        "tokens": f"{int(np.median(lengths)):,} (median), {lengths.min():,} to {lengths.max():,} a cell",
        "objective": f"{sides.target.kind} of {listing(sides.target.columns)}"
        if sides.target.columns
        else sides.target.kind,
    }
    if classes := getattr(sides.target, "classes", ()):
        found["classes"] = f"{len(classes)}: {listing(classes)}"
    return found


def _cells(sides: Sides, unit: str, *, held_out: bool, groups: str | None) -> str:
    side = sides.held_out if held_out else sides.training
    assert side is not None
    text = f"{len(side):,} {unit}"
    if groups is None:
        return text
    names = sorted(set(side.obs[groups].astype(str)))
    return f"{text}, obs[{groups!r}] {listing(names, 6)}"


def _training(recipe: TuningRecipe, method: Any, training: Cells) -> dict[str, Any]:
    settings, (_, count) = recipe.train, processes()
    batches = len(LengthBuckets(training, settings["batch_size"], processes=count))
    steps = -(-batches // settings["accumulate"])
    rate = method.learning_rate if settings["learning_rate"] is None else settings["learning_rate"]
    several = "" if count == 1 else f" x {count} processes{' that share the weights out' if shard_requested() else ''}"
    gathered = "" if settings["accumulate"] == 1 else f" x {settings['accumulate']} accumulated"
    stops = "" if settings["patience"] is None else f", at most (patience {settings['patience']})"
    return {
        "method": f"{method.kind} ({', '.join(f'{k} {v}' for k, v in recipe.method.items() if k != 'kind')})",
        "epochs": f"{settings['epochs']}{stops}",
        "steps": f"{steps:,} an epoch, {steps * settings['epochs']:,} in all",
        f"{recipe.unit} a step": f"{settings['batch_size']}{several}{gathered}",
        "learning rate": f"{rate:g}, {settings['schedule']}, warm-up {settings['warmup']:.0%}",
        "precision": settings["precision"],
    }


def _memory(parts: Parts, batch_size: int, device: torch.device) -> TrainingMemory:
    """Of the longest cells, which make the largest batch."""
    training = parts.training
    if training.groups is not None:  # a step is a group
        largest = max(training.groups, key=len)
        return training_memory(parts.model, lambda _: _loss(parts, largest, device), cells=1, sample=1)
    longest = np.argsort(-training.lengths, kind="stable")
    return training_memory(
        parts.model, lambda count: _loss(parts, longest[:count], device), cells=min(batch_size, len(longest))
    )


def _loss(parts: Parts, rows: np.ndarray, device: torch.device) -> Tensor:
    batch = parts.training.collate([(int(row), 0) for row in rows])
    loss: Tensor = parts.model(**_moved(batch, device))["loss"]
    return loss


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _told(memory: TrainingMemory, device: torch.device) -> dict[str, Any]:
    found = {
        "gradients, AdamW": _size(memory.training),
        "activations": f"{_size(memory.activations)}, what autograd keeps of a batch of the longest cells",
    }
    if device.type == "cpu":
        now = resident()
        return {
            "now": f"{_size(now)}, with libraries, the model twice and all tokens",
            **found,
            "peak": f"at least {_size(now + memory.training + memory.activations)} in each process, estimated",
        }
    return {"weights": _size(memory.weights), **found, "peak": f"at least {_size(memory.total)} on {device}, estimated"}


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
