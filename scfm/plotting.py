"""How our pictures look: matplotlib, readable in grey, no rainbow; every function returns axes, as scanpy's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from scfm._lazy import optional

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from scfm.metrics import Estimate

__all__ = [
    "CATEGORIES",
    "DIVERGING",
    "MARKERS",
    "SEQUENTIAL",
    "axes_of",
    "bars",
    "category_colours",
    "category_panels",
    "panels",
    "saved",
    "score_table",
    "square",
    "umap_coordinates",
]

CATEGORIES = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#7f7f7f",
    "#f0e442",
)
"""Colours of categories that the colour-blind tell apart (Okabe & Ito 2008); their greys differ."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Shapes beside the colours."""
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
"""Colour maps."""


def axes_of(ax: Axes | None, *, size: tuple[float, float] = (6.0, 4.0)) -> Axes:
    """These axes, or those of a new figure (inches) that pyplot does not know."""
    if ax is not None:
        return ax
    optional("matplotlib", extra="analysis", purpose="the picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    new = figure.subplots()
    new.spines[["top", "right"]].set_visible(False)
    return new


def saved(ax: Axes, save: str | PathLike[str] | None) -> Axes:
    """The axes; their figure is written to a file if one is named."""
    if save is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.savefig(save, dpi=150, bbox_inches="tight")
    return ax


def category_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order; from the ninth on they are darker shades of the first eight."""
    from matplotlib.colors import to_hex, to_rgb

    found = {}
    for i, name in enumerate(names):
        shade = 0.65 ** (i // len(CATEGORIES))
        red, green, blue = to_rgb(CATEGORIES[i % len(CATEGORIES)])
        found[name] = to_hex((red * shade, green * shade, blue * shade))
    return found


def bars(
    ax: Axes, names: Sequence[str], estimates: Sequence[Estimate], *, label: str, baseline: float | None = None
) -> Axes:
    """Horizontal bars with intervals, the first on top; `baseline` is a dashed line, e.g. chance."""
    at = np.arange(len(names))[::-1]
    values = np.array([e.value for e in estimates])
    spread = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(min=0)
    ax.barh(at, values, xerr=spread, color=CATEGORIES[0], ecolor="#333333", capsize=3, height=0.65)
    ax.set_yticks(at, names)
    ax.set_xlabel(label)
    if baseline is not None:
        ax.axvline(baseline, color="#333333", linestyle="--", linewidth=1)
    return ax


def score_table(
    table: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    *,
    bars: str,
    baselines: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Scores from 0 to 1 as a table of dots, whose area and darkness grow with the score, and of bars; undefined ones are crosses.

    Parameters
    ----------
    table
        One row an embedding, one column a metric.
    groups
        Heading -> columns below it, from left to right.
    bars
        The heading whose columns are bars.
    baselines
        Rows below a line.
    ax
        Draw into these axes; None makes a figure.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    columns = [(group, name) for group, names in groups.items() for name in names]
    ax = axes_of(ax, size=(1.9 + 0.88 * len(columns), 1.9 + 0.45 * len(table)))
    shades = colormaps["Greys"]
    x = 0.0
    heads: dict[str, list[float]] = {}
    for i, (group, name) in enumerate(columns):
        x += 1.0 + (0.5 if i and columns[i - 1][0] != group else 0.0)
        heads.setdefault(group, []).append(x)
        ax.text(x, -0.75, name.replace(" ", "\n", 1), ha="center", va="bottom", fontsize=8)
        for y, value in enumerate(table[name]):
            if not np.isfinite(value):
                ax.plot(x, y, "x", color="#7f7f7f", markersize=6)
                continue
            within = float(np.clip(value, 0, 1))
            shown = f"{value:.2f}".replace("-0.00", "0.00")
            if group == bars:
                ax.add_patch(Rectangle((x - 0.42, y - 0.3), 0.84, 0.6, facecolor="#f0f0f0", edgecolor="none"))
                ax.add_patch(
                    Rectangle((x - 0.42, y - 0.3), 0.84 * within, 0.6, facecolor=CATEGORIES[4], edgecolor="none")
                )
                ax.text(x, y, shown, ha="center", va="center", fontsize=8)
                continue
            dot = shades(0.08 + 0.8 * within)
            ax.scatter(x, y, s=240 + 400 * within, color=[dot], edgecolor="#333333", linewidth=0.6)
            ax.text(x, y, shown, ha="center", va="center", fontsize=7, color="white" if within > 0.55 else "black")
    for group, places in heads.items():
        ax.text(float(np.mean(places)), -1.75, group, ha="center", va="bottom", fontsize=9, fontweight="bold")
        ax.plot([places[0] - 0.4, places[-1] + 0.4], [-1.7, -1.7], color="#333333", linewidth=0.8)
    if 0 < len(baselines) < len(table):
        line = len(table) - len(baselines) - 0.5
        ax.plot([0.4, x + 0.6], [line, line], color="#333333", linestyle=":", linewidth=0.8)
    ax.set(xlim=(0.4, x + 0.6), ylim=(len(table) - 0.4, -2.2), xticks=[])
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def umap_coordinates(embedding: np.ndarray, *, metric: str = "euclidean", seed: int = 0) -> np.ndarray:
    """UMAP (n_cells, 2) of an embedding for pictures; reproducible on one machine."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn on fixed seeds and threads, and on a part that needs Tensorflow
        umap = optional("umap", extra="analysis", purpose="UMAP")
        return umap.UMAP(n_neighbors=15, min_dist=0.3, metric=metric, random_state=seed).fit_transform(embedding)


def panels(count: int, *, size: tuple[float, float], title: str = "") -> list[Axes]:
    """Axes side by side in a new figure that pyplot does not know, each of this size (inches)."""
    optional("matplotlib", extra="analysis", purpose="the picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * count, size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return list(np.atleast_1d(figure.subplots(1, count)))


def square(ax: Axes, table: pd.DataFrame, *, title: str = "") -> Axes:
    """A square table of likenesses from 0 to 1, the darker the more alike, with its numbers."""
    values = table.to_numpy(float)
    ax.imshow(values, cmap="Greys", vmin=0, vmax=1.25)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            ax.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.7 else "black"
            )
    ax.set_xticks(range(len(table)), [str(name) for name in table.columns], rotation=40, ha="right")
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return ax


def category_panels(places: np.ndarray, panels_of: Mapping[str, np.ndarray], *, title: str = "") -> list[Axes]:
    """Cells at places (n_cells, 2), once for each column of categories, told apart by colour and shape.

    Parameters
    ----------
    places
        E.g. of `umap_coordinates`.
    panels_of
        Heading -> (n_cells,) categories.
    title
        Above all panels.
    """
    axes = panels(len(panels_of), size=(5.6, 4.4), title=title)
    order = np.random.default_rng(0).permutation(len(places))  # none hides the others
    for ax, (heading, categories) in zip(axes, panels_of.items(), strict=True):
        names = np.unique(categories)
        colours = category_colours(names.tolist())
        for i, name in enumerate(names):
            rows = order[categories[order] == name]
            ax.scatter(
                places[rows, 0],
                places[rows, 1],
                s=9,
                marker=MARKERS[i % len(MARKERS)],
                color=colours[str(name)],
                linewidth=0,
                alpha=0.75,
                label=str(name),
                rasterized=True,
            )
        ax.set(title=heading, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, markerscale=1.8)
    return axes
