"""Training of a student, and how well it agrees with its teacher on cells that neither loss nor stopping has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scfm.adapters.student.adapter import Student, StudentConfig
from scfm.adapters.student.network import CALIBRATION, StudentNetwork
from scfm.cards import Weights
from scfm.cells import Data
from scfm.encoder import CellEncoder
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.inference import evaluating, progress_bar
from scfm.metrics import bootstrap, knn_labels
from scfm.neighbours import neighbours
from scfm.provenance import versions
from scfm.reading import Reading, read, tokenized
from scfm.registry import find
from scfm.splits import hold_out
from scfm.tokenizers.base import Batch, Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Distillation", "train_student"]

MIN_CELLS = 3
"""Training cells that must express a gene for it to be in the student's vocabulary."""
PANELS = 8
"""Random panels of the closed-form fit and of stopping."""
FEWEST = 50
"""Training cells below which nothing is learnt."""


@dataclass(frozen=True)
class Distillation:
    """Settings of the training.

    Parameters
    ----------
    epochs
        Passes over the training cells, at most; training ends after `patience` without a better loss on the stopping cells.
    batch_size
        Cells in a step.
    learning_rate
        Highest, of AdamW, falling by a cosine.
    drop_genes
        Largest share of a cell's genes left out in a step, drawn anew: a student that has seen thinner cells is steadier on them.
    panels
        Share of the steps whose cells are seen through a random gene panel; 0 trains for data with the genes of the training data.
    width, hidden
        Sizes, see `StudentConfig`.
    """

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    drop_genes: float = 0.1
    panels: float = 0.7
    patience: int = 8
    width: int = 256
    hidden: int = 512


