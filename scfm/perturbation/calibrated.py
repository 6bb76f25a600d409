"""Scores whose scale is known: what a mean reaches and what a replicate of the experiment reaches.

Definitions of the 2026 virtual cell competition (cell-eval2 0.20), of one condition each. Read them as (u - b) / (r - b), with b that of
the mean response and r that of half of the cells predicted by the other half.
"""

from __future__ import annotations

import numpy as np

from scfm.perturbation.de import DE
from scfm.perturbation.metrics import cosine, rank_of_own

__all__ = [
    "direction_fidelity",
    "direction_reach",
    "expression_error",
    "jaccard_significant",
    "lfc_error",
    "perturbation_discrimination",
]

PURITY = 0.9
LEAST_GENES = 10


def perturbation_discrimination(
    predicted: np.ndarray, truth: np.ndarray, own: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """PDS: 1 - normalised rank of a condition's own measured effect among all, by cosine distance to the predicted effect.

    Parameters
    ----------
    predicted
        (n_predicted, n_genes) predicted profile minus measured control.
    truth
        (n_true, n_genes) measured profile minus control.
    own
        (n_predicted,) row of `truth` that each predicts.
    targets
        (n_genes,) bool: genes perturbed anywhere in the panel. They are left out: naming the target is no prediction.

    Returns
    -------
    np.ndarray
        (n_predicted,) in [0, 1]; 0.5 is random, and what a constant prediction has on average.
    """
    return 1 - rank_of_own(1 - cosine(predicted[:, ~targets], truth[:, ~targets]), own)


def expression_error(
    predicted: np.ndarray, truth: np.ndarray, noise_predicted: float, noise_truth: float, kept: np.ndarray | None = None
) -> float:
    """Squared distance of two profiles without their sampling noise: ||q - m||^2 - v_q - v_m, may be negative.

    Parameters
    ----------
    predicted, truth
        (n_genes,) log profiles.
    noise_predicted, noise_truth
        Sampling variance of each, summed over genes (`jackknife_variance`); 0 for a prediction that is no sample of cells.
    kept
        (n_genes,) bool; the condition's own genes are left out. The variance stays that of all genes, as in the original.

    Notes
    -----
    Divide the sum over conditions by the same distance of truth from control: 0 is perfect, 1 as far as no change. The competition also
    caps what a submission may subtract; a cap against gaming is not needed here.
    """
    difference = predicted - truth if kept is None else (predicted - truth)[kept]
    return float(difference @ difference - noise_predicted - noise_truth)


def direction_fidelity(predicted: DE, truth: DE, *, alpha: float = 0.05, skip: np.ndarray | None = None) -> float:
    """Correct calls / max(calls, truly significant genes). A call is a gene predicted significant whose true change has a direction.

    NaN where nothing is truly significant.
    """
    use = _use(predicted, truth, skip) & (truth.log2fc != 0)
    calls = use & predicted.significant(alpha)
    true = int((use & truth.significant(alpha)).sum())
    correct = int((calls & _same_sign(predicted, truth)).sum())
    return correct / max(int(calls.sum()), true) if true else float("nan")


def direction_reach(predicted: DE, truth: DE, *, alpha: float = 0.05, skip: np.ndarray | None = None) -> float:
    """How deep the prediction's ranking of the truly significant genes keeps 90 % of directions right, as a share of them.

    Ranked by the predicted q, then p, then |log2 fold change|. NaN where nothing is truly significant.
    """
    at = np.flatnonzero(_use(predicted, truth, skip) & truth.significant(alpha) & (truth.log2fc != 0))
    if not len(at):
        return float("nan")
    order = np.lexsort((-np.abs(predicted.log2fc[at]), predicted.p[at], predicted.q[at]))
    right = _same_sign(predicted, truth)[at][order]
    purity = np.cumsum(right) / np.arange(1, len(at) + 1)
    pure = np.flatnonzero(purity >= PURITY)
    return float((pure[-1] + 1) / len(at)) if len(pure) else 0.0


def jaccard_significant(predicted: DE, truth: DE, *, alpha: float = 0.05, skip: np.ndarray | None = None) -> float:
    """|both| / |either| of the significant sets; 1 where neither side has any."""
    use = _use(predicted, truth, skip)
    a, b = use & predicted.significant(alpha), use & truth.significant(alpha)
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


def lfc_error(predicted: DE, truth: DE, *, alpha: float = 0.05, skip: np.ndarray | None = None) -> float:
    """sum |predicted - true log2 fold change| / sum |true| over the truly significant genes; 1 is no change. NaN below ten of them."""
    use = _use(predicted, truth, skip) & truth.significant(alpha)
    if use.sum() < LEAST_GENES:
        return float("nan")
    wrong = np.abs(predicted.log2fc - truth.log2fc)[use].sum()
    return float(wrong / np.abs(truth.log2fc[use]).sum())


def _use(predicted: DE, truth: DE, skip: np.ndarray | None) -> np.ndarray:
    use = predicted.tested & truth.tested
    return use if skip is None else use & ~skip


def _same_sign(predicted: DE, truth: DE) -> np.ndarray:
    return np.sign(predicted.log2fc) * np.sign(truth.log2fc) > 0
