"""Labels as terms of the Cell Ontology."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scfm.calibrated import Answers
from scfm.errors import InputError, listing
from scfm.ontology import Harmonised, Ontology
from scfm.reading import InputWarning
from scfm.tasks.annotation.joining import Joined
from scfm.tasks.annotation.run import Job, column

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["ancestors", "distances", "harmonised"]


def harmonised(
    job: Job,
    joined: Joined,
    reference: AnnData | None,
    truth: pd.Series | None,
    ontology: Ontology,
    terms: str | Mapping[str, str] | None,
) -> Harmonised:
    labels = [*joined.classes, *([] if truth is None else sorted(set(truth.dropna()) - set(joined.classes)))]
    if isinstance(terms, str):
        if reference is None:
            raise InputError("terms= names a column, but there is no reference.", "Pass label -> term id.")
        ids = column(reference, terms, "reference")
        pairs = ids.groupby(column(reference, str(job.labels), "reference")).unique()
        several = [label for label, found in pairs.items() if len([t for t in found if t is not None]) > 1]
        if several:
            raise InputError(f"labels {listing(several)} have more than one id in obs[{terms!r}].")
        terms = {str(label): found[0] for label, found in pairs.items() if label in labels and found[0] is not None}
    found = ontology.harmonise(labels, terms)
    if found.unmatched:
        warnings.warn(
            f"labels without a Cell Ontology term: {listing(found.unmatched)}; see `harmonised` of the result, and pass terms=.",
            InputWarning,
            stacklevel=4,
        )
    return found


def ancestors(
    answers: Answers, classes: tuple[str, ...], terms: Mapping[str, str], ontology: Ontology
) -> dict[str, np.ndarray]:
    """Term of the label, and the nearest common ancestor of the set (of the label where sets are not asked for)."""
    n = len(answers.labels)
    single = np.zeros((n, len(classes)), dtype=bool)
    given = answers.labels >= 0
    single[np.flatnonzero(given), answers.labels[given]] = True
    sets = single if answers.sets is None else answers.sets
    names = np.array([terms.get(name) for name in classes] + [None], dtype=object)
    kinds, at = np.unique(sets, axis=0, return_inverse=True)
    found = np.full(len(kinds), None, dtype=object)
    for i, kind in enumerate(kinds):
        inside = names[:-1][kind]
        if len(inside) and all(term is not None for term in inside):
            found[i] = ontology.common_ancestor(inside)
    label_of = np.array([None if term is None else ontology[term].label for term in found], dtype=object)
    at = at.reshape(-1)
    return {"term": names[answers.labels], "ancestor": found[at], "ancestor_name": label_of[at]}


def distances(classes: tuple[str, ...], terms: Mapping[str, str], ontology: Ontology) -> np.ndarray:
    """(L + 1, L + 1) steps between labels; NaN without a term."""
    out = np.full((len(classes) + 1, len(classes) + 1), np.nan)
    for i, one in enumerate(classes):
        for j, two in enumerate(classes):
            if one in terms and two in terms:
                out[i, j] = ontology.distance(terms[one], terms[two])
    return out
