"""The training run: transformers' Trainer over the batches of an objective, its best weights and its history.

Several processes (torchrun, accelerate launch) train together: each reads its part of every step's cells (`scfm.sampling`), scores are
gathered, the first one writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scfm._lazy import optional
from scfm.encoder import Network
from scfm.errors import InputError, ResumeError, listing
from scfm.examples import Cells
from scfm.objectives.base import Target
from scfm.recompute import recomputed
from scfm.run_logs import log_callbacks
from scfm.runs import STATE, processes
from scfm.sampling import HeldOutBatches, LengthBuckets, class_chances
from scfm.sharding import copied_into, shard_requested, sharded_trainer, whole

__all__ = ["Settings", "TrainingModel", "train"]

WEIGHTS = "trained.safetensors"


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
    metric: str
    precision: str
    seed: int


class TrainingModel(nn.Module):
    """Network and head with the loss of a target, as Trainer calls it; without a network it reads embeddings."""

    def __init__(
        self, network: Network | None, head: nn.Module, target: Target, frozen: tuple[nn.Module, ...] = ()
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

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """The loss () and what scores are computed from (b, ...), of a batch of `Cells.collate`."""
        return self._target.step(self.network, self.head, inputs)

    def kept(self) -> dict[str, Tensor]:
        """Tensors that training can change, as they are: weights that are not frozen, and buffers."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def trained(self) -> dict[str, Tensor]:
        """Copies of `kept` on the CPU."""
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.kept().items()}


def parameter_groups(model: TrainingModel, rates: Mapping[str, float], settings: Settings) -> list[dict[str, Any]]:
    """Parameters by learning rate, without weight decay on biases and norms; the head's rate is the run's."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = settings.learning_rate * rates.get(name.removeprefix("network."), 1.0)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": list(p), "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def stale_epochs(history: list[dict[str, Any]], key: str, higher: bool) -> int:
    """Evaluations since the best one."""
    values = [entry[key] for entry in history if key in entry]
    if not values:
        return 0
    best = int(np.argmax(values) if higher else np.argmin(values))
    return len(values) - 1 - best


class _Loader(DataLoader[Any]):
    """Batches of a sampler that knows of epochs and processes: Trainer must not share them out again."""

    def __init__(self, cells: Cells, sampler: LengthBuckets | HeldOutBatches) -> None:
        super().__init__(cells, batch_sampler=sampler, collate_fn=cells.collate)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        assert isinstance(self.batch_sampler, LengthBuckets)
        self.batch_sampler.set_epoch(epoch)


@dataclass(frozen=True)
class _Plan:
    """All that a run is made of."""

    model: TrainingModel
    cells: Cells
    held_out: Cells | None
    target: Target
    settings: Settings
    device: torch.device
    folder: Path
    advance: Callable[[int], None]

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return processes()[0] == 0

    @property
    def key(self) -> str:
        """Name of the deciding score in Trainer's log."""
        return f"eval_{self.settings.metric}"

    @property
    def higher(self) -> bool:
        return self.target.metrics[self.settings.metric]

    def scores(self, found: Any) -> dict[str, float]:
        """Scores of the held-out cells, each counted once."""
        labels, rows = found.label_ids
        _, once = np.unique(np.asarray(rows), return_index=True)
        scores = self.target.scores(np.asarray(found.predictions)[once], np.asarray(labels)[once])
        if (metric := self.settings.metric) != "loss" and metric not in scores:
            raise InputError(
                f"metric={metric!r} is no score of these tokens; they give {listing(sorted(scores))}.",
                "Pass one of them, or 'loss'.",
            )
        return scores


