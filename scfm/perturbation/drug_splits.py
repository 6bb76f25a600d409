"""Which drugs, cell lines or pairs of them are held out. A split is lists of (cell line, condition), to be stored and looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from scfm.errors import InputError, listing
from scfm.molecules import canonical_smiles
from scfm.perturbation.conditions import Key
from scfm.perturbation.drugs import DrugScreen

__all__ = ["DrugSplit", "few_shot", "unseen_cell_lines", "unseen_drugs", "unseen_pairs"]

VALID = 0.1
"""Share of what is left that validates."""


@dataclass(frozen=True)
class DrugSplit:
    """(cell line, condition) of each side.

    Parameters
    ----------
    kind
        "unseen_drugs", "unseen_cell_lines", "unseen_pairs" or "few_shot": what is new about the test side.
    train, valid, test
        Keys. Controls of all cell lines are known.
    settings
        How it was drawn.
    """

    kind: str
    train: tuple[Key, ...]
    valid: tuple[Key, ...]
    test: tuple[Key, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sides = {"train": set(self.train), "valid": set(self.valid), "test": set(self.test)}
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            if both := sorted(sides[one] & sides[other]):
                raise InputError(f"{listing(both)} is in both {one} and {other}.")
        if not self.train or not self.test:
            raise InputError(
                f"the split leaves {len(self.train)} conditions to train on and {len(self.test)} to test.",
                "Hold out fewer or others.",
            )

    def check(self, screen: DrugScreen) -> None:
        """Refuse a split whose test side is not new in the way it says.

        Drugs are compared as molecules: another spelling, another salt or another name of a drug of the test side is that drug.

        Raises
        ------
        InputError
            What is trained or validated on has a drug, cell line or pair of the test side.
        """
        molecule = _molecules(screen)

        def drugs(keys: Sequence[Key]) -> dict[str, Key]:
            return {molecule[screen.conditions[key[1]].drug]: key for key in keys}

        seen = (*self.train, *self.valid)
        if self.kind == "unseen_drugs":
            here, there = drugs(seen), drugs(self.test)
            leaks = [f"{here[m]} and {there[m]}" for m in sorted(set(here) & set(there))]
        elif self.kind == "unseen_cell_lines":
            leaks = sorted({line for line, _ in seen} & {line for line, _ in self.test})
        else:
            pairs = {(line, molecule[screen.conditions[name].drug]) for line, name in seen}
            leaks = sorted(
                {f"{k[0]}: {k[1]}" for k in self.test if (k[0], molecule[screen.conditions[k[1]].drug]) in pairs}
            )
            if self.kind == "unseen_pairs":
                lines, known = {line for line, _ in self.train}, set(drugs(self.train))
                leaks += sorted(
                    f"{line}: {name} (not seen at all)"
                    for line, name in self.test
                    if line not in lines or molecule[screen.conditions[name].drug] not in known
                )
        if leaks:
            raise InputError(
                f"the split {self.kind!r} does not hold out what it says: {listing(leaks)}.",
                "Draw it again from this screen; one molecule under two names counts as one drug.",
            )

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The lists as JSON text; also written to `path` if one is given."""
        text = json.dumps(asdict(self), indent=1)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | PathLike[str]) -> DrugSplit:
        """Read what `to_json` gave: the text, or a path."""
        text = str(source)
        try:
            content = json.loads(text if text.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
            for side in ("train", "valid", "test"):
                content[side] = tuple((str(line), str(name)) for line, name in content[side])
            return cls(**content)
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{text[:60]!r} is no stored split: {error}", "Write one with DrugSplit.to_json(path)."
            ) from error


def _molecules(screen: DrugScreen) -> dict[str, str]:
    """Canonical SMILES of each drug, without salts."""
    smiles = {c.drug: c.smiles for c in screen.conditions.values()}
    return dict(zip(smiles, canonical_smiles(list(smiles.values()))["canonical"], strict=True))


def unseen_drugs(
    screen: DrugScreen, *, drugs: Sequence[str] | float = 0.2, valid: float = VALID, seed: int = 0
) -> DrugSplit:
    """Hold out drugs in all cell lines, at all doses; validation drugs are others again.

    Parameters
    ----------
    drugs
        Names, or the share of molecules to draw.
    valid
        Share of the remaining molecules.
    """
    molecule = _molecules(screen)
    rng = np.random.default_rng(seed)
    if isinstance(drugs, int | float):
        test = set(_drawn(sorted(set(molecule.values())), float(drugs), rng, "drugs"))
    else:
        _known(drugs, screen.drugs, "drug")
        test = {molecule[name] for name in drugs}
    rest = sorted(set(molecule.values()) - test)
    inner = set(_drawn(rest, valid, rng, "valid")) if valid and len(rest) > 1 else set()

    def side(key: Key) -> str:
        own = molecule[screen.conditions[key[1]].drug]
        return "test" if own in test else "valid" if own in inner else "train"

    return _made("unseen_drugs", screen, side, {"drugs": drugs, "valid": valid, "seed": seed})


