"""Recipes: what to train, on what and how, in a YAML file that is checked before anything runs.

A recipe's `kind` says which schema it has. Kinds are found through the entry points `scfm.recipes`, recipes that ship with scfm in the
package of that name, and any other by its path. Paths inside a recipe start from the working folder.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata, resources
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scfm.errors import InputError, listing
from scfm.files import write_whole

__all__ = [
    "Expectation",
    "Plan",
    "Recipe",
    "cluster_files",
    "find",
    "header",
    "kinds",
    "overridden",
    "read",
    "settings_of",
    "shipped",
    "train",
]

GROUP = "scfm.recipes"
"""Entry points of kinds, and the package with the recipes that ship."""
RESOLVED = "recipe.yaml"
Section = TypeVar("Section", bound=BaseModel)
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section with keys",
    "model": "a section with keys",
    "path": "a path",
}


class Strict(BaseModel):
    """A section whose unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Expectation(Strict):
    """What a column of `obs` must hold."""

    what: str
    """For people."""
    kind: Literal["labels", "numbers", "yes/no", "any"] = "any"


class Expects(Strict):
    """The data a recipe is made for."""

    data: str = ""
    """For people: the matrix, the features, the assay."""
    obs: dict[str, Expectation] = {}
    """Column of `obs`; ``{section.key}`` stands for the value of that key, and is skipped where that is null."""


@dataclass(frozen=True)
class Plan:
    """What a recipe would do: `facts`, section -> name -> value, ready to be printed."""

    title: str
    facts: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        lines = [self.title]
        width = max((len(name) for facts in self.facts.values() for name in facts), default=0)
        for section, facts in self.facts.items():
            lines += ["", section, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]
        return "\n".join(lines)


class Recipe(Strict):
    """A validated recipe of some kind."""

    kind: str
    title: str
    expects: Expects = Field(default=Expects(), repr=False)
    out: Path | None = None
    """Folder for the result."""

    unit: ClassVar[str] = "cells"
    """What is trained on."""

    @abstractmethod
    def plan(self) -> Plan:
        """What `run` would do; nothing is trained or written."""

    @abstractmethod
    def run(self, *, progress: bool | None = None) -> Mapping[str, Any]:
        """Do it, write to `out`, and say what came out."""

    def folder(self) -> Path:
        """Where the result goes."""
        if self.out is None:
            raise InputError("out is not set: the folder for the result.", "Add out=FOLDER.")
        return self.out

    def write(self, folder: Path, *, notes: Sequence[str] = ()) -> Path:
        """Store this configuration beside the result."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=140, allow_unicode=True)
        comments = [f"# scfm train {folder / RESOLVED}", *(f"# {note}" for note in notes)]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RESOLVED
        write_whole(path, lambda part: part.write_text("\n".join([*comments, text]), encoding="utf-8"))
        return path

    def columns(self) -> Iterator[tuple[str, str, Expectation]]:
        """Key that names it, column of `obs`, and what it must hold."""
        for pattern, expectation in self.expects.obs.items():
            if (name := self._filled(pattern)) is not None:
                yield pattern.strip("{}"), name, expectation

    def _filled(self, pattern: str) -> str | None:
        if not (found := re.fullmatch(r"\{([\w.]+)\}", pattern)):
            return pattern
        value: Any = self.model_dump()
        for part in found[1].split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return None if value is None else str(value)


# Finding


def shipped() -> dict[str, Path]:
    """Recipes that come with scfm, by name."""
    folder = resources.files(GROUP)
    return {
        item.name.removesuffix(".yaml"): Path(str(item))
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".yaml")
    }


def cluster_files() -> list[Path]:
    """Files that start recipes on several processes and machines."""
    folder = resources.files(GROUP) / "clusters"
    return sorted(Path(str(item)) for item in folder.iterdir() if item.name.endswith((".yaml", ".sbatch")))


def find(recipe: str | PathLike[str]) -> Path:
    """The file of a recipe: a name from `shipped`, or a path.

    Raises
    ------
    InputError
        There is none; the nearest names are told.
    """
    known = shipped()
    if str(recipe) in known:
        return known[str(recipe)]
    path = Path(recipe)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise InputError(f"there is no file {path}.", "Name a file, or a recipe from `scfm recipes`.")
    raise InputError(f"no recipe {str(recipe)!r}.{near(str(recipe), known)}", "List them: `scfm recipes`.")


@cache
def kinds() -> dict[str, metadata.EntryPoint]:
    """Kinds of recipes, not yet imported."""
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def header(path: Path) -> list[str]:
    """The comment a recipe begins with: the commands that run it."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def near(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    near = get_close_matches(name, list(names), n=3)
    return f" Did you mean {listing(near)}?" if near else ""


# Reading


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2 and no dates: PyYAML takes 1e-3 for text, 010 for eight and 1:30 for ninety."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Decimal."""
        return int(node.value)


