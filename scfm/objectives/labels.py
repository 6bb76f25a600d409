"""Columns of `obs` as objectives: a class, a number, or several yes/no labels of a cell, from its embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scfm.errors import InputError, listing
from scfm.objectives.base import Objective, Target, complete

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClassTarget", "Classification", "LabelsTarget", "MultiLabel", "Regression", "ValueTarget"]


def _numbers(obs: pd.DataFrame, column: str) -> np.ndarray:
    values = complete(obs, column)
    if values.dtype.kind not in "iufb":
        raise InputError(
            f"obs[{column!r}] holds {values.dtype}, e.g. {values.iloc[0]!r}; numbers are needed.",
            f"Convert it: adata.obs[{column!r}].astype(float).",
        )
    numbers = values.to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(
            f"obs[{column!r}] is infinite for {int((~np.isfinite(numbers)).sum()):,} cells.", "Remove these cells."
        )
    return numbers


# Classification


@dataclass(frozen=True)
class Classification(Objective):
    """One of several classes, e.g. the cell type.

    Parameters
    ----------
    column
        Of `obs`: categories, strings, booleans or integers.
    class_weights
        Weight of a cell in the loss: None (all alike), "balanced" (n_cells / (n_classes * cells of its class)), or a mapping from
        class to weight.
    label_smoothing
        Share of the target spread over all classes, in [0, 1).
    """

    column: str
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    label_smoothing: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def target(self, obs: pd.DataFrame) -> ClassTarget:
        """Classes are in alphabetical order, or in that of an ordered categorical."""
        values = complete(obs, self.column)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing={self.label_smoothing} is not in [0, 1).")
        if getattr(values.dtype, "ordered", False):
            present = set(values)
            classes = tuple(str(name) for name in values.cat.categories if name in present)
        else:
            classes = tuple(sorted(set(values.astype(str))))
        if len(classes) < 2:
            raise InputError(
                f"obs[{self.column!r}] has one class only in the training cells, {listing(classes)}; two are needed.",
                "Name another column, or train on more cells.",
            )
        counts = values.astype(str).value_counts()
        return ClassTarget(self.column, classes, self._weights(classes, counts), self.label_smoothing)

    def _weights(self, classes: Sequence[str], counts: pd.Series) -> tuple[float, ...] | None:
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, Mapping):
            given = {str(name): float(weight) for name, weight in self.class_weights.items()}
            if set(given) != set(classes):
                raise InputError(
                    f"class_weights= names {listing(sorted(given))}; the classes are {listing(classes)}.",
                    "Give a weight for each class.",
                )
            if min(given.values()) < 0 or max(given.values()) <= 0:
                raise InputError("class_weights= must be positive, or 0 for classes to be ignored.")
            return tuple(given[name] for name in classes)
        if self.class_weights != "balanced":
            raise InputError(
                f"class_weights={self.class_weights!r} is not known.", "Pass 'balanced', a mapping, or None."
            )
        return tuple(float(counts.sum() / (len(classes) * counts[name])) for name in classes)


@dataclass(frozen=True)
class ClassTarget(Target):
    """Classes, by number."""

    column: str
    classes: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    kind = "classification"
    metrics = {"macro_f1": True, "accuracy": True, "loss": False}

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    @property
    def strata(self) -> bool:
        """Yes."""
        return True

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Numbers of the classes, -1 for unknown ones (n_cells,) int64."""
        known = {name: i for i, name in enumerate(self.classes)}
        values = complete(obs, self.column).astype(str)
        return np.array([known.get(value, -1) for value in values], dtype=np.int64)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        weight = None if self.weights is None else outputs.new_tensor(self.weights)
        return F.cross_entropy(outputs, labels, weight=weight, label_smoothing=self.label_smoothing)

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy, and F1 averaged over the classes that occur."""
        from sklearn.metrics import f1_score

        found = outputs.argmax(axis=1)
        return {
            "accuracy": float((found == labels).mean()),
            "macro_f1": float(f1_score(labels, found, labels=np.unique(labels), average="macro", zero_division=0.0)),
        }

    def frame(self, outputs: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """`label` (categorical), its `probability`, and `p_<class>` for each class (float32)."""
        import pandas as pd

        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True, initial=-np.inf))
        p = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        known = ~np.isnan(outputs).any(axis=1)
        best = np.where(known, np.nan_to_num(p).argmax(axis=1), -1).astype(np.int64)
        columns: dict[str, Any] = {
            "label": pd.Categorical.from_codes(best.tolist(), categories=pd.Index(self.classes)),
            "probability": p.max(axis=1, initial=-np.inf),
        }
        return pd.DataFrame({**columns, **{f"p_{name}": p[:, i] for i, name in enumerate(self.classes)}}, index=index)


# Regression


@dataclass(frozen=True)
class Regression(Objective):
    """A number, e.g. age or a score.

    Parameters
    ----------
    column
        Of `obs`: finite numbers.
    scale
        Train on (value - mean) / standard deviation of the training cells; predictions are in the unit of the column either way.
    """

    column: str
    scale: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def target(self, obs: pd.DataFrame) -> ValueTarget:
        """With mean and standard deviation of these cells."""
        values = _numbers(obs, self.column)
        if len(values) == 0 or values.min() == values.max():
            raise InputError(
                f"obs[{self.column!r}] has one value only in the training cells; there is nothing to learn.",
                "Name another column, or train on more cells.",
            )
        return (
            ValueTarget(self.column, float(values.mean()), float(values.std()))
            if self.scale
            else ValueTarget(self.column)
        )


@dataclass(frozen=True)
class ValueTarget(Target):
    """(value - mean) / scale."""

    column: str
    mean: float = 0.0
    scale: float = 1.0

    kind = "regression"
    metrics = {"mse": False, "mae": False, "r2": True, "loss": False}

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """(n_cells,) float32."""
        return ((_numbers(obs, self.column) - self.mean) / self.scale).astype(np.float32)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error, of scaled values."""
        return F.mse_loss(outputs[:, 0], labels)

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean squared and mean absolute error, in the unit of the column; R2 where the held-out values differ."""
        error = (outputs[:, 0].astype(np.float64) - labels) * self.scale
        found = {"mse": float((error**2).mean()), "mae": float(np.abs(error).mean())}
        if (spread := float(np.var(labels.astype(np.float64) * self.scale))) > 0:
            found["r2"] = 1 - found["mse"] / spread
        return found

    def frame(self, outputs: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """`value`, in the unit of the column."""
        import pandas as pd

        return pd.DataFrame({"value": outputs[:, 0] * self.scale + self.mean}, index=index)


# Several labels


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Several yes/no labels, any number of which may hold for a cell.

    Parameters
    ----------
    labels
        Columns of `obs`: booleans, or 0 and 1.
    balanced
        Weigh a label's positive cells by its negatives / positives.
    """

    labels: Sequence[str]
    balanced: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.labels)

    def target(self, obs: pd.DataFrame) -> LabelsTarget:
        """With the weights of these cells."""
        if isinstance(self.labels, str) or not self.columns or len(set(self.columns)) < len(self.columns):
            raise InputError(f"labels={self.labels!r} is no list of different columns of obs.")
        found = LabelsTarget(self.columns).encode(obs)
        share = found.mean(axis=0)
        if constant := [name for name, p in zip(self.columns, share, strict=True) if p in (0, 1)]:
            raise InputError(
                f"obs has one value only in the training cells for {listing(constant)}; each label needs both.",
                "Leave these labels out, or train on more cells.",
            )
        weights = tuple(float(w) for w in (1 - share) / share) if self.balanced else None
        return LabelsTarget(self.columns, weights)


