"""Scores of several embeddings in one table, with intervals and with differences from one of them on the same draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from scfm.metrics.estimates import Estimate, bootstrap_all, from_subsamples
from scfm.metrics.scores import Score

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Entry", "entry_tables"]

SUBSAMPLES, KEPT = 100, 0.8
"""Draws and share of cells for scores of graphs, whose intervals come from subsamples without replacement."""
GROUPS = ("overall", "bio", "batch", "guard")


@dataclass(frozen=True)
class Entry:
    """A score and its place.

    Parameters
    ----------
    group
        "bio", "batch", "guard" or "overall".
    score
        The score.
    better
        "higher" or "lower".
    subsample
        The score of some of the cells, each once, with its graph made anew; where `score.resample` is None.
    """

    group: Literal["bio", "batch", "guard", "overall"]
    score: Score
    better: Literal["higher", "lower"] = "higher"
    subsample: Callable[[np.ndarray], float] | None = None


def entry_tables(
    entries: Mapping[str, Mapping[str, Entry]],
    *,
    rival: str | None = None,
    donors: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, differences from the rival, and strata, in long form.

    Parameters
    ----------
    entries
        Encoder -> metric -> entry, all of the same cells.
    rival
        Encoder that the others are compared with.
    donors
        (n_cells,) whole donors are resampled; with fewer than five of them, or None, cells are.
    resamples
        Bootstrap samples.
    seed
        Of all draws.

    Returns
    -------
    scores
        `encoder`, `metric`, `group`, `value`, `low`, `high`, `unit`, `better`, `convention`, `n`, `reason`.
    differences
        `encoder`, `metric`, `value`, `low`, `high`, `unit`: score - that of the rival.
    strata
        `encoder`, `metric`, `stratum`, `value`.
    """
    import pandas as pd

    flat = {
        (name, metric): entry
        for name, own in entries.items()
        for metric, entry in sorted(own.items(), key=lambda item: GROUPS.index(item[1].group))
    }
    estimates, changes = _resampled(flat, rival, donors, resamples, seed)
    more, more_changes = _subsampled(flat, rival, seed)
    estimates, changes = estimates | more, changes | more_changes
    rows, parts = [], []
    for (name, metric), entry in flat.items():
        score, of = entry.score, estimates.get((name, metric), Estimate(np.nan, np.nan, np.nan, ""))
        interval = (score.value, of.low, of.high, of.unit)
        rows.append((name, metric, entry.group, *interval, entry.better, score.convention, score.n, score.reason))
        parts += [(name, metric, stratum, value) for stratum, value in score.strata.items()]
    columns = ["encoder", "metric", "group", "value", "low", "high", "unit", "better", "convention", "n", "reason"]
    apart = [(*key, of.value, of.low, of.high, of.unit) for key, of in changes.items()]
    return (
        pd.DataFrame(rows, columns=columns),
        pd.DataFrame(apart, columns=["encoder", "metric", "value", "low", "high", "unit"]),
        pd.DataFrame(parts, columns=["encoder", "metric", "stratum", "value"]),
    )


Key = tuple[str, str]


def _resampled(
    entries: Mapping[Key, Entry], rival: str | None, donors: np.ndarray | None, resamples: int, seed: int
) -> tuple[dict[Key, Estimate], dict[Key, Estimate]]:
    """Scores that are made of cells' parts, resampled by donors or cells; and their differences from the rival's."""
    made = {key: e.score.resample for key, e in entries.items() if e.score.resample and np.isfinite(e.score.value)}
    if not made:
        return {}, {}
    keys = list(made)
    compared, one, other = _pairs(keys, rival)

    def statistics(rows: np.ndarray) -> np.ndarray:
        values = np.array([resample(rows) for resample in made.values()])
        return np.concatenate([values, values[one] - values[other]])

    n = entries[keys[0]].score.n
    found = bootstrap_all(statistics, n, groups=donors, resamples=resamples, seed=seed)
    return dict(zip(keys, found, strict=False)), dict(zip(compared, found[len(keys) :], strict=True))


def _subsampled(
    entries: Mapping[Key, Entry], rival: str | None, seed: int
) -> tuple[dict[Key, Estimate], dict[Key, Estimate]]:
    """Scores of graphs, in subsamples of 80 % of the cells without replacement; and their differences from the rival's."""
    made = {key: entry.subsample for key, entry in entries.items() if entry.subsample is not None}
    if not made:
        return {}, {}
    keys = list(made)
    n, rng = entries[keys[0]].score.n, np.random.default_rng(seed)
    draws = np.empty((SUBSAMPLES, len(keys)))
    for i in range(SUBSAMPLES):
        rows = np.sort(rng.permutation(n)[: round(KEPT * n)])
        draws[i] = [subsample(rows) for subsample in made.values()]
    values = np.array([entries[key].score.value for key in keys])
    compared, one, other = _pairs(keys, rival)
    return (
        dict(zip(keys, _estimates(values, draws, 1.0), strict=True)),
        dict(
            zip(compared, _estimates(values[one] - values[other], draws[:, one] - draws[:, other], np.inf), strict=True)
        ),
    )


def _estimates(values: np.ndarray, draws: np.ndarray, most: float) -> list[Estimate]:
    return [from_subsamples(float(value), draws[:, i], kept=KEPT, most=most) for i, value in enumerate(values)]


def _pairs(keys: list[Key], rival: str | None) -> tuple[list[Key], list[int], list[int]]:
    """Which scores have one of the rival beside them, and the places of both."""
    place = {key: i for i, key in enumerate(keys)}
    compared = [key for key in keys if rival is not None and key[0] != rival and (rival, key[1]) in place]
    return compared, [place[key] for key in compared], [place[str(rival), key[1]] for key in compared]
