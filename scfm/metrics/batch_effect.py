"""How much of an embedding is batch: variance explained, and what a classifier can read."""

from __future__ import annotations

from typing import Literal

import numpy as np

from scfm.metrics.scores import Score, group_means, levels, mean_of_groups

__all__ = ["batch_leakage", "pcr", "pcr_comparison"]


def pcr(embedding: np.ndarray, batch: np.ndarray) -> Score:
    """Principal component regression (Büttner et al. 2019): variance-weighted R2 of all principal components on batch; lower is better.

        sum_j var_j R2_j / sum_j var_j  =  variance between batches / total variance,

    since with all components the sum does not change when the axes turn.

    Parameters
    ----------
    embedding
        (n_cells, dim).
    batch
        (n_cells,).
    """
    convention = "variance between batches / total variance (PCR, all components)"
    x = np.asarray(embedding, dtype=np.float64)
    names, codes = levels(batch, len(x), "batch")
    if len(names) < 2:
        return Score(np.nan, convention, len(x), "one batch only")
    x = x - x.mean(axis=0)
    squares = np.einsum("ij,ij->i", x, x)
    if not squares.any():
        return Score(np.nan, convention, len(x), "the embedding is constant")

    def statistic(rows: np.ndarray) -> float:
        weights = np.bincount(rows, minlength=len(x)).astype(float)
        member = np.zeros((len(names), len(x)))
        member[codes, np.arange(len(x))] = weights
        sums, sizes = member @ x, member.sum(axis=1)  # (batches, dim), (batches,)
        shared = float((sums.sum(axis=0) ** 2).sum()) / len(rows)
        total = float(weights @ squares) - shared
        between = float(((sums**2).sum(axis=1) / np.maximum(sizes, 1)).sum()) - shared
        return between / total if total > 0 else np.nan

    return Score(statistic(np.arange(len(x))), convention, len(x), resample=statistic)


def pcr_comparison(before: np.ndarray, after: np.ndarray, batch: np.ndarray) -> Score:
    """(pcr before - pcr after) / pcr before, not below 0: 1 where nothing of batch is left.

    Parameters
    ----------
    before, after
        (n_cells, dim) embeddings of the same cells without and with integration.
    batch
        (n_cells,).
    """
    convention = "(PCR before - after) / before, clipped at 0"
    first, second = pcr(before, batch), pcr(after, batch)
    for each in (first, second):
        if not np.isfinite(each.value):
            return Score(np.nan, convention, each.n, each.reason)
    if first.value < 1e-12:
        return Score(np.nan, convention, first.n, "batch explains nothing before integration")
    one, two = first.resample, second.resample
    assert one is not None
    assert two is not None

    def statistic(rows: np.ndarray) -> float:
        pre = one(rows)
        return float(max(0.0, (pre - two(rows)) / pre)) if pre > 0 else np.nan

    strata = {"before": first.value, "after": second.value}
    return Score(statistic(np.arange(first.n)), convention, first.n, strata=strata, resample=statistic)


def batch_leakage(
    embedding: np.ndarray,
    batch: np.ndarray,
    *,
    donors: np.ndarray | None = None,
    classifier: Literal["linear", "mlp"] = "linear",
    folds: int = 5,
    seed: int = 0,
) -> Score:
    """Balanced accuracy with which a classifier tells the batch of held-out cells; 1 / batches is chance, and lower is better.

    Linear near chance with the MLP high: batch is left in interactions of dimensions.

    Parameters
    ----------
    embedding
        (n_cells, dim), standardised within the folds.
    batch
        (n_cells,).
    donors
        (n_cells,) whole donors are held out; each batch needs two. None: cells are.
    classifier
        "linear" (logistic regression), or "mlp" (two hidden layers of 64).
    folds
        Fewer where a batch has fewer donors or cells.
    seed
        Of the folds and the MLP.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.asarray(embedding, dtype=np.float64)
    n = len(x)
    names, codes = levels(batch, n, "batch")
    unit = "cells" if donors is None else "donors"
    convention = f"balanced accuracy, {classifier}, folds of {unit}"
    if len(names) < 2:
        return Score(np.nan, convention, n, "one batch only")
    units = np.arange(n) if donors is None else levels(donors, n, "donors")[1]
    count = min(folds, *(len(np.unique(units[codes == b])) for b in range(len(names))))
    if count < 2:
        return Score(
            np.nan, convention, n, f"a batch has one of the {unit} only: held out, nothing is left to learn it from"
        )
    correct = np.full(n, np.nan)
    split = (
        StratifiedKFold(count, shuffle=True, random_state=seed).split(x, codes)
        if donors is None
        else StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(x, codes, units)
    )
    for train, test in split:
        model = (
            LogisticRegression(max_iter=1000, class_weight="balanced")
            if classifier == "linear"
            else MLPClassifier((64, 64), early_stopping=True, max_iter=200, random_state=seed)
        )
        correct[test] = (
            make_pipeline(StandardScaler(), model).fit(x[train], codes[train]).predict(x[test]) == codes[test]
        )
    means = group_means(correct, codes, len(names))
    strata = dict(zip(names.tolist(), means.tolist(), strict=True))
    return Score(float(np.nanmean(means)), convention, n, strata=strata, resample=mean_of_groups(correct, codes))
