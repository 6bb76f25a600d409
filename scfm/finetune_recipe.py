"""The kind of recipe "finetune": `scfm.finetune` from a file. Its keys are the arguments of `finetune`, of objectives and of methods."""

from __future__ import annotations

import inspect
import json
import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from functools import cache, partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model, field_validator

from scfm.errors import InputError, listing
from scfm.files import write_whole
from scfm.plans import Plan, Recipe, Strict, near, validated
from scfm.provenance import plain

__all__ = ["FineTuneRecipe", "ModelSection", "TuningRecipe", "built", "data_files", "first_process", "of_kind"]

SHIPPED_DATA = "scfm:"
"""Before the name of a data set that is in the package, e.g. scfm:pbmc_demo."""
BASE = "base"
"""Folder in `out` for the random weights that training began with, where what was trained names them."""
ELSEWHERE = {
    *("encoder", "train", "objective", "method", "valid", "groups"),
    *("layer", "gene_column", "map_genes", "values", "checkpoints", "resume", "progress"),
}
"""Arguments of `finetune` with a section of their own, or that are no setting."""


class ModelSection(Strict):
    """As for `scfm.load`."""

    name: str
    revision: str | None = None
    adapter: str | None = None
    weights: str | None = None
    device: str = "auto"
    fresh: bool = False
    """Begin with random weights of the model's sizes, drawn from train.seed: pre-training."""
    sizes: dict[str, Any] = {}
    """With fresh: sizes of the network that are not the model's, e.g. layers."""
    load: dict[str, Any] = {}
    """Options of its loading."""
    tokenizer: dict[str, Any] = {}
    """Options of its tokenizer, e.g. context."""


class DataSection(Strict):
    """The cells."""

    train: str | list[str] | None = None
    valid: float | str | list[str] | None = 0.2
    """A share, or files of their own."""
    groups: str | None = None
    layer: str | None = None
    gene_column: str | None = None
    map_genes: bool = False
    values: Literal["counts", "lognorm", "any"] | None = None

    def training(self) -> list[Path]:
        """Files with training cells."""
        if self.train is None:
            raise InputError("data.train is not set: the file with the training cells.", "Add data.train=cells.h5ad.")
        return data_files(self.train, "data.train")

    def held_out(self) -> list[Path] | float | None:
        """Files with held-out cells, or their share."""
        return data_files(self.valid, "data.valid") if isinstance(self.valid, str | list) else self.valid


class TuningRecipe(Recipe):
    """What all recipes have in common that train by `scfm.finetune`."""

    model: ModelSection
    method: dict[str, Any] = {"kind": "lora"}
    train: dict[str, Any] = {}
    checkpoints: Path | None = None
    """Default: beside `out`, with the ending .checkpoints."""
    resume: bool = True

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> dict[str, Any]:
        return of_kind("method", value, _methods())

    @field_validator("train", mode="before")
    @classmethod
    def _train(cls, value: Any) -> dict[str, Any]:
        return _section("train", _training_settings(), {} if value is None else value)

    def encoder(self) -> Any:
        """The encoder to begin with."""
        from scfm.loading import load

        model = self.model
        encoder = load(
            model.name,
            revision=model.revision,
            adapter=model.adapter,
            weights=model.weights,
            device=model.device,
            **model.load,
        )
        if model.fresh:
            encoder = _fresh(encoder, model.sizes, int(self.train["seed"]))
        elif model.sizes:
            raise InputError("model.sizes are of a network with random weights.", "Set model.fresh=true, or no sizes.")
        return encoder.with_options(**_tuples(model.tokenizer)) if model.tokenizer else encoder

    @abstractmethod
    def files(self) -> list[Path]:
        """Those with the training cells."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Of `finetune`, but for the encoder; the data are looked at first."""

    def _shared(self) -> dict[str, Any]:
        out = self.folder()
        if self.model.fresh and self.method["kind"] != "full":
            raise InputError(
                f"model.fresh begins with random weights, of which method {self.method['kind']} leaves most as they are.",
                "Set method=full.",
            )
        return {
            "method": built(self.method, _methods()),
            "checkpoints": self.checkpoints or out.with_name(f"{out.name}.checkpoints"),
            "resume": self.resume,
            **self.train,
        }

    def check_columns(self, path: Path, layer: str | None) -> None:
        """Refuse a file that lacks a column the recipe reads, or has another kind of values there."""
        from scfm.cells import Source

        source = Source(path, layer)
        try:
            for key, column, expectation in self.columns():
                source.require_obs(
                    [column], f"It must hold: {expectation.what}. Set {key}=COLUMN to name another column."
                )
                _check_column(source.obs[column], expectation.kind, f"obs[{column!r}] of {source.label}", key)
        finally:
            source.close()

    def plan(self) -> Plan:
        """What `run` would do; data are read, nothing is trained or written."""
        from scfm.finetune_plan import planned

        return planned(self)

    def tuned(self, arguments: dict[str, Any], progress: bool | None) -> tuple[Any, dict[str, Any]]:
        """The fine-tuned encoder, saved to `out` beside this configuration by the first process; and a summary."""
        from scfm.finetuned import METRICS, SPLITS
        from scfm.finetuning import finetune

        out, encoder = self.folder(), self.encoder()
        if self.model.fresh:  # nobody else has these weights
            encoder.origin["source"] = str(out.resolve() / BASE)
        tuned = finetune(encoder, **arguments, progress=progress)
        if first_process():
            if self.model.fresh and not tuned.target.predicts:
                tuned.merge().save(out)
                _write_json(out / METRICS, {"best": tuned.metrics, "epochs": tuned.history})
                _write_json(out / SPLITS, asdict(tuned.split))
            else:
                tuned.save(out)
                if self.model.fresh:
                    encoder.save(out / BASE)
            self.write(out)
        return tuned, {
            "out": str(out),
            "model": tuned.name,
            "target": tuned.target.kind,
            "trained_cells": len(tuned.split.train),
            "held_out_cells": len(tuned.split.valid),
            "trainable": tuned.record["trainable"],
            "metrics": tuned.metrics,
        }