_REPLACED = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {  # the first that matches wins: whole numbers before others
    "int": r"[-+]?[0-9]+$",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str, label: str) -> Any:
    """YAML -> plain values."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{label} is no YAML: {error}") from error


def overridden(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's content with dotted keys set: ``{"train.epochs": 3}``; setting a section replaces it."""
    result = _copy(content)
    for key, value in settings.items():
        *parents, last = key.split(".")
        at = result
        for i, part in enumerate(parents):
            inner = at.setdefault(part, {})
            if inner is None or isinstance(inner, str):  # `method: lora` is short for `method: {kind: lora}`
                inner = at[part] = {} if inner is None else {"kind": inner}
            if not isinstance(inner, dict):
                raise InputError(f"{key}: {'.'.join(parents[: i + 1])} is {inner!r}, no section with keys.")
            at = inner
        at[last] = _copy(value)
    return result


def _copy(value: Any) -> Any:
    """Plain values that share nothing with the given ones."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """``["train.epochs=3", "data.groups=null"]`` -> values, read as YAML."""
    settings = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*", key):
            raise InputError(
                f"{text!r} is no key=value.", "Write e.g. train.epochs=3; keys are those of the recipe, with dots."
            )
        settings[key] = parse(value, key)
    return settings


def read(recipe: str | PathLike[str], settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    recipe
        Name of a recipe that ships with scfm, or path of a YAML file.
    settings
        Values to set, by dotted keys.

    Raises
    ------
    InputError
        There is no such recipe, or it has unknown keys or values of the wrong kind: all of them are told, with the nearest names.
    """
    path = find(recipe)
    content = parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} is no recipe: it holds no keys with values.", "See one: `scfm recipes show NAME`.")
    content = overridden(content, settings or {})
    kind = content.get("kind")
    if kind not in kinds():
        raise InputError(
            f"{path} has kind: {kind!r}.{near(str(kind), kinds())}", f"Kinds that are installed: {listing(kinds())}."
        )
    schema: type[Recipe] = kinds()[kind].load()
    return validated(schema, content, str(recipe))


def validated(schema: type[Section], content: Mapping[str, Any], label: str | None, *, prefix: str = "") -> Section:
    """Content as a pydantic model; all that is wrong with it is one `InputError`.

    Parameters
    ----------
    label
        What the content is of; None where the error goes into another one.
    prefix
        Key of the section the content is.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = _problems(schema, error.errors(), prefix)
        if label is None:
            raise InputError(" ".join(problems)) from error
        shown = problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        raise InputError(f"{label}: {shown}", "Change the file, or set a value: key=value.") from error


def _problems(schema: type[BaseModel], errors: Sequence[Any], prefix: str) -> list[str]:
    """Errors of pydantic in words; those of the members of a union are one."""
    told: list[str] = []
    wanted: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in errors:
        where, names = _place(schema, item["loc"])
        where = f"{prefix}.{where}".strip(".")
        kind = item["type"]
        if kind == "extra_forbidden":
            told.append(f"{where} is no key.{near(str(item['loc'][-1]), names)} Keys: {listing(names, 30)}.")
        elif kind == "missing":
            told.append(f"{where} is not set.")
        elif kind == "value_error":
            told.append(str(item["ctx"]["error"]))
        else:
            word = WORDS.get(re.split(r"_(type|parsing|from|attributes|unicode)", kind)[0])
            word = item["ctx"]["expected"] if kind == "literal_error" else word or f"such that: {item['msg']}"
            wanted.setdefault(where, []).append(word)
            values.setdefault(where, item["input"])
    for where, words in wanted.items():
        shown = "a section" if isinstance(values[where], Mapping | BaseModel) else listing([values[where]])
        told.append(f"{where} is {shown}; it must be {' or '.join(dict.fromkeys(words))}.")
    return told


def _place(schema: type[BaseModel], location: Sequence[Any]) -> tuple[str, list[str]]:
    """A dotted key, without the names pydantic adds for members of a union, and the keys of its section."""
    known: list[str] = []
    names: list[str] = []
    at: Any = schema
    for part in location:
        if not (isinstance(at, type) and issubclass(at, BaseModel)):
            break
        names = list(at.model_fields)
        known.append(str(part))
        at = at.model_fields[part].annotation if part in at.model_fields else None
    return ".".join(known), names


# Running


def train(
    recipe: str | PathLike[str], settings: Mapping[str, Any] | None = None, *, progress: bool | None = None
) -> Mapping[str, Any]:
    """Run a recipe: what ``scfm train recipe key=value`` does.

    Parameters
    ----------
    recipe
        Name of a recipe that ships with scfm (``scfm recipes``), or path of a YAML file.
    settings
        Values to set, by dotted keys: ``{"data.train": "cells.h5ad", "train.epochs": 3}``.
    progress
        Show a progress bar; None shows it on terminals.

    Returns
    -------
    mapping
        `out`, `metrics`, and what else the kind of recipe reports.

    Raises
    ------
    InputError
        The recipe or the data are not right.
    ResumeError
        The folder for the result holds another run.
    """
    return read(recipe, settings).run(progress=progress)
