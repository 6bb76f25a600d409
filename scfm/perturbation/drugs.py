"""A drug screen as pseudobulk profiles: which drug, at which dose and time, did what in which cell line.

Layout, as of sci-Plex: raw counts in `X` or a layer, and in `obs`

- `drug`: name; untreated cells have the control's;
- `smiles`: of the drug; not read for untreated cells;
- `dose`: in nM, positive; not read for untreated cells;
- `cell_line`: or donor, tissue: what a drug acts in;
- `time`: hours of treatment; optional.

A condition is written "drug", "drug 100 nM", "drug 24 h" or "drug 100 nM 24 h"; the drug may be a SMILES string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.errors import InputError, listing
from scfm.molecules import canonical_smiles
from scfm.perturbation.conditions import Key
from scfm.perturbation.pseudobulk import TARGET_SUM
from scfm.perturbation.screen import Screen, screen_parts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["DrugCondition", "DrugScreen", "condition_name", "drug_screen", "read_condition"]

_CONDITION = re.compile(r"(?P<drug>.+?)(?: (?P<dose>[0-9.eE+-]+) nM)?(?: (?P<time>[0-9.eE+-]+) h)?")


@dataclass(frozen=True)
class DrugCondition:
    """A drug at a dose for a time.

    Parameters
    ----------
    drug
        Its name, or SMILES.
    dose
        nM; None: not known.
    time
        Hours; None: not known.
    smiles
        Of the drug; "" where it is not known.
    """

    drug: str
    dose: float | None = None
    time: float | None = None
    smiles: str = ""


def condition_name(drug: str, dose: float | None = None, time: float | None = None) -> str:
    """Name of a condition.

    >>> condition_name("vorinostat", 100, 24)
    'vorinostat 100 nM 24 h'
    """
    return drug + ("" if dose is None else f" {dose:g} nM") + ("" if time is None else f" {time:g} h")


def read_condition(name: str) -> DrugCondition:
    """Drug, dose and time of a condition's name.

    >>> read_condition("CC(=O)O 1e+03 nM")
    DrugCondition(drug='CC(=O)O', dose=1000.0, time=None, smiles='')
    """
    found = _CONDITION.fullmatch(name.strip())
    if found is None:
        raise InputError("a condition has no name.", "Write it as 'drug 100 nM 24 h', or with a SMILES as the drug.")
    dose, time = (None if found[part] is None else float(found[part]) for part in ("dose", "time"))
    return DrugCondition(found["drug"], dose, time)


@dataclass(frozen=True)
class DrugScreen(Screen):
    """Pseudobulk profiles of a drug screen.

    Parameters
    ----------
    conditions
        What each condition is.
    """

    conditions: Mapping[str, DrugCondition]

    @property
    def cell_lines(self) -> tuple[str, ...]:
        """Those with a treatment."""
        return tuple(sorted({line for line, _ in self.keys}))

    @property
    def drugs(self) -> tuple[str, ...]:
        """Names of the drugs."""
        return tuple(sorted({condition.drug for condition in self.conditions.values()}))

    def of(self, keys: Sequence[Key]) -> list[DrugCondition]:
        """What the conditions of keys are."""
        if unknown := sorted({key[1] for key in keys} - set(self.conditions)):
            raise InputError(
                f"{listing(unknown)} is no condition of the screen.", f"It has {listing(self.conditions, 4)}."
            )
        return [self.conditions[key[1]] for key in keys]

    def describe(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Columns "drug", "smiles", "dose" (nM) and "time" (h), NaN where not known."""
        found = self.of(keys)
        return {
            "drug": [condition.drug for condition in found],
            "smiles": [condition.smiles for condition in found],
            "dose": np.array([np.nan if c.dose is None else c.dose for c in found]),
            "time": np.array([np.nan if c.time is None else c.time for c in found]),
        }


