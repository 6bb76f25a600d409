"""`scfm.finetune`: train any encoder, for any objective, by any method. The same call for every model; nothing here knows one.

The objective says what is read, what the loss is and what is trained along (`scfm.objectives`, which says how one is added), the method
which weights of the network are trained (`scfm.adaptation`); `scfm.training` runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from scfm.adaptation import Adapted, Head, Method, adapt, layers_of, method_of
from scfm.cells import Data, Values
from scfm.encoder import CellEncoder
from scfm.errors import CapabilityError, InputError, listing
from scfm.examples import Cells, Labelled, embeddings
from scfm.finetuned import FineTuned, FineTunedNetwork
from scfm.inference import progress_bar
from scfm.labelled import Sides, digest, divide, made_ready, read_labelled
from scfm.objectives import Objective, Target
from scfm.provenance import versions
from scfm.recompute import check_recomputable
from scfm.run_logs import check_loggers
from scfm.runs import claim, guest, on_first, processes
from scfm.splits import Split
from scfm.tensors import fingerprint_of
from scfm.tokenizers.base import Batch, Tokens
from scfm.training import Settings, TrainingModel
from scfm.training import train as run

__all__ = ["finetune"]

PROBE_CELLS = 16
"""Cells on which is seen what makes the outputs that an objective reads."""
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


def finetune(
    encoder: CellEncoder,
    train: Data,
    objective: str | Objective,
    *,
    method: str | Method = "lora",
    valid: Data | float | None = 0.2,
    groups: str | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    learning_rate: float | None = None,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    accumulate: int = 1,
    balanced: bool = False,
    patience: int | None = 3,
    metric: str | None = None,
    head_dropout: float = 0.0,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    gradient_checkpointing: bool = False,
    log: str | Sequence[str] | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Values | None = None,
    checkpoints: str | PathLike[str] | None = None,
    resume: bool = True,
    progress: bool | None = None,
    seed: int = 0,
) -> FineTuned:
    """Train an encoder to predict a column of `obs`, or for another objective. The encoder itself is not changed.

    Parameters
    ----------
    encoder
        From `scfm.load`.
    train
        Labelled cells: AnnData, path of an `.h5ad` or `.zarr`, or a list of these. Their tokens are held in memory.
    objective
        Column of `obs` (numbers: regression; anything else: classification), or an objective of `scfm.objectives`: `Classification`,
        `Regression`, `MultiLabel`, ...
    method
        "head", "full", "lora", "encoder_adapter", "token_adapter", "prefix" or "drug_conditional", or a class of
        `scfm.adaptation` with settings, e.g. `LoRA(rank=16)`.
    valid
        Held-out cells that decide which epoch is best: a share of `train`, data of their own, or None: the last epoch is taken.
    groups
        Column of `obs` (donor, batch, study) whose values are on one side of the split only. Without, cells of one donor are on both sides
        and held-out scores are too good.
    epochs
        Passes over the training cells, at most.
    batch_size
        Cells in a step of one process; where cells see each other, a step is a group.
    learning_rate
        Highest rate; None is 1e-2 for "head", 1e-3 for "lora", 1e-4 for "full".
    schedule, warmup
        Course of the rate: "linear", "cosine", "constant" or "constant_with_warmup"; share of the steps in which it rises.
    weight_decay
        Of AdamW, on weight matrices.
    clip
        Largest norm of a step's gradient.
    accumulate
        Batches whose gradients make one step.
    balanced
        Draw cells with replacement so that all classes are as frequent.
    patience
        Stop after so many epochs without a better held-out score; None never does.
    metric
        Held-out score that decides which epoch is best, e.g. "macro_f1", "accuracy" or "loss"; None is the objective's first.
    head_dropout
        Dropout in front of the head's Linear.
    precision
        Arithmetic of training (autocast); "float16" on GPUs only.
    gradient_checkpointing
        Compute layers again on the way back instead of keeping what they gave: less memory, about a third more time, the same gradients.
    log
        "tensorboard" (into the folder logs of `checkpoints`), "wandb" (Weights & Biases, as its environment variables say, e.g.
        WANDB_MODE=offline), or both: loss, learning rate and held-out scores of each epoch.
    layer, gene_column, map_genes, values
        As for `CellEncoder.embed`.
    checkpoints
        Folder for checkpoints, one an epoch; the same call continues a run that was interrupted, with the same result.
    resume
        False begins anew in that folder.
    progress
        Show a progress bar; None shows it on terminals.
    seed
        Of the split, the order of cells, the head's first weights, dropout, and random tokenization.

    Returns
    -------
    FineTuned
        An encoder with `predict`; it has the weights of the best epoch.

    Raises
    ------
    InputError
        Labels are missing or of one kind only, the data are not what the model reads, or a setting means nothing.
    CapabilityError
        The network has no weights that this method can train.
    ResumeError
        `checkpoints` holds another run.
    """
    how = method_of(method)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=how.learning_rate if learning_rate is None else learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        balanced=balanced,
        patience=patience,
        metric=metric or "",
        precision=precision,
        seed=seed,
    )
    _check(settings, encoder)
    logs = check_loggers(log, None if checkpoints is None else Path(checkpoints))
    reading = {"layer": layer, "gene_column": gene_column, "map_genes": map_genes, "values": values}
    if isinstance(encoder, FineTuned):
        raise InputError(
            f"{encoder.name} is fine-tuned already.", "Fine-tune its merged weights: finetune(encoder.merge(), ...)."
        )
    with ExitStack() as stack:
        stack.enter_context(guest(encoder.device, seed))
        also = [groups] if groups is not None else []
        keep = getattr(objective, "reads_matrix", False)
        cells = read_labelled(encoder, train, reading, objective, also=also, keep=keep, seed=seed)
        sides = divide(encoder, cells, valid, objective, reading, groups=groups, seed=seed)
        settings = _fitting(settings, sides.target, how)
        ready, sides = made_ready(encoder, sides, train, valid, reading, groups=groups, seed=seed)
        record = _record(encoder, how, sides, settings, head_dropout)
        folder, last = _folder(stack, checkpoints, record, encoder.device, resume)
        parts = _Parts.made(encoder, ready, how, sides, head_dropout, seed)
        again = parts.layers if gradient_checkpointing else ()
        if gradient_checkpointing:
            check_recomputable(parts.base.network, again, name=encoder.name)
        shown = progress if processes()[0] == 0 else False
        title = f"{encoder.name}: {how.kind}"
        advance = stack.enter_context(progress_bar(epochs * len(parts.training), shown, title))
        history = run(
            parts.model,
            parts.training,
            parts.held_out,
            sides.target,
            settings,
            rates=parts.adapted.rates,
            device=encoder.device,
            folder=folder,
            last=last,
            advance=advance,
            units=parts.units,
            again=again,
            logs=logs,
        )
    return parts.finished(sides, record, history, groups)


def _check(s: Settings, encoder: CellEncoder) -> None:
    whole = {"epochs": s.epochs, "batch_size": s.batch_size, "accumulate": s.accumulate}
    if s.patience is not None:
        whole["patience"] = s.patience
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}={value!r}; it must be a whole number from 1 up.")
    if not s.learning_rate > 0 or not s.clip > 0 or s.weight_decay < 0:
        raise InputError("learning_rate and clip must be positive, weight_decay 0 or more.")
    if not 0 <= s.warmup < 1:
        raise InputError(f"warmup={s.warmup} is no share of the steps.", "Pass a number in [0, 1).")
    if s.schedule not in SCHEDULES:
        raise InputError(f"schedule={s.schedule!r} is not known.", f"Pass {listing(SCHEDULES)}.")
    if s.precision not in ("float32", "bfloat16", "float16"):
        raise InputError(f"precision={s.precision!r} is not known.", "Pass 'float32', 'bfloat16' or 'float16'.")
    if s.precision == "float16" and encoder.device.type != "cuda":
        raise InputError(
            f"precision='float16' trains on CUDA devices only; the encoder is on {encoder.device}.", "Pass 'bfloat16'."
        )


def _fitting(settings: Settings, target: Target, how: Method) -> Settings:
    """The settings with the deciding score; what the objective cannot use is refused."""
    if settings.balanced and not target.strata:
        raise InputError(f"balanced=True is for classification; the objective is {target.kind}.")
    if target.needs_network and isinstance(how, Head):
        raise CapabilityError(
            f"method='head' leaves the network as it is, and {target.kind} is about changing it.",
            "Pass method='lora' or 'full'.",
        )
    metric = settings.metric or next(iter(target.metrics))
    if metric not in target.metrics:
        raise InputError(
            f"metric={metric!r} is no score of {target.kind}.", f"Pass one of {listing(sorted(target.metrics))}."
        )
    return replace(settings, metric=metric)


def _record(encoder: CellEncoder, how: Method, sides: Sides, settings: Settings, head_dropout: float) -> dict[str, Any]:
    """All that decides a run."""
    return {
        "base": {"name": encoder.name, "tensors": fingerprint_of(encoder.network)},
        "tokenizer": encoder.tokenizer.settings(),
        "method": {"kind": how.kind, **asdict(how)},
        "objective": sides.target.record(),
        "settings": {**asdict(settings), "head_dropout": head_dropout},
        "data": digest(sides.training, sides.target)
        + ("" if sides.held_out is None else digest(sides.held_out, sides.target)),
        "processes": processes()[1],
        "versions": versions(),
    }


def _folder(
    stack: ExitStack,
    checkpoints: str | PathLike[str] | None,
    record: dict[str, Any],
    device: torch.device,
    resume: bool,
) -> tuple[Path, Path | None]:
    """Where the run keeps its checkpoints, and the one it continues from."""
    if checkpoints is not None:
        folder = Path(checkpoints)
        return folder, on_first(device, lambda: claim(folder, record, resume=resume))

    def temporary() -> Path:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scfm-finetune-")))

    return on_first(device, temporary), None


@dataclass(frozen=True)
class _Parts:
    """What a run works on: a copy of the encoder made ready for objective and method, a head, and the two data sets.

    Parameters
    ----------
    base
        The copy.
    fresh
        Names of tensors that the objective has added to it.
    buffers
        Its buffers before training.
    """

    base: CellEncoder
    head: nn.Module
    how: Method
    adapted: Adapted
    fresh: frozenset[str]
    buffers: dict[str, Tensor]
    model: TrainingModel
    training: Cells
    held_out: Cells | None
    units: frozenset[str] = frozenset()
    """Class names of the layers that make the embedding."""
    layers: tuple[str, ...] = ()
    """Their names; none where the network is frozen."""

    @classmethod
    def made(
        cls, encoder: CellEncoder, ready: CellEncoder, how: Method, sides: Sides, head_dropout: float, seed: int
    ) -> _Parts:
        """Of the encoder that was given, and the one that the target has made ready."""
        target = sides.target
        base = copy(ready)
        base.network = deepcopy(base.network)
        target.fits(how, base)
        held = None if sides.held_out is None else target.conditioned(base, sides.held_out)
        sides = replace(sides, training=target.conditioned(base, sides.training), held_out=held)
        own = encoder.network.state_dict()
        fresh = frozenset(
            key for key, x in base.network.state_dict().items() if key not in own or own[key].shape != x.shape
        )
        head = target.head(base, head_dropout).to(base.device)
        target.start(head, base, sides.training)
        both = [sides.training, sides.held_out]
        inputs: list[Tokens | np.ndarray | None]
        if isinstance(how, Head):
            for parameter in base.network.parameters():
                parameter.requires_grad_(False)
            layers = []
            adapted, units = Adapted({}), frozenset[str]()
            inputs = [None if side is None else embeddings(base, side) for side in both]
        else:
            probe, request = _probe(base, sides.training), target.request(base.network)
            layers = layers_of(base.network, probe, request)
            units = frozenset(type(base.network.get_submodule(name)).__name__ for name in layers)
            adapted = adapt(
                base.network,
                how,
                probe,
                name=base.name,
                request=request,
                whole=fresh,
            )
            inputs = [None if side is None else side.tokens for side in both]
        training, held_out = (
            None if side is None or read is None else target.examples(base, side, read, seed=seed)
            for side, read in zip(both, inputs, strict=True)
        )
        assert training is not None
        buffers = {name: tensor.clone() for name, tensor in base.network.named_buffers()}
        model = TrainingModel(None if isinstance(how, Head) else base.network, head, target, adapted.frozen)
        return cls(base, head, how, adapted, fresh, buffers, model, training, held_out, units, tuple(layers))

    def finished(
        self, sides: Sides, record: dict[str, Any], history: list[dict[str, Any]], groups: str | None
    ) -> FineTuned:
        """The trained encoder."""
        network = self.base.network
        moved = {name for name, tensor in network.named_buffers() if not torch.equal(tensor, self.buffers[name])}
        own = set() if self.adapted.peft is not None else set(self.adapted.rates)
        parameters = [*network.parameters(), *self.head.parameters()]
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in parameters)
        for parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(
                False
            )  # as after loading: torch chooses other kernels for weights that are trained
        names = [name for name in network.state_dict() if name in own | moved | self.fresh]
        held_out = () if sides.held_out is None else tuple(sides.held_out.names)
        return FineTuned(
            base=self.base,
            network=FineTunedNetwork(network, self.head, sides.target),
            target=sides.target,
            record={
                **record,
                "peft": self.adapted.peft,
                "changed": names,
                "trainable": {"parameters": trained, "of": whole, "share": trained / whole},
            },
            split=Split(tuple(sides.training.names), held_out, groups),
            history=history,
        )


def _probe(base: CellEncoder, cells: Labelled) -> Batch:
    """Some cells."""
    rows = cells.groups[0] if cells.groups is not None else np.arange(len(cells))
    some = rows if cells.groups is not None else np.unique(np.linspace(0, len(rows) - 1, PROBE_CELLS).astype(np.int64))
    return cells.tokens.collate(some).to(base.device)
