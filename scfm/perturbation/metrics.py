"""How far predicted responses are from measured ones: the classic scores, of one condition each, profiles in and one number out.

Undefined is NaN, never 0: a constant prediction has no correlation. Profiles are log expression (n_genes,). Control-referenced scores
reward predicting the mean of all perturbations (arXiv 2506.22641), so that none of these should be read without the baselines beside it.
"""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError
from scfm.metrics.classification import auroc, average_precision

__all__ = [
    "auprc_ratio",
    "auroc_de",
    "cosine",
    "direction_shares",
    "mse",
    "pearson",
    "pearson_delta",
    "r2_delta",
    "r2_mean",
    "rank_of_own",
    "scaled",
    "weighted_mse",
    "weighted_r2_delta",
    "weights_of",
    "within_sigma",
]


def mse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """mean((m - q)^2)."""
    return float(np.mean((truth - predicted) ** 2))


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Correlation over genes; NaN where a side is constant (GEARS writes 0)."""
    a, b = truth - truth.mean(), predicted - predicted.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    # what is left of equal numbers after subtracting their mean is no variation
    flat = min(np.ptp(truth) / (np.abs(truth).max() + 1e-300), np.ptp(predicted) / (np.abs(predicted).max() + 1e-300))
    return float(a @ b / norm) if norm > 0 and flat > 1e-12 else float("nan")


def pearson_delta(truth: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> float:
    """corr(q - ref, m - ref). With the control as reference it is the classic score, with the mean of the training perturbations the
    calibrated one, in which that mean itself has no correlation."""
    return pearson(truth - reference, predicted - reference)


def r2_mean(truth: np.ndarray, predicted: np.ndarray) -> float:
    """1 - sum((m - q)^2) / sum((m - mean(m))^2), scikit-learn's r2_score; not the square of Pearson's r."""
    return _r2(truth, predicted, truth.mean())


def r2_delta(truth: np.ndarray, predicted: np.ndarray, control: np.ndarray) -> float:
    """1 - sum((m - q)^2) / sum((m - c)^2): 1 is perfect, 0 as good as no change, negative is harmful."""
    return _r2(truth, predicted, control)


def _r2(truth: np.ndarray, predicted: np.ndarray, reference: np.ndarray | float) -> float:
    total = np.sum((truth - reference) ** 2)
    return float(1 - np.sum((truth - predicted) ** 2) / total) if total > 0 else float("nan")


def direction_shares(truth: np.ndarray, predicted: np.ndarray, control: np.ndarray) -> tuple[float, float]:
    """Shares of the genes whose change from control is predicted in the right, and in the opposite direction."""
    true, called = np.sign(truth - control), np.sign(predicted - control)
    return float(np.mean(true == called)), float(np.mean(true * called < 0))


def within_sigma(truth: np.ndarray, predicted: np.ndarray, sigma: np.ndarray) -> float:
    """Share of the genes predicted within one standard deviation of the condition's cells."""
    return float(np.mean(np.abs(predicted - truth) <= sigma))


def weights_of(scores: np.ndarray) -> np.ndarray:
    """Weights of genes from a test's scores: |score| scaled to [0, 1], squared, summing to 1 (arXiv 2506.22641, recalled, not verified).

    Uniform where all scores are equal.
    """
    size = np.abs(scores) - np.abs(scores).min()
    weights = (size / size.max()) ** 2 if size.max() > 0 else np.ones_like(size)
    return weights / weights.sum()


def weighted_mse(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    """sum(w (m - q)^2), w of sum 1."""
    return float(weights @ (truth - predicted) ** 2)


def weighted_r2_delta(truth: np.ndarray, predicted: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> float:
    """1 - sum(w (m - q)^2) / sum(w (d - wmean(d))^2) with d = m - reference, the mean of all perturbations."""
    change = truth - reference
    total = weights @ (change - weights @ change) ** 2
    return float(1 - weighted_mse(truth, predicted, weights) / total) if total > 0 else float("nan")


def auroc_de(significant: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of finding the significant genes by a score, e.g. |predicted log fold change|; NaN without both classes."""
    return auroc(significant, score)


def auprc_ratio(significant: np.ndarray, score: np.ndarray) -> float:
    """Average precision of the same over the share of significant genes: 1 is random. NaN without both classes."""
    if significant.all() or not significant.any():
        return float("nan")
    return average_precision(significant, score) / float(significant.mean())


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of every row of a (n, g) with every row of b (m, g); 0 with an all-zero row."""

    def unit(x: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)

    return unit(np.asarray(a, np.float64)) @ unit(np.asarray(b, np.float64)).T


def rank_of_own(distance: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Normalised rank of each prediction's own truth among all: 0 is the nearest, 0.5 random, 1 the farthest (PerturBench's rank).

    Parameters
    ----------
    distance
        (n_predicted, n_true).
    own
        (n_predicted,) column of its own truth. Equal distances share the mean of their ranks, so that a constant prediction has 0.5.

    Returns
    -------
    np.ndarray
        (n_predicted,) float64 in [0, 1]; NaN where there is one truth only.
    """
    mine = distance[np.arange(len(own)), own][:, None]
    # distances of equal profiles differ in their last bits
    equal = np.isclose(distance, mine, rtol=1e-12, atol=1e-12)
    rank = ((distance < mine) & ~equal).sum(axis=1) + (equal.sum(axis=1) - 1) / 2
    return rank / (distance.shape[1] - 1) if distance.shape[1] > 1 else np.full(len(own), np.nan)


def scaled(value: float, baseline: float, ceiling: float) -> float:
    """(u - b) / (r - b): 0 is the baseline, 1 the agreement of replicates; for errors and scores alike. NaN where r = b."""
    if np.shape(value) != () or np.shape(baseline) != () or np.shape(ceiling) != ():
        raise InputError("scaled() takes three numbers.")
    return float((value - baseline) / (ceiling - baseline)) if ceiling != baseline else float("nan")
