"""One run of a method: reference cells teach and calibrate, query cells are answered."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.annotators import Annotator, LabelledCells
from scfm.calibrated import Answers, Calibrated, Caution, parted
from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.fitted import FittedEncoder, Reference
from scfm.reading import InputWarning

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["Job", "Pair", "Run", "column", "embed_whole", "log_cpm", "run"]


@dataclass(frozen=True)
class Job:
    """What is asked for, the same for every split of the cells; fields as the arguments of `annotate`."""

    encoder: CellEncoder | None
    labels: str | Sequence[str]
    method: Annotator
    caution: Caution
    donor: str | None
    hold_out_types: tuple[str, ...]
    use_rep: str | None
    reading: Mapping[str, Any]
    progress: bool | None
    seed: int

    def check(self, reference: AnnData | None, query: AnnData | None) -> None:
        """Refuse, before any work, what can't be done."""
        for side, adata in (("reference", reference), ("query", query)):
            if adata is not None and not hasattr(adata, "obs"):
                raise InputError(
                    f"the {side} is a {type(adata).__name__}; cells in memory are needed.", "anndata.read_h5ad(path)"
                )
        if self.encoder is None and self.use_rep is None:
            raise InputError("neither an encoder nor embeddings are given.", "Pass an encoder, or use_rep='X_...'.")
        if self.encoder is not None:
            self.encoder.require(*sorted(self.method.needs))
        if reference is None and (self.method.learns or isinstance(self.labels, str)):
            raise InputError(
                f"method={self.method.name!r} without a reference.",
                "Pass labelled cells, or method='text' with labels=['B cell', ...] and an encoder that reads text.",
            )
        if reference is not None and not isinstance(self.labels, str):
            raise InputError("labels= are names, but there is a reference.", "Pass the column of reference.obs.")

    @property
    def name(self) -> str:
        """Encoder and method in words."""
        return self.encoder.name if self.encoder is not None else str(self.use_rep)


@dataclass(frozen=True)
class Pair:
    """Cells to learn from and cells to answer.

    Parameters
    ----------
    reference, query
        The cells; None for text without a reference.
    rows
        Where the query cells stand in the result.
    fold
        Name of the split, in cross-validation.
    vectors
        Embeddings of both, where they are made already.
    """

    reference: AnnData | None
    query: AnnData
    rows: np.ndarray
    fold: str = ""
    vectors: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class Run:
    """Answers for all query cells of a pair.

    Attributes
    ----------
    answers
        Labels are -1, probabilities 0 and sets empty for cells without an embedding.
    classes
        Labels that could be given.
    counts
        Reference cells of each.
    embedding
        (n_query, dim) where novelty was measured; NaN for cells without.
    width
        How far apart cells of one type are there; NaN where no cell is rejected.
    taught, calibrated
        Cells that taught, and that were held out.
    notes
        What a reader should know.
    """

    answers: Answers
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    embedding: Any
    width: float
    taught: int
    calibrated: int
    temperature: float
    notes: tuple[str, ...]
    encoder: CellEncoder | None


def column(adata: AnnData, name: str, side: str) -> pd.Series:
    """A column of labels as text, missing values as they are.

    Raises
    ------
    InputError
        It is not there, has measurements instead of labels, or no value at all.
    """
    if name not in adata.obs.columns:
        raise InputError(
            f"obs of the {side} has no column {name!r} (columns: {listing(map(str, adata.obs.columns))}).",
            "Pass the one with its labels.",
        )
    found = adata.obs[name]
    if found.dtype.kind == "f":
        raise InputError(f"obs[{name!r}] of the {side} holds measurements, no labels.", "Pass a column of names.")
    if found.isna().all():
        raise InputError(f"obs[{name!r}] of the {side} has no values.", "Pass another column.")
    return found.astype(object).where(found.notna(), None).map(lambda v: None if v is None else str(v))


@dataclass(frozen=True)
class _Labels:
    """Reference cells that have a label: their rows, classes, names of these, donors, and notes on what was left out."""

    rows: np.ndarray
    numbers: np.ndarray
    classes: tuple[str, ...]
    donors: pd.Series | None
    notes: tuple[str, ...]


