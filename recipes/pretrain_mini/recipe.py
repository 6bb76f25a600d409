"""The steps of the recipe: assemble, train, ship, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch

from scfm.adapters import mini
from scfm.adapters.mini import Mini, MiniConfig
from scfm.cards import ModelCard
from scfm.checkpoint import WEIGHTS, Checkpoint
from scfm.genes import Vocabulary
from scfm.plans import Plan
from scfm.recipes.pretrain_mini import evaluation
from scfm.recipes.pretrain_mini.components import start_from_components
from scfm.recipes.pretrain_mini.config import Config
from scfm.recipes.pretrain_mini.corpus import Group, assemble
from scfm.recipes.pretrain_mini.training import start_as_identity, train

__all__ = ["CARD", "SHIPPED", "evaluate", "pretrain", "started", "untrained"]

CARD = Path(mini.__file__).parent / "cards" / "mini.toml"
SHIPPED = CARD.parent.parent / "data"
MARKS = ("<!-- evaluation -->\n", "<!-- end of evaluation -->\n")


def untrained(config: Config, vocabulary: Vocabulary) -> Mini:
    """The encoder with random weights: the same for the same seed, without touching torch's global stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        sizes = MiniConfig(genes=len(vocabulary), pad=vocabulary.id("pad"), **config.network.model_dump())
        encoder = Mini.build(sizes, vocabulary, ModelCard.read(CARD))
    start_as_identity(encoder.network)
    return encoder


def started(config: Config, groups: list[Group], vocabulary: Vocabulary) -> Mini:
    """The encoder before its first step, its gene table filled with the components of the training sets."""
    encoder = untrained(config, vocabulary)
    start_from_components(encoder.network.genes, groups, config.corpus.random_share)  # type: ignore[arg-type]
    return encoder


def pretrain(config: Config, data: Path, *, weights: Path, results: Path) -> Mini:
    """Train, and write the weights in float16, log.csv and loss.png.

    Parameters
    ----------
    config
        Everything that decides the outcome.
    data
        Folder of the data sets.
    weights, results
        Folders to write to.
    """
    groups, vocabulary = assemble(config.corpus, data)
    encoder = started(config, groups, vocabulary)
    results.mkdir(parents=True, exist_ok=True)
    train(encoder, groups, config.train, checkpoint=weights, log=results / "log.csv")
    draw_loss(results / "log.csv", results / "loss.png")
    encoder.network.half()
    encoder.save(weights)
    (weights / WEIGHTS).chmod(0o644)
    encoder.network.float()
    return encoder


def planned(title: str, config: Config, data: Path, out: Path | None) -> Plan:
    """What `pretrain` would do."""
    groups, vocabulary = assemble(config.corpus, data)
    encoder = untrained(config, vocabulary)
    weights = sum(p.numel() for p in encoder.network.parameters())
    sets = {group.name: f"{group.counts.shape[0]:,} cells, {group.share:.0%} of the batches" for group in groups}
    stages = {
        f"stage {i}": f"{stage.steps:,} steps of {stage.cells} cells, "
        f"{'all' if stage.layers is None else stage.layers} layers, learning rate {stage.learning_rate:g}"
        for i, stage in enumerate(config.train.stages, 1)
    }
    return Plan(
        title,
        {
            "data": {**sets, "vocabulary": f"{len(vocabulary):,} tokens"},
            "model": {"parameters": f"{weights:,}", "trained": "all", "device": "cpu"},
            "training": stages,
            "result": {"out": out},
        },
    )


def last_losses(folder: Path, steps: int = 50) -> dict[str, float]:
    """Losses of the last steps of the run whose log a folder holds, their mean."""
    log = pd.read_csv(folder / "log.csv").tail(steps)
    return {name: float(log[name].mean()) for name in ("loss", "reconstruction", "contrast")}


def evaluate(config: Config, data: Path, *, weights: Path, results: Path) -> str:
    """Compare the weights in a folder with untrained ones, with the components training starts from and with PCA.

    Writes evaluation.json, evaluation.md and, for the shipped weights, the card's table.

    Returns
    -------
    str
        The table.
    """
    trained = Mini.restore(Checkpoint(weights))
    groups, vocabulary = assemble(config.corpus, data)
    models = {
        "mini": (evaluation.frozen(trained), False),
        # of these the layers pass their input on
        "mini, untrained": (evaluation.frozen(untrained(config, vocabulary), hidden_layer=0), False),
        "mini, components only": (evaluation.frozen(started(config, groups, vocabulary), hidden_layer=0), False),
        "pca": (evaluation.fitted_pca, True),
    }
    records = evaluation.evaluate(models, data)
    table = evaluation.markdown(records)
    (results / "evaluation.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (results / "evaluation.md").write_text(
        f"# mini on held-out data\n\n{evaluation.__doc__}\n\n{table}", encoding="utf-8"
    )
    if weights.resolve() == SHIPPED.resolve():
        _write_between_marks(CARD, table)
    return table


def _write_between_marks(path: Path, text: str) -> None:
    before, rest = path.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(before + MARKS[0] + text + MARKS[1] + after, encoding="utf-8")


def draw_loss(log: Path, figure: Path) -> None:
    """Reconstruction and contrast against the step, a running mean for each group of cells."""
    from matplotlib.figure import Figure

    steps = pd.read_csv(log)
    drawing = Figure(figsize=(8, 3), layout="constrained")
    for axis, name in zip(drawing.subplots(1, 2), ("reconstruction", "contrast"), strict=True):
        for group, rows in steps.groupby("group"):
            axis.plot(rows.index, rows[name].rolling(15, min_periods=1).mean(), label=group, linewidth=1)
        axis.set(xlabel="step, of all stages", title=name)
    axis.legend(fontsize=6)
    drawing.savefig(figure, dpi=80)
