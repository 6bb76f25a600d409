"""Pictures of the measured results: loss curves, confusion, UMAP, scores beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["annotation", "integration", "losses", "response"]


def _curves(axis: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Training loss solid, held-out loss dashed, a colour a run."""
    table = pd.DataFrame(history)
    for number, (run, rows) in enumerate(table.groupby("run", sort=False)):
        axis.plot(rows["epoch"], rows["loss"], color=f"C{number}", label=str(run))
        if "valid_loss" in rows:
            axis.plot(rows["epoch"], rows["valid_loss"], color=f"C{number}", linestyle="--")
    axis.set(xlabel="epoch", ylabel="loss (dashed: held out)")
    axis.legend(fontsize=7, frameon=False)


def losses(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Loss curves."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    _curves(figure.subplots(), history)
    figure.savefig(path, dpi=90)


def annotation(path: Path, history: Sequence[Mapping[str, Any]], truth: np.ndarray, found: np.ndarray) -> None:
    """Loss curves, and the confusion of the held-out cells, a row a true type."""
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _curves(left, history)
    names = sorted({*truth, *found})
    table = pd.crosstab(pd.Categorical(truth, names), pd.Categorical(found, names), dropna=False).to_numpy()
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    right.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(table), strict=True):
        right.text(
            j, i, table[i, j], ha="center", va="center", fontsize=6, color="white" if share[i, j] > 0.6 else "black"
        )
    right.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set(xlabel="predicted", ylabel="true", title="held-out cells")
    figure.savefig(path, dpi=90)


def integration(path: Path, embeddings: Mapping[str, np.ndarray], batch: np.ndarray, labels: np.ndarray) -> None:
    """UMAPs of the embeddings, by batch above and by cell type below."""
    from umap import UMAP

    figure = Figure(figsize=(3.6 * len(embeddings), 7), layout="constrained")
    axes = figure.subplots(2, len(embeddings))
    for column, (name, z) in enumerate(embeddings.items()):
        xy = UMAP(random_state=0, n_jobs=1).fit_transform(z)
        for row, values in enumerate((batch, labels)):
            axis = axes[row, column]
            for number, value in enumerate(sorted(set(values))):
                at = values == value
                axis.scatter(*xy[at].T, s=3, color=f"C{number}", label=value, linewidths=0)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == len(embeddings) - 1:
                axis.legend(fontsize=6, markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        axes[0, column].set_title(name)
    figure.savefig(path, dpi=90)


def response(path: Path, history: Sequence[Mapping[str, Any]], scores: pd.DataFrame, model: str) -> None:
    """Loss curves, and the error of each held-out condition by model and baseline."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
    _curves(left, [{"run": "training", **epoch} for epoch in history])
    names = [*(name for name in dict.fromkeys(scores["predictor"]) if name != model), model]
    values = [scores.loc[scores["predictor"] == name, "r2_delta"].to_numpy() for name in names]
    right.boxplot(values, orientation="horizontal", showfliers=False)
    for i, own in enumerate(values, 1):
        right.plot(own, np.full(len(own), i), ".", color="C0", alpha=0.5)
    right.set_yticks(range(1, len(names) + 1), ["recipe" if name == model else name for name in names], fontsize=8)
    right.axvline(0, color="grey", linewidth=0.8)
    right.set(xlabel="R2 of the change", title="held-out conditions, a point each", xlim=(-0.6, 1))
    figure.savefig(path, dpi=90)
