"""How well scored edges agree with a list of known ones (benGRN's measures): ranking of all regulator-target pairs.

With weights w of the pairs, P the weight of true and N of false pairs, and sums over pairs from the best score down, tied pairs together:

- AUROC: chance that a true pair scores above a false one, ties half.
- AUPRC: average precision, the sum over distinct scores of precision x increase of recall; its floor is the prevalence P / (P + N).
- EPR: precision among the P best pairs over the prevalence; where a tie lies across the border, its expected precision.
- Odds ratio: odds of being true among the P best pairs over the odds among the rest, 0.5 added to each of the four numbers (Haldane 1956).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import InputError, listing
from scfm.metrics.estimates import bootstrap

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "auprc",
    "auroc",
    "candidate_edges",
    "early_precision_ratio",
    "edge_metrics",
    "evaluate_edges",
    "odds_ratio",
    "per_tf_auroc",
]

METRICS = ("auroc", "auprc", "auprc_ratio", "epr", "odds_ratio")


def _steps(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight of true and of false pairs down to and with each distinct score, best first."""
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    w = weights[order]
    return np.cumsum(w * truth[order])[ends], np.cumsum(w * ~truth[order])[ends]


def _auroc(true: np.ndarray, false: np.ndarray) -> float:
    if true[-1] == 0 or false[-1] == 0:
        return float("nan")
    rise, before = np.diff(false, prepend=0.0), np.concatenate([[0.0], true[:-1]])
    return float((rise * (before + true) / 2).sum() / (true[-1] * false[-1]))


def _auprc(true: np.ndarray, false: np.ndarray) -> float:
    if true[-1] == 0:
        return float("nan")
    seen = true + false
    precision = np.divide(true, seen, out=np.zeros_like(seen), where=seen > 0)
    return float((np.diff(true, prepend=0.0) * precision).sum() / true[-1])


def _found(true: np.ndarray, false: np.ndarray) -> float:
    """Expected weight of true pairs among the P best, P being the weight of all true pairs."""
    k = true[-1]
    seen = true + false
    i = int(np.searchsorted(seen, k - 1e-9))
    above_true, above = (true[i - 1], seen[i - 1]) if i else (0.0, 0.0)
    return float(above_true + (true[i] - above_true) * (k - above) / (seen[i] - above))


def _early(true: np.ndarray, false: np.ndarray) -> float:
    if true[-1] == 0 or false[-1] == 0:
        return float("nan")
    return _found(true, false) / true[-1] * (true[-1] + false[-1]) / true[-1]


def _odds(true: np.ndarray, false: np.ndarray) -> float:
    if true[-1] == 0 or false[-1] == 0:
        return float("nan")
    k = true[-1]
    hit = _found(true, false)
    return ((hit + 0.5) * (false[-1] - k + hit + 0.5)) / ((k - hit + 0.5) ** 2)


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve; NaN without true or false pairs. Arguments (n_pairs,) float, bool, float."""
    return _auroc(*_steps(scores, truth, weights))


def auprc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Average precision; NaN without true pairs."""
    return _auprc(*_steps(scores, truth, weights))