def train_student(
    teacher: CellEncoder,
    data: Data,
    *,
    valid: float = 0.2,
    groups: str | None = None,
    labels: str | None = None,
    embedding: np.ndarray | str | PathLike[str] | None = None,
    settings: Distillation = Distillation(),
    reading: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> Student:
    """Train a student; the arguments are explained at the task `distill`."""
    reading = dict(reading or {})
    whole = _everything(teacher, settings)
    with closing(read(whole, data, **reading)) as opened:
        tokens = _tokens(whole, opened, seed)
        obs = _columns(opened, [name for name in (groups, labels) if name is not None])
    target = _embedding(teacher, data, embedding, len(tokens), reading, progress, seed)
    usable = np.flatnonzero((tokens.expressed > 0) & np.isfinite(target).all(axis=1))
    if len(usable) < FEWEST:
        raise InputError(
            f"{len(usable)} cells have genes that {teacher.name} knows and a finite embedding; at least {FEWEST} are needed.",
            "Give more cells, of the kinds the student will meet.",
        )
    by = None if groups is None else obs[groups].iloc[usable]
    training, held_out = (usable[rows] for rows in hold_out(len(usable), share=valid, groups=by, seed=seed))
    rest = training[hold_out(len(training), share=0.1, seed=seed)[1]]  # decides when to stop
    training = np.setdiff1d(training, rest)
    student, tokens = _vocabulary_of(teacher, whole, tokens, training, settings)
    _fit(student.network, tokens, target, training, rest, settings, progress, seed)
    _calibrate(student.network, tokens, held_out)
    own = _run(student.network, tokens, held_out)
    known = None if labels is None else obs[labels].astype(str).to_numpy()
    student.record = {
        "teacher": {"model": teacher.name, "origin": dict(teacher.origin), "dim": teacher.dim},
        "cells": {"train": len(training) + len(rest), "valid": len(held_out), "groups": groups},
        "settings": {**asdict(settings), "seed": seed, **reading},
        "fidelity": fidelity(
            target, own, training, held_out, known, by if by is None else obs[groups].to_numpy(), seed
        ),
        "versions": versions(),
    }
    student.origin = {
        "source": "scfm distill",
        "teacher": teacher.name,
        **{f"teacher_{k}": v for k, v in teacher.origin.items()},
    }
    return student


# Data


def _everything(teacher: CellEncoder, settings: Distillation) -> Student:
    """A student of all genes that the teacher knows; only its tokenizer is used."""
    known = teacher.vocabulary
    special = set(known.special.values())
    genes = tuple(token for token in known.tokens if token not in special)
    vocabulary = Vocabulary(
        genes, ids=known.ids, species=known.species, fold_case=known.fold_case, aliases=known.aliases
    )
    with torch.device("meta"):
        network_config = StudentConfig(len(genes), teacher.dim, settings.width, settings.hidden)
        student = Student.build(network_config, vocabulary, _card(teacher))
    return student


def _card(teacher: CellEncoder) -> Any:
    own = find("student")[1]
    assert own is not None
    return own.model_copy(
        update={
            "name": f"student/{teacher.card.name.replace('/', '-')}",
            "title": f"Student of {teacher.card.title}",
            "default": False,
            "species": teacher.card.species,
            "modality": teacher.card.modality,
            "weights_licence": teacher.card.weights_licence,
            "restricted": teacher.card.restricted,
            "input": teacher.card.input.model_copy(update={"obs": (), "sees_other_cells": False}),
            "weights": Weights(),
            "dim": teacher.dim,
        }
    )


def _tokens(student: Student, reading: Reading, seed: int) -> Tokens:
    blocks = list(tokenized(student, reading, seed))
    if not blocks:
        raise InputError("the data have no cells.", "Pass cells to learn from.")
    return Tokens.joined([block.tokens for block in blocks])


def _columns(reading: Reading, columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    tables = []
    for part in reading.parts:
        part.source.require_obs(columns, "Name columns that all data have.")
        tables.append(part.source.obs[columns])
    return pd.concat(tables)


def _embedding(
    teacher: CellEncoder,
    data: Data,
    embedding: np.ndarray | str | PathLike[str] | None,
    n_cells: int,
    reading: dict[str, Any],
    progress: bool | None,
    seed: int,
) -> np.ndarray:
    """The teacher's embeddings (n_cells, dim): given, or computed; a path keeps them, and continues a run that was interrupted."""
    if isinstance(embedding, np.ndarray):
        if embedding.shape != (n_cells, teacher.dim):
            raise InputError(
                f"embedding= has shape {embedding.shape}; {n_cells:,} cells of {teacher.dim} numbers are needed.",
                "Pass what teacher.embed(data) gives, or leave it out.",
            )
        return np.asarray(embedding, dtype=np.float32)
    out = None if embedding is None else Path(embedding)
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rows are NaN.*")
        return np.asarray(teacher.embed(data, out=out, progress=progress, seed=seed, **reading))


def _vocabulary_of(
    teacher: CellEncoder, whole: Student, tokens: Tokens, training: np.ndarray, settings: Distillation
) -> tuple[Student, Tokens]:
    """A student of the genes that enough training cells express, and the cells' tokens in it."""
    ids = tokens.select(training).fields["ids"]
    counts = np.bincount(ids, minlength=len(whole.vocabulary))
    genes = np.flatnonzero(counts >= MIN_CELLS)
    if len(genes) == 0:
        raise InputError(f"no gene is expressed by {MIN_CELLS} training cells.", "Give more cells.")
    known = whole.vocabulary
    names = tuple(known.tokens[i] for i in genes)
    vocabulary = Vocabulary(
        names,
        ids=known.ids,
        species=known.species,
        fold_case=known.fold_case,
        aliases={alias: name for alias, name in known.aliases.items() if name in set(names)},
    )
    config = StudentConfig(len(genes), teacher.dim, settings.width, settings.hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.width)
        student = Student.build(config, vocabulary, whole.card)
    place = np.full(len(known), -1, dtype=np.int32)
    place[genes] = np.arange(len(genes), dtype=np.int32)
    new = place[tokens.fields["ids"]]
    kept = np.flatnonzero(new >= 0)
    offsets = np.searchsorted(kept, tokens.offsets)
    fields = {"ids": new[kept], "values": tokens.fields["values"][kept]}
    return student, Tokens(fields, offsets, np.diff(offsets), tokens.padding)


# Training


def _fit(
    network: StudentNetwork,
    tokens: Tokens,
    target: np.ndarray,
    training: np.ndarray,
    rest: np.ndarray,
    settings: Distillation,
    progress: bool | None,
    seed: int,
) -> None:
    """Least squares on (embedding - mean) / spread: in closed form for the linear part, then by AdamW for all above the gene vectors.

    Data come with gene panels of their own, down to a tenth of the genes. The student must give the same embedding from any of them,
    so every part is fitted on cells seen through random panels too. The MLP begins at 0, so that training starts from the ridge
    regression; afterwards the weights of the best epoch are back.
    """
    mean = target[training].mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(((target[training] - mean) ** 2).mean())) or 1.0
    network.mean.copy_(torch.from_numpy(mean))
    network.scale.fill_(spread)
    goal = torch.from_numpy(((target - mean) / spread).astype(np.float32))
    rng = np.random.default_rng(seed)
    seen = _prevalence(tokens.select(training), network.genes.num_embeddings)
    panels = [np.ones(len(seen), dtype=bool)]
    if settings.panels:
        panels += [random_panel(seen, rng) for _ in range(PANELS)]
    views = [through_panel(tokens, panel) for panel in panels]
    _axes(network, tokens, training, seed)
    _ridge(network, views, goal, training, rest)
    torch.nn.init.zeros_(network.out.weight)
    torch.nn.init.zeros_(network.out.bias)
    network.genes.weight.requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    steps = settings.epochs * math.ceil(len(training) / settings.batch_size)
    optimiser = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )

    def error() -> float:
        return float(np.mean([((_run(network, view, rest) - target[rest]) ** 2).mean() for view in views]))

    def state() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in network.state_dict().items()}

    best, stale, kept = error(), 0, state()
    network.train()
    with progress_bar(settings.epochs * len(training), progress, "student") as advance, torch.enable_grad():
        for _ in range(settings.epochs):
            for rows in np.array_split(rng.permutation(training), math.ceil(len(training) / settings.batch_size)):
                part = tokens.select(rows)
                if rng.random() < settings.panels:
                    part = through_panel(part, random_panel(seen, rng))
                batch = part.collate(np.arange(len(rows)))
                _drop(batch, settings.drop_genes, rng)
                loss = ((network.standardised(network.standard(network.sums(batch))) - goal[rows]) ** 2).mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimiser.step()
                schedule.step()
                advance(len(rows))
            now = error()
            best, stale = (now, 0) if now < best else (best, stale + 1)
            if stale == 0:
                kept = state()
            if stale >= settings.patience:
                break
    network.load_state_dict(kept)
    network.genes.weight.requires_grad_(True)
    network.eval()


