"""Predictions against measured cells: every score of every condition, beside the baselines and between their mean and the replicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError
from scfm.perturbation import metrics
from scfm.perturbation.baselines import (
    Baseline,
    Crispr,
    additive,
    context_mean,
    crispr_informed,
    mean_response,
    no_change,
    perturbation_mean,
)
from scfm.perturbation.bilinear import bilinear_response, linear_additive
from scfm.perturbation.calibrated import (
    direction_fidelity,
    direction_reach,
    expression_error,
    jaccard_significant,
    lfc_error,
    perturbation_discrimination,
)
from scfm.perturbation.conditions import Key, order_of
from scfm.perturbation.de import cpm, differential_expression
from scfm.perturbation.measured import Measured, Predicted
from scfm.perturbation.networks import latent_additive, simple_affine
from scfm.perturbation.pseudobulk import Profiles

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CEILING", "SCORES", "aggregate", "held_out", "replicate_scores", "score", "standard_baselines", "table_of"]

SCORES: dict[str, bool] = {
    "pds_cosine": True,
    "expression_error": False,
    "direction_fidelity": True,
    "direction_reach": True,
    "jaccard": True,
    "lfc_error": False,
    "r2_delta": True,
    "pearson_delta": True,
    "pearson_calibrated": True,
    "pearson_delta_de20": True,
    "pearson": True,
    "pearson_de20": True,
    "mse": False,
    "mse_de20": False,
    "r2_mean": True,
    "weighted_mse": False,
    "weighted_r2_delta": True,
    "direction_de20": True,
    "opposite_de20": False,
    "within_sigma_de20": True,
    "auroc_de": True,
    "auprc_ratio": True,
}
"""Every score, and whether more is better; the calibrated ones first."""
CEILING, DISTANCE = "replicate", "_distance"
SPLITS = 5


def standard_baselines(
    train: Profiles, *, context: str | None = None, effect: Crispr | None = None, networks: bool = True
) -> dict[str, Baseline]:
    """The baselines that every evaluation shows.

    Parameters
    ----------
    train
        Profiles of the training conditions and all controls.
    context
        Column of `obs` with the contexts; State's perturbation mean and context mean are among the baselines where there are several.
    effect
        "interference" or "activation": adds the CRISPR-informed mean.
    networks
        Also those that are trained: latent additive and SimpleAffine.
    """
    chosen: dict[str, Callable[[Profiles, Sequence[Key]], np.ndarray]] = {
        "no change": no_change,
        "mean": mean_response,
        "mean of cells": partial(mean_response, weight="cell"),
        "additive": additive,
        "linear additive": linear_additive,
        "bilinear": bilinear_response,
    }
    if len({where for where, _ in train.keys}) > 1:
        chosen |= {"perturbation mean": perturbation_mean, "context mean": context_mean}
    if effect is not None:
        chosen["CRISPR-informed"] = partial(crispr_informed, effect=effect)
    if networks:
        chosen |= {"latent additive": latent_additive, "SimpleAffine": simple_affine}
    return {name: Baseline(name, train, predict, context) for name, predict in chosen.items()}


def score(
    measured: Measured, predicted: Predicted, keys: Sequence[Key], reference: np.ndarray, *, alpha: float = 0.05
) -> pd.DataFrame:
    """Every score of every condition.

    Parameters
    ----------
    measured
        The truth.
    predicted
        Its prediction, rows as `keys`.
    keys
        (context, condition) of the test conditions.
    reference
        (n_keys, n_genes) mean response of the training conditions.
    alpha
        False discovery rate at which genes are significant.

    Returns
    -------
    pd.DataFrame
        (n_keys, n_scores), NaN where a score is not defined; indexed by context and condition.
    """
    import pandas as pd

    truth = measured.profiles.values[measured.profiles.rows(keys)]
    control = measured.profiles.control_of(keys)
    values = _snapped(_snapped(predicted.values, control), reference)
    predicted = replace(predicted, values=values)
    rows = []
    for i, key in enumerate(keys):
        profiles = (truth[i], values[i], control[i], reference[i])
        rows.append(_classic(measured, key, *profiles, alpha) | _calibrated(measured, predicted, i, key, alpha))
    table = pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(keys, names=["context", "condition"]))
    table["pds_cosine"] = _discrimination(measured, values - control, keys)
    return table[[*SCORES, DISTANCE]]


def _snapped(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Values that differ from a reference by rounding are the reference: correlations of what is left would be noise."""
    return np.where(np.isclose(values, reference, rtol=0, atol=1e-9), reference, values)


