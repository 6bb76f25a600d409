"""The kind of recipe "response": learn what drugs or perturbed genes do to expression, and score it beside the plain baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from scfm.errors import InputError, listing
from scfm.finetune_recipe import TuningRecipe, built, data_files, first_process, of_kind
from scfm.plans import Strict

__all__ = ["ResponseRecipe"]

SCREENS = {"drugs": "drug_screen", "genes": "gene_screen"}
OBJECTIVES = {"drugs": "drug_response:DrugResponse", "genes": "gene_response:GeneResponse"}
SPLITS = {
    "drugs": ("unseen_drugs", "unseen_cell_lines", "unseen_pairs", "few_shot"),
    "genes": ("simulation", "simulation_single"),
}


class ScreenData(Strict):
    """The cells of the screen."""

    train: str | None = None
    layer: str | None = None
    gene_column: str | None = None
    map_genes: bool = False


class ResponseSection(Strict):
    """As for `scfm.DrugResponse` and `scfm.GeneResponse`."""

    loss: Literal["mse", "gears"] = "mse"
    interaction: int | None = None
    molecules: str | None = None
    """For drugs: morgan, or folder or hub name of a chemical language model."""


class ResponseRecipe(TuningRecipe):
    """Train on pseudobulk profiles of a screen, test on what the split holds out."""

    kind: Literal["response"]
    data: ScreenData
    screen: dict[str, Any]
    split: dict[str, Any]
    response: ResponseSection = ResponseSection()
    unknown_genes: Literal["error", "leave out"] = "error"
    """Conditions with perturbed genes that the model has no vector for."""

    unit: ClassVar[str] = "profiles"

    @field_validator("screen", mode="before")
    @classmethod
    def _screen(cls, value: Any) -> dict[str, Any]:
        return of_kind("screen", value, _screens())

    @field_validator("split", mode="before")
    @classmethod
    def _split(cls, value: Any) -> dict[str, Any]:
        return of_kind("split", value, _splits())

    def files(self) -> list[Path]:
        """The screen's file."""
        if self.data.train is None:
            raise InputError("data.train is not set: the file with the screen.", "Add data.train=screen.h5ad.")
        return data_files(self.data.train, "data.train")

    def sides(self) -> tuple[Any, Any, dict[str, list[Any]]]:
        """The screen, the split, and the keys (context, condition) of its sides."""
        from anndata import read_h5ad

        (path,) = self.files()
        self.check_columns(path, self.data.layer)
        what = self.screen["kind"]
        if self.split["kind"] not in SPLITS[what]:
            raise InputError(
                f"split.kind is {self.split['kind']!r}; a screen of {what} is split by {' or '.join(SPLITS[what])}.",
                f"Set split={SPLITS[what][0]}.",
            )
        where = {"layer": self.data.layer, "gene_column": self.data.gene_column}
        screen = built({**self.screen, **where}, _screens(), read_h5ad(path))
        if what == "drugs":
            split = built(self.split, _splits(), screen)
            return screen, split, {side: list(getattr(split, side)) for side in ("train", "valid", "test")}
        names = sorted({name for _, name in screen.profiles.keys})
        split = built({**self.split, "control": screen.profiles.control}, _splits(), names)
        known = self._known(names, screen.profiles.control)
        sides = {
            side: [key for key in screen.keys if key[1] in getattr(split, side) and key[1] in known]
            for side in ("train", "valid", "test")
        }
        if empty := [side for side in ("train", "test") if not sides[side]]:
            raise InputError(
                f"the split leaves no condition to {listing(empty)} on.",
                "Set another split, a lower screen.min_cells, or a model that knows the genes.",
            )
        return screen, split, sides

    def _known(self, conditions: Sequence[str], control: str) -> set[str]:
        """Conditions whose genes the model has vectors for, or all."""
        if self.unknown_genes == "error":
            return set(conditions)
        from scfm.perturbation import genes_of

        vocabulary = self.encoder().vocabulary
        return {name for name in conditions if (vocabulary.lookup(genes_of(name, control)) >= 0).all()}

    def arguments(self) -> dict[str, Any]:
        """Of `finetune`, but for the encoder; the data are looked at first."""
        self.folder()
        screen, _, sides = self.sides()
        return self._arguments(screen, sides)

    def _arguments(self, screen: Any, sides: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        module, _, name = OBJECTIVES[self.screen["kind"]].partition(":")
        objective = getattr(import_module(f"scfm.objectives.{module}"), name)
        given = {key: value for key, value in self.response.model_dump().items() if value is not None}
        if self.screen["kind"] != "drugs" and "molecules" in given:
            raise InputError("response.molecules is for drugs; the screen is of genes.", "Set response.molecules=null.")
        return {
            "train": screen.examples(sides["train"]),
            "objective": objective(screen, **given),
            "valid": screen.examples(sides["valid"]) if sides["valid"] else None,
            "groups": None,
            "layer": None,
            "gene_column": None,
            "map_genes": self.data.map_genes,
            "values": None,
            **self._shared(),
        }

    def run(self, *, progress: bool | None = None) -> Mapping[str, Any]:
        """Train, save, and score what is held out; `out` also gets split.json, scores.csv and this configuration."""
        out = self.folder()
        screen, split, sides = self.sides()
        tuned, summary = self.tuned(self._arguments(screen, sides), progress)
        if not first_process():
            return summary
        from scfm.perturbation import score_responses

        scores = score_responses(screen, [*sides["train"], *sides["valid"]], sides["test"], {tuned.name: tuned})
        split.to_json(out / "split.json")
        scores.scores.to_csv(out / "scores.csv", index=False)
        scores.table.to_csv(out / "scores_mean.csv")
        tested = {f"test_{name}": float(value) for name, value in scores.table.loc[tuned.name].items()}
        return {**summary, "metrics": {**summary["metrics"], **tested}, "table": str(scores)}


def _screens() -> dict[str, Callable[..., Any]]:
    package, read_from = import_module("scfm.perturbation"), {"layer": None, "gene_column": None}
    return {kind: partial(getattr(package, name), **read_from) for kind, name in SCREENS.items()}


def _splits() -> dict[str, Callable[..., Any]]:
    package = import_module("scfm.perturbation")
    found: dict[str, Callable[..., Any]] = {name: getattr(package, name) for name in SPLITS["drugs"]}
    return found | {kind: partial(package.simulation_split, kind=kind, control="") for kind in SPLITS["genes"]}
