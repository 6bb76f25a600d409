"""Which cells are query and which reference, and what leaks between them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError, listing
from scfm.reading import InputWarning
from scfm.tasks.annotation.run import Job, Pair, column, embed_whole

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["cross_validation", "shared_donors"]

MOST_GROUPS = 10
"""Up to so many groups each is held out once."""
FOLDS = 5


def cross_validation(
    job: Job, adata: AnnData, groups: str | None, split: str, folds: int | None
) -> tuple[list[Pair], str]:
    """Every cell is query once, and what there is to say about leaking."""
    if split not in ("groups", "random_cells"):
        raise InputError(f"split={split!r} is not known.", "Pass 'groups' or 'random_cells'.")
    if folds is not None and folds < 2:
        raise InputError(f"folds={folds}; at least 2 are needed.")
    labels = column(adata, str(job.labels), "reference")
    if split == "random_cells":
        fold, leak = _random_folds(labels, folds or FOLDS, job.seed), ""
        leak = "cells were split at random: cells of one donor and batch are on both sides, and scores are too good"
    elif groups is None:
        raise InputError(
            "no query is given, and no groups= to hold out in turn.",
            "Pass groups='donor_id' (donors or studies), or split='random_cells', whose scores are too good.",
        )
    else:
        fold = _group_folds(column(adata, groups, "reference"), groups, folds, job.seed)
        leak = _split_donors(job, adata, fold)
    whole = embed_whole(job, adata)
    pairs = []
    for name in dict.fromkeys(sorted(fold.tolist())):
        test, train = np.flatnonzero(fold == name), np.flatnonzero(fold != name)
        vectors = None if whole is None else (whole[train], whole[test])
        pairs.append(Pair(adata[train], adata[test], test, name, vectors))
    return pairs, leak


def _random_folds(labels: pd.Series, folds: int, seed: int) -> np.ndarray:
    """(n_cells,) names; the cells of each label are spread evenly."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    numbers = np.unique(labels.fillna("").to_numpy().astype(str), return_inverse=True)[1]
    order = order[np.argsort(numbers[order], kind="stable")]
    fold = np.empty(len(labels), dtype=object)
    fold[order] = [f"fold {i % folds + 1}" for i in range(len(labels))]
    return fold


def _group_folds(groups: pd.Series, name: str, folds: int | None, seed: int) -> np.ndarray:
    """(n_cells,) names of folds; whole groups together."""
    from sklearn.model_selection import GroupKFold

    if groups.isna().any():
        raise InputError(f"obs[{name!r}] has no value for {int(groups.isna().sum())} cells.", "Fill it.")
    count = groups.nunique()
    if count < 2 or (folds or 2) > count:
        raise InputError(f"obs[{name!r}] has {count} values; {folds or 2} are needed.", "Pass another groups=.")
    if folds is None and count <= MOST_GROUPS:
        return groups.to_numpy().astype(object)
    fold = np.empty(len(groups), dtype=object)
    splitter = GroupKFold(n_splits=folds or FOLDS, shuffle=True, random_state=seed)
    for i, (_, test) in enumerate(splitter.split(groups, groups=groups)):
        fold[test] = f"fold {i + 1}"
    return fold


def _split_donors(job: Job, adata: AnnData, fold: np.ndarray) -> str:
    """What there is to say where donors are in several folds, as when batches are held out."""
    if job.donor is None:
        return ""
    donors = column(adata, job.donor, "reference")
    several = [name for name, rows in donors.groupby(donors).indices.items() if len(set(fold[rows])) > 1]
    return f"obs[{job.donor!r}] has {listing(several)} in several folds: scores are too good" if several else ""


def shared_donors(job: Job, reference: AnnData | None, query: AnnData) -> str:
    if job.donor is None or reference is None or job.donor not in query.obs.columns:
        return ""
    here, there = (set(column(a, str(job.donor), s).dropna()) for a, s in ((reference, "reference"), (query, "query")))
    if not (both := sorted(here & there)):
        return ""
    leak = f"obs[{job.donor!r}] has {listing(both)} on both sides: scores are too good"
    warnings.warn(leak, InputWarning, stacklevel=4)
    return leak
