"""From runs to the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import InputError
from scfm.novelty import novel_clusters
from scfm.ontology import Harmonised, Ontology, cell_ontology
from scfm.results import provenance_of
from scfm.tasks.annotation.joining import Joined, join
from scfm.tasks.annotation.result import Annotation
from scfm.tasks.annotation.run import Job, Pair, column, run
from scfm.tasks.annotation.scoring import baselines, confusion_of, labelling_of, scored
from scfm.tasks.annotation.splitting import cross_validation, shared_donors
from scfm.tasks.annotation.terms import ancestors, harmonised

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["assemble"]


def assemble(
    job: Job,
    reference: AnnData | None,
    query: AnnData | None,
    *,
    truth: str | None,
    batch: str | Sequence[str] | None,
    groups: str | None,
    split: str,
    folds: int | None,
    ontology: bool | Ontology,
    terms: str | Mapping[str, str] | None,
    clusters: Any,
    baseline: str | None,
    resamples: int,
) -> Annotation:
    """The result; arguments as for `annotate`."""
    known = ontology if isinstance(ontology, Ontology) else cell_ontology() if ontology else None
    if terms is not None and known is None:
        raise InputError("terms= without an ontology.", "Pass ontology=True.")
    if query is None:
        if reference is None:
            raise InputError("there are neither query cells nor a reference.")
        pairs, leak = cross_validation(job, reference, groups, split, folds)
        job = replace(job, donor=job.donor or groups)
        cells, truth = reference, str(job.labels)
    else:
        if groups is not None or folds is not None or split != "groups":
            raise InputError("groups=, split= and folds= are for cross-validation, but a query is given.", "Pass one.")
        if query is reference:
            raise InputError("reference and query are the same cells.", "Leave out the query, and pass groups=.")
        pairs, leak = [Pair(reference, query, np.arange(query.n_obs))], shared_donors(job, reference, query)
        cells = query
        truth = truth or (job.labels if isinstance(job.labels, str) and job.labels in query.obs.columns else None)
    true_labels = None if truth is None else column(cells, truth, "query")
    strata = _strata(job, cells, batch, pairs)
    joined = join(pairs, [run(job, pair) for pair in pairs], cells.n_obs)
    matched = None if known is None else harmonised(job, joined, reference, true_labels, known, terms)
    labelling = None
    scores = confusion = confidences = None
    notes = list(dict.fromkeys(note for one in joined.runs for note in one.notes))
    if true_labels is not None:
        labelled = {(job.name, job.method.name): joined}
        labelled |= baselines(job, pairs, baseline, notes) if reference is not None and baseline is not None else {}
        scores, confidences = scored(labelled, true_labels, strata, cells, job, matched, known, resamples)
        labelling = labelling_of(joined, true_labels)
        confusion = confusion_of(labelling, true_labels)
    table = _table(joined, cells, true_labels, clusters, matched, known, job.seed)
    encoders = [one.encoder for one in joined.runs[:1] if one.encoder is not None]
    return Annotation(
        table=table,
        scores=scores,
        probabilities=_frame(joined.answers.probabilities, joined.classes, cells),
        confusion=confusion,
        confidences=confidences,
        harmonised=None if matched is None else matched.table,
        name=f"{job.name} + {job.method.name}",
        leak=leak,
        notes=tuple(notes),
        provenance=provenance_of(
            "annotate",
            *encoders,
            **_settings(job),
            truth=truth,
            groups=groups,
            split=split if query is None else None,
            folds=[pair.fold for pair in pairs] if query is None else None,
            leak=leak,
            ontology=None if known is None else known.release,
            clusters=clusters,
            baseline=baseline,
            resamples=resamples,
            temperature=[one.temperature for one in joined.runs],
            reference_cells=joined.counts,
            taught=[one.taught for one in joined.runs],
            calibrated=[one.calibrated for one in joined.runs],
        ),
    )


def _settings(job: Job) -> dict[str, Any]:
    return {
        "labels": job.labels,
        "method": {"name": job.method.name, **asdict(job.method)},  # type: ignore[call-overload]
        "caution": asdict(job.caution),
        "donor": job.donor,
        "hold_out_types": job.hold_out_types,
        "use_rep": job.use_rep,
        "reading": dict(job.reading),
        "seed": job.seed,
    }


def _strata(
    job: Job, cells: AnnData, batch: str | Sequence[str] | None, pairs: Sequence[Pair]
) -> dict[str, np.ndarray]:
    """Columns by which scores are also given."""
    found = {}
    for name in [batch] if isinstance(batch, str) else batch or ():
        found[name] = column(cells, name, "query").fillna("none").to_numpy()
    if job.donor is not None and job.donor in cells.obs.columns:
        found[job.donor] = column(cells, job.donor, "query").fillna("none").to_numpy()
    if len(pairs) > 1:
        fold = np.empty(cells.n_obs, dtype=object)
        for pair in pairs:
            fold[pair.rows] = pair.fold
        if not any(np.array_equal(fold, values) for values in found.values()):
            found["fold"] = fold
    return found


# Answers


def _table(
    joined: Joined,
    cells: AnnData,
    truth: pd.Series | None,
    clusters: Any,
    harmonised: Harmonised | None,
    ontology: Ontology | None,
    seed: int,
) -> pd.DataFrame:
    """One row a query cell."""
    import pandas as pd

    a, classes = joined.answers, joined.classes
    names = np.array([*classes, None], dtype=object)
    columns: dict[str, Any] = {"label": names[a.labels], "probability": a.probabilities.max(axis=1)}
    columns["probability"] = np.where(a.labels >= 0, columns["probability"], np.nan)
    if a.sets is not None:
        columns["set"] = ["; ".join(classes[i] for i in np.flatnonzero(row)) for row in a.sets]
        columns["set_size"] = a.sets.sum(axis=1)
    if a.novelty is not None:
        columns |= {"novelty": a.novelty, "p_known": a.p_known, "rejected": a.rejected}
        columns["novel_cluster"] = _grouped(joined, clusters, seed)
    if harmonised is not None and ontology is not None:
        columns |= ancestors(a, classes, harmonised.terms, ontology)
    if truth is not None:
        columns["truth"] = truth.to_numpy()
    if len(joined.runs) > 1:
        columns["fold"] = joined.fold
    return pd.DataFrame(columns, index=pd.Index(cells.obs_names.astype(str), dtype=object))


def _grouped(joined: Joined, clusters: Any, seed: int) -> np.ndarray:
    """Names of the clusters of rejected cells; in cross-validation within each fold, whose embeddings may differ."""
    rejected = joined.answers.rejected
    out = np.full(len(rejected), None, dtype=object)
    for one, rows in zip(joined.runs, joined.rows, strict=True):
        inside = one.answers.rejected
        if not inside.any() or not isinstance(one.embedding, np.ndarray):
            continue
        found = novel_clusters(one.embedding[inside], method=clusters, width=one.width, seed=seed)
        suffix = f" of {joined.fold[rows[0]]}" if len(joined.runs) > 1 else ""
        out[rows[inside]] = [f"novel {c + 1}{suffix}" if c >= 0 else None for c in found]
    return out


def _frame(probabilities: np.ndarray, classes: tuple[str, ...], cells: AnnData) -> pd.DataFrame:
    import pandas as pd

    index = pd.Index(cells.obs_names.astype(str), dtype=object)
    return pd.DataFrame(probabilities.astype(np.float32), index=index, columns=list(classes))
