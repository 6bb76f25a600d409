"""Which perturbations are trained on and which are held out.

The "simulation" splits of GEARS (Roohani et al. 2023, doi:10.1038/s41587-023-01905-6). The original draws from numpy's global generator
after seeding it. Here the same legacy stream is local (`numpy.random.RandomState`), so that the same data, seed and shares give the same
lists. Store them (`to_json`) all the same: they depend on the set of conditions in the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scfm.errors import InputError, listing
from scfm.perturbation.conditions import genes_of, order_of, panel_genes

__all__ = ["PerturbationSplit", "hold_out_conditions", "simulation_split"]

Kind = Literal["simulation", "simulation_single"]
INNER = 0.9
"""Shares of the split that makes the validation set, as in the original."""


@dataclass(frozen=True)
class PerturbationSplit:
    """Conditions of each side.

    Parameters
    ----------
    train, valid, test
        Condition names. The control is in `train`.
    subgroups
        Names of the parts of `test` ("combo_seen0", "combo_seen1", "combo_seen2", "unseen_single") and their conditions.
    control
        Name of the control.
    settings
        How the split was drawn.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    subgroups: Mapping[str, tuple[str, ...]]
    control: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sides = {"train": set(self.train), "valid": set(self.valid), "test": set(self.test)}
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            if both := sorted(_canonical(sides[one], self.control) & _canonical(sides[other], self.control)):
                raise InputError(f"{listing('+'.join(c) for c in both)} is in both {one} and {other}.")
        if self.control in sides["test"] | sides["valid"]:
            raise InputError(f"the control {self.control!r} is held out.", "Keep it in train.")
        named = [condition for group in self.subgroups.values() for condition in group]
        if self.subgroups and (sorted(named) != sorted(self.test)):
            raise InputError("the subgroups are not the parts of test: some condition is in none, or in two of them.")

    def group_of(self, condition: str) -> str:
        """The subgroup of a test condition; "test" where there are none."""
        for name, members in self.subgroups.items():
            if condition in members:
                return name
        return "test"

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The lists as JSON text; also written to `path` if one is given."""
        text = json.dumps(asdict(self), indent=1)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | PathLike[str]) -> PerturbationSplit:
        """Read what `to_json` gave: the text, or a path.

        Raises
        ------
        InputError
            It is no split, or its sides overlap.
        """
        text = str(source)
        try:
            content = json.loads(text if text.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
            content["subgroups"] = {name: tuple(names) for name, names in content["subgroups"].items()}
            for side in ("train", "valid", "test"):
                content[side] = tuple(content[side])
            return cls(**content)
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{text[:60]!r} is no stored split: {error}", "Write one with PerturbationSplit.to_json(path)."
            ) from error

    def leaks(self, groups: Iterable[tuple[str, ...]] = ()) -> dict[str, list[Any]]:
        """What a reader should know of this split.

        Parameters
        ----------
        groups
            Tuples (condition, donor, batch, ...) of the cells that are trained on, if cells of a test condition may be among them.

        Returns
        -------
        dict
            "genes seen in pairs": test singles whose gene is in a training pair; "cells": tuples of `groups` whose condition is held out.
        """
        pairs = {gene for c in self.train if order_of(c, self.control) > 1 for gene in genes_of(c, self.control)}
        singles = [c for c in self.test if order_of(c, self.control) == 1]
        held = _canonical({*self.test, *self.valid}, self.control)
        return {
            "genes seen in pairs": [c for c in singles if genes_of(c, self.control)[0] in pairs],
            "cells": sorted(t for t in set(groups) if _one(t[0], self.control) in held),
        }


def _one(condition: str, control: str) -> tuple[str, ...]:
    """ "A+B" and "B+A" are one condition, and so are "A" and "A+ctrl"."""
    return tuple(sorted(genes_of(condition, control)))


def _canonical(conditions: Iterable[str], control: str) -> set[tuple[str, ...]]:
    return {_one(condition, control) for condition in conditions}


def simulation_split(
    conditions: Sequence[str],
    *,
    control: str = "ctrl",
    kind: Kind = "simulation",
    seed: int = 1,
    train_genes: float = 0.75,
    train_pairs: float = 0.75,
) -> PerturbationSplit:
    """Hold out genes, and with them the conditions that perturb them.

    A share of the perturbed genes is "seen". Train: singles of seen genes and a share of the pairs of two seen genes. Test: the other pairs
    of seen genes (combo_seen2), pairs of one and of no seen gene (combo_seen1, combo_seen0), singles of unseen genes. Validation is drawn
    from train by the same procedure with shares of 0.9.

    Parameters
    ----------
    conditions
        Of the data, in any order; repeats are dropped, the control may be among them.
    control
        Name of the control.
    kind
        "simulation", or "simulation_single" for data of singles only.
    seed
        Of numpy's legacy stream; the original's default is 1.
    train_genes, train_pairs
        Shares of the genes that are seen, and of the pairs of two seen genes that are trained on.

    Returns
    -------
    PerturbationSplit
        Lists equal to the original's, up to their order.

    Raises
    ------
    InputError
        A condition perturbs three genes or more, `kind` is "simulation_single" and there are pairs, or a share is not in (0, 1].
    """
    names = sorted(set(map(str, conditions)) - {control})
    for share, name in ((train_genes, "train_genes"), (train_pairs, "train_pairs")):
        if not 0 < share <= 1:
            raise InputError(f"{name}={share} is no share.", "Pass a number above 0, up to 1.")
    most = 1 if kind == "simulation_single" else 2
    if kind not in ("simulation", "simulation_single"):
        raise InputError(f"kind={kind!r} is not known.", "Pass 'simulation' or 'simulation_single'.")
    if wrong := [c for c in names if not 1 <= order_of(c, control) <= most]:
        raise InputError(
            f"{kind!r} splits conditions of {'one gene' if most == 1 else 'one or two genes'}; {listing(wrong)} perturb others.",
            "Leave them out, or pass kind='simulation' for pairs.",
        )
    train, subgroups = _draw(names, control, kind, seed, train_genes, train_pairs)
    train, inner = _draw(train, control, kind, seed, INNER, INNER)
    return PerturbationSplit(
        train=(*train, control),
        valid=tuple(c for group in inner.values() for c in group),
        test=tuple(c for group in subgroups.values() for c in group),
        subgroups=subgroups,
        control=control,
        settings={"kind": kind, "seed": seed, "train_genes": train_genes, "train_pairs": train_pairs},
    )


def _draw(
    conditions: Sequence[str], control: str, kind: Kind, seed: int, gene_share: float, pair_share: float
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Train, and the parts of what is held out. The stream is restarted before each draw, as in the original."""
    genes = np.array(panel_genes(conditions, control))
    seen = set(np.random.RandomState(seed).choice(genes, int(len(genes) * gene_share), replace=False))
    by_seen: dict[tuple[int, int], list[str]] = {}
    for condition in conditions:
        own = genes_of(condition, control)
        by_seen.setdefault((len(own), sum(gene in seen for gene in own)), []).append(condition)
    train = by_seen.get((1, 1), [])
    groups = {"unseen_single": tuple(by_seen.get((1, 0), []))}
    if kind == "simulation":
        pairs = np.array(sorted(by_seen.get((2, 2), [])))
        chosen = set(np.random.RandomState(seed).choice(pairs, int(len(pairs) * pair_share), replace=False))
        train = [*train, *(pair for pair in pairs.tolist() if pair in chosen)]
        groups = {
            "combo_seen0": tuple(by_seen.get((2, 0), [])),
            "combo_seen1": tuple(by_seen.get((2, 1), [])),
            "combo_seen2": tuple(pair for pair in pairs.tolist() if pair not in chosen),
            **groups,
        }
    return train, groups


def hold_out_conditions(
    conditions: Sequence[str], test: Sequence[str], *, control: str, valid: Sequence[str] = ()
) -> PerturbationSplit:
    """A split whose test conditions you name, e.g. all pairs; the rest is trained on.

    Raises
    ------
    InputError
        A name is not among the conditions.
    """
    names = sorted(set(map(str, conditions)))
    if unknown := sorted({*test, *valid} - set(names)):
        raise InputError(f"{listing(unknown)} is no condition of the data; it has {listing(names)}.")
    held = {*test, *valid}
    groups: dict[str, list[str]] = {}
    trained = {gene for c in names if c not in held for gene in genes_of(c, control)}
    for condition in test:
        own = genes_of(condition, control)
        known = sum(gene in trained for gene in own)
        name = ("seen_single" if known else "unseen_single") if len(own) == 1 else f"combo_seen{known}"
        groups.setdefault(name, []).append(condition)
    return PerturbationSplit(
        train=tuple(c for c in names if c not in held),
        valid=tuple(valid),
        test=tuple(test),
        subgroups={name: tuple(members) for name, members in groups.items()},
        control=control,
        settings={"kind": "named"},
    )
