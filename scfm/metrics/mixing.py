"""Are batches mixed, and labels not, in the neighbourhood of every cell? LISI and kBET."""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError
from scfm.metrics.scores import Score, levels

__all__ = ["clisi", "ilisi", "ilisi_ceiling", "kbet", "kbet_p_values", "lisi"]

_STEPS, _TOLERANCE = 50, 1e-5  # of the bisection, as in the authors' compute_lisi


def lisi(distances: np.ndarray, groups: np.ndarray, indices: np.ndarray, *, k: int = 90) -> np.ndarray:
    """Local inverse Simpson's index (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0): groups in a cell's neighbourhood.

        p_ij proportional to exp(-beta_i d_ij) over the k - 1 nearest other cells, entropy(p_i) = log(k // 3)
        LISI_i = 1 / sum over groups g of (sum of p_ij over j in g)^2

    The distance is plain, not squared. beta_i is found by bisection (from 1, doubled or halved, at most 50 steps, 1e-5 in entropy).

    Parameters
    ----------
    distances, indices
        (n_cells, at least k - 1) of the nearest other cells (`scfm.neighbours.neighbours`, Euclidean).
    groups
        (n_cells,) batches or labels.
    k
        Neighbours, the cell itself counted.

    Returns
    -------
    np.ndarray
        (n_cells,) float64 from 1 to the number of groups.
    """
    d, near = nearest(distances, k - 1), nearest(indices, k - 1)
    names, codes = levels(groups, len(d), "groups")
    perplexity = k // 3
    if perplexity < 1:
        raise InputError(f"k={k}; LISI needs three or more.")
    d = d - d[:, :1]  # weights are the same, and never all 0
    aim = np.log(perplexity)
    beta, low, high = np.ones(len(d)), np.zeros(len(d)), np.full(len(d), np.inf)
    p = np.empty_like(d)
    active = np.arange(len(d))
    for step in range(_STEPS + 1):
        weights = np.exp(-beta[active, None] * d[active])
        total = weights.sum(axis=1)
        p[active] = weights / total[:, None]
        excess = np.log(total) + beta[active] * (d[active] * p[active]).sum(axis=1) - aim
        off = np.abs(excess) >= _TOLERANCE
        if not off.any() or step == _STEPS:
            break
        active, excess = active[off], excess[off]
        low[active] = np.where(excess > 0, beta[active], low[active])
        high[active] = np.where(excess > 0, high[active], beta[active])
        open_end = np.isinf(high[active])
        beta[active] = np.where(open_end, beta[active] * 2, (low[active] + np.where(open_end, 0, high[active])) / 2)
    shares = np.zeros((len(d), len(names)))
    for group in range(len(names)):
        shares[:, group] = (p * (codes[near] == group)).sum(axis=1)
    return 1 / (shares**2).sum(axis=1)


def ilisi(distances: np.ndarray, batch: np.ndarray, indices: np.ndarray, *, k: int = 90) -> Score:
    """Integration LISI, (median LISI of batches - 1) / (batches - 1): 0 is apart; `ilisi_ceiling` is the most it can be.

    The median hides rare types, and labels that are mixed too (`clisi`) raise it as well.

    Parameters
    ----------
    distances, indices, k
        As for `lisi`.
    batch
        (n_cells,).
    """
    k = min(k, len(batch), indices.shape[1] + 1)
    convention = f"(median - 1) / (batches - 1), k {k} with itself, perplexity {k // 3}, exp(-beta d)"
    names, codes = levels(batch, len(batch), "batch")
    if (reason := _undefined(names, k, "batch")) is not None:
        return Score(np.nan, convention, len(batch), reason)
    values = (lisi(distances, batch, indices, k=k) - 1) / (len(names) - 1)
    strata = {str(name): float(np.median(values[codes == i])) for i, name in enumerate(names)}
    return Score(
        float(np.median(values)),
        convention,
        len(values),
        strata=strata,
        resample=lambda rows: float(np.median(values[rows])),
    )