class FineTuneRecipe(TuningRecipe):
    """Fine-tune, or with `model.fresh` pre-train, an encoder."""

    kind: Literal["finetune"]
    data: DataSection
    objective: dict[str, Any]

    @field_validator("objective", mode="before")
    @classmethod
    def _objective(cls, value: Any) -> dict[str, Any]:
        return of_kind("objective", value, _objectives())

    def files(self) -> list[Path]:
        """Those with the training cells."""
        return self.data.training()

    def arguments(self) -> dict[str, Any]:
        """Of `finetune`, but for the encoder; the data are looked at first."""
        data, held_out = self.data.training(), self.data.held_out()
        for path in [*data, *(held_out if isinstance(held_out, list) else [])]:
            self.check_columns(path, None)
        return {
            "train": _one_or_all(data),
            "objective": built(self.objective, _objectives()),
            "valid": _one_or_all(held_out) if isinstance(held_out, list) else held_out,
            "groups": self.data.groups,
            "layer": self.data.layer,
            "gene_column": self.data.gene_column,
            "map_genes": self.data.map_genes,
            "values": self.data.values,
            **self._shared(),
        }

    def run(self, *, progress: bool | None = None) -> Mapping[str, Any]:
        """Fine-tune and save; `out` then also holds this configuration."""
        return self.tuned(self.arguments(), progress)[1]


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(plain(content), indent=1)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def first_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    from scfm.runs import processes

    return processes()[0] == 0


def data_files(names: str | list[str], key: str) -> list[Path]:
    found = []
    for name in [names] if isinstance(names, str) else names:
        if name.startswith(SHIPPED_DATA):
            path = Path(str(resources.files("scfm.data") / f"{name.removeprefix(SHIPPED_DATA)}.h5ad"))
            have = [SHIPPED_DATA + item.stem for item in path.parent.glob("*.h5ad")]
            if not path.is_file():
                raise InputError(f"{key} is {name!r}; no such data ship with scfm.", f"There is {listing(have)}.")
        elif not (path := Path(name)).exists():
            raise InputError(f"{key}: there is no file {name}.", f"Set {key}=FILE.h5ad, or run where it is.")
        found.append(path)
    if not found:
        raise InputError(f"{key} is empty.", f"Set {key}=FILE.h5ad.")
    return found


def _one_or_all(paths: list[Path]) -> Any:
    return paths[0] if len(paths) == 1 else paths


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has lists where options are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _check_column(values: Any, kind: str, label: str, key: str) -> None:
    numeric, example = values.dtype.kind in "iufb", str(values.iloc[0]) if len(values) else None
    if kind == "numbers" and not numeric:
        raise InputError(f"{label} holds {values.dtype}, e.g. {example}; numbers are needed.", f"Set {key}=COLUMN.")
    if kind == "yes/no" and values.dtype.kind != "b" and not (numeric and values.dropna().isin((0, 1)).all()):
        raise InputError(f"{label} is not yes/no (e.g. {example}).", f"Set {key}=COLUMN.")
    if kind == "labels" and values.dtype.kind == "f":
        raise InputError(f"{label} holds {values.dtype}, e.g. {example}; labels are needed.", f"Set {key}=COLUMN.")


