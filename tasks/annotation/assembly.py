"""From runs to the result: splits, answers of all cells, baselines, scores, ontology."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.annotators import KNN, Probe
from scfm.calibrated import Answers
from scfm.errors import InputError, ScfmError, listing
from scfm.metrics.classification import confusion_matrix
from scfm.metrics.labelling import Labelling, label_scores, score_differences
from scfm.novelty import novel_clusters
from scfm.ontology import Harmonised, Ontology, cell_ontology
from scfm.reading import InputWarning
from scfm.results import provenance_of
from scfm.tasks.annotation.result import Annotation
from scfm.tasks.annotation.run import Job, Pair, Run, column, embed_whole, log_cpm, quiet, run

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["assemble"]

MOST_GROUPS = 10
"""Up to so many groups each is held out once."""
FOLDS = 5
RARE_SHARE, RARE_CELLS = 0.01, 50
"""Labels below either are rare."""
NO_LABEL = -1
UNKNOWN_TYPE, NO_TRUTH = -1, -2


@dataclass(frozen=True)
class Joined:
    """Answers for all cells of the result, over the labels of all runs."""

    answers: Answers
    classes: tuple[str, ...]
    counts: dict[str, int]
    runs: list[Run]
    rows: list[np.ndarray]
    fold: np.ndarray


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
        pairs, leak = _splits(job, reference, groups, split, folds)
        job = replace(job, donor=job.donor or groups)
        cells, truth = reference, str(job.labels)
    else:
        if groups is not None or folds is not None or split != "groups":
            raise InputError("groups=, split= and folds= are for cross-validation, but a query is given.", "Pass one.")
        if query is reference:
            raise InputError("reference and query are the same cells.", "Leave out the query, and pass groups=.")
        pairs, leak = [Pair(reference, query, np.arange(query.n_obs))], _shared_donors(job, reference, query)
        cells = query
        truth = truth or (job.labels if isinstance(job.labels, str) and job.labels in query.obs.columns else None)
    true_labels = None if truth is None else column(cells, truth, "query")
    strata = _strata(job, cells, batch, pairs)
    joined = _join(pairs, [run(job, pair) for pair in pairs], cells.n_obs)
    harmonised = None if known is None else _harmonised(job, joined, reference, true_labels, known, terms)
    labelling = None
    scores = confusion = confidences = None
    notes = list(dict.fromkeys(note for one in joined.runs for note in one.notes))
    if true_labels is not None:
        labelled = {(job.name, job.method.name): (joined, None)}
        labelled |= _baselines(job, pairs, baseline, notes) if reference is not None and baseline is not None else {}
        scores, confidences = _scores(labelled, true_labels, strata, cells, job, harmonised, known, resamples)
        labelling = _labelling(joined, true_labels)
        confusion = _confusion(labelling, true_labels)
    table = _table(joined, cells, true_labels, clusters, harmonised, known, job.seed)
    encoders = [one.encoder for one in joined.runs[:1] if one.encoder is not None]
    return Annotation(
        table=table,
        scores=scores,
        probabilities=_frame(joined.answers.probabilities, joined.classes, cells),
        confusion=confusion,
        confidences=confidences,
        harmonised=None if harmonised is None else harmonised.table,
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


# Splits


def _splits(job: Job, adata: AnnData, groups: str | None, split: str, folds: int | None) -> tuple[list[Pair], str]:
    """Every cell is query once, and what there is to say about leaking."""
    if split not in ("groups", "random_cells"):
        raise InputError(f"split={split!r} is not known.", "Pass 'groups' or 'random_cells'.")
    if folds is not None and folds < 2:
        raise InputError(f"folds={folds}; at least 2 are needed.")
    labels = column(adata, str(job.labels), "reference")
    if split == "random_cells":
        fold, leak = _random_folds(labels, folds or FOLDS, job.seed), ""
        leak = "cells were split at random: cells of one donor and batch are on both sides, and scores are too good"
    elif groups is None:
        raise InputError(
            "no query is given, and no groups= to hold out in turn.",
            "Pass groups='donor_id' (donors or studies), or split='random_cells', whose scores are too good.",
        )
    else:
        fold, leak = _group_folds(column(adata, groups, "reference"), groups, folds, job.seed), ""
    whole = embed_whole(job, adata)
    pairs = []
    for name in dict.fromkeys(sorted(fold.tolist())):
        test, train = np.flatnonzero(fold == name), np.flatnonzero(fold != name)
        vectors = None if whole is None else (whole[train], whole[test])
        pairs.append(Pair(adata[train], adata[test], test, name, vectors))
    return pairs, leak


def _random_folds(labels: pd.Series, folds: int, seed: int) -> np.ndarray:
    """(n_cells,) names; the cells of each label are spread evenly."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    numbers = np.unique(labels.fillna("").to_numpy().astype(str), return_inverse=True)[1]
    order = order[np.argsort(numbers[order], kind="stable")]
    fold = np.empty(len(labels), dtype=object)
    fold[order] = [f"fold {i % folds + 1}" for i in range(len(labels))]
    return fold


def _group_folds(groups: pd.Series, name: str, folds: int | None, seed: int) -> np.ndarray:
    """(n_cells,) names of folds; whole groups together."""
    from sklearn.model_selection import GroupKFold

    if groups.isna().any():
        raise InputError(f"obs[{name!r}] has no value for {int(groups.isna().sum())} cells.", "Fill it.")
    count = groups.nunique()
    if count < 2 or (folds or 2) > count:
        raise InputError(f"obs[{name!r}] has {count} values; {folds or 2} are needed.", "Pass another groups=.")
    if folds is None and count <= MOST_GROUPS:
        return groups.to_numpy().astype(object)
    fold = np.empty(len(groups), dtype=object)
    splitter = GroupKFold(n_splits=folds or FOLDS, shuffle=True, random_state=seed)
    for i, (_, test) in enumerate(splitter.split(groups, groups=groups)):
        fold[test] = f"fold {i + 1}"
    return fold


