"""Labels carried from reference to query cells."""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError
from scfm.metrics.scores import Score, group_means, levels, mean_of_groups
from scfm.neighbours import neighbours

__all__ = ["knn_labels", "leave_one_batch_out", "leave_one_cell_out"]


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


def leave_one_batch_out(
    embedding: np.ndarray, labels: np.ndarray, batch: np.ndarray, *, k: int = 15
) -> dict[str, Score]:
    """Carry labels to each batch from the others, by an unweighted vote of the k nearest cells; means over batches.

    Of labels with equally many votes the one whose nearest cell is nearest wins. Cells of a label that no other batch has are not scored.
    Batches must differ in donor or study: cells of a donor on both sides make it easy.

    Parameters
    ----------
    embedding
        (n_cells, dim), compared by Euclidean distance.
    labels, batch
        (n_cells,).
    k
        Neighbours that vote.

    Returns
    -------
    dict
        "accuracy", "balanced accuracy" and "macro F1" -> `Score`, whose `strata` are the batches; and "recall", the mean over labels of
        that in all batches, whose `strata` are the labels.
    """
    n = len(embedding)
    names, codes = levels(labels, n)
    groups, batches = levels(batch, n, "batch")
    convention = f"leave one batch out, k {k}, uniform votes, ties to the nearest"
    if len(names) < 2 or len(groups) < 2:
        reason = "one label only" if len(names) < 2 else "one batch only"
        return {name: Score(np.nan, convention, n, reason) for name in (*_TRANSFER, "recall")}
    given = np.full(n, -1)
    for b in range(len(groups)):
        inside, outside = np.flatnonzero(batches == b), np.flatnonzero(batches != b)
        known = inside[np.isin(codes[inside], codes[outside])]
        if len(known) and len(outside) >= k:
            near = neighbours(embedding[outside], embedding[known], k)[1]
            given[known] = _vote(codes[outside][near], len(names))
    if (given < 0).all():
        reason = f"no batch has a label that others have, with {k} cells in them"
        return {name: Score(np.nan, convention, n, reason) for name in (*_TRANSFER, "recall")}
    return _scores(given, codes, batches, names, groups, convention)


def leave_one_cell_out(indices: np.ndarray, labels: np.ndarray, *, k: int = 15) -> dict[str, Score]:
    """Label each cell by an unweighted vote of its k nearest other cells; cells of its own donor among them make it easy.

    Parameters
    ----------
    indices
        (n_cells, at least k) of the nearest other cells.
    labels
        (n_cells,).
    k
        Neighbours that vote; of equally many votes the label of the nearest cell wins.

    Returns
    -------
    dict
        As of `leave_one_batch_out`.
    """
    n = len(indices)
    names, codes = levels(labels, n)
    convention = f"leave one cell out, k {k}, uniform votes, ties to the nearest"
    if len(names) < 2:
        return {name: Score(np.nan, convention, n, "one label only") for name in (*_TRANSFER, "recall")}
    given = _vote(codes[indices[:, :k]], len(names))
    return _scores(given, codes, np.zeros(n, dtype=np.int64), names, np.array(["all"]), convention)


def _scores(
    given: np.ndarray, codes: np.ndarray, batches: np.ndarray, names: np.ndarray, groups: np.ndarray, convention: str
) -> dict[str, Score]:
    """Scores of given labels (-1: not scored), means over batches; and the recall of each label in all of them."""
    n = len(codes)

    def score(name: str) -> Score:
        def each(rows: np.ndarray) -> np.ndarray:
            rows = rows[given[rows] >= 0]
            parts = (rows[batches[rows] == b] for b in range(len(groups)))
            return np.array([_TRANSFER[name](codes[p], given[p], len(names)) if len(p) else np.nan for p in parts])

        found = each(np.arange(n))
        return Score(
            float(np.nanmean(found)),
            convention,
            n,
            strata=dict(zip(groups.tolist(), found.tolist(), strict=True)),
            resample=lambda rows: float(np.nanmean(values)) if np.isfinite(values := each(rows)).any() else np.nan,
        )

    right = np.where(given >= 0, given == codes, np.nan)
    recall = group_means(right, codes, len(names))
    strata = dict(zip(names.tolist(), recall.tolist(), strict=True))
    own = Score(float(np.nanmean(recall)), convention, n, strata=strata, resample=mean_of_groups(right, codes))
    return {**{name: score(name) for name in _TRANSFER}, "recall": own}


def _vote(near: np.ndarray, n_labels: int) -> np.ndarray:
    """Label (n,) with most votes among (n, k) labels, nearest first; of equal ones that which comes first."""
    counts = np.zeros((len(near), n_labels))
    for column in near.T:
        counts[np.arange(len(near)), column] += 1
    own = np.take_along_axis(counts, near, axis=1)  # (n, k): votes for the label of each neighbour
    return near[np.arange(len(near)), own.argmax(axis=1)]


def _accuracy(truth: np.ndarray, given: np.ndarray, n_labels: int) -> float:
    return float((truth == given).mean())


def _balanced_accuracy(truth: np.ndarray, given: np.ndarray, n_labels: int) -> float:
    sizes = np.bincount(truth, minlength=n_labels)
    return float((np.bincount(truth[truth == given], minlength=n_labels)[sizes > 0] / sizes[sizes > 0]).mean())


def _macro_f1(truth: np.ndarray, given: np.ndarray, n_labels: int) -> float:
    both = np.bincount(truth, minlength=n_labels) + np.bincount(given, minlength=n_labels)
    return float((2 * np.bincount(truth[truth == given], minlength=n_labels)[both > 0] / both[both > 0]).mean())


_TRANSFER = {"accuracy": _accuracy, "balanced accuracy": _balanced_accuracy, "macro F1": _macro_f1}
