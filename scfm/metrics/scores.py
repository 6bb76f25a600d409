"""One metric of one embedding: a number, the convention it follows, and what its interval is drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from scfm.errors import InputError
from scfm.metrics.estimates import Estimate, bootstrap

__all__ = ["Score", "group_means", "levels", "mean_of_groups"]


@dataclass(frozen=True)
class Score:
    """A metric's value.

    Parameters
    ----------
    value
        NaN where it is not defined; then `reason` says why.
    convention
        Which of the definitions in use this is, with its parameters.
    n
        Cells it was computed on.
    reason
        Why there is no value.
    strata
        The metric within labels, batches or lineages.
    resample
        The metric of some of the cells (rows, repeats among them), each cell's part in it fixed: neighbours, distances and clusters
        are those among all cells. None where the metric is no summary of such parts.
    """

    value: float
    convention: str
    n: int
    reason: str = ""
    strata: Mapping[str, float] = field(default_factory=dict)
    resample: Callable[[np.ndarray], float] | None = field(default=None, repr=False, compare=False)

    def __float__(self) -> float:
        return self.value

    def interval(
        self, groups: np.ndarray | None = None, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> Estimate:
        """The value with its percentile interval over resampled donors (`groups`), or cells where there are fewer than five.

        NaN ends where the metric has no value or can't be resampled.
        """
        if self.resample is None or not np.isfinite(self.value):
            return Estimate(self.value, np.nan, np.nan)
        return bootstrap(self.resample, self.n, groups=groups, level=level, resamples=resamples, seed=seed)


def levels(labels: np.ndarray, n: int, name: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Sorted names (n_levels,) str and their numbers (n,) int64.

    Raises
    ------
    InputError
        There are not n of them, or some are missing.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise InputError(f"{name} have shape {labels.shape}, there are {n} cells.", "Give each cell one.")
    if labels.dtype == object or labels.dtype.kind == "f":
        missing = np.array([value is None or value != value for value in labels.tolist()])
        if missing.any():
            raise InputError(f"{int(missing.sum())} of {n} cells have no value in {name}.", "Leave these cells out.")
    return np.unique(labels.astype(str), return_inverse=True)


def group_means(values: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Mean of the values in each group (count,); NaN where it is empty, NaN values left out."""
    known = np.isfinite(values)
    sums = np.bincount(codes[known], weights=values[known], minlength=count)
    sizes = np.bincount(codes[known], minlength=count)
    return np.divide(sums, sizes, out=np.full(count, np.nan), where=sizes > 0)


def mean_of_groups(values: np.ndarray, codes: np.ndarray) -> Callable[[np.ndarray], float]:
    """A function of rows: the plain mean over groups of the mean within each; groups of NaN or without rows are left out."""
    count = int(codes.max(initial=-1)) + 1

    def statistic(rows: np.ndarray) -> float:
        means = group_means(values[rows], codes[rows], count)
        return float(np.nanmean(means)) if np.isfinite(means).any() else np.nan

    return statistic
