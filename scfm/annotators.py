"""Ways to give cells the labels of others: nearest neighbours, prototypes, text, a linear probe, a fine-tuned head.

Each is a small frozen object with its settings. `fit` takes labelled cells, what it gives answers with logits; calibration, prediction sets
and rejection are the same for all (`scfm.calibrated`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scfm.encoder import Capability, CellEncoder
from scfm.errors import InputError, listing
from scfm.neighbours import Metric, neighbours

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "FineTune",
    "Fitted",
    "KNN",
    "LabelledCells",
    "Probe",
    "Prototype",
    "Text",
    "annotator_of",
]


@dataclass(frozen=True)
class LabelledCells:
    """Cells with embeddings and, where known, labels.

    Parameters
    ----------
    embedding
        (n_cells, dim), finite; or sparse values of genes, which `Probe` reads.
    labels
        (n_cells,) int64 classes from 0; -1 where unknown.
    adata
        The cells themselves, for methods that train the encoder.
    encoder
        That made the embeddings; None for given ones.
    reading
        Arguments of `CellEncoder.embed` that say how `adata` is read.
    """

    embedding: Any
    labels: np.ndarray
    adata: AnnData | None = None
    encoder: CellEncoder | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> LabelledCells:
        """Some of the cells."""
        adata = None if self.adata is None else self.adata[rows]
        return replace(self, embedding=self.embedding[rows], labels=self.labels[rows], adata=adata)


class Fitted(ABC):
    """What a method has learned."""

    @abstractmethod
    def logits(self, cells: LabelledCells) -> np.ndarray:
        """(n_cells, L) float64; their softmax is the probability before calibration."""

    def embedding(self, cells: LabelledCells) -> np.ndarray:
        """(n_cells, dim) where novelty is measured: as given, unless the encoder was trained."""
        return cells.embedding


class Annotator(ABC):
    """A method and its settings."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Capability]] = frozenset()
    """Capabilities of the encoder beyond embedding."""
    learns: ClassVar[bool] = True
    """Whether it needs labelled cells."""

    @abstractmethod
    def fit(self, cells: LabelledCells, classes: Sequence[str], *, seed: int = 0) -> Fitted:
        """Learn from cells whose labels are 0 to L - 1."""


# Nearest neighbours


@dataclass(frozen=True)
class KNN(Annotator):
    """Vote of the nearest reference cells; exact up to 50,000 of them, then by HNSW on full vectors.

    Parameters
    ----------
    k
        Neighbours that vote.
    metric
        "cosine" or "euclidean". Components of LSI and PCA that hold little but depth hurt the latter more.
    weights
        "uniform", or "distance": 1 / distance. Ties go to the nearest neighbour's label.
    """

    k: int = 15
    metric: Metric = "cosine"
    weights: str = "uniform"
    name: ClassVar[str] = "knn"

    def fit(self, cells: LabelledCells, classes: Sequence[str], *, seed: int = 0) -> Fitted:
        """Keep the reference."""
        if self.weights not in ("uniform", "distance"):
            raise InputError(f"weights={self.weights!r} is not known.", "Pass 'uniform' or 'distance'.")
        return _Voted(self, cells.embedding, cells.labels, len(classes))


@dataclass(frozen=True)
class _Voted(Fitted):
    settings: KNN
    reference: np.ndarray
    labels: np.ndarray
    n_classes: int

    def logits(self, cells: LabelledCells) -> np.ndarray:
        """log((votes + 1/L) / (k + 1)): one vote spread over all classes keeps a class without votes possible (Laplace)."""
        k = self.settings.k
        distance, at = neighbours(self.reference, cells.embedding, k, metric=self.settings.metric)
        weight = np.ones_like(distance)
        if self.settings.weights == "distance":
            weight = 1 / (distance + 1e-12 + 1e-6 * distance.mean(axis=1, keepdims=True))
            weight *= k / weight.sum(axis=1, keepdims=True)
        weight = weight + 1e-9 * 0.5 ** np.arange(k)  # a tie goes to the class of the nearest
        votes = np.zeros((len(at), self.n_classes))
        np.add.at(votes, (np.arange(len(at))[:, None], self.labels[at]), weight)
        return np.log(votes + 1 / self.n_classes) - np.log(k + 1)


# Prototypes


@dataclass(frozen=True)
class Prototype(Annotator):
    """Nearest class mean (Snell et al. 2017, arXiv:1703.05175), for a few labelled cells of each class.

    Parameters
    ----------
    shots
        Cells of each class that make its mean, drawn at random; None: all.
    """

    shots: int | None = None
    name: ClassVar[str] = "prototype"

    def fit(self, cells: LabelledCells, classes: Sequence[str], *, seed: int = 0) -> Fitted:
        """Class means, and the spread around them."""
        if self.shots is not None and self.shots < 1:
            raise InputError(f"shots={self.shots}; at least one cell of each class makes a prototype.")
        rng = np.random.default_rng(seed)
        means, squares, n = [], 0.0, 0
        for c in range(len(classes)):
            rows = np.flatnonzero(cells.labels == c)
            if self.shots is not None:
                rows = rng.permutation(rows)[: self.shots]
            z = np.asarray(cells.embedding[rows], dtype=np.float64)
            means.append(z.mean(axis=0))
            squares, n = squares + float(np.square(z - means[-1]).sum()), n + len(z)
        return _Means(np.array(means), squares / max(n - len(classes), 1) or 1.0)


@dataclass(frozen=True)
class _Means(Fitted):
    means: np.ndarray
    spread: float

    def logits(self, cells: LabelledCells) -> np.ndarray:
        """-|z - m_c|^2 / (2 s^2), s^2 the mean squared distance to the own mean, so that a rescaled embedding gives the same."""
        from scipy.spatial.distance import cdist

        return -cdist(np.asarray(cells.embedding, dtype=np.float64), self.means, "sqeuclidean") / (2 * self.spread)