def _trainer(plan: _Plan, rates: Mapping[str, float], units: Collection[str]) -> type:
    """Trainer with our batches and rates, and files with what was trained only."""
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    from safetensors.torch import load_file, save_file

    settings, model = plan.settings, plan.model

    base = sharded_trainer(transformers.Trainer, units) if shard_requested() else transformers.Trainer

    class Run(base):  # type: ignore[valid-type,misc]
        optimizer: Any

        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                self.optimizer = torch.optim.AdamW(parameter_groups(plan.model, rates, settings))
            return self.optimizer

        def get_train_dataloader(self) -> Any:
            sampler = LengthBuckets(
                plan.cells,
                settings.batch_size,
                seed=settings.seed,
                weights=class_chances(plan.cells.labels) if settings.balanced else None,
                rank=self.args.process_index,
                processes=self.args.world_size,
            )
            return _Loader(plan.cells, sampler)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            assert plan.held_out is not None
            rank, processes = self.args.process_index, self.args.world_size
            return _Loader(
                plan.held_out, HeldOutBatches(plan.held_out, settings.batch_size, rank=rank, processes=processes)
            )

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            if self.args.should_save:
                path = Path(output_dir or self.args.output_dir)
                path.mkdir(parents=True, exist_ok=True)
                save_file(model.trained() if state_dict is None else state_dict, path / WEIGHTS)

        def _read(self, path: Path) -> None:
            tensors = load_file(path / WEIGHTS, device=str(plan.device))
            if set(tensors) != set(model.kept()):
                raise ResumeError(f"{path} holds weights of another network.")
            copied_into(model, tensors)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            self._read(Path(resume_from_checkpoint))

        def _load_best_model(self) -> None:
            self._read(plan.folder / f"checkpoint-{self.state.best_global_step}")

    return Run


def _watch(plan: _Plan) -> Any:
    """Progress and early stopping."""
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    settings = plan.settings

    class Watch(transformers.TrainerCallback):  # type: ignore[name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            plan.advance(settings.batch_size * settings.accumulate * args.world_size)

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # from the history, not from a count of its own: a resumed run stops where an uninterrupted one does
            if settings.patience is not None:
                stale = stale_epochs(state.log_history, plan.key, plan.higher)
                control.should_training_stop |= stale >= settings.patience

    return Watch()


def _arguments(plan: _Plan) -> Any:
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    settings, watched = plan.settings, plan.held_out is not None
    low = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}.get(settings.precision, {})
    arguments = transformers.TrainingArguments(
        output_dir=str(plan.folder),
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
        metric_for_best_model=plan.key if watched else None,
        greater_is_better=plan.higher if watched else None,
        label_names=["labels", "rows"],
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.device.type == "cuda",
        use_cpu=plan.device.type == "cpu",
        **low,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process, one device: no DataParallel behind the user's back
    return arguments


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
    units: Collection[str] = (),
    again: Sequence[str] = (),
    logs: Sequence[str] = (),
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
    units
        Class names of the modules that processes gather one at a time, where each holds a part of the model only.
    again
        Names of the network's layers that are computed again for the gradients (`scfm.recompute`).
    logs
        Among `LOGGERS`.

    Returns
    -------
    list of dict
        One entry an epoch: `epoch`, `loss`, scores of the held-out cells as `valid_<name>`, and whether it is the `best`.
    """
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    # sharding replaces the modules of what it is given
    plan = _Plan(
        deepcopy(model) if shard_requested() else model, cells, held_out, target, settings, device, folder, advance
    )
    watched = held_out is not None
    run = _trainer(plan, rates, units)(
        model=plan.model,
        args=_arguments(plan),
        train_dataset=cells,
        eval_dataset=held_out,
        compute_metrics=plan.scores,
        callbacks=[_watch(plan)],
    )
    run.model_accepts_loss_kwargs = False  # the loss is a mean over cells: Trainer divides it by the accumulated steps
    run.remove_callback(transformers.PrinterCallback)
    if last is not None and (state := _finished(last, plan)) is not None:
        best = folder / f"checkpoint-{state['best_global_step']}" if watched else last
        run._read(best)
        copied_into(model, plan.model.trained())
        return _history(state["log_history"], state["best_global_step"] if watched else None)
    if plan.first:
        for callback in log_callbacks(logs, folder):
            run.add_callback(callback)
    with recomputed(plan.model.network, again) if again and plan.model.network is not None else nullcontext():
        run.train(resume_from_checkpoint=None if last is None else str(last))
    if plan.model is not model:
        copied_into(model, whole(plan.model.kept()))
    if not all(torch.isfinite(tensor).all() for tensor in model.trained().values() if tensor.is_floating_point()):
        raise InputError(
            "training diverged: weights are not finite.", f"Pass learning_rate= below {settings.learning_rate:g}."
        )
    return _history(run.state.log_history, run.state.best_global_step if watched else None)


def _finished(last: Path, plan: _Plan) -> dict[str, Any] | None:
    """The state of a run that has nothing left to do."""
    state: dict[str, Any] = json.loads((last / STATE).read_text(encoding="utf-8"))
    stale = stale_epochs(state["log_history"], plan.key, plan.higher)
    stopped = plan.settings.patience is not None and stale >= plan.settings.patience
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
