"""annotate: carry cell types from labelled reference cells to others, with calibrated probabilities and known errors.

reference  -> taught | temperature | thresholds      (scfm.calibrated; whole donors apart where donors are known)
query      -> label, probability, prediction set, rejected?, novel cluster, Cell Ontology term and ancestor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from scfm.task import Task
from scfm.tasks.annotation.command import command

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.annotators import Annotator
    from scfm.encoder import CellEncoder
    from scfm.ontology import Ontology
    from scfm.tasks.annotation.result import Annotation

__all__ = ["TASK", "annotate"]


def annotate(
    encoder: CellEncoder | None,
    reference: AnnData | None,
    query: AnnData | None = None,
    *,
    labels: str | Sequence[str] = "cell_type",
    truth: str | None = None,
    method: str | Annotator = "knn",
    alpha: float | None = 0.1,
    conditional: bool = False,
    sets: Literal["lac", "aps"] = "lac",
    reject: float | None = 0.05,
    novelty: Literal["knn", "mahalanobis", "softmax", "energy"] = "knn",
    calibration: float | None = 0.3,
    donor: str | None = None,
    batch: str | Sequence[str] | None = None,
    groups: str | None = None,
    split: Literal["groups", "random_cells"] = "groups",
    folds: int | None = None,
    hold_out_types: Sequence[str] = (),
    ontology: bool | Ontology = False,
    terms: str | Mapping[str, str] | None = None,
    clusters: Literal["linkage", "leiden"] = "linkage",
    baseline: str | None = "pca",
    use_rep: str | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Any = None,
    resamples: int = 1000,
    progress: bool | None = None,
    seed: int = 0,
) -> Annotation:
    """Give query cells the cell types of a labelled reference.

    The reference is split: most of its cells teach the method, some set the temperature of the probabilities, some the thresholds of
    prediction sets and rejection. What is promised at level `alpha` and `reject` holds for query cells that are exchangeable with those
    held-out reference cells. Cells of another donor, chemistry or disease are not; pass `donor`, and look at the coverage in `scores`.

    Parameters
    ----------
    encoder
        Any encoder; used as it is, but for ``method="finetune"``. One that is fitted on cells, and is not yet, is fitted on
        those of the reference that teach.
        None with `use_rep`.
    reference, query
        Cells x features in the values that the encoder reads; neither is changed. Without a query, the labels of the reference are
        predicted by cross-validation over `groups`. Without a reference, ``method="text"`` needs names as `labels`.
    labels
        Column of ``reference.obs``; cells without a value are left out. For text without a reference: the names to choose from.
    truth
        Column of ``query.obs`` to score against. Default: `labels`, where the query has this column.
    method
        "knn", "prototype", "text" (encoders with `text`), "probe" (logistic regression), "finetune"; or one of these with settings, such
        as ``scfm.annotators.KNN(k=30)``, ``Prototype(shots=5)``, ``FineTune("head", {"epochs": 3})``.
    alpha
        Error level of the prediction sets: a set misses the true label of at most this share of cells. None: no sets.
    conditional
        A threshold for every label (Mondrian), so that the level holds within each label, not only on average.
    sets
        "lac": smallest sets. "aps": larger, more even over hard cells.
    reject
        At most this share of cells of known types is rejected as unknown. None: no rejection.
    novelty
        Score that rejects: distance to the 15th nearest reference cell ("knn"), to the nearest class ("mahalanobis"), 1 - the highest
        probability ("softmax"), or "energy" (not for knn and text, whose scores are no energies).
    calibration
        Share of the reference held out for temperature and thresholds. None: nothing is calibrated, no sets, no rejection.
    donor
        Column of `obs`: whole donors are held out for calibration and resampled for intervals, scores are also given for each, and donors
        on both sides are reported as a leak.
    batch
        Column of ``query.obs``, or several, by which scores are also given: platform, batch, section.
    groups, split, folds
        Without a query: column of donors or studies that are held out in turn, each once, or in so many `folds`. ``split="random_cells"``
        splits cells instead, and the result says that this leaks.
    hold_out_types
        Labels that are removed from the reference, so that these cells of the query are of unknown types: how well are they rejected?
    ontology
        True, or an `scfm.ontology.Ontology`: labels are matched with Cell Ontology terms (see `harmonised`), an unsure cell gets the
        nearest common ancestor of its set, and errors are also measured in steps of the ontology.
    terms
        Label -> term id for labels that do not match by themselves, or column of ``reference.obs`` that holds ids.
    clusters
        How rejected cells are grouped; see `scfm.novelty.novel_clusters`.
    baseline
        Encoder fitted on the cells that teach, with 15 nearest neighbours (cosine): scored beside the method, as is logistic
        regression on all genes (logCPM). "lsi" for chromatin. None: no baselines. They run only where there is a truth.
    use_rep
        Key of `obsm` of both, with embeddings made before (``encoder.embed(..., key_added=)``).
    layer, gene_column, map_genes, values
        As for `CellEncoder.embed`, for reference and query.
    resamples
        Bootstrap samples of the intervals.
    progress
        Show progress bars; None shows them on terminals.
    seed
        Of splits, training and resampling.

    Returns
    -------
    Annotation
        `table` has a row for each query cell; `scores` the numbers with intervals, where the truth is known.

    Raises
    ------
    InputError
        A column, key or label is not there, a setting is none, or there are too few cells or labels.
    CapabilityError
        The encoder can't do the method.
    """
    from scfm.annotators import annotator_of
    from scfm.calibrated import Caution
    from scfm.tasks.annotation.assembly import assemble
    from scfm.tasks.annotation.run import Job

    job = Job(
        encoder=encoder,
        labels=labels,
        method=annotator_of(method),
        caution=Caution(alpha, sets, conditional, reject, novelty, calibration),
        donor=donor,
        hold_out_types=tuple(hold_out_types),
        use_rep=use_rep,
        reading={"layer": layer, "gene_column": gene_column, "map_genes": map_genes, "values": values},
        progress=progress,
        seed=seed,
    )
    job.check(reference, query)
    return assemble(
        job,
        reference,
        query,
        truth=truth,
        batch=batch,
        groups=groups,
        split=split,
        folds=folds,
        ontology=ontology,
        terms=terms,
        clusters=clusters,
        baseline=baseline,
        resamples=resamples,
    )


TASK = Task("annotate", run=annotate, command=command, needs=frozenset({"embed"}))
