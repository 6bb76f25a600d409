"""The training run: transformers' Trainer over tokenized cells, its batches, its checkpoints, and nothing left behind in the process."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from scfm._lazy import optional
from scfm.encoder import Network
from scfm.errors import InputError, ResumeError
from scfm.files import write_whole
from scfm.heads import PredictionHead, Target
from scfm.provenance import fingerprint, plain
from scfm.tokenizers.base import Batch, Tokens

__all__ = ["Cells", "Settings", "TrainingModel", "guest", "train"]

POOLED_BATCHES = 50
"""Batches among which cells are sorted by length; more shuffle less, fewer pad more."""
STATE = "trainer_state.json"
WEIGHTS = "trained.safetensors"
RUN = "run.json"


@dataclass(frozen=True)
class Settings:
    """How a run trains; see `scfm.finetune`."""

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    accumulate: int
    balanced: bool
    patience: int | None
    precision: str
    seed: int


class Cells(Dataset[int]):
    """Labelled cells, as tokens or, where the network is frozen, as embeddings; an item is a cell's number.

    Parameters
    ----------
    inputs
        Tokens of the cells, or embeddings (n_cells, dim).
    labels
        As `Target.encode` gives them.
    groups
        Rows that are computed together, where cells see each other.
    """

    def __init__(self, inputs: Tokens | np.ndarray, labels: np.ndarray, groups: list[np.ndarray] | None = None) -> None:
        self.inputs, self.labels, self.groups = inputs, labels, groups

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> int:
        return row

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each cell; 1 for an embedding."""
        return self.inputs.lengths if isinstance(self.inputs, Tokens) else np.ones(len(self.inputs), dtype=np.int64)

    def collate(self, rows: list[int]) -> dict[str, Any]:
        """A batch as Trainer moves it: nested mappings of tensors."""
        labels = torch.from_numpy(self.labels[rows])
        if not isinstance(self.inputs, Tokens):
            return {"embedding": torch.from_numpy(self.inputs[rows]), "labels": labels}
        batch = self.inputs.collate(rows)
        found: dict[str, Any] = {"fields": batch.fields, "cells": batch.cells, "labels": labels}
        return found if batch.pad is None else {**found, "pad": batch.pad}


