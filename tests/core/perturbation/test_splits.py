"""Splits of perturbations: the lists of GEARS, sides that share nothing, a round trip through JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.errors import InputError
from scfm.perturbation import PerturbationSplit, genes_of, hold_out_conditions, simulation_split

# by DataSplitter of snap-stanford/GEARS at 3e32fe1, on made-up conditions
GEARS = json.loads((Path(__file__).parent / "gears" / "splits.json").read_text())


@pytest.mark.parametrize("recorded", GEARS["splits"], ids=lambda s: f"{s['kind']}-{s['seed']}")
def test_lists_are_those_of_gears(recorded):
    single = recorded["kind"] == "simulation_single"
    conditions = [c for c in GEARS["conditions"] if not single or "ctrl" in c]
    settings = {name: recorded[name] for name in ("kind", "seed", "train_genes", "train_pairs")}
    split = simulation_split(conditions[::-1], **settings)
    for side in ("train", "valid", "test"):
        assert sorted(getattr(split, side)) == recorded[side]
    for name, members in recorded["subgroups"].items():
        assert sorted(split.subgroups[name]) == members
    assert split.settings == settings


def test_the_callers_random_state_is_not_touched():
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulation_split(GEARS["conditions"])
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@given(st.integers(4, 14), st.integers(0, 40), st.integers(0, 2**31 - 1))
def test_every_condition_is_on_one_side_and_groups_say_what_was_seen(n_genes, n_pairs, seed):
    genes = [f"G{i}" for i in range(n_genes)]
    rng = np.random.default_rng(seed)
    pairs = {"+".join(sorted(rng.choice(genes, 2, replace=False))) for _ in range(n_pairs)}
    split = simulation_split([*genes, *pairs, "control"], control="control", seed=seed)
    assert sorted([*split.train, *split.valid, *split.test]) == sorted([*genes, *pairs, "control"])
    held = {c for name in ("unseen_single",) for c in split.subgroups[name]}
    seen = set(genes) - held
    for name, number in (("combo_seen0", 0), ("combo_seen1", 1), ("combo_seen2", 2)):
        for pair in split.subgroups[name]:
            assert sum(gene in seen for gene in genes_of(pair, "control")) == number
    assert split.leaks()["genes seen in pairs"] == []
    assert PerturbationSplit.from_json(split.to_json()) == split


def test_json_round_trip_through_a_file(tmp_path):
    split = simulation_split(GEARS["conditions"])
    split.to_json(tmp_path / "split.json")
    assert PerturbationSplit.from_json(tmp_path / "split.json") == split
    assert split.group_of(split.subgroups["combo_seen1"][0]) == "combo_seen1"


def test_overlapping_sides_are_refused():
    with pytest.raises(InputError, match="'A\\+B' is in both train and test"):
        PerturbationSplit(("B+A", "ctrl"), (), ("A+B",), {}, "ctrl")
    with pytest.raises(InputError, match="'A' is in both train and valid"):
        PerturbationSplit(("A", "ctrl"), ("A+ctrl",), (), {}, "ctrl")
    with pytest.raises(InputError, match="control 'ctrl' is held out"):
        PerturbationSplit(("A",), (), ("ctrl",), {}, "ctrl")
    with pytest.raises(InputError, match="no stored split"):
        PerturbationSplit.from_json('{"train": []}')
    with pytest.raises(InputError, match="no stored split"):
        PerturbationSplit.from_json("no/such/file.json")


def test_leaks_are_told():
    split = hold_out_conditions(["A", "B", "A+C", "ctrl"], ["C", "A+B"][:0] or ["B"], control="ctrl")
    assert split.leaks()["genes seen in pairs"] == []
    split = hold_out_conditions(["A", "B", "A+B", "ctrl"], ["B"], control="ctrl")
    assert split.leaks([("A", "donor1"), ("B+ctrl", "donor2")]) == {
        "genes seen in pairs": ["B"],
        "cells": [("B+ctrl", "donor2")],
    }


def test_named_split_groups_by_what_was_trained():
    split = hold_out_conditions(["A", "B", "A+B", "A+D", "D+E", "ctrl"], ["A+B", "D+E", "B"], control="ctrl")
    assert split.train == ("A", "A+D", "ctrl")
    assert split.subgroups == {"combo_seen1": ("A+B", "D+E"), "unseen_single": ("B",)}
    with pytest.raises(InputError, match="'X' is no condition"):
        hold_out_conditions(["A", "ctrl"], ["X"], control="ctrl")


@pytest.mark.parametrize(
    ("conditions", "options", "message"),
    [
        (["A", "A+B+C"], {}, "one or two genes"),
        (["A", "A+B"], {"kind": "simulation_single"}, "one gene"),
        (["A"], {"kind": "random"}, "not known"),
        (["A"], {"train_genes": 1.5}, "no share"),
    ],
)
def test_what_cannot_be_split_is_refused(conditions, options, message):
    with pytest.raises(InputError, match=message):
        simulation_split(conditions, **options)