def _shared_donors(job: Job, reference: AnnData | None, query: AnnData) -> str:
    if job.donor is None or reference is None or job.donor not in query.obs.columns:
        return ""
    here, there = (set(column(a, str(job.donor), s).dropna()) for a, s in ((reference, "reference"), (query, "query")))
    if not (both := sorted(here & there)):
        return ""
    leak = f"obs[{job.donor!r}] has {listing(both)} on both sides: scores are too good"
    warnings.warn(leak, InputWarning, stacklevel=4)
    return leak


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


def _join(pairs: Sequence[Pair], runs: list[Run], n: int) -> Joined:
    """Answers in the order of the cells; labels that a run could not give have probability 0 there."""
    classes = tuple(sorted({name for one in runs for name in one.classes})) if len(runs) > 1 else runs[0].classes
    number = {name: i for i, name in enumerate(classes)}
    parts = []
    for one in runs:
        at = np.array([number[name] for name in one.classes])
        a, m = one.answers, len(one.answers.labels)
        p = np.zeros((m, len(classes)))
        p[:, at] = a.probabilities
        s = None
        if a.sets is not None:
            s = np.zeros((m, len(classes)), dtype=bool)
            s[:, at] = a.sets
        given = np.where(a.labels >= 0, at[a.labels], NO_LABEL)
        parts.append(replace(a, labels=given, probabilities=p, sets=s))
    order = np.argsort(np.concatenate([pair.rows for pair in pairs]), kind="stable")
    joined = Answers.joined(parts)
    answers = joined.select(order)
    counts = {name: max(dict(zip(r.classes, r.counts, strict=False)).get(name, 0) for r in runs) for name in classes}
    fold = np.concatenate([[pair.fold] * len(pair.rows) for pair in pairs])[order]
    return Joined(answers, classes, counts, runs, [pair.rows for pair in pairs], fold)


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
        columns |= _ancestors(a, classes, harmonised.terms, ontology)
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


# Ontology


def _harmonised(
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


def _ancestors(
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


def _distances(classes: tuple[str, ...], terms: Mapping[str, str], ontology: Ontology) -> np.ndarray:
    """(L + 1, L + 1) steps between labels; NaN without a term."""
    out = np.full((len(classes) + 1, len(classes) + 1), np.nan)
    for i, one in enumerate(classes):
        for j, two in enumerate(classes):
            if one in terms and two in terms:
                out[i, j] = ontology.distance(terms[one], terms[two])
    return out


# Scores


def _labelling(joined: Joined, truth: pd.Series, distance: np.ndarray | None = None) -> Labelling:
    number = {name: i for i, name in enumerate(joined.classes)}
    true = np.array([NO_TRUTH if name is None else number.get(name, UNKNOWN_TYPE) for name in truth])
    a = joined.answers
    novelty = a.novelty
    if novelty is not None:  # a cell without an embedding is as unlike the reference as can be
        novelty = np.where(np.isnan(novelty), np.inf, novelty)
    return Labelling(joined.classes, true, a.labels, a.probabilities, a.sets, a.rejected, novelty, distance)


def _baselines(
    job: Job, pairs: Sequence[Pair], baseline: str, notes: list[str]
) -> dict[tuple[str, str], tuple[Joined, None]]:
    """The plain encoder with neighbours, and logistic regression on all genes, on the same splits."""
    from scfm.loading import load

    n = sum(len(pair.rows) for pair in pairs)
    plain = [replace(pair, vectors=None) for pair in pairs]
    found: dict[tuple[str, str], tuple[Joined, None]] = {}
    reading = {**dict(job.reading), "map_genes": False, "values": None}
    common = replace(job, use_rep=None, reading=reading, progress=False)
    with quiet():
        if (baseline, "knn") != (job.name, job.method.name):
            try:
                own = replace(common, encoder=load(baseline), method=KNN())
                found[baseline, "knn"] = (_join(plain, [run(own, pair) for pair in plain], n), None)
            except InputError as error:
                notes.append(f"baseline {baseline} + knn could not run: {error.found}")
        try:
            caution = replace(job.caution, novelty="softmax")
            raw = replace(common, encoder=None, use_rep="logCPM", method=Probe(standardise=False), caution=caution)
            genes = [
                replace(pair, vectors=log_cpm(pair, job.reading["layer"], job.reading["gene_column"])) for pair in plain
            ]
            found["logCPM", "probe"] = (_join(genes, [run(raw, pair) for pair in genes], n), None)
        except ScfmError as error:
            notes.append(f"baseline logCPM + probe could not run: {error.found}")
    return found


def _scores(
    labelled: Mapping[tuple[str, str], tuple[Joined, None]],
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
    for (encoder, method), (joined, _) in labelled.items():
        distance = None
        if harmonised is not None and ontology is not None:
            distance = _distances(joined.classes, harmonised.terms, ontology)
        own = _labelling(joined, truth, distance)
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


def _confusion(labelling: Labelling, truth: pd.Series) -> pd.DataFrame:
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


def _frame(probabilities: np.ndarray, classes: tuple[str, ...], cells: AnnData) -> pd.DataFrame:
    import pandas as pd

    index = pd.Index(cells.obs_names.astype(str), dtype=object)
    return pd.DataFrame(probabilities.astype(np.float32), index=index, columns=list(classes))
