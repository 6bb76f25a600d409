"""What `annotate` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np

from scfm.errors import InputError
from scfm.results import TaskResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Annotation"]

Kind = Literal["scores", "confusion", "reliability", "coverage_risk", "labels"]
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "coverage")


@dataclass(frozen=True)
class Annotation(TaskResult):
    """Labels of cells, how sure they are, and how good where the truth is known.

    Attributes
    ----------
    table
        One row a query cell: `label` (None without an embedding), `probability`, `set` (labels joined by "; ") and `set_size`,
        `novelty`, `p_known` (share of known cells at least as novel), `rejected`, `novel_cluster`; with an ontology `term` (of the label),
        `ancestor` and `ancestor_name` (nearest common ancestor of the set, None where a label of it has no term); `truth`; `fold`.
    scores
        One row a score (`metric`, `value`, `low`, `high`) of `encoder` and `method`, baselines beside: over all cells whose true label
        could be given, by `stratum` ("class", "rare", batch, donor, fold), and the "difference" to each baseline. None without a truth.
    probabilities
        (n_query, L) calibrated; a row sums to 1.
    confusion
        True labels (rows) by given labels, or None.
    confidences
        Probability of the label and whether it is right, of each scored cell and method, or None.
    harmonised
        How each label was matched with a Cell Ontology term, or None.
    name
        Encoder and method.
    leak
        Why scores are too good, or "".
    notes
        What a reader should know.
    """

    probabilities: pd.DataFrame
    scores: pd.DataFrame | None = None
    confusion: pd.DataFrame | None = None
    confidences: pd.DataFrame | None = None
    harmonised: pd.DataFrame | None = None
    name: str = ""
    leak: str = ""
    notes: tuple[str, ...] = field(default=())

    def score(self, metric: str, *, encoder: str | None = None, stratum: str = "all", of: str = "") -> float:
        """One value of `scores`; of the method asked for unless a baseline's `encoder` is named.

        Raises
        ------
        InputError
            There is no truth, or no such score.
        """
        scores = self._need_scores()
        encoder = encoder or str(scores["encoder"].iloc[0])
        rows = scores[
            (scores["metric"] == metric)
            & (scores["encoder"] == encoder)
            & (scores["stratum"] == stratum)
            & (scores["of"] == of)
        ]
        if rows.empty:
            raise InputError(f"there is no score {metric!r} of {encoder!r} in stratum {stratum!r} {of!r}.")
        return float(rows["value"].iloc[0])

    def _need_scores(self) -> pd.DataFrame:
        if self.scores is None:
            raise InputError("the true labels of the query are not known.", "Pass truth='column of query.obs'.")
        return self.scores

    def summary(self) -> str:
        """Cells labelled and rejected, scores beside the baselines, and what limits them."""
        table = self.table
        lines = [f"{len(table):,} cells labelled by {self.name}; {table['label'].nunique()} labels used."]
        caution = self.provenance["settings"]["caution"]
        if "set_size" in table:
            size = table["set_size"]
            lines.append(
                f"Prediction sets at alpha {caution['alpha']}: {size.mean():.2f} labels on average, {(size == 1).mean():.0%} of one label, "
                f"{(size == 0).mean():.0%} empty."
            )
        if "rejected" in table:
            groups = table["novel_cluster"].nunique()
            lines.append(
                f"Rejected as unknown at level {caution['reject']}: {int(table['rejected'].sum()):,} cells "
                f"({table['rejected'].mean():.1%}), "
                f"in {groups} novel clusters."
            )
        if self.scores is not None:
            lines += self._score_lines()
        if self.leak:
            lines.append(f"LEAK: {self.leak}.")
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _score_lines(self) -> list[str]:
        scores = self._need_scores()
        whole = scores[scores["stratum"] == "all"]
        shown = [metric for metric in SHOWN if metric in set(whole["metric"])]
        cells, unit = int(whole["cells"].iloc[0]), str(whole["unit"].iloc[0])
        lines = [f"On {cells:,} cells whose true label the reference has [95 % interval over {unit}]:"]
        lines.append("  " + " " * 24 + "".join(f"{metric.replace('_', ' '):<22}" for metric in shown).rstrip())
        for key, rows in whole.groupby(["encoder", "method"], sort=False):
            values = {str(row["metric"]): row for row in rows.to_dict("records")}
            texts = [
                f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in map(values.get, shown) if row
            ]
            name = " + ".join(str(part) for part in key)
            lines.append(f"  {name:<24}" + "".join(f"{text:<22}" for text in texts).rstrip())
        unknown = whole[whole["metric"] == "unknown_auroc"]
        for _, row in unknown.iterrows():
            lines.append(
                f"  types the reference lacks, told from the others by {row['encoder']} + {row['method']}: "
                f"AUROC {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            )
        return lines

    def plot(
        self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None, kind: Kind | None = None
    ) -> Axes:
        """Draw the result.

        Parameters
        ----------
        ax
            Draw into these axes; None makes a figure.
        save
            Also write the figure to this file.
        kind
            "confusion", "scores" (baselines beside), "reliability", "coverage_risk", or "labels" (cells of each label). Default:
            "confusion" where the truth is known, else "labels".
        """
        from scfm import labelling_plots as draw
        from scfm.plotting import axes_of, saved

        kind = kind or ("labels" if self.scores is None else "confusion")
        if kind == "labels":
            rejected = self.table.get("rejected", np.zeros(len(self.table), dtype=bool))
            labels = self.table["label"].fillna("no label").to_numpy().astype(str)
            return saved(draw.draw_label_counts(axes_of(ax), labels, np.asarray(rejected, dtype=bool)), save)
        scores = self._need_scores()
        assert self.confusion is not None
        assert self.confidences is not None
        if kind == "confusion":
            rows, columns = self.confusion.index.tolist(), self.confusion.columns.tolist()
            ax = axes_of(ax, size=(max(6.0, 0.55 * len(columns) + 3), max(4.5, 0.4 * len(rows) + 2)))
            draw.draw_confusion(ax, self.confusion.to_numpy(), rows, columns)
        elif kind in ("reliability", "coverage_risk"):
            cells = {
                str(name): (part["confidence"].to_numpy(), part["correct"].to_numpy())
                for name, part in self.confidences.groupby("name", sort=False)
            }
            ax = axes_of(ax, size=(5.0, 4.5))
            (draw.draw_reliability if kind == "reliability" else draw.draw_coverage_risk)(ax, cells)
        elif kind == "scores":
            whole = scores[(scores["stratum"] == "all") & scores["metric"].isin(SHOWN)]
            found: dict[str, dict[str, tuple[float, float, float]]] = {}
            for row in whole.to_dict("records"):
                name = f"{row['encoder']} + {row['method']}"
                found.setdefault(name, {})[str(row["metric"])] = (row["value"], row["low"], row["high"])
            ax = axes_of(ax)
            draw.draw_scores(ax, found)
        else:
            raise InputError(
                f"kind={kind!r} is not known.",
                "Pass 'confusion', 'scores', 'reliability', 'coverage_risk' or 'labels'.",
            )
        return saved(ax, save)