def _prevalence(tokens: Tokens, genes: int) -> np.ndarray:
    """Share of the cells that express each gene (genes,)."""
    return np.bincount(tokens.fields["ids"], minlength=genes) / max(len(tokens), 1)


def random_panel(prevalence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Genes of a panel (genes,) bool: 3 to 100 % of them, at random or rather the prevalent ones, as panels of variable genes are."""
    count = max(1, round(len(prevalence) * float(np.exp(rng.uniform(np.log(0.03), 0)))))
    leaning = rng.integers(0, 2) * np.log(np.maximum(prevalence, 1e-6))
    chosen = np.argsort(-(leaning + rng.gumbel(size=len(prevalence))))[:count]
    panel = np.zeros(len(prevalence), dtype=bool)
    panel[chosen] = True
    return panel


def through_panel(tokens: Tokens, panel: np.ndarray) -> Tokens:
    """The tokens as they were if only these genes had been measured: others are gone, counts scaled to 10,000 anew."""
    if panel.all():
        return tokens
    kept = np.flatnonzero(panel[tokens.fields["ids"]])
    offsets = np.searchsorted(kept, tokens.offsets)
    counts = np.expm1(tokens.fields["values"][kept].astype(np.float64))
    lengths = np.diff(offsets)
    cell = np.repeat(np.arange(len(lengths)), lengths)
    totals = np.bincount(cell, weights=counts, minlength=len(lengths))
    values = np.log1p(counts * (1e4 / np.maximum(totals, 1e-9))[cell]).astype(np.float32)
    return Tokens({"ids": tokens.fields["ids"][kept], "values": values}, offsets, lengths, tokens.padding)


def _axes(network: StudentNetwork, tokens: Tokens, training: np.ndarray, seed: int) -> None:
    """Gene vectors that are the principal axes of the training cells, and the mean and spread of the sums.

    Axes of little variance are divided by no less than a thousandth of the first one's spread: noise is not blown up.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    chosen = tokens.select(training)
    shape = (len(training), network.genes.num_embeddings)
    values = sparse.csr_matrix((chosen.fields["values"], chosen.fields["ids"], chosen.offsets), shape=shape)
    k = min(network.genes.embedding_dim, *(size - 1 for size in shape))
    loadings = randomized_svd(values, k, random_state=seed)[2]  # (k, n_genes)
    network.genes.weight.data.zero_()
    network.genes.weight.data[:, :k] = torch.from_numpy(loadings.T.copy())
    sums = values @ loadings.T
    spread = sums.std(axis=0)
    network.middle[:k] = torch.from_numpy(sums.mean(axis=0))
    network.spread[:k] = torch.from_numpy(np.maximum(spread, 1e-3 * max(spread.max(), 1e-6)))


def _ridge(
    network: StudentNetwork, views: list[Tokens], goal: torch.Tensor, training: np.ndarray, rest: np.ndarray
) -> None:
    """The linear part by ridge regression on the cells seen through all panels, its penalty chosen on the stopping cells."""
    with torch.inference_mode():
        x, held = (
            torch.cat([network.standard(network.sums(view.collate(rows))) for view in views]).double()
            for rows in (training, rest)
        )
    y, truth = (goal[rows].double().repeat(len(views), 1) for rows in (training, rest))
    gram, moment = x.T @ x, x.T @ y
    found = []
    for penalty in 10.0 ** np.arange(-2, 5):
        weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=torch.float64), moment)
        found.append((float(((held @ weight - truth) ** 2).mean()), weight))
    network.linear.weight.data.copy_(min(found, key=lambda pair: pair[0])[1].T)
    network.linear.bias.data.zero_()