@dataclass(frozen=True)
class LabelsTarget(Target):
    """0 or 1 for each label."""

    labels: tuple[str, ...]
    weights: tuple[float, ...] | None = field(default=None)

    kind = "multi-label"
    metrics = {"macro_f1": True, "accuracy": True, "loss": False}

    @property
    def outputs(self) -> int:
        """One logit a label."""
        return len(self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """(n_cells, labels) float32 of 0 and 1."""
        found = np.stack([_numbers(obs, name) for name in self.labels], axis=1).astype(np.float32)
        for name, values in zip(self.labels, found.T, strict=True):
            if not np.isin(values, (0, 1)).all():
                raise InputError(
                    f"obs[{name!r}] holds {values[~np.isin(values, (0, 1))][0]:g}; a label is 0 or 1.",
                    "Make it boolean, or use Regression.",
                )
        return found

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy, mean over labels."""
        weight = None if self.weights is None else outputs.new_tensor(self.weights)
        return F.binary_cross_entropy_with_logits(outputs, labels, pos_weight=weight)

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Share of labels that are right, and F1 averaged over labels, at probability 0.5."""
        from sklearn.metrics import f1_score

        found = outputs > 0
        each = [f1_score(labels[:, i] > 0, found[:, i], zero_division=0.0) for i in range(labels.shape[1])]
        return {"accuracy": float((found == (labels > 0)).mean()), "macro_f1": float(np.mean(each))}

    def frame(self, outputs: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """`p_<label>`: the probability of each label (float32)."""
        import pandas as pd

        p = torch.from_numpy(outputs).sigmoid().numpy()
        return pd.DataFrame({f"p_{name}": p[:, i] for i, name in enumerate(self.labels)}, index=index)