def clisi(distances: np.ndarray, labels: np.ndarray, indices: np.ndarray, *, k: int = 90) -> Score:
    """Cell-type LISI, (labels - median LISI of labels) / (labels - 1): 1 where neighbours have one label.

    Parameters
    ----------
    distances, indices, k
        As for `lisi`.
    labels
        (n_cells,).
    """
    k = min(k, len(labels), indices.shape[1] + 1)
    convention = f"(labels - median) / (labels - 1), k {k} with itself, perplexity {k // 3}, exp(-beta d)"
    names, codes = levels(labels, len(labels))
    if (reason := _undefined(names, k, "label")) is not None:
        return Score(np.nan, convention, len(labels), reason)
    values = (len(names) - lisi(distances, labels, indices, k=k)) / (len(names) - 1)
    strata = {str(name): float(np.median(values[codes == i])) for i, name in enumerate(names)}
    return Score(
        float(np.median(values)),
        convention,
        len(values),
        strata=strata,
        resample=lambda rows: float(np.median(values[rows])),
    )


def _undefined(names: np.ndarray, k: int, what: str) -> str | None:
    if len(names) < 2:
        return f"one {what} only"
    return f"{k} cells are too few for LISI" if k < 3 else None


def ilisi_ceiling(batch: np.ndarray) -> float:
    """What `ilisi` is when batches of these sizes are perfectly mixed: (1 / sum of f_b^2 - 1) / (batches - 1); 1 for equal ones.

    Parameters
    ----------
    batch
        (n_cells,); NaN is returned for one batch.
    """
    names, codes = levels(batch, len(batch), "batch")
    if len(names) < 2:
        return np.nan
    shares = np.bincount(codes) / len(codes)
    return float((1 / (shares**2).sum() - 1) / (len(names) - 1))


def kbet_p_values(batch: np.ndarray, indices: np.ndarray, *, k: int = 50) -> np.ndarray:
    """p-value of every cell: could its neighbourhood be a draw from all cells?

        chi2_i = sum over batches b of (n_ib - k f_b)^2 / (k f_b), compared with chi2 of (batches - 1) degrees of freedom

    Parameters
    ----------
    batch
        (n_cells,), f_b are their shares.
    indices
        (n_cells, at least k - 1) of the nearest other cells.
    k
        Neighbours, the cell itself counted.
    """
    from scipy.stats import chi2

    near = nearest(indices, k - 1)
    names, codes = levels(batch, len(near), "batch")
    counts = np.stack([(codes[near] == b).sum(axis=1) + (codes == b) for b in range(len(names))], axis=1)
    expected = k * np.bincount(codes) / len(codes)
    return chi2.sf(((counts - expected) ** 2 / expected).sum(axis=1), len(names) - 1)


def kbet(batch: np.ndarray, indices: np.ndarray, *, k: int = 50, alpha: float = 0.05) -> Score:
    """kBET acceptance (Büttner et al. 2019, doi:10.1038/s41592-018-0254-1), plain form: share of cells with p >= alpha.

    The whole graph is tested against the shares of batches among all cells (scIB's form tests within labels, on diffusion distances).
    Larger k, lower score; p-values of neighbours are not independent.

    Parameters
    ----------
    batch, indices, k
        As for `kbet_p_values`.
    alpha
        Level of the test.
    """
    k = min(k, len(batch), indices.shape[1] + 1)
    convention = f"plain: acceptance on the whole graph, k {k} with itself, alpha {alpha}"
    names, codes = levels(batch, len(batch), "batch")
    if len(names) < 2:
        return Score(np.nan, convention, len(batch), "one batch only")
    accepted = (kbet_p_values(batch, indices, k=k) >= alpha).astype(float)
    strata = {str(name): float(accepted[codes == i].mean()) for i, name in enumerate(names)}
    return Score(
        float(accepted.mean()),
        convention,
        len(accepted),
        strata=strata,
        resample=lambda rows: float(accepted[rows].mean()),
    )


def nearest(array: np.ndarray, k: int) -> np.ndarray:
    """The first k columns of distances or indices.

    Raises
    ------
    InputError
        There are fewer.
    """
    if array.shape[1] < k:
        raise InputError(f"{k} neighbours without the cell itself are needed, {array.shape[1]} are given.")
    return np.asarray(array[:, :k])
