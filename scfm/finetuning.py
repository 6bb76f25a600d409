"""`scfm.finetune`: train any encoder for a question about cells. The same call for every model; nothing here knows one."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scfm.adaptation import Adapted, Head, LoRA, Method, adapt, method_of
from scfm.cells import Data, Values
from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.finetuned import FineTuned, FineTunedNetwork, fingerprint_of
from scfm.heads import ClassTarget, Objective, PredictionHead, Target, objective_of
from scfm.inference import evaluating, progress_bar
from scfm.provenance import versions
from scfm.reading import InputWarning, Reading, read, tokenized
from scfm.splits import Split, hold_out
from scfm.tokenizers.base import Batch, Tokens
from scfm.training import Cells, Settings, TrainingModel, claim, guest
from scfm.training import train as run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["finetune"]

PROBE_CELLS = 16
"""Cells on which is seen what makes an embedding."""
SAMPLE_CELLS = 1024
"""Cells whose embeddings set the head's mean and scale."""
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class _Labelled:
    """Cells with names, obs and tokens, in the order of the data; empty ones are left out."""

    names: np.ndarray
    obs: pd.DataFrame
    tokens: Tokens
    groups: list[np.ndarray] | None

    def select(self, rows: np.ndarray) -> _Labelled:
        groups = None
        if self.groups is not None:
            place = np.full(len(self.names), -1)
            place[rows] = np.arange(len(rows))
            groups = [place[group] for group in self.groups if (place[group] >= 0).all()]
        return _Labelled(self.names[rows], self.obs.iloc[rows], self.tokens.select(rows), groups)


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
    head_dropout: float = 0.0,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Values | None = None,
    checkpoints: str | PathLike[str] | None = None,
    resume: bool = True,
    progress: bool | None = None,
    seed: int = 0,
) -> FineTuned:
    """Train an encoder to predict a column of `obs`. The encoder itself is not changed.

    Parameters
    ----------
    encoder
        From `scfm.load`.
    train
        Labelled cells: AnnData, path of an `.h5ad` or `.zarr`, or a list of these. Their tokens are held in memory.
    objective
        Column of `obs` (numbers: regression; anything else: classification), or `Classification`, `Regression` or `MultiLabel`.
    method
        "head", "full" or "lora", or `Head()`, `Full(...)`, `LoRA(...)` with settings.
    valid
        Held-out cells that decide which epoch is best: a share of `train`, data of their own, or None: the last epoch is taken.
    groups
        Column of `obs` (donor, batch, study) whose values are on one side of the split only. Without, cells of one donor are on both sides
        and held-out scores are too good.
    epochs
        Passes over the training cells, at most.
    batch_size
        Cells in a step; where cells see each other, a step is a group.
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
    head_dropout
        Dropout in front of the head's Linear.
    precision
        Arithmetic of training (autocast); "float16" on GPUs only.
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
        precision=precision,
        seed=seed,
    )
    _check(settings, encoder)
    reading = {"layer": layer, "gene_column": gene_column, "map_genes": map_genes, "values": values}
    if isinstance(encoder, FineTuned):
        raise InputError(
            f"{encoder.name} is fine-tuned already.", "Fine-tune its merged weights: finetune(encoder.merge(), ...)."
        )
    with ExitStack() as stack:
        stack.enter_context(guest(encoder.device, seed))
        columns = [groups] if groups is not None else []
        cells = _read(encoder, train, reading, objective, columns, seed)
        target, cells, held_out = _split(encoder, cells, valid, objective, groups, reading, seed)
        if balanced and not isinstance(target, ClassTarget):
            raise InputError(f"balanced=True is for classification; the objective is {target.kind}.")
        split = Split(tuple(cells.names), () if held_out is None else tuple(held_out.names), groups)

        record = {
            "base": {"name": encoder.name, "tensors": fingerprint_of(encoder.network)},
            "tokenizer": encoder.tokenizer.settings(),
            "method": {"kind": how.kind, **asdict(how)},
            "objective": target.record(),
            "settings": {**asdict(settings), "head_dropout": head_dropout},
            "data": _digest(cells, target) + ("" if held_out is None else _digest(held_out, target)),
            "versions": versions(),
        }
        if checkpoints is None:
            folder, last = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scfm-finetune-"))), None
        else:
            folder = Path(checkpoints)
            last = claim(folder, record, resume=resume)

        base = copy(encoder)
        base.network = deepcopy(encoder.network)
        head = PredictionHead(encoder.dim, target.outputs, dropout=head_dropout).to(encoder.device)
        adapted, inputs, held_inputs = _prepare(base, how, head, cells, held_out)
        before = {name: tensor.clone() for name, tensor in base.network.named_buffers()}
        model = TrainingModel(None if isinstance(how, Head) else base.network, head, target, adapted.frozen)
        training = Cells(inputs, target.encode(cells.obs), cells.groups if isinstance(inputs, Tokens) else None)
        watching = None
        if held_out is not None and held_inputs is not None:
            shared = held_out.groups if isinstance(held_inputs, Tokens) else None
            watching = Cells(held_inputs, target.encode(held_out.obs), shared)
        advance = stack.enter_context(progress_bar(epochs * len(training), progress, f"{encoder.name}: {how.kind}"))
        history = run(
            model,
            training,
            watching,
            target,
            settings,
            rates=adapted.rates,
            device=encoder.device,
            folder=folder,
            last=last,
            advance=advance,
        )
    moved = [name for name, tensor in base.network.named_buffers() if not torch.equal(tensor, before[name])]
    changed = () if isinstance(how, LoRA) else (*adapted.rates, *moved)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = [*base.network.parameters(), *head.parameters()]
    whole = sum(p.numel() for p in parameters)
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(False)  # as after loading: torch chooses other kernels for weights that are trained
    return FineTuned(
        base=base,
        network=FineTunedNetwork(base.network, head),
        target=target,
        record={
            **record,
            "peft": adapted.peft,
            "changed": list(changed),
            "trainable": {"parameters": trained, "of": whole, "share": trained / whole},
        },
        split=split,
        history=history,
    )


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


def _obs(reading: Reading, columns: Sequence[str]) -> pd.DataFrame:
    """The columns needed, of all parts."""
    import pandas as pd

    tables = []
    for part in reading.parts:
        part.source.require_obs(columns, "Name columns that all data have.")
        tables.append(part.source.obs[list(columns)])
    return tables[0] if len(tables) == 1 else pd.concat(tables)


def _read(
    encoder: CellEncoder,
    data: Data,
    reading: dict[str, Any],
    objective: str | Objective | Target,
    more: Sequence[str],
    seed: int,
) -> _Labelled:
    """Tokens and labels of all cells that express a gene the model knows."""
    wanted = (objective,) if isinstance(objective, str) else getattr(objective, "columns", None)
    if wanted is None:
        objective_of(objective, None)  # type: ignore[arg-type]  # raises
    with closing(read(encoder, data, **reading)) as opened:
        obs = _obs(opened, list(dict.fromkeys([*(wanted or ()), *more])))
        if opened.n_cells == 0:
            raise InputError("the data have no cells.", "Pass labelled cells.")
        names = obs.index.astype(str).to_numpy()
        if obs.index.has_duplicates:
            raise InputError(
                f"{int(obs.index.duplicated().sum()):,} obs_names are repeated; a split is a list of names.",
                "Call adata.obs_names_make_unique(); for several data sets, prefix the names.",
            )
        objective_ready = objective if not isinstance(objective, str) else objective_of(objective, obs)
        if isinstance(objective_ready, Target):
            objective_ready.encode(obs)
        else:
            objective_ready.target(obs)  # labels are refused before the cells are read
        blocks = list(tokenized(encoder, opened, seed))
    at = np.concatenate([block.cells for block in blocks])
    tokens = Tokens.joined([block.tokens for block in blocks]).select(np.argsort(at))
    groups = [block.cells for block in blocks] if encoder.tokenizer.grouped else None
    labelled = _Labelled(names, obs, tokens, groups)
    expressed = tokens.expressed > 0
    if not expressed.all() and groups is None:
        warnings.warn(
            f"{int((~expressed).sum()):,} of {len(names):,} cells have no expressed gene that {encoder.name} knows; they are not used.",
            InputWarning,
            stacklevel=4,
        )
        labelled = labelled.select(np.flatnonzero(expressed))
    return labelled


def _split(
    encoder: CellEncoder,
    cells: _Labelled,
    valid: Data | float | None,
    objective: str | Objective,
    groups: str | None,
    reading: dict[str, Any],
    seed: int,
) -> tuple[Target, _Labelled, _Labelled | None]:
    """The target on the training cells, those, and the held-out ones."""
    goal = objective_of(objective, cells.obs)
    if valid is None or (isinstance(valid, bool) and not valid):
        return goal.target(cells.obs), cells, None
    if isinstance(valid, int | float):
        by = None if groups is None else cells.obs[groups]
        strata = goal.target(cells.obs)
        labels = strata.encode(cells.obs) if isinstance(strata, ClassTarget) else None
        if cells.groups is not None:
            by = _computing_groups(cells, by, encoder.name)
        train_rows, valid_rows = hold_out(len(cells.names), share=float(valid), groups=by, strata=labels, seed=seed)
        training, held_out = cells.select(train_rows), cells.select(valid_rows)
        target = goal.target(training.obs)
    else:
        training = cells
        target = goal.target(training.obs)
        held_out = _read(encoder, valid, reading, target, [groups] if groups is not None else [], seed)
        if both := sorted(set(training.names) & set(held_out.names)):
            raise InputError(
                f"{len(both):,} cells are in train and in valid: {listing(both)}.", "Remove them from one of the two."
            )
        if groups is not None:
            here, there = (set(c.obs[groups].dropna().astype(str)) for c in (training, held_out))
            if both := sorted(here & there):
                raise InputError(
                    f"obs[{groups!r}] has the same values in train and valid: {listing(both)}.",
                    "Keep each on one side, or pass groups=None.",
                )
    if isinstance(target, ClassTarget):
        held_out = _known(held_out, target)
    return target, training, held_out


def _known(held_out: _Labelled, target: ClassTarget) -> _Labelled:
    """Held-out cells of classes that are trained; the others cannot be judged, which is told."""
    known = target.encode(held_out.obs) >= 0
    if known.all():
        return held_out
    names = sorted(set(held_out.obs[target.column].astype(str)[~known]))
    warnings.warn(
        f"{int((~known).sum()):,} held-out cells are of classes without training cells, {listing(names)}; they are not scored.",
        InputWarning,
        stacklevel=5,
    )
    if not known.any() or held_out.groups is not None:
        raise InputError(
            f"held-out cells are of classes without training cells: {listing(names)}.",
            "Remove these classes, or pass other held-out data as valid=.",
        )
    return held_out.select(np.flatnonzero(known))


def _computing_groups(cells: _Labelled, by: pd.Series | None, name: str) -> pd.Series:
    """Where cells see each other, the groups that are computed together stay whole."""
    import pandas as pd

    assert cells.groups is not None
    number = np.empty(len(cells.names), dtype=np.int64)
    for i, rows in enumerate(cells.groups):
        number[rows] = i
    if by is None:
        return pd.Series(number, index=cells.obs.index, name="group computed together")
    if any(by.iloc[rows].nunique(dropna=False) > 1 for rows in cells.groups):
        raise InputError(
            f"cells of several obs[{by.name!r}] are computed together by {name}, which would show held-out cells to training ones.",
            f"Pass encoder.with_options(group_key={str(by.name)!r}).",
        )
    return by


def _prepare(
    base: CellEncoder, how: Method, head: PredictionHead, cells: _Labelled, held_out: _Labelled | None
) -> tuple[Adapted, Tokens | np.ndarray, Tokens | np.ndarray | None]:
    """The network made ready for the method, the head for its embeddings, and what each of the two sides is read as."""
    if isinstance(how, Head):
        for parameter in base.network.parameters():
            parameter.requires_grad_(False)
        inputs = _embeddings(base, cells)
        head.standardise(inputs)
        return Adapted({}), inputs, None if held_out is None else _embeddings(base, held_out)
    if cells.groups is None:
        rows = np.unique(np.linspace(0, len(cells.names) - 1, SAMPLE_CELLS).astype(np.int64))
        head.standardise(_embeddings(base, cells.select(rows)))
    else:
        head.standardise(_embeddings(base, cells))
    adapted = adapt(base.network, how, _probe(base, cells), name=base.name)
    return adapted, cells.tokens, None if held_out is None else held_out.tokens


def _probe(base: CellEncoder, cells: _Labelled) -> Batch:
    if cells.groups is not None:
        rows = cells.groups[0]
    else:
        rows = np.unique(np.linspace(0, len(cells.names) - 1, PROBE_CELLS).astype(np.int64))
    return cells.tokens.collate(rows).to(base.device)


def _embeddings(base: CellEncoder, cells: _Labelled) -> np.ndarray:
    """(n_cells, dim) float32, cells of similar length together."""
    out = np.empty((len(cells.names), base.network.dim), dtype=np.float32)
    order = np.argsort(-cells.tokens.lengths, kind="stable")
    plan = cells.groups if cells.groups is not None else [order[at : at + 16] for at in range(0, len(order), 16)]
    with evaluating(base.network), torch.inference_mode():
        for rows in plan:
            encoded = base.network(cells.tokens.collate(rows).to(base.device)).cells
            assert encoded is not None
            out[rows] = encoded.float().cpu().numpy()
    return out


def _digest(cells: _Labelled, target: Target) -> str:
    """Hash of names, labels and tokens: another input does not continue a run."""
    import hashlib

    sha = hashlib.sha256("\n".join(cells.names).encode())
    arrays = [
        target.encode(cells.obs),
        cells.tokens.offsets,
        *cells.tokens.fields.values(),
        *cells.tokens.cells.values(),
    ]
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
