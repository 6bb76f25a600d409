"""The result of `scfm.tasks.grn`: scored edges, as a table, a graph, a picture and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.errors import InputError, listing
from scfm.grn.drawing import draw_network
from scfm.grn.genes import read_edges
from scfm.grn.nulls import false_discovery
from scfm.metrics.edges import evaluate_edges
from scfm.plotting import axes_of, saved
from scfm.results import TaskResult

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

    from scfm.grn.scores import Genes, Scored

__all__ = ["GRN", "agreement", "edge_table"]


@dataclass(frozen=True)
class GRN(TaskResult):
    """Scored edges.

    Parameters
    ----------
    table
        One row an edge, best first in each group and method. Columns: regulator, target (symbols); method; direction ("key": attention
        with the regulator as key and the target as query; "query": the other way round; "": the method has none); group; score (larger is
        stronger); sign (-1, 1, or 0 where the score has none); rank (1 is best), p and q (Benjamini-Hochberg) among the edges of a group's
        method.
    agreement
        With known edges, in the columns of `scfm.metrics.edges.evaluate_edges` and group, method, direction; empty where none were given.
    regulators, genes
        The transcription factors and all genes that were scored.
    """

    agreement: pd.DataFrame
    regulators: tuple[str, ...]
    genes: tuple[str, ...]

    def edges(
        self, method: str | None = None, group: str | None = None, *, direction: str | None = None, top: int | None = None
    ) -> pd.DataFrame:  # fmt: skip
        """The edges of one method in one group, best first.

        Parameters
        ----------
        method, group, direction
            None is the first in the table.
        top
            So many; None is all.
        """
        chosen = self.table
        if not len(chosen):
            raise InputError("no pair of these genes has tokens in one cell.", "Pass more cells, or other genes=.")
        for column, value in (("method", method), ("group", group), ("direction", direction)):
            known = chosen[column].unique().tolist()
            value = known[0] if value is None else value
            if value not in known:
                raise InputError(f"{column}={value!r} is not in the result.", f"It has {listing(known, 30)}.")
            chosen = chosen[chosen[column] == value]
        return chosen if top is None else chosen.head(top)

    def matrix(
        self, method: str | None = None, group: str | None = None, *, direction: str | None = None
    ) -> pd.DataFrame:
        """Scores (n_regulators, n_genes), NaN where there is none, or none was kept."""
        edges = self.edges(method, group, direction=direction).astype({"regulator": str, "target": str})
        wide = edges.pivot(index="regulator", columns="target", values="score")
        return wide.reindex(index=list(self.regulators), columns=list(self.genes))

    def compare(
        self,
        truth: pd.DataFrame | str | PathLike[str],
        *,
        confidence: Sequence[str] | None = None,
        resamples: int = 500,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Agreement of every group and method with another list of known edges, as in `agreement`; needs a table of all edges.

        Parameters
        ----------
        truth, confidence
            See `scfm.grn.read_edges`.
        resamples, seed
            Of the bootstrap over regulators.
        """
        edges = read_edges(truth, confidence=confidence)
        chosen = ["group", "method", "direction"]
        return pd.concat(
            [
                evaluate_edges(self.matrix(row.method, row.group, direction=row.direction), edges, seed=seed).assign(
                    **row
                )
                for _, row in self.table[chosen].drop_duplicates().iterrows()
            ],
            ignore_index=True,
        )

    def to_networkx(
        self, method: str | None = None, group: str | None = None, *, direction: str | None = None, top: int | None = 1000
    ) -> nx.DiGraph:  # fmt: skip
        """The best edges as a graph, regulator -> target; nodes have `tf`, edges score, sign, rank, p and q."""
        import networkx as nx

        graph = nx.DiGraph()
        tfs = set(self.regulators)
        for edge in self.edges(method, group, direction=direction, top=top).to_dict("records"):
            for name in (edge["regulator"], edge["target"]):
                graph.add_node(name, tf=name in tfs)
            graph.add_edge(
                edge["regulator"], edge["target"], **{name: edge[name] for name in ("score", "sign", "rank", "p", "q")}
            )
        return graph

    def to_graphml(self, path: str | PathLike[str], *args: Any, **options: Any) -> None:
        """Write `to_networkx` as GraphML, for Cytoscape, Gephi, igraph; the further arguments are its own."""
        import networkx as nx

        nx.write_graphml(self.to_networkx(*args, **options), path)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the table; tab-separated if the name ends in .tsv."""
        self.table.to_csv(path, index=False, sep="\t" if str(path).endswith(".tsv") else ",")

    def summary(self) -> str:
        """Sizes, the best edges of each method, and the agreement with known edges."""
        cells = sum(self.provenance["settings"]["cells"].values())
        lines = [f"{len(self.regulators):,} transcription factors x {len(self.genes):,} genes, {cells:,} cells"]
        parts = self.table.groupby(["group", "method", "direction"], sort=False, observed=True)
        for (group, method, direction), edges in parts:
            best = ", ".join(f"{r} > {t}" for r, t in zip(edges["regulator"][:3], edges["target"][:3], strict=True))
            found = int((edges["q"] < 0.05).sum())
            lines.append(f"{group}: {_label(str(method), str(direction))}: {best}; q < 0.05: {found:,}")
        if len(self.agreement):
            lines.append("agreement with the known edges (bootstrap over transcription factors):")
            kept = self.agreement[self.agreement["metric"].isin(["auroc", "auprc_ratio", "epr"])].to_dict("records")
            wide = pd.DataFrame(
                {
                    "group": row["group"],
                    "scores": _label(row["method"], row["direction"]),
                    "metric": row["metric"],
                    "text": f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                }
                for row in kept
            ).pivot(index=["group", "scores"], columns="metric", values="text")
            lines.append(wide.rename_axis(columns=None).to_string())
            first = kept[0]
            lines.append(
                f"{first['candidates']:,} candidate pairs of {first['regulators']} factors, {first['true']:,} known."
            )
        return "\n".join(lines)

    def plot(
        self,
        method: str | None = None,
        group: str | None = None,
        *,
        direction: str | None = None,
        top: int = 30,
        ax: Axes | None = None,
        save: str | PathLike[str] | None = None,
    ) -> Axes:
        """Draw the best edges of one method in one group; the arguments are those of `edges`, and of every result's `plot`."""
        best = self.edges(method, group, direction=direction, top=top)
        first = best.iloc[0]
        title = f"{first.group}: {_label(first.method, first.direction)}, best {len(best)} edges"
        graph = self.to_networkx(first.method, first.group, direction=first.direction, top=top)
        return saved(draw_network(graph, axes_of(ax, size=(8.0, 6.0)), title=title), save)


