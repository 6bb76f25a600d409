"""Which cells are trained on and which are held out. A split is two lists of cell names, so that it can be stored and looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError, listing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Split", "hold_out"]

DRAWS = 64
"""Random draws of whole groups, of which the best is taken."""


@dataclass(frozen=True)
class Split:
    """Names of cells (`obs_names`) on both sides.

    Parameters
    ----------
    train, valid
        In the order of the data.
    groups
        Column of `obs` whose values are on one side only; None: cells were split.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    groups: str | None = None


def hold_out(
    n_cells: int,
    *,
    share: float,
    groups: pd.Series | None = None,
    strata: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out.

    Parameters
    ----------
    n_cells
        Number of cells.
    share
        Of the cells to hold out, in (0, 1).
    groups
        (n_cells,) donors, batches or studies; none has cells on both sides.
    strata
        (n_cells,) labels. Without groups each label is split alike; with groups, draws that leave a label without
        training cells are avoided where possible.
    seed
        Of the draw.

    Returns
    -------
    train, valid
        Ascending int64 rows.

    Raises
    ------
    InputError
        The share is not in (0, 1), there is one group only, a cell has none, or there are too few cells.
    """
    if not 0 < share < 1:
        raise InputError(f"valid={share} is no share of the cells to hold out.", "Pass a number between 0 and 1.")
    rng = np.random.default_rng(seed)
    held = _cells(n_cells, share, strata, rng) if groups is None else _groups(groups, share, strata, rng)
    if not held.any() or held.all():
        raise InputError(
            f"{n_cells} cells cannot be split with a share of {share} held out.",
            "Give more cells, or valid=None to train on all without held-out cells.",
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _cells(n_cells: int, share: float, strata: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    held = np.zeros(n_cells, dtype=bool)
    labels = np.zeros(n_cells, dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    for label in range(labels.max(initial=-1) + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: min(round(share * len(rows)), len(rows) - 1)]] = True
    return held


def _groups(groups: pd.Series, share: float, strata: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    if groups.isna().any():
        raise InputError(
            f"obs[{groups.name!r}] has no value for {int(groups.isna().sum())} cells; each cell needs a group.",
            "Fill them, or remove these cells.",
        )
    numbers, names = groups.astype(str).factorize(sort=True)
    if len(names) < 2:
        raise InputError(
            f"obs[{groups.name!r}] has one value only, {listing(names)}; whole groups are held out, so two are needed.",
            "Pass another groups=, held-out data as valid=, or valid=None.",
        )
    sizes = np.bincount(numbers)
    labels = np.zeros(len(numbers), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    best: tuple[float, float] | None = None
    chosen = np.zeros(len(numbers), dtype=bool)
    for _ in range(DRAWS):
        order = rng.permutation(len(names))
        shares = np.cumsum(sizes[order])[:-1] / len(numbers)
        count = int(np.abs(shares - share).argmin()) + 1
        held = np.isin(numbers, order[:count])
        lost = len(np.unique(labels)) - len(np.unique(labels[~held]))
        rank = (float(lost), abs(float(held.mean()) - share))
        if best is None or rank < best:
            best, chosen = rank, held
    return chosen
