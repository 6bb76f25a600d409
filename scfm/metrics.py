"""Numbers in, numbers out: label transfer and its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scfm.errors import InputError

__all__ = ["Estimate", "bootstrap_mean", "knn_labels"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def knn_labels(reference: np.ndarray, labels: np.ndarray, query: np.ndarray, *, k: int = 15) -> np.ndarray:
    """Label of each query cell by majority vote of its nearest reference cells.

    Parameters
    ----------
    reference
        (n_reference, dim) embeddings, compared by cosine.
    labels
        (n_reference,) labels of the reference cells.
    query
        (n_query, dim) embeddings.
    k
        Neighbours that vote, each with one vote; ties go to the label that sorts first (scikit-learn's rule).

    Returns
    -------
    np.ndarray
        (n_query,) labels.

    Raises
    ------
    InputError
        There are fewer than k reference cells, or an embedding has NaN (cells without any known gene).
    """
    from sklearn.neighbors import KNeighborsClassifier

    if len(reference) < k:
        raise InputError(
            f"k={k} neighbours are asked for, the reference has {len(reference)} cells.", "Pass a smaller k."
        )
    for name, embedding in (("reference", reference), ("query", query)):
        if bad := int(np.isnan(embedding).any(axis=1).sum()):
            raise InputError(
                f"{bad} {name} cells have NaN embeddings.", "Remove cells without any gene the model knows."
            )
    vote = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute").fit(reference, labels)
    return vote.predict(query)


def bootstrap_mean(values: np.ndarray, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean over cells with its percentile bootstrap interval (Efron 1979, doi:10.1214/aos/1176344552).

    Parameters
    ----------
    values
        (n_cells,) numbers, e.g. whether each cell was labelled correctly.
    level
        Coverage of the interval.
    resamples
        Bootstrap samples.
    """
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high))
