"""From a way of labelling cells to answers with known errors: calibrated probabilities, prediction sets, rejection of unknown cells.

Labelled cells are split in three: some teach the method, some set the temperature, some set the thresholds. No cell does two of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.annotators import Annotator, Fitted, LabelledCells
from scfm.errors import InputError, listing
from scfm.neighbours import neighbours
from scfm.novelty import type_width
from scfm.splits import hold_out
from scfm.uncertainty import (
    Conformal,
    Mahalanobis,
    conformal_p_values,
    energy_score,
    fit_temperature,
    knn_distance,
    max_softmax_score,
    softmax,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Answers", "Calibrated", "Caution", "NoveltyScore", "Parts", "parted"]

NoveltyScore = Literal["knn", "mahalanobis", "softmax", "energy"]
NOVELTY_SCORES = ("knn", "mahalanobis", "softmax", "energy")
NEIGHBOURS = 15
"""The k of novelty by distance."""
_TEMPERATURE_SHARE = 1 / 3
"""Of the held-out cells, those that set the temperature; the others set the thresholds."""


@dataclass(frozen=True)
class Caution:
    """How sure an answer has to be.

    Parameters
    ----------
    alpha
        Error level of prediction sets: a set misses the true label of at most this share of cells. None: no sets.
    score, conditional
        Kind of the sets; see `scfm.uncertainty.Conformal`.
    reject
        Share of cells of known types that may be rejected as unknown. None: no rejection.
    novelty
        Score by which cells are rejected: "knn" or "mahalanobis" distance to the reference, "softmax" or "energy".
    calibration
        Share of the labelled cells held out for temperature and thresholds; None: all teach, and nothing is calibrated.
    """

    alpha: float | None = 0.1
    score: Literal["lac", "aps"] = "lac"
    conditional: bool = False
    reject: float | None = 0.05
    novelty: NoveltyScore = "knn"
    calibration: float | None = 0.3

    def __post_init__(self) -> None:
        """Refuse what is no level."""
        for name in ("alpha", "reject", "calibration"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
                raise InputError(f"{name}={value!r} is no share.", "Pass a number between 0 and 1, or None.")
        if self.novelty not in NOVELTY_SCORES:
            raise InputError(f"novelty={self.novelty!r} is not known.", f"Pass one of {listing(NOVELTY_SCORES)}.")
        if self.score not in ("lac", "aps"):
            raise InputError(f"score={self.score!r} is not known.", "Pass 'lac' or 'aps'.")


@dataclass(frozen=True)
class Parts:
    """Rows (int64, ascending) of the cells that teach, set the temperature, set the thresholds."""

    teach: np.ndarray
    temperature: np.ndarray
    thresholds: np.ndarray

    def among(self, rows: np.ndarray) -> Parts:
        """The same cells, counted among these rows only; those that are not there are left out."""
        parts = (self.teach, self.temperature, self.thresholds)
        return Parts(*(np.flatnonzero(np.isin(rows, part)) for part in parts))


def parted(labels: np.ndarray, calibration: float | None, *, groups: pd.Series | None = None, seed: int = 0) -> Parts:
    """Split labelled cells: most teach, a share is held out, a third of which sets the temperature and the rest the thresholds.

    Parameters
    ----------
    labels
        (n_cells,) their classes; each is split alike, where there are no groups.
    calibration
        Share held out; None: all teach.
    groups
        (n_cells,) donors or studies: whole ones are held out.
    seed
        Of the draws.
    """
    none = np.zeros(0, dtype=np.int64)
    if calibration is None:
        return Parts(np.arange(len(labels)), none, none)
    teach, held = hold_out(len(labels), share=calibration, groups=groups, strata=labels, seed=seed)
    # by cells, unstratified: exchangeable with each other
    order = np.random.default_rng([seed, 1]).permutation(len(held))
    count = max(round(_TEMPERATURE_SHARE * len(held)), 1)
    return Parts(teach, np.sort(held[order[:count]]), np.sort(held[order[count:]]))


@dataclass(frozen=True)
class Answers:
    """What is said about some cells; L classes.

    Attributes
    ----------
    labels
        (n_cells,) int64, the most probable class.
    probabilities
        (n_cells, L) after calibration.
    sets
        (n_cells, L) bool, or None.
    novelty
        (n_cells,) the larger, the less like the reference; None where nothing was calibrated.
    p_known
        (n_cells,) share of known cells at least as novel (a conformal p-value), or None.
    rejected
        (n_cells,) bool.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    sets: np.ndarray | None
    novelty: np.ndarray | None
    p_known: np.ndarray | None
    rejected: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """The answers of several runs with the same classes, one after another."""

        def join(name: str) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else np.concatenate(values)

        names = ("labels", "probabilities", "sets", "novelty", "p_known", "rejected")
        return cls(**{name: join(name) for name in names})  # type: ignore[arg-type]

    def select(self, rows: np.ndarray) -> Answers:
        """Those of some cells."""
        parts: dict[str, Any] = {name: None if x is None else x[rows] for name, x in vars(self).items()}
        return Answers(**parts)