def early_precision_ratio(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Precision among as many best pairs as are true, over the prevalence; 1 is chance."""
    return _early(*_steps(scores, truth, weights))


def odds_ratio(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Odds of being true among as many best pairs as are true, over the odds among the rest; 1 is chance."""
    return _odds(*_steps(scores, truth, weights))


def edge_metrics(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """All of `METRICS` at once."""
    true, false = _steps(scores, truth, weights)
    total = true[-1] + false[-1]
    precision = _auprc(true, false)
    return {
        "auroc": _auroc(true, false),
        "auprc": precision,
        "auprc_ratio": precision * total / true[-1] if true[-1] else float("nan"),
        "epr": _early(true, false),
        "odds_ratio": _odds(true, false),
    }


def per_tf_auroc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUROC of each regulator's own targets (n_regulators,); NaN where all or none are true. NaN scores are no candidates."""
    found = []
    for s, t in zip(scores, truth, strict=True):
        candidate = np.isfinite(s)
        found.append(auroc(s[candidate], t[candidate]) if candidate.any() else float("nan"))
    return np.array(found)


def candidate_edges(
    regulators: Sequence[str], targets: Sequence[str], truth: pd.DataFrame
) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """The pairs a comparison is among.

    Returns
    -------
    regulators, targets
        Those that the known edges have too.
    known, candidate
        (n_regulators, n_targets) bool: known edges, and pairs of different genes.

    Raises
    ------
    InputError
        There is nothing to compare.
    """
    sources, ends = set(truth["source"]), set(truth["target"])
    rows, columns = [name for name in regulators if name in sources], [name for name in targets if name in ends]
    if not rows or not columns:
        raise InputError(
            f"the known edges share {len(rows)} regulators and {len(columns)} targets with the scored ones "
            f"(regulators here: {listing(list(regulators)[:4])}; there: {listing(truth['source'].head(4).tolist())}).",
            "Use a list of the same species, in gene symbols.",
        )
    pairs = set(zip(truth["source"], truth["target"], strict=True))
    known = np.array([[(row, column) in pairs for column in columns] for row in rows])
    candidate = np.array(rows, dtype=object)[:, None] != np.array(columns, dtype=object)[None]
    if not 0 < (known & candidate).sum() < candidate.sum():
        raise InputError(
            f"{int((known & candidate).sum())} of {int(candidate.sum()):,} candidate pairs are known edges.",
            "A comparison needs true and other pairs: pass more genes, or a longer list.",
        )
    return rows, columns, known, candidate


def evaluate_edges(
    scores: pd.DataFrame, truth: pd.DataFrame, *, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Compare scores with known edges.

    Candidates are all pairs regulator -> target, without a gene and itself, whose regulator is a row of `scores` and a source in `truth`,
    and whose target is a column of `scores` and a target in `truth` (`candidate_edges`). Pairs without a score rank last, all tied.

    Parameters
    ----------
    scores
        (n_regulators, n_targets), larger is stronger; NaN where there is none.
    truth
        Known edges: columns source and target.
    level
        Coverage of the intervals.
    resamples
        Bootstrap samples of the regulators: an edge is not independent of the others of its regulator.

    Returns
    -------
    pd.DataFrame
        Columns metric, value, low, high, unit, candidates, true, regulators, prevalence. Metrics: `METRICS` and "tf_auroc", the median over
        the regulators of the AUROC of their own targets.

    Raises
    ------
    InputError
        Scores and truth share no regulator, no target or no edge, or all pairs are true.
    """
    import pandas as pd

    rows, columns, known, candidate = candidate_edges(list(scores.index), list(scores.columns), truth)
    values = scores.loc[rows, columns].to_numpy(dtype=np.float64, copy=True)
    values[~np.isfinite(values)] = np.nanmin(values, initial=0.0) - 1.0
    values[~candidate] = np.nan
    regulator = np.broadcast_to(np.arange(len(rows))[:, None], values.shape)[candidate]
    flat, flat_truth = values[candidate], known[candidate]
    order = np.argsort(-flat, kind="stable")  # sorted once: a resample only changes the weights
    flat, flat_truth, regulator = flat[order], flat_truth[order], regulator[order]
    own = per_tf_auroc(values, known)
    cache: dict[bytes, dict[str, float]] = {}

    def all_metrics(drawn: np.ndarray) -> dict[str, float]:
        weights = np.bincount(drawn, minlength=len(rows)).astype(np.float64)
        key = weights.tobytes()
        if key not in cache:
            middle = own[drawn][np.isfinite(own[drawn])]
            cache[key] = {
                **edge_metrics(flat, flat_truth, weights[regulator]),
                "tf_auroc": float(np.median(middle)) if len(middle) else float("nan"),
            }
        return cache[key]

    found = []
    for metric in (*METRICS, "tf_auroc"):

        def one(drawn: np.ndarray, metric: str = metric) -> float:
            return all_metrics(drawn)[metric]

        estimate = bootstrap(one, len(rows), level=level, resamples=resamples, seed=seed)
        found.append({"metric": metric, "value": estimate.value, "low": estimate.low, "high": estimate.high})
    size, true = int(candidate.sum()), int((known & candidate).sum())
    return pd.DataFrame(found).assign(
        unit="regulators", candidates=size, true=true, regulators=len(rows), prevalence=true / size
    )
