"""Do clusters agree with labels?

All are from the contingency table n_ij of labels i and clusters j. NMI rises with the number of clusters, and both NMI and ARI hardly see
rare labels: look at `cluster_f1` beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scfm.metrics.scores import Score, levels

__all__ = ["ami", "ari", "cluster_f1", "nmi"]


def ari(labels: np.ndarray, clusters: np.ndarray, *, convention: str = "") -> Score:
    """Adjusted Rand index (Hubert & Arabie 1985, doi:10.1007/BF01908075): 1 is equal, 0 is chance, never below -0.5.

        (S - E) / (M - E),  S = sum_ij C2(n_ij),  E = A C / C2(n),  M = (A + C) / 2,  C2(x) = x (x - 1) / 2,

    A and C the sums of C2 over the sizes of labels and of clusters.

    Parameters
    ----------
    labels, clusters
        (n_cells,).
    convention
        How the clusters were made; kept with the score.
    """
    return _score(labels, clusters, _ari, convention)


def nmi(labels: np.ndarray, clusters: np.ndarray, *, convention: str = "") -> Score:
    """Normalised mutual information, I(labels; clusters) over the arithmetic mean of both entropies; from 0 to 1.

    Parameters
    ----------
    labels, clusters, convention
        As for `ari`.
    """
    return _score(labels, clusters, _nmi, convention)


def ami(labels: np.ndarray, clusters: np.ndarray, *, convention: str = "") -> Score:
    """Mutual information adjusted for chance, arithmetic mean (Vinh et al. 2010, JMLR 11:2837): 0 is chance.

    Parameters
    ----------
    labels, clusters, convention
        As for `ari`.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    n = len(labels)
    names, y = levels(labels, n)
    _, c = levels(clusters, n, "clusters")
    if len(names) < 2:
        return Score(np.nan, convention, n, "one label only")
    return Score(
        float(adjusted_mutual_info_score(y, c)),
        convention,
        n,
        resample=lambda rows: float(adjusted_mutual_info_score(y[rows], c[rows])),
    )


def cluster_f1(labels: np.ndarray, clusters: np.ndarray, *, convention: str = "") -> Score:
    """For each label the best F1 that one cluster reaches, 2 n_ij / (n_i + n_j); plain mean over labels. Sees rare labels.

    Parameters
    ----------
    labels, clusters, convention
        As for `ari`.
    """
    n = len(labels)
    names, y = levels(labels, n)
    _, c = levels(clusters, n, "clusters")
    width = int(c.max()) + 1

    def each(rows: np.ndarray) -> np.ndarray:
        table = _contingency(y[rows], c[rows], len(names), width)
        sizes = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True)
        f1 = np.divide(2 * table, sizes, out=np.zeros_like(table), where=sizes > 0).max(axis=1)
        f1[table.sum(axis=1) == 0] = np.nan
        return f1

    whole = each(np.arange(n))
    strata = dict(zip(names.tolist(), whole.tolist(), strict=True))
    return Score(float(whole.mean()), convention, n, strata=strata, resample=lambda rows: float(np.nanmean(each(rows))))


def _score(labels: np.ndarray, clusters: np.ndarray, formula: Callable[[np.ndarray], float], convention: str) -> Score:
    n = len(labels)
    names, y = levels(labels, n)
    groups, c = levels(clusters, n, "clusters")
    if len(names) < 2:
        return Score(np.nan, convention, n, "one label only")
    return Score(
        formula(_contingency(y, c, len(names), len(groups))),
        convention,
        n,
        resample=lambda rows: formula(_contingency(y[rows], c[rows], len(names), len(groups))),
    )


def _contingency(y: np.ndarray, c: np.ndarray, n_labels: int, n_clusters: int) -> np.ndarray:
    return np.bincount(y * n_clusters + c, minlength=n_labels * n_clusters).reshape(n_labels, n_clusters).astype(float)


def _ari(table: np.ndarray) -> float:
    pairs = [float((x * (x - 1)).sum() / 2) for x in (table, table.sum(axis=1), table.sum(axis=0), table.sum())]
    same, rows, columns, every = pairs
    expected, most = rows * columns / every, (rows + columns) / 2
    return 1.0 if most == expected else (same - expected) / (most - expected)


def _nmi(table: np.ndarray) -> float:
    joint = table / table.sum()
    entropies = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (joint.sum(axis=1), joint.sum(axis=0), joint)]
    mean = (entropies[0] + entropies[1]) / 2
    return 1.0 if mean <= 0 else float(max(entropies[0] + entropies[1] - entropies[2], 0) / mean)
