"""Numbers with their uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scfm.errors import InputError

__all__ = ["Estimate", "bootstrap", "bootstrap_all", "bootstrap_mean", "from_subsamples"]

FEW_GROUPS = 5
"""Below so many donors or studies, cells are resampled: the interval then describes these cells only."""


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval.

    Parameters
    ----------
    value, low, high
        The number on the data as they are, and the ends of the interval.
    unit
        What was resampled: "cells" (descriptive: says nothing of other donors), "groups", or "subsamples" (of cells).
    """

    value: float
    low: float
    high: float
    unit: str = "cells"

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: np.ndarray, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean over cells with its percentile bootstrap interval (Efron 1979, doi:10.1214/aos/1176344552).

    Parameters
    ----------
    values
        (n_cells,) numbers, e.g. whether each cell was labelled correctly.
    level
        Coverage of the interval.
    resamples
        Bootstrap samples.
    """
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    groups: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Any statistic of cells with its percentile bootstrap interval.

    Not for statistics that build a neighbour graph of the resampled cells: a cell drawn twice is its own neighbour at distance 0.
    Compute per-cell values on all cells first, and resample those. For the difference of two encoders, make the statistic the
    difference, so that both are resampled alike.

    Parameters
    ----------
    statistic
        Called with rows (m,) int64, repeats among them; NaN where it is not defined, and such draws are left out.
    n
        Number of cells.
    groups
        (n,) donors or studies: whole groups are resampled. With fewer than five of them, or without, cells are.
    level
        Coverage of the interval.
    resamples
        Bootstrap samples.
    seed
        Of the draws.

    Returns
    -------
    Estimate
        The interval is NaN where fewer than half of the draws have a value.
    """
    return bootstrap_all(
        lambda rows: np.array([statistic(rows)]), n, groups=groups, level=level, resamples=resamples, seed=seed
    )[0]


def bootstrap_all(
    statistics: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    groups: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """Several statistics of the same resampled cells, each with its interval; arguments as for `bootstrap`.

    Parameters
    ----------
    statistics
        Called with rows (m,) int64; gives (s,) float64.

    Returns
    -------
    list[Estimate]
        One for each statistic.
    """
    if n < 1 or (groups is not None and len(groups) != n):
        raise InputError(f"{n} cells and {'no' if groups is None else len(groups)} groups.", "Give each cell a group.")
    rng = np.random.default_rng(seed)
    rows = np.arange(n)
    members: list[np.ndarray] | None = None
    if groups is not None:
        numbers = np.unique(groups, return_inverse=True)[1]
        if numbers.max() + 1 >= FEW_GROUPS:
            members = [rows[numbers == g] for g in range(numbers.max() + 1)]
    values = np.asarray(statistics(rows), dtype=np.float64)
    draws = np.empty((resamples, len(values)))
    for i in range(resamples):
        if members is None:
            drawn = rng.integers(0, n, n)
        else:
            drawn = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        draws[i] = statistics(drawn)
    unit = "cells" if members is None else "groups"
    return [Estimate(float(v), *_ends(column, level), unit) for v, column in zip(values, draws.T, strict=True)]


def from_subsamples(
    value: float, draws: np.ndarray, *, kept: float, level: float = 0.95, most: float = 1.0
) -> Estimate:
    """A number with its interval from subsamples without replacement, for statistics that repeated cells would spoil.

    Subsamples of a share f of the cells differ from each other by sqrt((1 - f) / f) of what samples of all cells would, and are of
    another size. So the spread of the draws around their median is widened by sqrt(f / (1 - f)) (delete-d jackknife, Shao & Wu 1989,
    Annals of Statistics 17:1176) and laid around the value.

    Parameters
    ----------
    value
        Of all cells.
    draws
        (m,) of subsamples.
    kept
        f.
    level
        Coverage of the interval.
    most
        Largest possible value.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"), "subsamples")
    spread = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) - np.median(draws)
    low, high = np.minimum(value + spread * np.sqrt(kept / (1 - kept)), most)
    return Estimate(value, float(low), float(high), "subsamples")


def _ends(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval of the draws that have a value."""
    valid = draws[np.isfinite(draws)]
    if len(valid) < max(len(draws) / 2, 1):
        return float("nan"), float("nan")
    low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
