"""What is not known: calibrated probabilities, prediction sets with a stated error, novelty scores and rejection at a stated error.

Everything here is learned on cells held out from training. Its guarantees hold for new cells that are exchangeable with those: drawn from
the same donors, types and machines. A shift breaks them, which only labelled cells of the new kind can show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from scfm.errors import InputError, listing

__all__ = [
    "Conformal",
    "Mahalanobis",
    "conformal_p_values",
    "conformal_quantile",
    "energy_score",
    "fit_temperature",
    "knn_distance",
    "max_softmax_score",
    "softmax",
]

_TEMPERATURES = (1e-2, 1e2)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """exp(z / T) / sum exp(z / T) over the last axis, float64; the highest stays the highest."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature T at which softmax(z / T) is most likely (Guo et al. 2017, arXiv:1706.04599); it changes no label.

    Each of the m cells counts as 1 - e for its class and e for all classes evenly, e = 1 / (m + 2), as in Platt 1999: where all held-out
    cells are right, T would otherwise fall until every probability is 1.

    Parameters
    ----------
    logits
        (n_cells, L) of held-out cells.
    truth
        (n_cells,) their classes, from 0.

    Returns
    -------
    float
        In [0.01, 100]; the upper end where logits say nothing.

    Raises
    ------
    InputError
        There are no cells, or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = np.asarray(logits, dtype=np.float64)
    if not len(logits) or not np.isfinite(logits).all():
        raise InputError(f"a temperature needs finite logits of held-out cells; found {logits.shape}.")
    doubt = 1 / (len(logits) + 2)
    own = (1 - doubt) * logits[np.arange(len(logits)), truth] + doubt * logits.mean(axis=1)

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        return float((logsumexp(logits / t, axis=1) - own / t).mean())

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


# Prediction sets


def conformal_quantile(scores: np.ndarray, alpha: float) -> float:
    """The ceil((m + 1)(1 - alpha))-th smallest of m scores; infinite if there are fewer (Vovk et al. 2005, doi:10.1007/b106715).

    A new score, exchangeable with these, is at most this large with probability 1 - alpha or more.

    Raises
    ------
    InputError
        `alpha` is not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha} is no error level.", "Pass a number between 0 and 1, e.g. 0.1.")
    m = len(scores)
    # rounded, so that (9 + 1)(1 - 0.1) is 9 and not 9.000000000000002
    rank = int(np.ceil(np.round((m + 1) * (1 - alpha), 9)))
    return float("inf") if rank > m else float(np.partition(scores, rank - 1)[rank - 1])


@dataclass(frozen=True)
class Conformal:
    """Sets of labels that hold the true one with a chance of 1 - alpha or more (split conformal prediction).

    Attributes
    ----------
    thresholds
        (L,) highest score a label may have to be in the set; equal without `conditional`. Infinite where calibration cells were too few.
    counts
        (L,) calibration cells of each class.
    alpha
        Error level asked for.
    score
        "lac": 1 - p of the label (Sadinle et al. 2019, doi:10.1080/01621459.2017.1395341). "aps": probability of all labels down to this
        one (Romano et al. 2020, arXiv:2006.02544, without randomisation, hence on the safe side); larger sets, more even over hard cells.
    conditional
        A threshold for each class (Mondrian): the chance holds within every class.
    """

    thresholds: np.ndarray
    counts: np.ndarray
    alpha: float
    score: str
    conditional: bool

    @classmethod
    def fit(
        cls,
        probabilities: np.ndarray,
        truth: np.ndarray,
        *,
        alpha: float,
        score: Literal["lac", "aps"] = "lac",
        conditional: bool = False,
    ) -> Self:
        """Thresholds from calibration cells, which nothing else was fitted on.

        Parameters
        ----------
        probabilities
            (m, L) of the calibration cells.
        truth
            (m,) their classes, from 0.
        alpha, score, conditional
            As for the class.
        """
        probabilities = np.asarray(probabilities, dtype=np.float64)
        own = _scores(probabilities, score)[np.arange(len(truth)), truth]
        n_classes = probabilities.shape[1]
        counts = np.bincount(truth, minlength=n_classes)
        if conditional:
            thresholds = np.array([conformal_quantile(own[truth == c], alpha) for c in range(n_classes)])
        else:
            thresholds = np.full(n_classes, conformal_quantile(own, alpha))
        return cls(thresholds, counts, alpha, score, conditional)

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """(n_cells, L) bool, the labels in each cell's set; it may be empty, or hold all labels."""
        return _scores(np.asarray(probabilities, dtype=np.float64), self.score) <= self.thresholds + 1e-12

    def notes(self, classes: Sequence[str]) -> list[str]:
        """What a reader should know: where there were too few calibration cells."""
        short = [name for name, t in zip(classes, self.thresholds, strict=True) if not np.isfinite(t)]
        if not short:
            return []
        need = int(np.ceil(np.round(1 / self.alpha, 9))) - 1
        if not self.conditional:
            return [
                f"{self.counts.sum()} calibration cells are too few for alpha={self.alpha} ({need} are needed): every set holds all labels."
            ]
        return [
            f"fewer than {need} calibration cells, the least for alpha={self.alpha}, of {listing(short)}: in every set."
        ]


