"""Predicted mean responses of a screen beside the plain baselines, which are always computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError, listing
from scfm.perturbation.baselines import context_mean, no_change, perturbation_mean
from scfm.perturbation.conditions import Key
from scfm.perturbation.metrics import mse, pearson_delta, r2_delta, r2_mean
from scfm.perturbation.pseudobulk import Profiles
from scfm.perturbation.response import ResponsePredictor
from scfm.perturbation.screen import Screen

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BASELINES", "ScreenScores", "mean_effect", "predict_keys", "score_responses"]


def mean_effect(train: Profiles, keys: Sequence[Key]) -> np.ndarray:
    """The context's control plus the mean effect of all training perturbations in all contexts."""
    return train.control_of(keys) + train.deltas().mean(axis=0)


BASELINES: dict[str, Callable[[Profiles, Sequence[Key]], np.ndarray]] = {
    "no change": no_change,
    "context mean": context_mean,
    "same condition, other contexts": perturbation_mean,
    "mean effect": mean_effect,
}
"""Baselines that need neither molecules nor genes. "same condition, other contexts" is the mean effect where there is none."""


@dataclass(frozen=True)
class ScreenScores:
    """Scores of each predictor on each condition.

    Parameters
    ----------
    scores
        One row a predictor and (context, condition): "predictor", "context", "condition", and over all genes, and with "_top20" over the
        20 genes that differ most in the cells: `mse`; `r2_mean`, of profiles, high for anything like the control; `r2_delta`, 1 is
        perfect and 0 no better than no change; `pearson_delta`, of changes from the control; `pearson_delta_mean`, of changes from the
        "mean effect" baseline, which has none itself. NaN where a score is not defined.
    """

    scores: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """Mean over conditions, a row each predictor, in the order they were given; baselines first."""
        scores = self.scores.drop(columns=["context", "condition"])
        return scores.groupby("predictor", sort=False).mean()

    def __str__(self) -> str:
        conditions = len(self.scores[["context", "condition"]].drop_duplicates())
        return f"{conditions} conditions, mean over them\n{self.table.round(3).to_string()}"


def predict_keys(predictor: ResponsePredictor, screen: Screen, keys: Sequence[Key]) -> np.ndarray:
    """Profiles that a predictor gives for (context, condition) pairs of a screen, from its controls (n_keys, n_genes)."""
    controls = screen.controls()
    contexts = sorted({context for context, _ in keys})
    names = sorted({name for _, name in keys})
    part = controls[controls.obs[screen.context].isin(contexts)].copy()
    found = predictor.predict_response(part, names)
    rows = zip(found.obs[screen.context].astype(str), found.obs["condition"].astype(str), strict=True)
    place = {key: i for i, key in enumerate(rows)}
    columns = [list(found.var_names).index(gene) for gene in screen.profiles.genes]
    return np.asarray(found.layers["predicted"], dtype=np.float64)[[place[key] for key in keys]][:, columns]


def score_responses(
    screen: Screen,
    train: Sequence[Key],
    test: Sequence[Key],
    predicted: Mapping[str, ResponsePredictor | np.ndarray],
) -> ScreenScores:
    """Score predictions of held-out conditions; the baselines stand beside them.

    Parameters
    ----------
    train, test
        (context, condition) that were learnt from, validation included, and that are judged.
    predicted
        Name -> a predictor, or profiles (n_test, n_genes) log1p of expression scaled as the screen's.

    Raises
    ------
    InputError
        A key is in both, or not of the screen; profiles have another shape or missing values.
    """
    import pandas as pd

    if both := sorted(set(train) & set(test)):
        raise InputError(f"{listing(both)} is in train and test.", "Judge conditions that were not learnt from.")
    if clash := sorted(set(predicted) & set(BASELINES)):
        raise InputError(f"{listing(clash)} is a baseline's name.", "Call the prediction otherwise.")
    known = screen.profiles.select(list(train))
    truth = screen.profiles.values[screen.profiles.rows(test)]
    control = screen.profiles.control_of(test)
    reference = mean_effect(known, test)
    found = {name: predict(known, test) for name, predict in BASELINES.items()}
    for name, own in predicted.items():
        profiles = own if isinstance(own, np.ndarray) else predict_keys(own, screen, test)
        if profiles.shape != truth.shape or not np.isfinite(profiles).all():
            raise InputError(f"{name!r} gives profiles {profiles.shape}, {truth.shape} finite numbers are needed.")
        found[name] = profiles
    rows = []
    for name, profiles in found.items():
        for i, key in enumerate(test):
            top = screen.top.get(key)
            row: dict[str, str | float] = {"predictor": name, "context": key[0], "condition": key[1]}
            row |= _scores(truth[i], profiles[i], control[i], reference[i], slice(None), "")
            row |= _scores(truth[i], profiles[i], control[i], reference[i], top, "_top20")
            rows.append(row)
    return ScreenScores(pd.DataFrame(rows))


def _scores(
    truth: np.ndarray,
    found: np.ndarray,
    control: np.ndarray,
    reference: np.ndarray,
    at: slice | np.ndarray | None,
    suffix: str,
) -> dict[str, float]:
    names = ("mse", "r2_mean", "r2_delta", "pearson_delta", "pearson_delta_mean")
    if at is None or not np.isfinite(found).all():
        return {f"{name}{suffix}": float("nan") for name in names}
    m, q, c, r = truth[at], found[at], control[at], reference[at]
    values = (mse(m, q), r2_mean(m, q), r2_delta(m, q, c), pearson_delta(m, q, c), pearson_delta(m, q, r))
    return {f"{name}{suffix}": value for name, value in zip(names, values, strict=True)}