def _classic(
    measured: Measured,
    key: Key,
    truth: np.ndarray,
    predicted: np.ndarray,
    control: np.ndarray,
    reference: np.ndarray,
    alpha: float,
) -> dict[str, float]:
    top, scores = measured.top_de(key)
    weights = metrics.weights_of(scores)
    right, opposite = metrics.direction_shares(truth[top], predicted[top], control[top])
    other = ~measured.own_genes(key[1]) & measured.de(key).tested
    hits, change = measured.de(key).significant(alpha)[other], np.abs(predicted - control)[other]
    return {
        "r2_delta": metrics.r2_delta(truth, predicted, control),
        "pearson_delta": metrics.pearson_delta(truth, predicted, control),
        "pearson_calibrated": metrics.pearson_delta(truth, predicted, reference),
        "pearson_delta_de20": metrics.pearson_delta(truth[top], predicted[top], control[top]),
        "pearson": metrics.pearson(truth, predicted),
        "pearson_de20": metrics.pearson(truth[top], predicted[top]),
        "mse": metrics.mse(truth, predicted),
        "mse_de20": metrics.mse(truth[top], predicted[top]),
        "r2_mean": metrics.r2_mean(truth, predicted),
        "weighted_mse": metrics.weighted_mse(truth, predicted, weights),
        "weighted_r2_delta": metrics.weighted_r2_delta(truth, predicted, reference, weights),
        "direction_de20": right,
        "opposite_de20": opposite,
        "within_sigma_de20": metrics.within_sigma(
            truth[top], predicted[top], measured.log_cells(key).std(axis=0, ddof=1)[top]
        ),
        "auroc_de": metrics.auroc_de(hits, change),
        "auprc_ratio": metrics.auprc_ratio(hits, change),
    }


def _calibrated(measured: Measured, predicted: Predicted, i: int, key: Key, alpha: float) -> dict[str, float]:
    called = differential_expression(cpm(predicted.cells[i]), measured.control_cpm(key[0]))
    true, own = measured.de(key), measured.own_genes(key[1])
    profiles = measured.profiles
    truth, control = profiles.values[profiles.rows([key])[0]], profiles.control_of([key])[0]
    noise = measured.noise(key)
    distance = expression_error(control, truth, measured.noise((key[0], measured.control)), noise, ~own)
    return {
        "expression_error": expression_error(predicted.values[i], truth, float(predicted.noise[i]), noise, ~own),
        DISTANCE: distance,
        "direction_fidelity": direction_fidelity(called, true, alpha=alpha, skip=own),
        "direction_reach": direction_reach(called, true, alpha=alpha, skip=own),
        "jaccard": jaccard_significant(called, true, alpha=alpha, skip=own),
        "lfc_error": lfc_error(called, true, alpha=alpha, skip=own),
    }


def _discrimination(measured: Measured, effects: np.ndarray, keys: Sequence[Key]) -> np.ndarray:
    """PDS of each prediction among the test conditions of its context."""
    out = np.full(len(keys), np.nan)
    contexts = np.array([context for context, _ in keys])
    for context in set(contexts):
        at = np.flatnonzero(contexts == context)
        truth = measured.profiles.deltas([keys[int(i)] for i in at])
        out[at] = perturbation_discrimination(effects[at], truth, np.arange(len(at)), measured.targets)
    return out


