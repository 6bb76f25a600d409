"""Groups of cells that are computed together, for encoders whose cells see each other.

The grouping is stated, never a by-product of batching: it decides the result, and nothing else around a cell does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cell_groups"]


def cell_groups(obs: pd.DataFrame, key: str | None, size: int | None) -> list[np.ndarray]:
    """Rows of each group.

    Parameters
    ----------
    obs
        Of one data set; groups never span two.
    key
        Column with the group of each cell; None: all cells are one group.
    size
        Cut every group into runs of this many cells, in the order of the data, the last one shorter; None: whole groups.

    Returns
    -------
    list of np.ndarray
        Ascending row numbers (int64) of every group; groups in the order of their sorted labels, their runs behind one another.

    Raises
    ------
    InputError
        `size` is not positive, or a cell has no group.
    """
    if size is not None and size < 1:
        raise InputError(f"group_size={size}; it must be at least 1, or None for whole groups.")
    if key is None:
        groups = [np.arange(len(obs))]
    else:
        if missing := int(obs[key].isna().sum()):
            raise InputError(
                f"obs[{key!r}] has no value for {missing} of {len(obs)} cells.", "Fill it, or pass group_key=None."
            )
        _, group, counts = np.unique(obs[key].astype(str).to_numpy(dtype=str), return_inverse=True, return_counts=True)
        groups = np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1]) if len(obs) else []
    runs = []
    for group in groups:
        step = size or max(len(group), 1)
        runs += [group[at : at + step] for at in range(0, len(group), step)]
    return runs
