"""Labels found in few batches, which integration loses first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scfm.metrics.agreement import cluster_f1
from scfm.metrics.scores import Score, group_means, levels, mean_of_groups
from scfm.metrics.silhouette import silhouettes

__all__ = ["isolated_f1", "isolated_labels", "isolated_silhouette"]


def isolated_labels(labels: np.ndarray, batch: np.ndarray, *, most_batches: int | None = None) -> tuple[str, ...]:
    """Labels that occur in at most so many batches; None: in as few as any label does (scIB's choice).

    Parameters
    ----------
    labels, batch
        (n_cells,).
    most_batches
        Limit.
    """
    names, codes = levels(labels, len(labels))
    groups, batches = levels(batch, len(labels), "batch")
    found = np.zeros((len(names), len(groups)), dtype=bool)
    found[codes, batches] = True
    counts = found.sum(axis=1)
    return tuple(names[counts <= (counts.min() if most_batches is None else most_batches)].tolist())


def isolated_silhouette(
    embedding: np.ndarray, labels: np.ndarray, batch: np.ndarray, *, most_batches: int | None = None
) -> Score:
    """(silhouette of labels + 1) / 2 within each isolated label, plain mean over them: scib-metrics' convention.

    scIB compares the isolated label with all others as one group instead.

    Parameters
    ----------
    embedding
        (n_cells, dim), compared by Euclidean distance.
    labels, batch, most_batches
        As for `isolated_labels`.
    """
    convention = "silhouette among all labels, Euclidean (scib-metrics)"
    n = len(embedding)
    names, codes = levels(labels, n)
    isolated = isolated_labels(labels, batch, most_batches=most_batches)
    if len(names) < 2 or not isolated:
        return Score(np.nan, convention, n, "one label only" if len(names) < 2 else "no label is isolated")
    inside = np.isin(names[codes], isolated)
    values = np.where(inside, (silhouettes(embedding, labels) + 1) / 2, np.nan)
    means = group_means(values, codes, len(names))
    strata = {str(name): float(mean) for name, mean in zip(names, means, strict=True) if name in isolated}
    return Score(float(np.nanmean(means)), convention, n, strata=strata, resample=mean_of_groups(values, codes))


def isolated_f1(
    labels: np.ndarray, batch: np.ndarray, clusterings: Sequence[np.ndarray], *, most_batches: int | None = None
) -> Score:
    """For each isolated label the best F1 of one cluster among all clusterings, plain mean: scIB's convention.

    Parameters
    ----------
    labels, batch, most_batches
        As for `isolated_labels`.
    clusterings
        Each (n_cells,), e.g. Leiden's at several resolutions; choosing the best uses the labels.
    """
    convention = f"best cluster of {len(clusterings)} clusterings (scIB)"
    isolated = isolated_labels(labels, batch, most_batches=most_batches)
    if not isolated or not clusterings:
        return Score(np.nan, convention, len(labels), "no label is isolated" if clusterings else "no clustering")
    scores = [cluster_f1(labels, clusters) for clusters in clusterings]
    best = {name: int(np.argmax([score.strata[name] for score in scores])) for name in isolated}
    strata = {name: scores[i].strata[name] for name, i in best.items()}
    names, codes = levels(labels, len(labels))
    clusters = [levels(each, len(labels), "clusters")[1] for each in clusterings]

    def statistic(rows: np.ndarray) -> float:
        found = []
        for name, i in best.items():
            sizes = np.bincount(clusters[i][rows])
            inside = codes[rows] == np.searchsorted(names, name)
            if inside.any():
                common = np.bincount(clusters[i][rows][inside], minlength=len(sizes))
                found.append(float((2 * common / np.maximum(sizes + inside.sum(), 1)).max()))
        return float(np.mean(found)) if found else np.nan

    return Score(float(np.mean(list(strata.values()))), convention, len(labels), strata=strata, resample=statistic)
