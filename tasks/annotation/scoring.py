"""Scores of the method and of the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.annotators import KNN, Probe
from scfm.errors import InputError, ScfmError, listing
from scfm.metrics.classification import confusion_matrix
from scfm.metrics.labelling import Labelling, label_scores, score_differences
from scfm.ontology import Harmonised, Ontology
from scfm.tasks.annotation.joining import Joined, join
from scfm.tasks.annotation.run import Job, Pair, column, log_cpm, quiet, run
from scfm.tasks.annotation.terms import distances

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["baselines", "confusion_of", "labelling_of", "scored"]

RARE_SHARE, RARE_CELLS = 0.01, 50
"""Labels below either are rare."""
UNKNOWN_TYPE, NO_TRUTH = -1, -2


def labelling_of(joined: Joined, truth: pd.Series, distance: np.ndarray | None = None) -> Labelling:
    number = {name: i for i, name in enumerate(joined.classes)}
    true = np.array([NO_TRUTH if name is None else number.get(name, UNKNOWN_TYPE) for name in truth])
    a = joined.answers
    novelty = a.novelty
    if novelty is not None:  # a cell without an embedding is as unlike the reference as can be
        novelty = np.where(np.isnan(novelty), np.inf, novelty)
    return Labelling(joined.classes, true, a.labels, a.probabilities, a.sets, a.rejected, novelty, distance)


def baselines(job: Job, pairs: Sequence[Pair], baseline: str, notes: list[str]) -> dict[tuple[str, str], Joined]:
    """The plain encoder with neighbours, and logistic regression on all genes, on the same splits."""
    from scfm.loading import load

    n = sum(len(pair.rows) for pair in pairs)
    plain = [replace(pair, vectors=None) for pair in pairs]
    found: dict[tuple[str, str], Joined] = {}
    reading = {**dict(job.reading), "map_genes": False, "values": None}
    common = replace(job, use_rep=None, reading=reading, progress=False)
    with quiet():
        if (baseline, "knn") != (job.name, job.method.name):
            try:
                own = replace(common, encoder=load(baseline), method=KNN())
                found[baseline, "knn"] = join(plain, [run(own, pair) for pair in plain], n)
            except InputError as error:
                notes.append(f"baseline {baseline} + knn could not run: {error.found}")
        try:
            caution = replace(job.caution, novelty="softmax")
            raw = replace(common, encoder=None, use_rep="logCPM", method=Probe(standardise=False), caution=caution)
            genes = [
                replace(pair, vectors=log_cpm(pair, job.reading["layer"], job.reading["gene_column"])) for pair in plain
            ]
            found["logCPM", "probe"] = join(genes, [run(raw, pair) for pair in genes], n)
        except ScfmError as error:
            notes.append(f"baseline logCPM + probe could not run: {error.found}")
    return found


def scored(
    labelled: Mapping[tuple[str, str], Joined],
    truth: pd.Series,
    strata: dict[str, np.ndarray],
    cells: AnnData,
    job: Job,
    harmonised: Harmonised | None,
    ontology: Ontology | None,
    resamples: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of the method and the baselines, their differences; and confidences of the cells, for pictures."""
    import pandas as pd

    donors = None
    if job.donor is not None and job.donor in cells.obs.columns:
        donors = column(cells, job.donor, "query").fillna("none").to_numpy().astype(str)
    tables, confidences, ours = [], [], None
    for (encoder, method), joined in labelled.items():
        distance = None
        if harmonised is not None and ontology is not None:
            distance = distances(joined.classes, harmonised.terms, ontology)
        own = labelling_of(joined, truth, distance)
        if not len(own.known()):
            raise InputError(
                f"no label of the query is among those of the reference: {listing(sorted(set(truth.dropna())))} "
                f"against {listing(joined.classes)}.",
                "Give both the same names, or pass truth= another column.",
            )
        total = sum(joined.counts.values())
        rare = [c for c, k in joined.counts.items() if k < RARE_CELLS or k < RARE_SHARE * total]
        options: dict[str, Any] = {"groups": donors, "resamples": resamples, "seed": job.seed}
        tables.append(label_scores(own, strata=strata, rare=rare, **options))
        known = own.select(own.known())
        name = f"{encoder} + {method}"
        confidences.append(pd.DataFrame({"name": name, "confidence": known.confidence(), "correct": known.correct()}))
        if ours is None:
            ours = own
        else:
            rows = [
                (metric, e.value, e.low, e.high, "difference", name, len(known.truth), e.unit)
                for metric, e in score_differences(ours, own, **options).items()
            ]
            tables[0] = pd.concat([tables[0], pd.DataFrame(rows, columns=tables[0].columns)], ignore_index=True)
    for table, (encoder, method) in zip(tables, labelled, strict=True):
        table.insert(0, "encoder", encoder)
        table.insert(1, "method", method)
    return pd.concat(tables, ignore_index=True), pd.concat(confidences, ignore_index=True)


def confusion_of(labelling: Labelling, truth: pd.Series) -> pd.DataFrame:
    """True labels, those of types that could not be given below, by given label; "no label" and rejected cells are columns' ends."""
    import pandas as pd

    classes = labelling.classes
    known = labelling.select(labelling.known())
    table = pd.DataFrame(
        confusion_matrix(known.truth, known.given, len(classes)), index=list(classes), columns=[*classes, "no label"]
    )
    for name in sorted(set(truth[labelling.truth == UNKNOWN_TYPE])):
        given = labelling.given[(truth == name).to_numpy()]
        table.loc[name] = np.bincount(np.where(given < 0, len(classes), given), minlength=len(classes) + 1)
    table = table.loc[table.sum(axis=1) > 0]
    return table if table["no label"].any() else table.drop(columns="no label")