# Text


@dataclass(frozen=True)
class Text(Annotator):
    """Labels in words, without labelled cells: the description nearest to the cell, for encoders with `text`.

    Parameters
    ----------
    prompt
        How a label becomes a description; ``{label}`` stands for it. The model's card says how its authors word them.
    descriptions
        Label -> description; for the others `prompt` is used.
    """

    prompt: str = "cell type: {label}. "
    descriptions: Mapping[str, str] = field(default_factory=dict)
    name: ClassVar[str] = "text"
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT})
    learns: ClassVar[bool] = False

    def fit(self, cells: LabelledCells, classes: Sequence[str], *, seed: int = 0) -> Fitted:
        """Embed the descriptions."""
        if cells.encoder is None:
            raise InputError("method='text' embeds descriptions; embeddings alone are given.", "Pass an encoder.")
        if "{label}" not in self.prompt:
            raise InputError(f"prompt={self.prompt!r} does not say where the label stands.", "Write {label} in it.")
        if unknown := sorted(set(self.descriptions) - set(classes)):
            raise InputError(
                f"descriptions of {listing(unknown)}, which are no labels.", f"Labels: {listing(classes)}."
            )
        texts = [self.descriptions.get(name, self.prompt.format(label=name)) for name in classes]
        return _Described(_unit(cells.encoder.embed_text(texts)))


@dataclass(frozen=True)
class _Described(Fitted):
    texts: np.ndarray

    def logits(self, cells: LabelledCells) -> np.ndarray:
        """Cosine / 0.05: the scale until cells with labels calibrate it."""
        return _unit(cells.embedding) @ self.texts.T / 0.05


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


# Trained


@dataclass(frozen=True)
class Probe(Annotator):
    """Logistic regression on embeddings (scikit-learn), each dimension standardised.

    Parameters
    ----------
    C
        Inverse of the L2 penalty.
    standardise
        Mean 0 and variance 1 of each dimension; False for sparse values.
    balanced
        Weigh classes alike, however many cells they have.
    """

    C: float = 1.0
    standardise: bool = True
    balanced: bool = False
    name: ClassVar[str] = "probe"

    def fit(self, cells: LabelledCells, classes: Sequence[str], *, seed: int = 0) -> Fitted:
        """Maximum likelihood by L-BFGS."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(
            C=self.C, max_iter=5000, class_weight="balanced" if self.balanced else None, random_state=seed
        )
        model = make_pipeline(StandardScaler(), regression) if self.standardise else regression
        return _Regressed(model.fit(_float64(cells.embedding), cells.labels))


def _float64(x: Any) -> Any:
    return x.astype(np.float64)


@dataclass(frozen=True)
class _Regressed(Fitted):
    model: Any

    def logits(self, cells: LabelledCells) -> np.ndarray:
        """The linear scores of the classes."""
        scores = self.model.decision_function(_float64(cells.embedding))
        return np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores


@dataclass(frozen=True)
class FineTune(Annotator):
    """The encoder trained for the labels with `scfm.finetune`.

    Parameters
    ----------
    method
        "head", "lora" or "full", or `scfm.LoRA(...)` with settings.
    options
        Further arguments of `scfm.finetune`: epochs, learning_rate, valid, ...
    """

    method: Any = "lora"
    options: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "finetune"

    def fit(self, cells: LabelledCells, classes: Sequence[str], *, seed: int = 0) -> Fitted:
        """Train; part of these cells is held out to choose the best epoch."""
        from scfm.finetuning import finetune

        if cells.encoder is None or cells.adata is None:
            raise InputError("method='finetune' trains an encoder; embeddings alone are given.", "Pass an encoder.")
        adata = cells.adata.copy()
        column = "scfm_label"
        adata.obs[column] = [classes[label] for label in cells.labels]  # text: numbers would be regressed
        options = {"progress": False, "seed": seed, **cells.reading, **self.options}
        trained = finetune(cells.encoder, adata, column, method=self.method, **options)
        return _Trained(trained, tuple(classes))


@dataclass(frozen=True)
class _Trained(Fitted):
    encoder: Any
    classes: tuple[str, ...]

    def logits(self, cells: LabelledCells) -> np.ndarray:
        """The head's outputs; a class whose cells were all held out to choose the epoch comes last."""
        found = np.asarray(
            self.encoder.output(cells.adata, "prediction", progress=False, **cells.reading), dtype=np.float64
        )
        column = {name: i for i, name in enumerate(self.encoder.target.classes)}
        out = np.repeat(found.min(axis=1, keepdims=True) - 10, len(self.classes), axis=1)
        for i, name in enumerate(self.classes):
            if name in column:
                out[:, i] = found[:, column[name]]
        return out

    def embedding(self, cells: LabelledCells) -> np.ndarray:
        """Of the trained encoder."""
        return self.encoder.embed(cells.adata, progress=False, **cells.reading)


ANNOTATORS: dict[str, type[Annotator]] = {cls.name: cls for cls in (KNN, Prototype, Text, Probe, FineTune)}
"""Methods by name."""


def annotator_of(method: str | Annotator) -> Annotator:
    """A method with its default settings, from its name.

    Raises
    ------
    InputError
        There is none of this name.
    """
    if isinstance(method, Annotator):
        return method
    if method not in ANNOTATORS:
        raise InputError(f"method={method!r} is not known.", f"Pass one of {listing(ANNOTATORS)}, or e.g. KNN(k=30).")
    return ANNOTATORS[method]()