def edge_table(scored: Scored, genes: Genes, group: str, top: int | None) -> pd.DataFrame:
    """Edges with a score, best first."""
    from scipy.stats import rankdata

    r, t = np.nonzero(np.isfinite(scored.scores))
    score, p, q = scored.scores[r, t], scored.p[r, t], false_discovery(scored.p)[r, t]
    order = np.argsort(-score, kind="stable")[:top]
    rank = rankdata(-score, method="min")[order].astype(np.int64)
    names = pd.CategoricalDtype(list(genes.names))
    return pd.DataFrame(
        {
            "regulator": pd.Categorical(genes.names[genes.regulators][r[order]], dtype=names),
            "target": pd.Categorical(genes.names[t[order]], dtype=names),
            "method": scored.method,
            "direction": scored.direction,
            "group": group,
            "score": score[order],
            "sign": scored.sign[r, t][order],
            "rank": rank,
            "p": p[order],
            "q": q[order],
        }
    )


def agreement(scored: Scored, genes: Genes, group: str, known: pd.DataFrame, seed: int) -> pd.DataFrame:
    matrix = pd.DataFrame(scored.scores, index=genes.names[genes.regulators], columns=genes.names)
    found = evaluate_edges(matrix, known, seed=seed)
    return found.assign(group=group, method=scored.method, direction=scored.direction)


def _label(method: str, direction: str) -> str:
    return f"{method} (regulator as {direction})" if direction else method