def run(job: Job, pair: Pair) -> Run:
    """Teach, calibrate and answer."""
    labels, parts = None, None
    if pair.reference is not None:
        labels = _labels(job, pair.reference)
        parts = parted(labels.numbers, job.caution.calibration, groups=labels.donors, seed=job.seed)
    encoder, (known, new) = _vectors(job, pair, None if labels is None or parts is None else labels.rows[parts.teach])
    answered = _finite(new)
    if not len(answered):
        raise InputError("no query cell has an expressed gene that the encoder knows.", "Check the genes: scfm check.")
    cells = _cells(job, encoder, pair.query, new, None).select(answered)
    notes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    held = 0
    if pair.reference is None or labels is None or parts is None:
        made = _unlearned(job, cells)
    else:
        usable = np.flatnonzero(np.isin(labels.rows, _finite(known)))
        rows, numbers = labels.rows[usable], labels.numbers[usable]
        whole = np.full(pair.reference.n_obs, -1)
        whole[rows] = numbers
        reference = _cells(job, encoder, pair.reference, known, whole).select(rows)
        notes = labels.notes
        if lost := len(labels.rows) - len(usable):
            notes += (f"{lost} reference cells express no gene that {job.name} knows and are left out.",)
        made = Calibrated.fit(
            job.method, reference, labels.classes, job.caution, parts=parts.among(usable), seed=job.seed
        )
        count = np.bincount(numbers, minlength=len(labels.classes))
        counts = tuple(int(count[labels.classes.index(name)]) for name in made.classes)
        held = len(reference) - len(made.taught)
    if len(answered) < pair.query.n_obs:
        notes += (f"{pair.query.n_obs - len(answered)} query cells express no gene that {job.name} knows: no label.",)
    answers = made.answer(cells)
    return Run(
        answers=_spread(answers, answered, pair.query.n_obs),
        classes=made.classes,
        counts=counts,
        embedding=_rows_of(made.fitted.embedding(cells), answered, pair.query.n_obs),
        width=made.width(job.seed) if answers.rejected.any() and isinstance(new, np.ndarray) else float("nan"),
        taught=len(made.taught),
        calibrated=held,
        temperature=made.temperature,
        notes=(*notes, *made.notes),
        encoder=encoder,
    )


def _vectors(job: Job, pair: Pair, teach: np.ndarray | None) -> tuple[CellEncoder | None, tuple[Any, Any]]:
    """The encoder, fitted on the cells that teach if it has to be, and the embeddings of both sides."""
    if pair.vectors is not None:
        return job.encoder, pair.vectors
    if job.use_rep is not None:
        known = None if pair.reference is None else _stored(pair.reference, job.use_rep, "reference")
        return job.encoder, (known, _stored(pair.query, job.use_rep, "query"))
    encoder = job.encoder
    assert encoder is not None
    if isinstance(encoder, FittedEncoder) and not encoder.fitted:
        if pair.reference is None or teach is None:
            raise InputError(f"{encoder.name} is not fitted, and there is no reference to fit it on.")
        reading = {name: job.reading[name] for name in ("layer", "gene_column", "values")}
        # not on cells that calibrate: to them the fit would be closer than to the query
        encoder = encoder.fit(pair.reference[teach], **reading)
    known = None if pair.reference is None else _embed(job, encoder, pair.reference)
    return encoder, (known, _embed(job, encoder, pair.query))


def _embed(job: Job, encoder: CellEncoder, adata: AnnData) -> np.ndarray:
    return encoder.embed(adata, progress=job.progress, seed=job.seed, **job.reading)


def embed_whole(job: Job, adata: AnnData) -> np.ndarray | None:
    """Embeddings of all cells for every split; None where they depend on the split."""
    if job.use_rep is not None:
        return _stored(adata, job.use_rep, "reference")
    assert job.encoder is not None
    fitted_later = isinstance(job.encoder, FittedEncoder) and not job.encoder.fitted
    return None if fitted_later or job.encoder.tokenizer.grouped else _embed(job, job.encoder, adata)


def _stored(adata: AnnData, key: str, side: str) -> np.ndarray:
    if key not in adata.obsm:
        raise InputError(
            f"obsm of the {side} has no {key!r} (keys: {listing(adata.obsm.keys()) or 'none'}).",
            f"encoder.embed({side}, key_added={key!r})",
        )
    return np.asarray(adata.obsm[key])


def _finite(embedding: Any) -> np.ndarray:
    """Rows of cells that have an embedding."""
    if not isinstance(embedding, np.ndarray):
        return np.arange(embedding.shape[0])  # sparse values
    return np.flatnonzero(np.isfinite(embedding).all(axis=1))


