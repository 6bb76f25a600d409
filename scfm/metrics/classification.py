"""How well labels and their probabilities agree with the truth.

Labels are numbers of classes, 0 to L - 1, so that a bootstrap of them is fast. Undefined is NaN, never 0. Formulas follow scikit-learn's
conventions, with which the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "brier_score",
    "class_auroc",
    "class_scores",
    "confusion_matrix",
    "coverage_risk",
    "expected_calibration_error",
    "f1",
    "macro_precision_recall",
    "per_class",
    "reliability",
    "risk_at",
]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Cells of each class (rows) by the class they were given (columns).

    Parameters
    ----------
    truth
        (n_cells,) classes from 0.
    predicted
        (n_cells,) classes from 0; -1 for cells that were given none.
    n_classes
        L.

    Returns
    -------
    np.ndarray
        (L, L + 1) int64; the last column counts cells without a label.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise InputError(f"{truth.shape} true and {predicted.shape} given labels; one of each per cell is needed.")
    if len(truth) and (truth.min() < 0 or max(truth.max(), predicted.max()) >= n_classes or predicted.min() < -1):
        raise InputError(f"labels are not classes 0 to {n_classes - 1}.", "Score only cells whose class is known.")
    column = np.where(predicted < 0, n_classes, predicted)
    return np.bincount(truth * (n_classes + 1) + column, minlength=n_classes * (n_classes + 1)).reshape(n_classes, -1)


def accuracy(confusion: np.ndarray) -> float:
    """Share of cells given their class: sum_c n_cc / n."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def _recall(confusion: np.ndarray) -> np.ndarray:
    """(L,) n_cc / n_c; NaN for classes without cells."""
    n = confusion.sum(axis=1)
    return np.divide(np.diagonal(confusion), n, out=np.full(len(n), np.nan), where=n > 0)


def _precision(confusion: np.ndarray) -> np.ndarray:
    """(L,) n_cc / cells given c; 0 where a class is never given, as scikit-learn's ``zero_division=0``."""
    given = confusion[:, : len(confusion)].sum(axis=0)
    return np.divide(np.diagonal(confusion), given, out=np.zeros(len(confusion)), where=given > 0)


def _class_f1(confusion: np.ndarray) -> np.ndarray:
    """(L,) 2 n_cc / (n_c + cells given c); NaN for classes neither there nor given."""
    both = confusion.sum(axis=1) + confusion[:, : len(confusion)].sum(axis=0)
    return np.divide(2.0 * np.diagonal(confusion), both, out=np.full(len(confusion), np.nan), where=both > 0)


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall of the classes that have cells (Brodersen et al. 2010, doi:10.1109/ICPR.2010.764)."""
    return _mean(_recall(confusion))


def f1(confusion: np.ndarray, average: str = "macro") -> float:
    """F1 averaged over classes, F1_c = 2 n_cc / (n_c + cells given c).

    Parameters
    ----------
    confusion
        From `confusion_matrix`.
    average
        "macro": plain mean over the classes that have cells or were given; "weighted": by the number of cells of the class.
    """
    scores = _class_f1(confusion)
    if average == "macro":
        return _mean(scores)
    if average != "weighted":
        raise InputError(f"average={average!r} is not known.", "Pass 'macro' or 'weighted'.")
    n = confusion.sum(axis=1)
    return float((n[n > 0] * scores[n > 0]).sum() / n.sum()) if n.sum() else float("nan")


def macro_precision_recall(confusion: np.ndarray) -> tuple[float, float]:
    """Precision and recall, plain means over the classes that have cells or were given (one without cells has recall 0)."""
    seen = np.isfinite(_class_f1(confusion))
    return _mean(_precision(confusion)[seen]), _mean(np.nan_to_num(_recall(confusion)[seen]))


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: chance that a positive has a higher score than a negative, ties counting half.

        (sum of the ranks of positives - p (p + 1) / 2) / (p n)

    (Mann & Whitney 1947, doi:10.1214/aoms/1177730491.)

    Parameters
    ----------
    positive
        (n_cells,) bool.
    score
        (n_cells,) larger for positives.

    Returns
    -------
    float
        NaN where one of the two sides is empty.
    """
    from scipy.stats import rankdata

    positive = np.asarray(positive, dtype=bool)
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        return float("nan")
    return float((rankdata(score)[positive].sum() - p * (p + 1) / 2) / (p * n))


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under precision and recall by steps, sum_t (R_t - R_{t-1}) P_t; chance is the share of positives. NaN without positives."""
    from sklearn.metrics import average_precision_score

    positive = np.asarray(positive, dtype=bool)
    return float(average_precision_score(positive, score)) if positive.any() else float("nan")


def class_auroc(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """AUROC of each class against the rest (L,); NaN for classes without cells and where all cells are of one class.

    Parameters
    ----------
    truth
        (n_cells,) classes from 0.
    probabilities
        (n_cells, L).
    """
    from scipy.stats import rankdata

    own = np.asarray(truth)[:, None] == np.arange(probabilities.shape[1])  # (n_cells, L)
    p = own.sum(axis=0)
    pairs = p * (len(own) - p)
    above = (rankdata(probabilities, axis=0) * own).sum(axis=0) - p * (p + 1) / 2
    return np.divide(above, pairs, out=np.full(len(p), np.nan), where=pairs > 0)


def class_scores(confusion: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 of each class (L, 3); NaN where not defined."""
    return np.stack([_precision(confusion), _recall(confusion), _class_f1(confusion)], axis=1)


