"""A network of few edges as a picture: transcription factors are dark squares, targets light circles, no two labels overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

__all__ = ["draw_network"]

DARK, LIGHT, EDGE = "#1a1a1a", "#dddddd", "#8c8c8c"
ANGLES = np.arange(0, 360, 30)
RADII = (11, 16, 22, 30, 40, 55)
"""Distances at which a label is tried, in points."""


def draw_network(graph: nx.DiGraph, ax: Axes, *, title: str = "") -> Axes:
    """Draw a network into empty axes.

    Parameters
    ----------
    graph
        Nodes with `tf` (bool); edges with `rank` (1 is drawn thickest) and `sign` (-1 is dashed).
    """
    from matplotlib.lines import Line2D

    place = _layout(graph)
    tfs = [node for node, is_tf in graph.nodes(data="tf") if is_tf]
    targets = [node for node in graph if node not in set(tfs)]
    _draw_edges(graph, place, ax)
    for nodes, marker, colour, size in ((targets, "o", LIGHT, 55), (tfs, "s", DARK, 80)):
        at = np.array([place[node] for node in nodes]).reshape(-1, 2)
        ax.scatter(at[:, 0], at[:, 1], s=size, marker=marker, color=colour, edgecolors=DARK, linewidths=0.8, zorder=3)
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize=10)
    ax.margins(0.12)
    keys = [
        Line2D([], [], marker="s", color=DARK, linestyle="", label="transcription factor"),
        Line2D([], [], marker="o", markerfacecolor=LIGHT, color=DARK, linestyle="", label="target"),
    ]
    if any(sign < 0 for *_, sign in graph.edges(data="sign")):
        keys.append(Line2D([], [], color=EDGE, linestyle="--", label="negative"))
    ax.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=8)
    _place_labels(place, set(tfs), ax)
    return ax


def _layout(graph: nx.DiGraph) -> dict[Any, np.ndarray]:
    """Each connected part by Kamada and Kawai's method, the parts beside one another in rows, larger ones first."""
    import networkx as nx

    parts = sorted(nx.connected_components(graph.to_undirected()), key=lambda part: (-len(part), min(part)))
    sizes = [np.sqrt(len(part)) for part in parts]
    row_width = 2.2 * np.sqrt(sum((2 * size) ** 2 for size in sizes)) / 1.6
    place: dict[Any, np.ndarray] = {}
    x = y = height = 0.0
    for part, size in zip(parts, sizes, strict=True):
        if x and x + 2 * size > row_width:
            x, y, height = 0.0, y - height, 0.0
        ordered = nx.Graph()
        ordered.add_nodes_from(sorted(part))
        ordered.add_edges_from(sorted(tuple(sorted(edge)) for edge in graph.subgraph(part).edges))
        inside = nx.kamada_kawai_layout(ordered)
        for node, at in inside.items():
            place[node] = np.array([x + size, y - size]) + size * 0.9 * np.asarray(at)
        x, height = x + 2 * size + 0.8, max(height, 2 * size + 0.8)
    return place


def _draw_edges(graph: nx.DiGraph, place: dict[Any, np.ndarray], ax: Axes) -> None:
    last = max((rank for *_, rank in graph.edges(data="rank")), default=1)
    for a, b, edge in graph.edges(data=True):
        width = 0.8 + 1.6 * (1 - (edge["rank"] - 1) / last)
        style = {
            "arrowstyle": "-|>,head_width=0.2,head_length=0.4",
            "color": EDGE,
            "linewidth": width,
            "linestyle": "--" if edge["sign"] < 0 else "-",
            "shrinkA": 4,
            "shrinkB": 5,
        }
        if graph.has_edge(b, a):
            style["connectionstyle"] = "arc3,rad=0.12"
        ax.annotate("", xy=tuple(place[b]), xytext=tuple(place[a]), arrowprops=style, zorder=1)


def _place_labels(place: dict[Any, np.ndarray], tfs: set[Any], ax: Axes) -> None:
    """Beside its node, at the first of many positions that covers no other label or node; farther ones get a line to the node."""
    from matplotlib.patheffects import withStroke

    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # so that pixels are final
    scale = figure.dpi / 72
    pixels = {node: ax.transData.transform(at) for node, at in place.items()}
    centre = np.mean(list(pixels.values()), axis=0)
    taken = [_box(at, 9 * scale, 9 * scale) for at in pixels.values()]
    for node in sorted(place, key=lambda node: (node not in tfs, str(node))):
        text = ax.annotate(
            str(node), tuple(place[node]), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=7.5, fontweight="bold" if node in tfs else "normal", color=DARK, zorder=4,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent()
        outward = np.degrees(np.arctan2(*(pixels[node] - centre)[::-1]))
        best = None
        for radius in RADII:
            for angle in sorted(ANGLES, key=lambda angle: abs((angle - outward + 180) % 360 - 180)):
                direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
                reach = radius + np.abs(direction[0]) * (extent.width / scale) / 2
                box = _box(pixels[node] + direction * reach * scale, extent.width + 2, extent.height)
                covered = sum(box.overlaps(other) for other in taken)
                if best is None or covered < best[0]:
                    best = covered, direction * reach, box, radius
            if best is not None and best[0] == 0:
                break
        assert best is not None
        _, offset, box, radius = best
        text.set_position(tuple(offset))
        taken.append(box)
        if radius > RADII[2]:
            ends = np.stack([pixels[node], pixels[node] + offset * scale])
            line = ax.transData.inverted().transform(ends)
            ax.plot(line[:, 0], line[:, 1], color=EDGE, linewidth=0.5, linestyle=":", zorder=2)


def _box(centre: np.ndarray, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