@dataclass(frozen=True)
class Calibrated:
    """A fitted method with its temperature and thresholds.

    Attributes
    ----------
    fitted
        The method.
    classes
        Labels it can give.
    taught
        The cells it learned from.
    temperature
        1 where nothing was calibrated.
    conformal
        Thresholds of the sets, or None.
    known
        (m,) novelty scores of calibration cells, or None.
    notes
        What a reader should know.
    """

    fitted: Fitted
    caution: Caution
    classes: tuple[str, ...]
    taught: LabelledCells
    temperature: float
    conformal: Conformal | None
    known: np.ndarray | None
    notes: tuple[str, ...]
    reference: np.ndarray | None = None
    """(n, dim) where novelty is measured as the distance to `taught`."""
    shape: Mahalanobis | None = None
    """Classes in the embedding, where novelty is Mahalanobis' distance."""

    @classmethod
    def fit(
        cls,
        method: Annotator,
        cells: LabelledCells,
        classes: Sequence[str],
        caution: Caution = Caution(),
        *,
        parts: Parts | None = None,
        seed: int = 0,
    ) -> Calibrated:
        """Teach a method and calibrate it.

        Parameters
        ----------
        method
            How cells are labelled.
        cells
            With labels 0 to L - 1, all known.
        classes
            Names of the labels.
        caution
            Levels.
        parts
            Which cells do what, see `parted`; None: split by cells.
        seed
            Of the split and of training.
        """
        notes: list[str] = []
        parts = parts or parted(cells.labels, caution.calibration, seed=seed)
        teach, warm, judge = parts.teach, parts.temperature, parts.thresholds
        kept = np.unique(cells.labels[teach])
        if lost := sorted(set(range(len(classes))) - set(kept.tolist())):
            notes.append(f"labels only of held-out groups, which cannot be given: {listing(classes[i] for i in lost)}.")
        number = np.full(len(classes), -1)
        number[kept] = np.arange(len(kept))
        names = tuple(classes[i] for i in kept)
        cells = replace(cells, labels=number[cells.labels])
        warm, judge = (rows[cells.labels[rows] >= 0] for rows in (warm, judge))
        if len(names) < 2:
            raise InputError(
                f"the cells to learn from have {len(names)} label, {listing(names)}; at least two are needed."
            )
        taught = cells.select(teach)
        made = cls(method.fit(taught, names, seed=seed), caution, names, taught, 1.0, None, None, ())
        if caution.calibration is None:
            return replace(made, notes=(*notes, "nothing was held out: no calibration, sets or rejection."))
        made = replace(made, temperature=fit_temperature(made.fitted.logits(cells.select(warm)), cells.labels[warm]))
        return made._with_thresholds(cells.select(judge), notes)

    def _with_thresholds(self, judge: LabelledCells, notes: list[str]) -> Calibrated:
        caution, conformal, known = self.caution, None, None
        logits = self.fitted.logits(judge)
        if caution.alpha is not None:
            conformal = Conformal.fit(
                softmax(logits, self.temperature),
                judge.labels,
                alpha=caution.alpha,
                score=caution.score,
                conditional=caution.conditional,
            )
            notes += conformal.notes(self.classes)
        made = replace(self, conformal=conformal)
        if caution.reject is not None:
            if caution.novelty in ("knn", "mahalanobis"):
                z = self.fitted.embedding(self.taught)
                knn = caution.novelty == "knn"
                made = replace(
                    made, reference=z if knn else None, shape=None if knn else Mahalanobis.fit(z, self.taught.labels)
                )
            known = made._novelty(judge, logits)
            if 1 / (len(known) + 1) > caution.reject:
                need = int(np.ceil(np.round(1 / caution.reject, 9))) - 1
                notes.append(
                    f"{len(known)} calibration cells are too few to reject at {caution.reject} ({need} are needed): none is rejected."
                )
        return replace(made, known=known, notes=tuple(notes))

    def _novelty(self, cells: LabelledCells, logits: np.ndarray) -> np.ndarray:
        kind = self.caution.novelty
        if kind == "softmax":
            return max_softmax_score(logits, self.temperature)
        if kind == "energy":
            return energy_score(logits, self.temperature)
        z = self.fitted.embedding(cells)
        if self.shape is not None:
            return self.shape.score(z)
        assert self.reference is not None
        return knn_distance(neighbours(self.reference, z, min(NEIGHBOURS, len(self.reference)))[0])

    def width(self, seed: int = 0) -> float:
        """How far apart cells of one type are where novelty is measured (`scfm.novelty.type_width`)."""
        z = self.fitted.embedding(self.taught) if self.reference is None else self.reference
        return type_width(z, self.taught.labels, seed=seed)

    def answer(self, cells: LabelledCells) -> Answers:
        """Labels, probabilities, sets and rejection of cells."""
        logits = self.fitted.logits(cells)
        p = softmax(logits, self.temperature)
        sets = None if self.conformal is None else self.conformal.sets(p)
        novelty, p_known, rejected = None, None, np.zeros(len(cells), dtype=bool)
        if self.known is not None:
            novelty = self._novelty(cells, logits)
            p_known = conformal_p_values(self.known, novelty)
            rejected = p_known <= self.caution.reject
        return Answers(logits.argmax(axis=1), p, sets, novelty, p_known, rejected)
