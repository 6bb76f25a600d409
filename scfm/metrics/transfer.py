"""Labels carried from reference to query cells."""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError

__all__ = ["knn_labels"]


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