def drug_screen(
    adata: AnnData,
    *,
    drug: str = "drug",
    smiles: str = "smiles",
    dose: str | None = "dose",
    time: str | None = None,
    cell_line: str = "cell_line",
    control: str = "control",
    missing_doses: Literal["error", "flag"] = "error",
    min_cells: int = 1,
    layer: str | None = None,
    gene_column: str | None = None,
    target_sum: float = TARGET_SUM,
) -> DrugScreen:
    """Pseudobulk profiles of cells of a drug screen; see the module's text for the layout.

    Parameters
    ----------
    adata
        Raw counts in `X` or `layer`; not changed.
    drug, smiles, dose, time, cell_line
        Columns of `obs`; None for a dose or time that there is none of.
    control
        Value of `drug` that untreated cells have.
    missing_doses
        "error", or "flag": treated cells without a dose are a condition of their own, which models are told.
    min_cells
        Conditions with fewer cells in a cell line are left out; controls are not.
    layer
        Key of `layers`; None reads `X`.
    gene_column
        Column of `var` with the genes' names; None reads `var_names`.
    target_sum
        Counts a profile is scaled to.

    Raises
    ------
    InputError
        A column or the control is missing, a SMILES is no molecule, a drug has two, a treated cell has no dose, a cell line has no
        control, or the matrix holds no counts.
    """
    from scfm.cells import Source, check_values
    from scfm.genes import feature_names

    source = Source(adata, layer)
    columns = [drug, smiles, cell_line, *(name for name in (dose, time) if name is not None)]
    source.require_obs(columns, "Pass drug=, smiles=, dose=, time= and cell_line= as they are called there.")
    obs = source.obs[columns]
    named = obs[[drug, cell_line]]
    if named.isna().to_numpy().any():
        raise InputError(
            f"obs[{[drug, cell_line]}] has no value for {int(named.isna().any(axis=1).sum()):,} cells.",
            "Fill or drop them.",
        )
    treated = obs[drug].astype(str) != control
    if treated.all() or not treated.any():
        what, names_there = "no" if treated.all() else "only", sorted(set(obs[drug].astype(str)))
        raise InputError(
            f"obs[{drug!r}] has {what} cells of {control!r}; it has {listing(names_there)}.",
            "Pass control= with the name that untreated cells have there.",
        )
    molecules = _molecules(obs[treated], drug, smiles)
    doses = _numbers(obs, treated, dose, "dose", missing_doses == "flag", positive=True)
    times = _numbers(obs, treated, time, "time", False, positive=False)
    conditions: dict[str, DrugCondition] = {}
    names = np.full(len(obs), control, dtype=object)
    for row in np.flatnonzero(treated):
        name = str(obs[drug].iloc[row])
        where = (name, doses[row], times[row])
        names[row] = condition_name(*where)
        conditions.setdefault(names[row], DrugCondition(*where, molecules[name]))
    lines = obs[cell_line].astype(str).to_numpy(dtype=object)
    matrix = source.take(slice(0, source.shape[0]))
    check_values(matrix, "counts", source, slice(0, source.shape[0]), "a drug screen")
    parts = screen_parts(
        matrix,
        list(zip(lines.tolist(), names.tolist(), strict=True)),
        feature_names(source.var, gene_column),
        control=control,
        min_cells=min_cells,
        target_sum=target_sum,
    )
    left = {name for _, name in parts[0].keys}
    return DrugScreen(*parts, cell_line, {name: found for name, found in conditions.items() if name in left})


def _molecules(obs: pd.DataFrame, drug: str, smiles: str) -> dict[str, str]:
    """SMILES of each drug, as given; refused where it is missing, no molecule, or not one."""
    table = obs[[drug, smiles]].astype({drug: str}).drop_duplicates()
    if table[smiles].isna().any():
        raise InputError(
            f"obs[{smiles!r}] is missing for treated cells of {listing(sorted(set(table[drug][table[smiles].isna()])))}.",
            "Fill in the SMILES (PubChem has them by name), or leave these drugs out.",
        )
    if twice := sorted(set(table[drug][table[drug].duplicated()])):
        raise InputError(f"obs[{smiles!r}] has several values for {listing(twice)}.", "Give each drug one SMILES.")
    try:
        canonical_smiles(table[smiles].tolist())
    except InputError as error:
        wrong = []
        for name, text in zip(table[drug], table[smiles], strict=True):
            try:
                canonical_smiles([text])
            except InputError:
                wrong.append(f"{name}: {text!r}")
        raise InputError(f"obs[{smiles!r}] has no molecule for {'; '.join(wrong)}.", error.fix) from error
    return dict(zip(table[drug], table[smiles].astype(str), strict=True))


def _numbers(
    obs: pd.DataFrame, treated: pd.Series, column: str | None, what: str, may_lack: bool, *, positive: bool
) -> list[float | None]:
    """A number for each cell, None where there is none or the cell is untreated."""
    if column is None:
        return [None] * len(obs)
    values = obs[column][treated]
    try:
        numbers = values.astype(float)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"obs[{column!r}] holds no numbers ({error}).", "Give doses in nM and times in hours, as numbers."
        ) from error
    if numbers.isna().any() and not may_lack:
        raise InputError(
            f"obs[{column!r}] is missing for {int(numbers.isna().sum()):,} treated cells, e.g. {numbers.index[numbers.isna()][0]!r}.",
            f"Fill it in, pass {what}=None if there is no {what} at all"
            + (", or missing_doses='flag'." if what == "dose" else "."),
        )
    odd = numbers[((numbers <= 0) if positive else (numbers < 0)) | np.isinf(numbers)]
    if len(odd):
        raise InputError(
            f"obs[{column!r}] is {odd.iloc[0]:g} for treated cells, e.g. {odd.index[0]!r}.",
            "Doses are in nM, above 0; untreated cells are told by their drug." if positive else "Times are in hours.",
        )
    found: list[float | None] = [None] * len(obs)
    for row, value in zip(np.flatnonzero(treated), numbers, strict=True):
        found[row] = None if np.isnan(value) else float(value)
    return found