def per_class(
    truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str], probabilities: np.ndarray | None = None
) -> pd.DataFrame:
    """Precision, recall, F1 and AUROC (one class against the rest) of every class.

    Parameters
    ----------
    truth, predicted
        (n_cells,) classes from 0; -1 in `predicted` is no label.
    classes
        Their names.
    probabilities
        (n_cells, L), for the AUROC.

    Returns
    -------
    pd.DataFrame
        One row a class; `cells` of it, cells `given` it.
    """
    import pandas as pd

    confusion = confusion_matrix(truth, predicted, len(classes))
    columns = {
        "cells": confusion.sum(axis=1),
        "given": confusion[:, : len(classes)].sum(axis=0),
        **dict(zip(("precision", "recall", "f1"), class_scores(confusion).T, strict=True)),
    }
    if probabilities is not None:
        columns["auroc"] = class_auroc(truth, probabilities)
    return pd.DataFrame(columns, index=pd.Index(list(classes), dtype=object, name="class"))


# Probabilities


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Accuracy of cells of similar confidence, in bins of equal width: the reliability diagram.

    Parameters
    ----------
    confidence
        (n_cells,) probability of the label given, in [0, 1].
    correct
        (n_cells,) whether it is the true one.
    bins
        Intervals (low, high] of [0, 1]; 0 belongs to the first.

    Returns
    -------
    pd.DataFrame
        `low`, `high`, `cells`, `confidence` (mean), `accuracy`; NaN in empty bins.
    """
    import pandas as pd

    confidence = np.asarray(confidence, dtype=np.float64)
    if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-9):
        raise InputError("confidences are not probabilities in [0, 1].")
    edges = np.linspace(0, 1, bins + 1)
    at = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    n = np.bincount(at, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.divide(np.bincount(at, values, minlength=bins), n, out=np.full(bins, np.nan), where=n > 0)

    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "cells": n,
            "confidence": mean(confidence),
            "accuracy": mean(np.asarray(correct, dtype=np.float64)),
        }
    )


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy, ECE = sum_b n_b / n abs(accuracy_b - confidence_b) (Guo et al. 2017, arXiv:1706.04599).

    Biased upwards on few cells. Parameters as for `reliability`.
    """
    at = np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(at, np.asarray(correct, dtype=np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(at)) if len(at) else float("nan")


def brier_score(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of probabilities and truth, summed over classes: mean_i sum_c (p_ic - [y_i = c])^2, from 0 (best) to 2.

    (Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.)

    Parameters
    ----------
    truth
        (n_cells,) classes from 0.
    probabilities
        (n_cells, L).
    """
    if not len(truth):
        return float("nan")
    p = np.asarray(probabilities, dtype=np.float64)
    return float((np.square(p).sum(axis=1) - 2 * p[np.arange(len(p)), truth] + 1).mean())


# Answering fewer cells


def coverage_risk(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error among the cells answered, when the least confident are left unanswered.

    (El-Yaniv & Wiener 2010, JMLR 11:1605.) Cells of equal confidence are answered together.

    Parameters
    ----------
    confidence
        (n_cells,) any score that grows with certainty.
    correct
        (n_cells,) whether the label is the true one.

    Returns
    -------
    coverage, risk
        Share of cells answered, ascending to 1, and share of wrong labels among them; one point for each distinct confidence.
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct, dtype=bool)
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True)) if len(order) else np.zeros(0, np.int64)
    wrong = np.cumsum(~correct[order])
    return (last + 1) / max(len(order), 1), wrong[last] / (last + 1)


def risk_at(confidence: np.ndarray, correct: np.ndarray, coverage: float) -> float:
    """Share of wrong labels when (at least) this share of the cells, the most confident, is answered."""
    covered, risk = coverage_risk(confidence, correct)
    if not 0 < coverage <= 1:
        raise InputError(f"coverage={coverage} is no share of cells.", "Pass a number in (0, 1].")
    return float(risk[np.searchsorted(covered, coverage - 1e-12)]) if len(covered) else float("nan")