class LengthBuckets(Sampler[list[int]]):
    """Shuffled batches of cells of similar length. An epoch's batches depend on the seed and the epoch only.

    Parameters
    ----------
    weights
        (n_cells,) chance of a cell to be drawn, with replacement; None takes each cell once an epoch.
    """

    drop_last = False

    def __init__(self, cells: Cells, batch_size: int, *, seed: int = 0, weights: np.ndarray | None = None) -> None:
        self.cells, self.batch_size, self.seed, self.weights = cells, batch_size, seed, weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cells.groups) if self.cells.groups is not None else -(-len(self.cells) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.cells.groups is not None:
            return iter([self.cells.groups[i].tolist() for i in rng.permutation(len(self.cells.groups))])
        count = len(self.cells)
        order = rng.permutation(count) if self.weights is None else rng.choice(count, count, p=self.weights)
        lengths, pool = self.cells.lengths, self.batch_size * POOLED_BATCHES
        batches = []
        for start in range(0, count, pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
            batches += [rows[at : at + self.batch_size].tolist() for at in range(0, len(rows), self.batch_size)]
        return iter([batches[i] for i in rng.permutation(len(batches))])


class TrainingModel(nn.Module):
    """Network and head with the loss of a target, as Trainer calls it; without a network it reads embeddings."""

    def __init__(
        self, network: Network | None, head: PredictionHead, target: Target, frozen: tuple[nn.Module, ...] = ()
    ) -> None:
        super().__init__()
        self.network, self.head = network, head
        self._target, self._frozen = target, frozen  # a tuple: not registered twice

    def train(self, mode: bool = True) -> TrainingModel:
        """Training mode, but for what is frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(
        self,
        labels: Tensor,
        embedding: Tensor | None = None,
        fields: dict[str, Tensor] | None = None,
        cells: dict[str, Tensor] | None = None,
        pad: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss () and the head's outputs (b, outputs)."""
        if embedding is None:
            assert self.network is not None
            embedding = self.network(Batch(fields or {}, cells or {}, pad)).cells
            assert embedding is not None
        outputs = self.head(embedding).float()
        return {"loss": self._target.loss(outputs, labels), "outputs": outputs}

    def trained(self) -> dict[str, Tensor]:
        """What training can change: weights that are not frozen, and buffers."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.state_dict().items()
            if name not in frozen
        }


@contextmanager
def guest(device: torch.device, seed: int) -> Iterator[None]:
    """Random generators at a seed; they, the environment and transformers' logging are afterwards as before."""
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    optional("accelerate", extra="finetune", purpose="fine-tuning")
    python, environment = random.getstate(), dict(os.environ)
    legacy = np.random.get_state()  # noqa: NPY002, Trainer seeds it
    log = logging.getLogger("accelerate")
    levels = transformers.utils.logging.get_verbosity(), log.level
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            transformers.utils.logging.set_verbosity_error()
            log.setLevel(logging.ERROR)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            transformers.utils.logging.set_verbosity(levels[0])
            log.setLevel(levels[1])
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)


def parameter_groups(model: TrainingModel, rates: Mapping[str, float], settings: Settings) -> list[dict[str, Any]]:
    """Parameters by learning rate, without weight decay on biases and norms; the head's rate is the run's."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = settings.learning_rate * rates.get(name.removeprefix("network."), 1.0)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": list(p), "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; Trainer writes its state last. Parts of a killed run's last one are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            whole.append(path)
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def claim(folder: Path, record: Mapping[str, Any], *, resume: bool) -> Path | None:
    """The newest checkpoint that the same run left in a folder, None for a new run.

    Raises
    ------
    ResumeError
        The folder holds another run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / RUN
    content = json.dumps({"fingerprint": fingerprint(record), "record": plain(record)}, indent=1)
    if mark.exists() and resume:
        begun = json.loads(mark.read_text(encoding="utf-8"))
        if begun["fingerprint"] != fingerprint(record):
            now = plain(record)
            other = [key for key in now if now[key] != begun["record"].get(key)]
            raise ResumeError(
                f"{folder} holds another run: it differs in {', '.join(other)}.",
                "Pass another checkpoints= folder, or resume=False to begin anew.",
            )
        found = _checkpoints(folder)
        return found[-1] if found else None
    if not mark.exists() and any(folder.iterdir()):
        raise ResumeError(f"{folder} is not empty and holds no run.", "Pass a new or empty folder as checkpoints=.")
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    write_whole(mark, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return None


def stale_epochs(history: list[dict[str, Any]], key: str, higher: bool) -> int:
    """Evaluations since the best one."""
    values = [entry[key] for entry in history if key in entry]
    if not values:
        return 0
    best = int(np.argmax(values) if higher else np.argmin(values))
    return len(values) - 1 - best


def train(
    model: TrainingModel,
    cells: Cells,
    held_out: Cells | None,
    target: Target,
    settings: Settings,
    *,
    rates: Mapping[str, float],
    device: torch.device,
    folder: Path,
    last: Path | None,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Train; the model then has the weights of the best epoch (of the last one without held-out cells).

    Parameters
    ----------
    folder
        For checkpoints, one an epoch; the newest and the best are kept.
    last
        Checkpoint to continue from.
    advance
        Called with the number of cells that were trained on.

    Returns
    -------
    list of dict
        One entry an epoch: `epoch`, `loss`, scores of the held-out cells as `valid_<name>`, and whether it is the `best`.
    """
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    from safetensors.torch import load_file, save_file

    key = f"eval_{target.metric}"

    class Watch(transformers.TrainerCallback):  # type: ignore[name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(settings.batch_size * settings.accumulate)

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # from the history, not from a count of its own: a resumed run stops where an uninterrupted one does
            if settings.patience is not None:
                stale = stale_epochs(state.log_history, key, target.higher_is_better)
                control.should_training_stop |= stale >= settings.patience

    class Run(transformers.Trainer):  # type: ignore[name-defined]
        def get_train_dataloader(self) -> Any:
            chances = None
            if settings.balanced:
                counts = np.bincount(cells.labels)
                chances = 1 / counts[cells.labels]
                chances /= chances.sum()
            sampler = LengthBuckets(cells, settings.batch_size, seed=settings.seed, weights=chances)
            return self.accelerator.prepare(DataLoader(cells, batch_sampler=sampler, collate_fn=cells.collate))

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            assert held_out is not None
            rows = held_out.groups
            if rows is None:
                order = np.argsort(-held_out.lengths, kind="stable")
                rows = [order[at : at + settings.batch_size] for at in range(0, len(held_out), settings.batch_size)]
            batches = [part.tolist() for part in rows]
            return self.accelerator.prepare(DataLoader(held_out, batch_sampler=batches, collate_fn=held_out.collate))

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            path = Path(output_dir or self.args.output_dir)
            path.mkdir(parents=True, exist_ok=True)
            save_file(model.trained(), path / WEIGHTS)

        def _read(self, path: Path) -> None:
            tensors = load_file(path / WEIGHTS, device=str(device))
            _, unexpected = model.load_state_dict(tensors, strict=False)
            if unexpected or set(tensors) != set(model.trained()):
                raise ResumeError(f"{path} holds weights of another network.")

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            self._read(Path(resume_from_checkpoint))

        def _load_best_model(self) -> None:
            self._read(folder / f"checkpoint-{self.state.best_global_step}")

    low = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}.get(settings.precision, {})
    watched = held_out is not None
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # below 1: a share of the steps
        max_grad_norm=settings.clip,
        seed=settings.seed,
        save_strategy="epoch",
        save_total_limit=1,
        eval_strategy="epoch" if watched else "no",
        logging_strategy="epoch",
        load_best_model_at_end=watched,
        metric_for_best_model=key if watched else None,
        greater_is_better=target.higher_is_better if watched else None,
        label_names=["labels"],
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        **low,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process, one device: no DataParallel behind the user's back
    run = Run(
        model=model,
        args=arguments,
        train_dataset=cells,
        eval_dataset=held_out,
        optimizers=(torch.optim.AdamW(parameter_groups(model, rates, settings)), None),
        compute_metrics=lambda p: target.scores(np.asarray(p.predictions), np.asarray(p.label_ids)),
        callbacks=[Watch()],
    )
    run.remove_callback(transformers.PrinterCallback)
    if last is not None and (state := _finished(last, settings, key, target)) is not None:
        best = folder / f"checkpoint-{state['best_global_step']}" if watched else last
        run._read(best)
        return _history(state["log_history"], state["best_global_step"] if watched else None)
    run.train(resume_from_checkpoint=None if last is None else str(last))
    if not all(torch.isfinite(tensor).all() for tensor in model.trained().values() if tensor.is_floating_point()):
        raise InputError(
            "training diverged: weights are not finite.", f"Pass learning_rate= below {settings.learning_rate:g}."
        )
    return _history(run.state.log_history, run.state.best_global_step if watched else None)


def _finished(last: Path, settings: Settings, key: str, target: Target) -> dict[str, Any] | None:
    """The state of a run that has nothing left to do."""
    state: dict[str, Any] = json.loads((last / STATE).read_text(encoding="utf-8"))
    stale = stale_epochs(state["log_history"], key, target.higher_is_better)
    stopped = settings.patience is not None and stale >= settings.patience
    return state if stopped or state["global_step"] >= state["max_steps"] else None


def _history(log: list[dict[str, Any]], best_step: int | None) -> list[dict[str, Any]]:
    epochs: dict[int, dict[str, Any]] = {}
    for entry in log:
        if "train_runtime" in entry:
            continue
        row = epochs.setdefault(entry["step"], {"epoch": round(entry["epoch"])})
        if "loss" in entry:
            row["loss"] = entry["loss"]
        row.update(
            {
                f"valid_{name.removeprefix('eval_')}": value
                for name, value in entry.items()
                if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
            }
        )
        row["best"] = entry["step"] == best_step if best_step is not None else False
    if epochs and best_step is None:
        epochs[max(epochs)]["best"] = True
    return list(epochs.values())