def _cells(
    job: Job, encoder: CellEncoder | None, adata: AnnData, embedding: Any, labels: np.ndarray | None
) -> LabelledCells:
    numbers = np.full(adata.n_obs, -1) if labels is None else labels
    return LabelledCells(embedding, numbers, adata, encoder, job.reading)


def _labels(job: Job, adata: AnnData) -> _Labels:
    assert isinstance(job.labels, str)
    labels = column(adata, job.labels, "reference")
    if unknown := sorted(set(job.hold_out_types) - set(labels.dropna())):
        raise InputError(
            f"hold_out_types= has {listing(unknown)}, which are no labels of the reference.",
            f"Labels: {listing(sorted(set(labels.dropna())), 30)}.",
        )
    rows = np.flatnonzero(labels.notna() & ~labels.isin(job.hold_out_types))
    if not len(rows):
        raise InputError("no reference cell with a label is left.", f"Look at reference.obs[{job.labels!r}].")
    notes: tuple[str, ...] = ()
    if missing := int(labels.isna().sum()):
        notes += (f"{missing} reference cells without obs[{job.labels!r}] are left out.",)
    donors = None
    if job.donor is not None:
        found = column(adata, job.donor, "reference").iloc[rows]
        if found.isna().any():
            raise InputError(
                f"obs[{job.donor!r}] of the reference has no value for {int(found.isna().sum())} cells.", "Fill it."
            )
        if found.nunique() > 1:
            donors = found
        elif job.caution.calibration is not None:
            notes += (
                f"the reference has one {job.donor} only, {found.iloc[0]!r}: calibrated on other cells of it, not on others.",
            )
    classes, numbers = np.unique(labels.to_numpy()[rows].astype(str), return_inverse=True)
    return _Labels(rows, numbers, tuple(classes.tolist()), donors, notes)


def _unlearned(job: Job, cells: LabelledCells) -> Calibrated:
    """A method that needs no labelled cells, with nothing to calibrate it."""
    classes = tuple(str(name) for name in job.labels)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"labels={list(classes)} are not two or more different names.")
    caution = replace(job.caution, alpha=None, reject=None, calibration=None)
    fitted = job.method.fit(cells, classes, seed=job.seed)
    notes = ("no labelled cells: probabilities are not calibrated; no prediction sets, no rejection.",)
    return Calibrated(fitted, caution, classes, cells.select(np.zeros(0, np.int64)), 1.0, None, None, notes)


def _rows_of(values: Any, rows: np.ndarray, n: int, fill: float = np.nan) -> Any:
    """Values of some rows among n."""
    if not isinstance(values, np.ndarray):
        return values
    out = np.full((n, *values.shape[1:]), fill, dtype=values.dtype)
    out[rows] = values
    return out


def _spread(answers: Answers, rows: np.ndarray, n: int) -> Answers:
    def put(values: np.ndarray | None, fill: Any) -> np.ndarray | None:
        return None if values is None else _rows_of(values, rows, n, fill)

    labels, rejected = put(answers.labels, -1), put(answers.rejected, False)
    probabilities = put(answers.probabilities, 0.0)
    assert labels is not None
    assert rejected is not None
    assert probabilities is not None
    return Answers(
        labels,
        probabilities,
        put(answers.sets, False),
        put(answers.novelty, np.nan),
        put(answers.p_known, np.nan),
        rejected,
    )


def log_cpm(pair: Pair, layer: str | None, gene_column: str | None) -> tuple[Any, Any]:
    """log1p of counts per 10,000 of all genes that reference and query share: CSR of both."""
    from scipy import sparse

    from scfm.cells import close_all, open_sources

    assert pair.reference is not None
    sources = open_sources([pair.reference, pair.query], layer)
    try:
        shared = Reference.of(sources, gene_column, "counts", "the baseline on all genes")
        blocks = []
        for block, totals in shared.blocks():
            scale = np.divide(1e4, totals, out=np.zeros_like(totals), where=totals > 0)
            blocks.append((sparse.diags(scale) @ block).tocsr().log1p().astype(np.float32))
    finally:
        close_all(sources)
    whole = sparse.vstack(blocks, format="csr")
    return whole[: pair.reference.n_obs], whole[pair.reference.n_obs :]


@contextmanager
def quiet() -> Iterator[None]:
    """Without our own warnings: the baselines read the same cells again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        yield
