"""Scores of labels given to cells: one table with intervals, over all cells and in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import InputError
from scfm.metrics.classification import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    brier_score,
    class_auroc,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    f1,
    macro_precision_recall,
    per_class,
    risk_at,
)
from scfm.metrics.estimates import Estimate, bootstrap_all

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Labelling", "label_scores", "score_differences"]

COLUMNS = ("metric", "value", "low", "high", "stratum", "of", "cells", "unit")
RANKED_DRAWS = 200
"""Most resamples for scores that sort all cells (AUROC, average precision)."""
RISKS = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Labelling:
    """What cells were given and what they are.

    Parameters
    ----------
    classes
        L labels that could be given.
    truth
        (n_cells,) int64: class, -1 for a label that could not be given, -2 where the truth is not known.
    given
        (n_cells,) int64: class, -1 for none.
    probabilities
        (n_cells, L) float64; rows of 0 for cells without a label.
    sets
        (n_cells, L) bool, or None.
    rejected
        (n_cells,) bool.
    novelty
        (n_cells,) the larger, the less like the reference, or None.
    distance
        (L + 1, L + 1) or None: ontology distances of classes; the last row and column are of no label (NaN).
    """

    classes: tuple[str, ...]
    truth: np.ndarray
    given: np.ndarray
    probabilities: np.ndarray
    sets: np.ndarray | None
    rejected: np.ndarray
    novelty: np.ndarray | None = None
    distance: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> Labelling:
        """Some of the cells, repeats among them."""

        def part(x: np.ndarray | None) -> Any:
            return None if x is None else x[rows]

        return Labelling(
            self.classes,
            self.truth[rows],
            self.given[rows],
            self.probabilities[rows],
            part(self.sets),
            self.rejected[rows],
            part(self.novelty),
            self.distance,
        )

    def known(self) -> np.ndarray:
        """Rows of cells whose true label could be given."""
        return np.flatnonzero(self.truth >= 0)

    def confidence(self) -> np.ndarray:
        """(n_cells,) probability of the label."""
        return self.probabilities.max(axis=1)

    def correct(self) -> np.ndarray:
        """(n_cells,) bool."""
        return self.truth == self.given


def label_scores(
    labelling: Labelling,
    *,
    groups: np.ndarray | None = None,
    strata: Mapping[str, np.ndarray] | None = None,
    rare: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score labels on the cells whose true label could be given, and the detection of those whose could not.

    Parameters
    ----------
    labelling
        Labels and truth.
    groups
        (n_cells,) donors: whole ones are resampled where there are five or more.
    strata
        Name -> (n_cells,) values, e.g. batches: scores within each.
    rare
        Classes that are also scored apart.
    resamples, seed
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        Columns `metric`, `value`, `low`, `high`, `stratum` ("all", "class", "rare", or a name of `strata`), `of` (its value), `cells`,
        `unit` (what was resampled). Of a stratum's values there is also the "mean", with the least and the largest as `low` and `high`
        (unit "range").
    """
    import pandas as pd

    known = labelling.known()
    if not len(known):
        raise InputError("no cell has a true label that could be given; nothing can be scored.")
    own = labelling.select(known)
    groups_known = None if groups is None else np.asarray(groups)[known]
    options: dict[str, Any] = {"groups": groups_known, "resamples": resamples, "seed": seed}
    rows = _rows(_overall, own, "all", "", options)
    ranked = {**options, "resamples": min(resamples, RANKED_DRAWS)}
    rows += _rows(_ranked, own, "all", "", ranked)
    rows += _unknown(labelling, groups, min(resamples, RANKED_DRAWS), seed)
    rows += _classes(own, options)
    if rare:
        rows += _rare(own, rare, options)
    for name, values in (strata or {}).items():
        of = np.asarray(values).astype(str)[known]
        for value in np.unique(of):
            part = own.select(np.flatnonzero(of == value))
            rows += _rows(_short, part, name, str(value), {**options, "groups": None})
        rows += _range(rows, name)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(
    scores: Callable[[Labelling], dict[str, float]], own: Labelling, stratum: str, of: str, options: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """Rows of the table from a function that gives scores of cells."""
    names = list(scores(own))
    estimates = bootstrap_all(lambda rows: np.array(list(scores(own.select(rows)).values())), len(own.truth), **options)
    return [_row(name, e, stratum, of, len(own.truth)) for name, e in zip(names, estimates, strict=True)]


def _row(name: str, e: Estimate, stratum: str, of: str, cells: int) -> tuple[Any, ...]:
    return name, e.value, e.low, e.high, stratum, of, cells, e.unit


def _range(rows: list[tuple[Any, ...]], stratum: str) -> list[tuple[Any, ...]]:
    """Mean of each score over the values of a stratum, with the least and the largest in place of an interval."""
    found = []
    for metric in dict.fromkeys(row[0] for row in rows if row[4] == stratum):
        parts = [row for row in rows if (row[0], row[4]) == (metric, stratum)]
        values = np.array([row[1] for row in parts])
        cells = sum(row[6] for row in parts)
        found.append((metric, values.mean(), values.min(), values.max(), stratum, "mean", cells, "range"))
    return found


def _short(own: Labelling) -> dict[str, float]:
    confusion = confusion_matrix(own.truth, own.given, len(own.classes))
    found = {
        "accuracy": accuracy(confusion),
        "balanced_accuracy": balanced_accuracy(confusion),
        "macro_f1": f1(confusion),
        "weighted_f1": f1(confusion, "weighted"),
    }
    if own.sets is not None:
        found["coverage"] = float(own.sets[np.arange(len(own.truth)), own.truth].mean())
        found["set_size"] = float(own.sets.sum(axis=1).mean())
    if own.novelty is not None:
        found["rejected"] = float(own.rejected.mean())
    return found


def _overall(own: Labelling) -> dict[str, float]:
    found = _short(own)
    confusion = confusion_matrix(own.truth, own.given, len(own.classes))
    found["macro_precision"], found["macro_recall"] = macro_precision_recall(confusion)
    confidence, correct = own.confidence(), own.correct()
    found["ece"] = expected_calibration_error(confidence, correct)
    found["brier"] = brier_score(own.truth, own.probabilities)
    if own.sets is not None:
        size = own.sets.sum(axis=1)
        found["empty_sets"], found["one_label_sets"] = float((size == 0).mean()), float((size == 1).mean())
    if own.novelty is not None:
        found["accuracy_accepted"] = float(correct[~own.rejected].mean()) if not own.rejected.all() else float("nan")
    for coverage in RISKS:
        found[f"risk_at_{coverage * 100:.0f}"] = risk_at(confidence, correct, coverage)
    if own.distance is not None:
        apart = own.distance[own.truth, own.given]
        finite = apart[np.isfinite(apart)]
        found["ontology_distance"] = float(finite.mean()) if len(finite) else float("nan")
        wrong = finite[finite > 0]
        found["ontology_distance_of_errors"] = float(wrong.mean()) if len(wrong) else float("nan")
    return found


def _ranked(own: Labelling) -> dict[str, float]:
    areas = class_auroc(own.truth, own.probabilities)
    areas = areas[np.isfinite(areas)]
    return {"auroc": float(areas.mean()) if len(areas) else float("nan")}


def _unknown(labelling: Labelling, groups: np.ndarray | None, resamples: int, seed: int) -> list[tuple[Any, ...]]:
    """Cells of types that the reference does not have: how well they are told from the others."""
    judged = np.flatnonzero(labelling.truth >= -1)
    both = labelling.select(judged)
    new = both.truth == -1
    if not new.any():
        return []

    def scores(part: Labelling) -> dict[str, float]:
        new = part.truth == -1
        found = {"unknown_share": float(new.mean())}
        if part.novelty is not None:
            found["unknown_auroc"] = auroc(new, part.novelty)
            found["unknown_average_precision"] = average_precision(new, part.novelty)
            found["unknown_rejected"] = float(part.rejected[new].mean()) if new.any() else float("nan")
            hit = int((part.rejected & new).sum())
            both = int(part.rejected.sum() + new.sum())
            found["unknown_f1"] = 2 * hit / both if both else float("nan")
        return found

    options = {"groups": None if groups is None else np.asarray(groups)[judged], "resamples": resamples, "seed": seed}
    return _rows(scores, both, "all", "", options)


def _classes(own: Labelling, options: dict[str, Any]) -> list[tuple[Any, ...]]:
    classes = own.classes
    present = np.bincount(own.truth, minlength=len(classes))
    names = ["precision", "recall", "f1"]

    def scores(rows: np.ndarray) -> np.ndarray:
        return class_scores(confusion_matrix(own.truth[rows], own.given[rows], len(classes))).reshape(-1)

    estimates = bootstrap_all(scores, len(own.truth), **options)
    rows = [
        _row(names[i % 3], e, "class", classes[i // 3], int(present[i // 3]))
        for i, e in enumerate(estimates)
        if present[i // 3]
    ]
    table = per_class(own.truth, own.given, classes, own.probabilities)
    for i, name in enumerate(classes):
        if not present[i]:
            continue
        if np.isfinite(table["auroc"].iloc[i]):
            rows.append(("auroc", table["auroc"].iloc[i], np.nan, np.nan, "class", name, int(present[i]), ""))
        if own.sets is not None:
            rows.append(_row("coverage", _share(own.sets[own.truth == i, i], options), "class", name, int(present[i])))
        if own.novelty is not None:
            rows.append(_row("rejected", _share(own.rejected[own.truth == i], options), "class", name, int(present[i])))
    return rows


def _share(holds: np.ndarray, options: dict[str, Any]) -> Estimate:
    """Share of cells for which something holds."""
    own = {**options, "groups": None}
    return bootstrap_all(lambda rows: np.array([holds[rows].mean()]), len(holds), **own)[0]


def _rare(own: Labelling, rare: Sequence[str], options: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Mean F1 and recall of rare classes among all cells, so that false cells of these classes count."""
    at = np.array([i for i, name in enumerate(own.classes) if name in set(rare)], dtype=np.int64)
    cells = int(np.isin(own.truth, at).sum())
    if not cells:
        return []

    def scores(rows: np.ndarray) -> np.ndarray:
        table = class_scores(confusion_matrix(own.truth[rows], own.given[rows], len(own.classes)))[at]
        there = np.isfinite(table[:, 1])
        return table[there][:, 1:].mean(axis=0) if there.any() else np.full(2, np.nan)

    recall, score = bootstrap_all(scores, len(own.truth), **options)
    of = f"{len(at)} classes"
    return [_row("balanced_accuracy", recall, "rare", of, cells), _row("macro_f1", score, "rare", of, cells)]


def score_differences(
    ours: Labelling,
    theirs: Labelling,
    *,
    groups: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracy and macro F1 of one labelling minus another's of the same cells, both resampled alike.

    Parameters
    ----------
    ours, theirs
        Of the same cells, in the same order; classes may differ.
    groups, resamples, seed
        As for `label_scores`.
    """
    both = np.flatnonzero((ours.truth >= 0) & (theirs.truth >= 0))
    if not len(both):
        raise InputError("the two labellings have no cell in common that both can be scored on.")
    one, two = ours.select(both), theirs.select(both)

    def pair(x: Labelling, rows: np.ndarray) -> np.ndarray:
        confusion = confusion_matrix(x.truth[rows], x.given[rows], len(x.classes))
        return np.array([accuracy(confusion), f1(confusion)])

    found = bootstrap_all(
        lambda rows: pair(one, rows) - pair(two, rows),
        len(both),
        groups=None if groups is None else np.asarray(groups)[both],
        resamples=resamples,
        seed=seed,
    )
    return dict(zip(("accuracy", "macro_f1"), found, strict=True))