def replicate_scores(
    measured: Measured, keys: Sequence[Key], reference: np.ndarray, *, splits: int = SPLITS, seed: int = 0
) -> list[pd.DataFrame]:
    """Scores of half of each condition's cells as the prediction of the other half, several times.

    The control is whole on both sides. Halves hold fewer cells than the truth of a prediction, so that this is a ceiling that a prediction
    of the mean can pass.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(splits):
        one, other = measured.halves(keys, rng)
        values = one.profiles.values[one.profiles.rows(keys)]
        noise = np.array([one.noise(key) for key in keys])
        copy = Predicted(CEILING, values, noise, tuple(one.cells(key) for key in keys))
        tables.append(score(other, copy, keys, reference))
    return tables


def aggregate(table: pd.DataFrame, name: str, draws: np.ndarray | None = None) -> np.ndarray:
    """One score over conditions: the mean of those that have it; of `expression_error` the ratio of the sums. NaN where none has it.

    Parameters
    ----------
    table
        Of `score`.
    name
        One of `SCORES`.
    draws
        (n_draws, n_conditions) rows of bootstrap samples; None: all rows once.

    Returns
    -------
    np.ndarray
        (n_draws,), or (1,).
    """
    draws = np.arange(len(table))[None] if draws is None else draws
    values = table[name].to_numpy()[draws]
    weights = np.isfinite(values).astype(np.float64)
    if name == "expression_error":
        weights = table[DISTANCE].to_numpy()[draws]
    total = weights.sum(axis=1)
    sums = np.nan_to_num(values).sum(axis=1)
    return np.divide(sums, total, out=np.full(len(sums), np.nan), where=total > 0)


def table_of(
    scored: Mapping[str, pd.DataFrame],
    replicates: Sequence[pd.DataFrame],
    *,
    baseline: str = "mean",
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """All predictors and all scores in long form.

    Parameters
    ----------
    scored
        Predictor -> `score`; the baseline among them.
    replicates
        `replicate_scores`.
    baseline
        The predictor at 0 of the scale.
    resamples, seed
        Of the bootstrap over conditions.

    Returns
    -------
    pd.DataFrame
        Columns predictor, metric, value, low, high, scaled, scaled_low, scaled_high, n (conditions where it is defined) and better
        ("higher" or "lower"). `scaled` is (value - baseline) / (replicate - baseline), with the same conditions drawn for all three. It is
        NaN where the replicate is no better than the baseline: then these data can't tell a good prediction from a mean by this score.
    """
    import pandas as pd

    if baseline not in scored:
        raise InputError(f"there is no prediction of the baseline {baseline!r}.")
    n = len(scored[baseline])
    draws = np.concatenate([np.arange(n)[None], np.random.default_rng(seed).integers(0, n, (resamples, n))])
    made = []
    for metric, higher in SCORES.items():
        ceiling = np.mean([aggregate(table, metric, draws) for table in replicates], axis=0)
        zero = aggregate(scored[baseline], metric, draws)
        if (
            metric == "pearson_calibrated"
        ):  # the mean is the reference: it has no direction, and no correlation with any
            zero = np.nan_to_num(zero)
        span = np.where((ceiling > zero) == higher, ceiling - zero, np.nan)
        span[span == 0] = np.nan
        values = {name: aggregate(table, metric, draws) for name, table in scored.items()} | {CEILING: ceiling}
        for name, value in values.items():
            defined = (replicates[0] if name == CEILING else scored[name])[metric]
            made.append(
                {"predictor": name, "metric": metric}
                | dict(zip(("value", "low", "high"), _interval(value), strict=True))
                | dict(zip(("scaled", "scaled_low", "scaled_high"), _interval((value - zero) / span), strict=True))
                | {"n": int(np.isfinite(defined).sum()), "better": "higher" if higher else "lower"}
            )
    return pd.DataFrame(made)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """The value of all rows (first), and the 95 % percentile interval of the draws; NaN where fewer than half are defined."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(drawn) < len(values[1:]) / 2 or not len(drawn):
        return float(values[0]), float("nan"), float("nan")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def held_out(measured: Measured, conditions: Sequence[str]) -> tuple[Key, ...]:
    """The keys of these conditions in all contexts that have them, sorted."""
    wanted = set(conditions)
    return tuple(sorted(key for key in measured.rows if key[1] in wanted and order_of(key[1], measured.control)))
