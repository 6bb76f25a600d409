"""Cells that are read several times, each time with a change: a source that repeats rows as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm.cells import BLOCK_ROWS, Source
from scfm.in_silico.changes import CHANGE, ORIGINAL

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RepeatedSource"]


class RepeatedSource(Source):
    """A source whose rows are cells with their changes; a cell's original stands before its changed rows, in every block with some.

    Parameters
    ----------
    base
        The cells.
    cells, changes
        (n,) rows of `base`, ascending, and the change made to each.
    size
        Changed rows of a block.
    originals
        Put each cell's original before its changed rows.
    """

    def __init__(
        self, base: Source, cells: np.ndarray, changes: np.ndarray, size: int, *, originals: bool = True
    ) -> None:
        self.base, self.label, self.layer, self._close = base, base.label, base.layer, None
        self._adata, self._group = base._adata, base._group
        self._ranges: list[slice] = []
        rows: list[np.ndarray] = []
        what: list[np.ndarray] = []
        start = at = 0
        while at < len(cells):
            block = slice(at, at + size)
            mine, done = cells[block], changes[block]
            first = np.flatnonzero(
                np.r_[originals, (mine[1:] != mine[:-1]) & originals]
            )  # a cell's original goes before these
            rows.append(np.insert(mine, first, mine[first]))
            what.append(np.insert(done, first, ORIGINAL))
            self._ranges.append(slice(start, start + len(rows[-1])))
            start, at = start + len(rows[-1]), at + size
        self.cells = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        self.changes = np.concatenate(what) if what else np.zeros(0, np.int64)

    @property
    def obs(self) -> Any:
        """The cells' rows, with the change of each."""
        return _RepeatedObs(self.base.obs, self.cells, self.changes)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_features)."""
        return len(self.cells), self.base.shape[1]

    def take(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """Rows of the cells, unchanged."""
        distinct, where = np.unique(self.cells[rows], return_inverse=True)
        return self.base.take(distinct)[where]

    def ranges(self, rows: int = BLOCK_ROWS) -> Iterator[slice]:
        """The blocks, each with the originals it needs."""
        return iter(self._ranges)


class _RepeatedObs:
    """As much of a DataFrame as reading asks for, without its rows repeated in memory."""

    def __init__(self, obs: pd.DataFrame, cells: np.ndarray, changes: np.ndarray) -> None:
        self._frame, self._cells, self._changes = obs, cells, changes
        self.iloc = self

    @property
    def index(self) -> pd.Index:
        return self._frame.index[self._cells]

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, list):
            return _RepeatedObs(self._frame[[name for name in key if name != CHANGE]], self._cells, self._changes)
        return self._frame.iloc[self._cells[key]].assign(**{CHANGE: self._changes[key]})