def _drop(batch: Batch, most: float, rng: np.random.Generator) -> None:
    """Set a share of each cell's values to 0, the share drawn from [0, most]."""
    values = batch.fields["values"]
    share = rng.random((len(values), 1)) * most
    kept = torch.from_numpy(rng.random(tuple(values.shape)) >= share)
    batch.fields["values"] = values * kept / torch.from_numpy(1 - share).float()


def _run(network: StudentNetwork, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    """Embeddings (n, dim) float32."""
    out = np.empty((len(rows), network.dim), dtype=np.float32)
    with evaluating(network), torch.inference_mode():
        for start in range(0, len(rows), 256):
            cells = network(tokens.collate(rows[start : start + 256])).cells
            assert cells is not None
            out[start : start + 256] = cells.numpy()
    return out


def _calibrate(network: StudentNetwork, tokens: Tokens, held_out: np.ndarray) -> None:
    """Quantiles of how odd the held-out cells are."""

    def keep(values: torch.Tensor, table: int) -> torch.Tensor:
        at = torch.linspace(0, 1, CALIBRATION, dtype=torch.float64)
        network.quantiles[table] = torch.quantile(values.double(), at).float()
        return network.rank(values, table)

    with torch.inference_mode():
        batch = tokens.collate(held_out)
        distance, left = network.oddness(batch, network.sums(batch))
        keep(torch.maximum(keep(distance, 0), keep(left, 1)), 2)


# Fidelity


def fidelity(
    teacher: np.ndarray,
    student: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    labels: np.ndarray | None,
    groups: np.ndarray | None,
    seed: int,
    k: int = 15,
) -> list[dict[str, Any]]:
    """Agreement on held-out cells, as rows of metric, value, low, high.

    "cosine" and "cosine, centred" (minus the teacher's mean: embeddings that share a large mean have a cosine near 1 whatever they
    are) are means over cells; "kNN overlap" is the share of a cell's k nearest held-out cells that both have; "label transfer" is the
    accuracy of k-NN from the training cells in the teacher's space, for both embeddings of the held-out cells.
    """
    theirs = teacher[held_out]
    mean = teacher[training].mean(axis=0)
    by = None if groups is None else groups[held_out]
    rows: list[dict[str, Any]] = []

    def add(metric: str, values: np.ndarray) -> None:
        e = bootstrap(lambda drawn: float(values[drawn].mean()), len(values), groups=by, seed=seed)
        rows.append({"metric": metric, "value": e.value, "low": e.low, "high": e.high, "resampled": e.unit})

    add("cosine", _cosine(theirs, student))
    add("cosine, centred", _cosine(theirs - mean, student - mean))
    near = min(k, len(held_out) - 1)
    first, second = (neighbours(z, k=near)[1] for z in (theirs, student))
    add(
        f"kNN overlap at {near}",
        np.array([len(np.intersect1d(a, b)) / near for a, b in zip(first, second, strict=True)]),
    )
    if labels is not None and len(training) >= k:
        truth = labels[held_out]
        for name, z in (("teacher", theirs), ("student", student)):
            add(
                f"label transfer, {name}",
                (knn_labels(teacher[training], labels[training], z, k=k) == truth).astype(float),
            )
    return rows


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(product, 1e-30)