def _fresh(encoder: Any, sizes: Mapping[str, Any], seed: int) -> Any:
    """An encoder of the same architecture with random weights, without touching torch's global stream."""
    import torch

    known = [field.name for field in fields(encoder.config)]
    if odd := [name for name in sizes if name not in known]:
        raise InputError(
            f"model.sizes: {encoder.name} has no {listing(odd)}.{near(odd[0], known)}", f"It has {listing(known, 30)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = type(encoder).build(
            replace(encoder.config, **_tuples(sizes)), encoder.tokenizer.vocabulary, encoder.card
        )
    other.tokenizer = encoder.tokenizer
    other.origin = {"source": "random weights", "architecture": encoder.name, "seed": str(seed)}
    return other.to(encoder.device)


# Schemas made from code


@cache
def _training_settings() -> type[BaseModel]:
    """Keyword arguments of `finetune` that have no section of their own."""
    from scfm.finetuning import finetune

    found = {}
    for name, parameter in inspect.signature(finetune).parameters.items():
        if name not in ELSEWHERE:
            found[name] = (_type(parameter.annotation, finetune.__module__), parameter.default)
    return _model("train", found)


def _type(annotation: Any, module: str) -> Any:
    """An annotation as a type; what cannot be told without heavy imports is anything."""
    try:
        return eval(annotation, vars(sys.modules[module])) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


@cache
def _methods() -> dict[str, type]:
    """Ways of training by their kinds."""
    return dict(import_module("scfm.adaptation").METHODS)


@cache
def _objectives() -> dict[str, type]:
    """Objectives that need settings only, by their names: MaskedExpression is masked_expression."""
    package = import_module("scfm.objectives")
    found = (getattr(package, name) for name in package.__all__)
    classes = [cls for cls in found if isinstance(cls, type) and issubclass(cls, package.Objective)]
    return {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower(): cls
        for cls in classes
        if cls is not package.Objective
    }


def _model(name: str, found: dict[str, Any]) -> type[BaseModel]:
    made: Any = create_model(
        name, __config__=ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True), **found
    )
    return made


def _settings_of(made_by: Callable[..., Any]) -> type[BaseModel]:
    """Settings of a dataclass, or arguments of a function (but for its first, and fixed ones), as a model that refuses unknown keys."""
    found = {}
    if is_dataclass(made_by):
        hints = get_type_hints(made_by)
        for field in fields(made_by):
            default = field.default if field.default is not MISSING else ...
            if field.default_factory is not MISSING:
                default = field.default_factory()
            found[field.name] = (hints[field.name], default)
    else:
        function = made_by.func if isinstance(made_by, partial) else made_by
        fixed = made_by.keywords if isinstance(made_by, partial) else {}
        for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
            if name not in fixed:
                default = ... if parameter.default is parameter.empty else parameter.default
                found[name] = (_type(parameter.annotation, function.__module__), default)
    return _model("settings", found)


def of_kind(where: str, value: Any, kinds: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """A section whose `kind` decides its keys, complete and checked."""
    content = {"kind": value} if isinstance(value, str) else value
    if not isinstance(content, Mapping) or not isinstance(content.get("kind"), str):
        raise InputError(f"{where} needs a kind: {listing(kinds, 20)}.")
    kind, rest = content["kind"], {key: item for key, item in content.items() if key != "kind"}
    if kind not in kinds:
        raise InputError(f"{where}.kind is {kind!r}.{near(kind, kinds)} Kinds: {listing(kinds, 20)}.")
    schema = _settings_of(kinds[kind])
    if foreign := [key for key in rest if key not in schema.model_fields]:
        hint = f" Set {where}={kind} first, which empties the section." if len(rest) > 1 else ""
        names = list(schema.model_fields)
        raise InputError(
            f"{where}: {kind} has no {listing(foreign)}.{near(foreign[0], names)} Keys: {listing(names, 30) or 'none'}.{hint}"
        )
    return {"kind": kind, **_section(where, schema, rest)}


def _section(where: str, schema: type[BaseModel], content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is {content!r}; it must be a section with keys.")
    return validated(schema, content, None, prefix=where).model_dump()


def built(section: Mapping[str, Any], kinds: Mapping[str, Callable[..., Any]], *first: Any) -> Any:
    """What a section describes: an objective, a method; `first` are arguments that it does not hold."""
    settings = _tuples({key: value for key, value in section.items() if key != "kind"})
    return kinds[section["kind"]](*first, **settings)
