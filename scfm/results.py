"""What a task returns: a table of numbers with their uncertainty, a picture, words, JSON, and how it was made."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.provenance import plain, versions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from scfm.encoder import CellEncoder

__all__ = ["TaskResult", "provenance_of"]


@dataclass(frozen=True)
class TaskResult(ABC):
    """Base of every task's result: a frozen dataclass; a subclass adds its fields.

    Parameters
    ----------
    table
        The main result. Scores are in long form: one row a score, with columns `metric`, `value`, `low`, `high` (interval),
        and what they are of (`encoder`, `method`, `stratum`, ...); baselines are rows beside the model's.
    provenance
        Encoders, data, settings, seed and versions: enough to make the result again (see `provenance_of`).
    """

    table: pd.DataFrame
    provenance: Mapping[str, Any] = field(kw_only=True)

    @abstractmethod
    def summary(self) -> str:
        """The answer in a few lines for a terminal, the baseline beside it."""

    @abstractmethod
    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Draw the result with matplotlib.

        Parameters
        ----------
        ax
            Draw into these axes; None makes a figure.
        save
            Also write the figure to this file.
        """

    def __str__(self) -> str:
        return self.summary()

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON holds them: tables as {"columns", "index", "data"}, arrays as lists, NaN as None."""
        return {"kind": type(self).__name__, **{f.name: _json(getattr(self, f.name)) for f in fields(self)}}

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The result as JSON text; also written to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


def _json(value: Any) -> Any:
    if type(value).__module__.startswith("pandas"):
        if hasattr(value, "columns"):
            return {
                "columns": [str(name) for name in value.columns],
                "index": _json(list(value.index)),
                "data": [[_json(item) for item in row] for row in value.itertuples(index=False, name=None)],
            }
        return {"index": _json(list(value.index)), "data": [_json(item) for item in value]}
    if isinstance(value, np.ndarray):
        return _json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if (plainer := plain(value)) is not value:
        return _json(plainer)
    return str(value)


def provenance_of(task: str, *encoders: CellEncoder, **settings: Any) -> dict[str, Any]:
    """What a task's result was made with: encoders (name, origin, tokenizer settings), the call's settings, versions.

    Parameters
    ----------
    task
        Name of the task.
    encoders
        Those that were used.
    settings
        Arguments that decide the numbers, the seed among them; plain values.
    """
    used = [
        {"model": encoder.name, "origin": encoder.origin, "tokenizer": encoder.tokenizer.settings()}
        for encoder in encoders
    ]
    return {"task": task, "encoders": used, "settings": plain(settings), "versions": versions()}
