"""Pictures of labels and their errors; matplotlib, readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scfm.metrics.classification import coverage_risk, reliability
from scfm.plotting import CATEGORIES, MARKERS, SEQUENTIAL, category_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_confusion", "draw_coverage_risk", "draw_label_counts", "draw_reliability", "draw_scores"]


def draw_confusion(ax: Axes, confusion: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Axes:
    """Share of each true label's cells by the label given; the number of cells stands in each square from 1 % on.

    Parameters
    ----------
    confusion
        (rows, columns) counts.
    rows, columns
        Names of true and of given labels.
    """
    total = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, total, out=np.zeros(confusion.shape), where=total > 0)
    image = ax.imshow(share, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    small = 8 if len(columns) <= 12 else 6
    ax.set_xticks(range(len(columns)), list(columns), rotation=45, ha="right", fontsize=small + 1)
    ax.set_yticks(
        range(len(rows)), [f"{name} ({n})" for name, n in zip(rows, total[:, 0], strict=True)], fontsize=small + 1
    )
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.01:
            ink = "black" if value > 0.6 else "white"
            ax.text(j, i, str(int(confusion[i, j])), ha="center", va="center", color=ink, fontsize=small)
    ax.set_xlabel("label given")
    ax.set_ylabel("true label (cells)")
    ax.get_figure(root=True).colorbar(image, ax=ax, label="share of the true label's cells", shrink=0.8)  # type: ignore[union-attr]
    return ax


def draw_reliability(ax: Axes, cells: Mapping[str, tuple[np.ndarray, np.ndarray]], *, bins: int = 10) -> Axes:
    """Accuracy of cells of similar confidence; on the diagonal, probabilities mean what they say.

    Parameters
    ----------
    cells
        Name -> (confidence (n_cells,), correct (n_cells,)); a line each.
    """
    ax.plot([0, 1], [0, 1], color="#333333", linestyle="--", linewidth=1, zorder=0)
    most = max(len(confidence) for confidence, _ in cells.values())
    for (name, (confidence, correct)), marker in zip(cells.items(), MARKERS, strict=False):
        table = reliability(confidence, correct, bins).dropna()
        colour = category_colours(list(cells))[name]
        ax.plot(table["confidence"], table["accuracy"], color=colour, linewidth=1.2)
        size = 15 + 150 * table["cells"] / most
        ax.scatter(table["confidence"], table["accuracy"], s=size, marker=marker, color=colour, label=name, alpha=0.85)
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("probability of the label given (size: cells)")
    ax.set_ylabel("share that is right")
    for handle in ax.legend(frameon=False, loc="upper left").legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([40])
    return ax


def draw_coverage_risk(ax: Axes, cells: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Axes:
    """Share of wrong labels among the most confident cells; parameters as for `draw_reliability`."""
    for i, (name, (confidence, correct)) in enumerate(cells.items()):
        coverage, risk = coverage_risk(confidence, correct)
        colour = category_colours(list(cells))[name]
        style = ("-", "--", ":", "-.")[i % 4]
        ax.plot(coverage, risk, color=colour, linestyle=style, label=name, drawstyle="steps-pre")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("share of cells answered, the most confident first")
    ax.set_ylabel("share of wrong labels among them")
    ax.legend(frameon=False)
    return ax


def draw_scores(ax: Axes, table: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Axes:
    """Scores of several methods beside each other, with intervals.

    Parameters
    ----------
    table
        Method -> metric -> (value, low, high).
    """
    metrics = list(next(iter(table.values())))
    for i, (name, scores) in enumerate(table.items()):
        at = np.arange(len(metrics)) + (i - (len(table) - 1) / 2) * 0.18
        values = np.array([scores[m] for m in metrics])
        spread = np.abs(values[:, 1:] - values[:, :1]).T
        ax.errorbar(
            at,
            values[:, 0],
            yerr=spread,
            fmt=MARKERS[i % len(MARKERS)],
            color=CATEGORIES[i % len(CATEGORIES)],
            capsize=3,
            label=name,
        )
    ax.set_xticks(range(len(metrics)), [metric.replace("_", " ") for metric in metrics])
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("score, with 95 % interval")
    ax.legend(frameon=False)
    return ax


def draw_label_counts(ax: Axes, labels: np.ndarray, rejected: np.ndarray) -> Axes:
    """Cells of each label given, and how many of them were rejected (hatched)."""
    names, counts = np.unique(labels.astype(str), return_counts=True)
    order = np.argsort(counts)
    names, counts = names[order], counts[order]
    out = np.array([int((rejected & (labels == name)).sum()) for name in names])
    at = np.arange(len(names))
    ax.barh(at, counts - out, color=CATEGORIES[0], label="accepted")
    ax.barh(
        at, out, left=counts - out, color="white", edgecolor=CATEGORIES[0], hatch="////", label="rejected as unknown"
    )
    ax.set_yticks(at, names)
    ax.set_xlabel("cells")
    ax.legend(frameon=False)
    return ax