def _scores(probabilities: np.ndarray, score: str) -> np.ndarray:
    """Nonconformity of every label (n_cells, L)."""
    if score == "lac":
        return 1 - probabilities
    if score != "aps":
        raise InputError(f"score={score!r} is not known.", "Pass 'lac' or 'aps'.")
    order = np.argsort(-probabilities, axis=1, kind="stable")
    down = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    out = np.empty_like(probabilities)
    np.put_along_axis(out, order, down, axis=1)
    return out


def conformal_p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How usual each score is among calibration cells: p = (1 + #{calibration >= score}) / (m + 1) (Vovk et al. 2005).

    Rejecting cells with p <= level rejects a cell like the calibration cells with a chance of at most `level`. The smallest p is
    1 / (m + 1), so that m < 1 / level - 1 calibration cells reject nothing.

    Parameters
    ----------
    calibration
        (m,) novelty scores of held-out cells of known types.
    scores
        (n_cells,) of new cells; NaN gives NaN.
    """
    order = np.sort(np.asarray(calibration, dtype=np.float64))
    scores = np.asarray(scores, dtype=np.float64)
    p = (1 + len(order) - np.searchsorted(order, scores, side="left")) / (len(order) + 1)
    return np.where(np.isnan(scores), np.nan, p)


# Novelty: the larger, the less like the reference


def max_softmax_score(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """1 - the highest probability (Hendrycks & Gimpel 2017, arXiv:1610.02136), (n_cells,)."""
    return 1 - softmax(logits, temperature).max(axis=1)


def energy_score(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Energy -T log sum_c exp(z_c / T) (Liu et al. 2020, arXiv:2010.03759), (n_cells,).

    Raises
    ------
    InputError
        The logits are log-probabilities, whose energy is 0 for every cell.
    """
    from scipy.special import logsumexp

    logits = np.asarray(logits, dtype=np.float64)
    if len(logits) and np.abs(logsumexp(logits, axis=1)).max() < 1e-6:
        raise InputError(
            "the logits are log-probabilities; their energy is 0 for every cell.", "Use another novelty score."
        )
    return -temperature * logsumexp(logits / temperature, axis=1)


@dataclass(frozen=True)
class Mahalanobis:
    """Distance to the nearest class in units of the spread within classes (Lee et al. 2018, arXiv:1807.03888).

    min_c (z - m_c)' S^-1 (z - m_c), with one covariance S for all classes, shrunk as by Ledoit & Wolf 2004
    (doi:10.1016/S0047-259X(03)00096-4), so that it can be inverted with fewer cells than dimensions.

    Attributes
    ----------
    means
        (L, dim) of the classes, after `whitening`.
    whitening
        (dim, dim) W with W W' = S^-1.
    """

    means: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fit(cls, embedding: np.ndarray, labels: np.ndarray) -> Self:
        """Means and covariance.

        Parameters
        ----------
        embedding
            (n_cells, dim) of reference cells.
        labels
            (n_cells,) their classes; any values.
        """
        from sklearn.covariance import LedoitWolf

        z = np.asarray(embedding, dtype=np.float64)
        numbers = np.unique(labels, return_inverse=True)[1]
        sums = np.zeros((numbers.max() + 1, z.shape[1]))
        np.add.at(sums, numbers, z)
        means = sums / np.bincount(numbers)[:, None]
        covariance = LedoitWolf(assume_centered=True).fit(z - means[numbers]).covariance_
        values, vectors = np.linalg.eigh(covariance)
        floor = np.finfo(np.float64).eps * max(values.max(), np.finfo(np.float64).tiny) * len(values)
        whitening = vectors / np.sqrt(np.maximum(values, floor))
        return cls(means @ whitening, whitening)

    def score(self, embedding: np.ndarray) -> np.ndarray:
        """Squared distance to the nearest class (n_cells,)."""
        from scipy.spatial.distance import cdist

        return cdist(np.asarray(embedding, dtype=np.float64) @ self.whitening, self.means, "sqeuclidean").min(axis=1)


def knn_distance(distances: np.ndarray) -> np.ndarray:
    """Distance to the k-th nearest reference cell (Sun et al. 2022, arXiv:2204.06507), (n_cells,).

    Parameters
    ----------
    distances
        (n_cells, k) to the nearest reference cells, ascending.
    """
    return np.asarray(distances, dtype=np.float64)[:, -1]
