"""Answers of several runs over the same cells, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scfm.calibrated import Answers
from scfm.tasks.annotation.run import Pair, Run

__all__ = ["NO_LABEL", "Joined", "join"]

NO_LABEL = -1


@dataclass(frozen=True)
class Joined:
    """Answers for all cells of the result, over the labels of all runs."""

    answers: Answers
    classes: tuple[str, ...]
    counts: dict[str, int]
    runs: list[Run]
    rows: list[np.ndarray]
    fold: np.ndarray


def join(pairs: Sequence[Pair], runs: list[Run], n: int) -> Joined:
    """Answers in the order of the cells; labels that a run could not give have probability 0 there."""
    classes = tuple(sorted({name for one in runs for name in one.classes})) if len(runs) > 1 else runs[0].classes
    number = {name: i for i, name in enumerate(classes)}
    parts = []
    for one in runs:
        at = np.array([number[name] for name in one.classes])
        a, m = one.answers, len(one.answers.labels)
        p = np.zeros((m, len(classes)))
        p[:, at] = a.probabilities
        s = None
        if a.sets is not None:
            s = np.zeros((m, len(classes)), dtype=bool)
            s[:, at] = a.sets
        given = np.where(a.labels >= 0, at[a.labels], NO_LABEL)
        parts.append(replace(a, labels=given, probabilities=p, sets=s))
    order = np.argsort(np.concatenate([pair.rows for pair in pairs]), kind="stable")
    joined = Answers.joined(parts)
    answers = joined.select(order)
    counts = {name: max(dict(zip(r.classes, r.counts, strict=False)).get(name, 0) for r in runs) for name in classes}
    fold = np.concatenate([[pair.fold] * len(pair.rows) for pair in pairs])[order]
    return Joined(answers, classes, counts, runs, [pair.rows for pair in pairs], fold)
