"""How our pictures look: matplotlib, readable in grey, no rainbow; every function returns axes, as scanpy's do."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from scfm._lazy import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scfm.metrics import Estimate

__all__ = ["CATEGORIES", "MARKERS", "SEQUENTIAL", "DIVERGING", "axes_of", "bars", "category_colours", "saved"]

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
