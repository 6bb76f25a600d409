"""Objectives of fine-tuning: what a run trains for. `scfm.finetune` knows none by name.

How an objective is added
-------------------------
1. An `Objective` (a frozen dataclass with the user's settings) whose `target(obs)` checks the training cells' labels and gives a `Target`.
2. A `Target` (a frozen dataclass of plain values, stored with the result). What it overrides decides how much is its own:

   - a label of a cell, from its embedding: `columns`, `encode`, `outputs`, `loss`, `scores`, `frame` (see `labels`);
   - another head: `head`, `start` and `answer`;
   - outputs of tokens, or of the network's own heads: `request`, and `answer` or `step` (see `masked`);
   - other inputs (masked tokens, two views, pairs of cells): a `Cells` of its own from `examples`, and `step`. Everything random comes
     from `examples.draws`, so that a resumed run sees the same batches;
   - the cells' values: `Objective.reads_matrix = True`, then `examples` finds `cells.matrices`;
   - conditions that examples carry: `conditioned` (see `response`, `drug_response`);
   - parts that the network lacks, or conditions that cells carry: `ready` gives an encoder with these parts and a tokenizer that puts the
     conditions into `Tokens.cells`. It is called again when the result is loaded, and `FineTuned.predict` reads data through it.

3. A line in `KINDS`, by which `scfm.load` finds the target's class, and the public name in `scfm/__init__.py`.
4. Its scores are computed from `outputs`, gathered from all processes, one row a cell: sums a cell rather than means a batch.

Which weights are trained is the method's business (`scfm.adaptation`), not the objective's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from scfm.errors import CheckpointError, InputError, listing
from scfm.objectives.base import Objective, Target, complete
from scfm.objectives.contrastive import Contrastive
from scfm.objectives.integration import Integration
from scfm.objectives.labels import Classification, MultiLabel, Regression
from scfm.objectives.masked import MaskedExpression

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "KINDS",
    "Classification",
    "Contrastive",
    "Integration",
    "MaskedExpression",
    "MultiLabel",
    "Objective",
    "Regression",
    "Target",
    "objective_named",
    "objective_of",
    "target_from",
]

KINDS = {
    "drug response": "drug_response:DrugTarget",
    "gene response": "gene_response:GeneTarget",
    "classification": "labels:ClassTarget",
    "regression": "labels:ValueTarget",
    "multi-label": "labels:LabelsTarget",
    "masked expression": "masked:MaskedTarget",
    "contrastive": "contrastive:ContrastiveTarget",
    "integration": "integration:IntegrationTarget",
}
"""`Target.kind` -> module and class."""


NAMED: dict[str, tuple[Any, str | None]] = {
    "classification": (Classification, "column"),
    "regression": (Regression, "column"),
    "masked_expression": (MaskedExpression, None),
    "contrastive": (Contrastive, "labels"),
    "integration": (Integration, "batch"),
}
"""Name in small letters -> objective, and its setting that names a column."""


def objective_of(objective: str | Objective, obs: pd.DataFrame | None) -> Objective:
    """An objective as it is; a column's name becomes `Regression` where it holds numbers, else `Classification`."""
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        raise InputError(
            f"objective is a {type(objective).__name__}; it must be a column of obs or an objective.",
            "Pass 'cell_type', Classification(...), Regression(...) or another objective of scfm.objectives.",
        )
    assert obs is not None
    values = complete(obs, objective)
    return Regression(objective) if values.dtype.kind in "iuf" else Classification(objective)


def objective_named(kind: str, column: str | None = None, **settings: Any) -> Objective:
    """An objective by its name in small letters, e.g. "masked_expression", with its settings; unknown ones are refused.

    Parameters
    ----------
    kind
        Name.
    column
        Of `obs`: what is predicted; the batch, of "integration"; the classes, of "contrastive".
    settings
        Fields of the objective.
    """
    if kind not in NAMED:
        raise InputError(f"kind={kind!r} is not known.", f"Pass {listing(NAMED, 10)}.")
    cls, first = NAMED[kind]
    known = {field.name for field in fields(cls)}
    if unknown := sorted(set(settings) - known):
        raise InputError(f"{kind} has no {listing(unknown)}.", f"It has {listing(sorted(known), 10)}.")
    if column is not None:
        if first is None:
            raise InputError(f"{kind} reads no column of obs, and {column!r} was named.", "Leave it out.")
        settings = {first: column, **settings}
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in settings]
    if missing:
        raise InputError(f"{kind} needs {listing(missing)}, a column of obs.", "Name it as the objective.")
    found: Objective = cls(**settings)
    return found


def target_from(record: Mapping[str, Any]) -> Target:
    """What `Target.record` wrote."""
    settings = {key: _tuples(value) for key, value in record.items()}
    kind = str(settings.pop("kind"))
    if kind not in KINDS:
        raise CheckpointError(
            f"the objective {kind!r} is not known to this version of scfm; it knows {listing(KINDS)}.", "Upgrade scfm."
        )
    module, _, name = KINDS[kind].partition(":")
    found: Target = getattr(import_module(f"{__name__}.{module}"), name)(**settings)
    return found


def _tuples(value: Any) -> Any:
    """Lists as the tuples they were before they were written as JSON."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
