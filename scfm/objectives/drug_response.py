"""Expression after a drug, from untreated expression, the molecule, its dose and time (scDCA, Maleki et al. 2024, arXiv:2412.13478)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.molecules import MoleculeEncoder, molecules_from, molecules_of
from scfm.objectives.base import Objective
from scfm.objectives.response import ResponseTarget, check_loss, keys_of, typical_change
from scfm.perturbation.drugs import DrugCondition, DrugScreen, read_condition

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DrugResponse", "DrugTarget"]

SETTINGS = 4
"""Numbers of a setting: log10 dose, whether there is none, log10(1 + time), whether there is none."""


@dataclass(frozen=True)
class DrugTarget(ResponseTarget):
    """A drug's response.

    Parameters
    ----------
    molecules
        Record of the molecules' encoder.
    known
        Drug -> SMILES.
    dose, time
        Mean and standard deviation of log10(dose / nM) and log10(1 + time / h) in training; they become 0 and 1.
    """

    molecules: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    dose: tuple[float, float] = (0.0, 1.0)
    time: tuple[float, float] = (0.0, 1.0)

    kind: ClassVar[str] = "drug response"

    def condition(self, name: str) -> DrugCondition:
        """Drug, dose, time and SMILES of a condition; a drug that is not known by name is read as SMILES."""
        found = read_condition(name)
        return replace(found, smiles=self.known.get(found.drug, found.drug))

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Columns "drug", "smiles", "dose" (nM) and "time" (h), NaN where not known."""
        found = [self.condition(name) for name in names]
        return {
            "drug": [c.drug for c in found],
            "smiles": [c.smiles for c in found],
            "dose": np.array([np.nan if c.dose is None else c.dose for c in found]),
            "time": np.array([np.nan if c.time is None else c.time for c in found]),
        }

    def vectors(self, encoder: CellEncoder, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The molecule's vector; log10 dose and log10(1 + time), scaled, each with whether it is missing."""
        found = [self.condition(name) for name in names]
        made = molecules_from(self.molecules)
        by_name = self.molecules.get("key") == "drug"
        wanted = [c.drug if by_name else c.smiles for c in found]
        try:
            molecule = made.vectors(wanted)
        except InputError as error:
            if unknown := sorted({c.drug for c in found if c.drug not in self.known}):
                raise InputError(
                    f"{listing(unknown)}: no drug of training, and read as SMILES not usable: {error.found}",
                    f"Pass a SMILES, or one of the drugs trained on: {listing(self.known)}.",
                ) from error
            raise
        return molecule, np.array([self._setting(c) for c in found], dtype=np.float32)

    def _setting(self, c: DrugCondition) -> list[float]:
        dose = 0.0 if c.dose is None else (np.log10(c.dose) - self.dose[0]) / self.dose[1]
        time = 0.0 if c.time is None else (np.log10(1 + c.time) - self.time[0]) / self.time[1]
        return [dose, float(c.dose is None), time, float(c.time is None)]

    def condition_size(self, encoder: CellEncoder) -> int:
        """Of the molecule and the setting."""
        return molecules_from(self.molecules).dim + SETTINGS


@dataclass(frozen=True, eq=False)
class DrugResponse(Objective):
    """Expression of a cell line after a drug, from its untreated expression: for ``screen.examples(...)``.

    With ``method="drug_conditional"`` it is the drug-conditional adapter of scDCA (Maleki et al. 2024, arXiv:2412.13478).

    Parameters
    ----------
    screen
        From `scfm.perturbation.drug_screen`.
    molecules
        "morgan", another `MoleculeEncoder`, a table indexed by SMILES, or the folder or hub name of a chemical language model.
    loss
        "mse" over all genes, or "gears".
    interaction
        Rank of a term of the head in which drug and token states meet; needed by methods other than "drug_conditional".
    offset
        "mean": predictions start from the mean change of the training examples instead of none, so that what is learnt is what is special
        about a perturbation or context.
    """

    screen: DrugScreen
    molecules: MoleculeEncoder | str | pd.DataFrame = "morgan"
    loss: Literal["mse", "gears"] = "mse"
    interaction: int = 0
    offset: Literal["none", "mean"] = "none"

    @property
    def columns(self) -> tuple[str, ...]:
        """Cell line and condition."""
        return (self.screen.context, "condition")

    @cached_property
    def _molecules(self) -> dict[str, Any]:
        return molecules_of(self.molecules).record()

    def target(self, obs: pd.DataFrame) -> DrugTarget:
        """With the scale of doses and times of these examples."""
        check_loss(self.loss, self.interaction)
        profiles = self.screen.profiles
        found = self.screen.of([("", name) for name in obs["condition"].astype(str)])

        def scale(values: Sequence[float]) -> tuple[float, float]:
            return (0.0, 1.0) if not values else (float(np.mean(values)), float(np.std(values)) or 1.0)

        return DrugTarget(
            genes=tuple(map(str, profiles.genes)),
            target_sum=profiles.target_sum,
            context=self.screen.context,
            control=profiles.control,
            loss_kind=self.loss,
            interaction=self.interaction,
            offset=self.offset,
            profiles=profiles,
            typical=typical_change(profiles, keys_of(obs, self.screen.context), self.offset),
            molecules=self._molecules,
            known={c.drug: c.smiles for c in self.screen.conditions.values()},
            dose=scale([float(np.log10(c.dose)) for c in found if c.dose is not None]),
            time=scale([float(np.log10(1 + c.time)) for c in found if c.time is not None]),
        )
