"""Which cells a network is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError, listing

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["group_cells"]


def group_cells(
    adata: AnnData,
    groupby: str | None,
    groups: Sequence[str] | None,
    contrast: tuple[str, str, str] | None,
    fewest: int,
) -> dict[str, list[int]]:
    """Rows of each group's cells, in order; with a contrast, those of its two conditions."""

    def column(name: str, of: str) -> np.ndarray:
        if name not in adata.obs.columns:
            raise InputError(f"{of}={name!r} is not in adata.obs (columns: {listing(map(str, adata.obs.columns))}).")
        return np.where(adata.obs[name].isna(), "", adata.obs[name].astype(str))

    if not adata.obs_names.is_unique:
        raise InputError("obs_names are repeated.", "Call adata.obs_names_make_unique().")
    labels = np.full(adata.n_obs, "all", dtype=object) if groupby is None else column(groupby, "groupby")
    names = [str(name) for name in groups] if groups is not None else sorted(set(labels) - {""})
    if missing := sorted(set(names) - set(labels)):
        raise InputError(
            f"groups={listing(missing)} are not in obs[{groupby!r}].", f"It has {listing(sorted(set(labels)))}."
        )
    parts = ["cells"] if contrast is None else list(contrast[1:])
    condition = np.full(adata.n_obs, "cells", dtype=object) if contrast is None else column(contrast[0], "contrast")
    if unknown := sorted(set(parts) - set(condition)):
        assert contrast is not None
        raise InputError(
            f"contrast: {listing(unknown)} is not in obs[{contrast[0]!r}].",
            f"It has {listing(sorted(set(condition)))}.",
        )
    found, few = {}, []
    for name in names:
        found[name] = np.flatnonzero((labels == name) & np.isin(condition, parts)).tolist()
        sizes = [int(((labels == name) & (condition == part)).sum()) for part in parts]
        if min(sizes) < fewest:
            few.append(f"{name} ({' and '.join(map(str, sizes))})")
    if few or not found:
        enough = [name for name in found if not any(text.startswith(f"{name} (") for text in few)]
        raise InputError(
            f"too few cells in {', '.join(few) or 'all groups'}; at least {fewest} are needed of each group and condition.",
            f"Pass groups={enough!r}, or a lower min_cells=." if enough else "Pass more cells, or a lower min_cells=.",
        )
    return found