def unseen_cell_lines(
    screen: DrugScreen, cell_lines: Sequence[str], *, valid: float = VALID, seed: int = 0
) -> DrugSplit:
    """Hold out cell lines: of them only the control is known (zero-shot). Validation is a share of the other lines' treatments."""
    _known(cell_lines, screen.cell_lines, "cell line")
    rest = [key for key in screen.keys if key[0] not in cell_lines]
    inner = set(_drawn(rest, valid, np.random.default_rng(seed), "valid")) if valid and len(rest) > 1 else set()

    def side(key: Key) -> str:
        return "test" if key[0] in cell_lines else "valid" if key in inner else "train"

    settings = {"cell_lines": list(cell_lines), "valid": valid, "seed": seed}
    return _made("unseen_cell_lines", screen, side, settings)


def few_shot(screen: DrugScreen, cell_line: str, *, drugs: int, valid: float = VALID, seed: int = 0) -> DrugSplit:
    """Of one cell line only a few drugs are trained on, the others tested; other lines are trained on whole."""
    _known([cell_line], screen.cell_lines, "cell line")
    molecule = _molecules(screen)
    rng = np.random.default_rng(seed)
    here = sorted({molecule[screen.conditions[name].drug] for line, name in screen.keys if line == cell_line})
    if not 1 <= drugs < len(here):
        raise InputError(f"drugs={drugs}; {cell_line!r} has {len(here)}, of which some must be left to test.")
    shots = {here[i] for i in rng.choice(len(here), drugs, replace=False)}
    rest = [key for key in screen.keys if key[0] != cell_line]
    inner = set(_drawn(rest, valid, rng, "valid")) if valid and len(rest) > 1 else set()

    def side(key: Key) -> str:
        if key[0] == cell_line and molecule[screen.conditions[key[1]].drug] not in shots:
            return "test"
        return "valid" if key in inner else "train"

    return _made("few_shot", screen, side, {"cell_line": cell_line, "drugs": drugs, "valid": valid, "seed": seed})


def unseen_pairs(screen: DrugScreen, *, share: float = 0.2, valid: float = VALID, seed: int = 0) -> DrugSplit:
    """Hold out pairs of a drug and a cell line, at all doses; the drug is seen in another line, the line with another drug."""
    molecule = _molecules(screen)
    pair_of = {key: (key[0], molecule[screen.conditions[key[1]].drug]) for key in screen.keys}
    pairs = sorted(set(pair_of.values()))
    if not 0 < share < 1:
        raise InputError(f"share={share} is no share.", "Pass a number in (0, 1).")
    rng = np.random.default_rng(seed)
    left, test = set(pairs), set[tuple[str, str]]()
    for i in rng.permutation(len(pairs)):  # a pair is held out if drug and line both stay
        line, drug = pairs[i]
        others = left - {pairs[i]}
        if (
            len(test) < round(share * len(pairs))
            and any(d == drug for _, d in others)
            and any(c == line for c, _ in others)
        ):
            left.discard(pairs[i])
            test.add(pairs[i])
    if not test:
        raise InputError("no pair can be held out: every drug was given to one cell line only.", "Use unseen_drugs().")
    spare = [
        pair
        for pair in sorted(left)
        if sum(p[1] == pair[1] for p in left) > 1 and sum(p[0] == pair[0] for p in left) > 1
    ]
    inner = set(_drawn(spare, valid, rng, "valid")) if valid and len(spare) > 1 else set()
    for pair in sorted(inner):  # validation must not take the last of a drug or line from training
        others = left - inner
        if not any(d == pair[1] for _, d in others) or not any(c == pair[0] for c, _ in others):
            inner.discard(pair)

    def side(key: Key) -> str:
        return "test" if pair_of[key] in test else "valid" if pair_of[key] in inner else "train"

    return _made("unseen_pairs", screen, side, {"share": share, "valid": valid, "seed": seed})


def _drawn(items: Sequence[Any], share: float, rng: np.random.Generator, name: str) -> list[Any]:
    if not 0 < share < 1:
        raise InputError(f"{name}={share} is no share.", "Pass a number in (0, 1).")
    return [items[i] for i in rng.choice(len(items), max(round(share * len(items)), 1), replace=False)]


def _known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    if isinstance(names, str):
        raise InputError(f"one {what} was given as a string; a list is needed.", f"Pass [{names!r}].")
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"{listing(unknown)} is no {what} of the screen.", f"It has {listing(known)}.")


def _made(kind: str, screen: DrugScreen, side: Any, settings: Mapping[str, Any]) -> DrugSplit:
    sides: dict[str, list[Key]] = {"train": [], "valid": [], "test": []}
    for key in screen.keys:
        sides[side(key)].append(key)
    split = DrugSplit(kind, tuple(sides["train"]), tuple(sides["valid"]), tuple(sides["test"]), settings)
    split.check(screen)
    return split
