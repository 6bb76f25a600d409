"""Drug screens: their layout, their splits, and the scores of predicted responses."""

import numpy as np
import pytest

from scfm.data.drugs import drug_demo
from scfm.errors import InputError
from scfm.perturbation import (
    DrugSplit,
    condition_name,
    drug_screen,
    few_shot,
    read_condition,
    score_responses,
    unseen_cell_lines,
    unseen_drugs,
    unseen_pairs,
)

pytest.importorskip("rdkit")


@pytest.fixture(scope="module")
def cells():
    return drug_demo(genes=40, cells=4)


@pytest.fixture(scope="module")
def screen(cells):
    return drug_screen(cells)


def test_a_profile_is_the_log_of_summed_counts(cells, screen):
    at = ((cells.obs["drug"] == "ibuprofen") & (cells.obs["dose"] == 100) & (cells.obs["cell_line"] == "NK")).to_numpy()
    total = cells.X[at].toarray().sum(axis=0)
    expected = np.log1p(screen.profiles.target_sum * total / total.sum())
    (row,) = screen.profiles.rows([("NK", "ibuprofen 100 nM")])
    np.testing.assert_allclose(screen.profiles.values[row], expected)
    examples = screen.examples([("NK", "ibuprofen 100 nM")])
    untreated = cells.X[((cells.obs["drug"] == "control") & (cells.obs["cell_line"] == "NK")).to_numpy()].toarray()
    np.testing.assert_array_equal(examples.X.toarray()[0], untreated.sum(axis=0))
    assert examples.obs["dose"].tolist() == [100]
    assert len(screen.top["NK", "ibuprofen 100 nM"]) == 20


@pytest.mark.parametrize(
    "condition", [("a drug", 100, 24), ("CC(=O)O", None, 0.5), ("x", 1e-3, None), ("y", None, None)]
)
def test_names_of_conditions_are_read_again(condition):
    found = read_condition(condition_name(*condition))
    assert (found.drug, found.dose, found.time) == condition


def _without(cells, column, value, where="ibuprofen"):
    data = cells.copy()
    data.obs[column] = data.obs[column].where(data.obs["drug"] != where, value)
    return data


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("smiles", "C1CC"), {}, "no molecule for ibuprofen: 'C1CC'"),
        (("smiles", None), {}, "missing for treated cells of 'ibuprofen'"),
        (("dose", np.nan), {}, r"obs\['dose'\] is missing for 24 treated cells, e.g. 'cell"),
        (("dose", 0.0), {}, r"obs\['dose'\] is 0 for treated cells"),
        (("cell_line", None), {}, "has no value for 24 cells"),
        (("cell_line", "HeLa"), {}, "no 'control' cells in context 'HeLa'"),
        (("drug", "control"), {"control": "DMSO"}, "no cells of 'DMSO'"),
        (("dose", 1.0), {"dose": "concentration"}, "concentration"),
        (("dose", 1.0), {"min_cells": 99}, "no condition has 99 cells"),
    ],
)
def test_a_screen_that_cannot_be_read_is_refused(cells, change, options, message):
    with pytest.raises(InputError, match=message) as caught:
        drug_screen(_without(cells, *change), **options)
    assert caught.value.fix


def test_missing_doses_can_be_a_condition_of_their_own(cells):
    found = drug_screen(_without(cells, "dose", np.nan), missing_doses="flag")
    assert found.conditions["ibuprofen"].dose is None


def test_normalised_expression_is_refused(cells):
    data = cells.copy()
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="non-integer"):
        drug_screen(data)


def test_splits_hold_out_what_they_say(screen):
    drug = {key: screen.conditions[key[1]].drug for key in screen.keys}
    for split in (
        unseen_drugs(screen, drugs=["ibuprofen", "vorinostat"]),
        unseen_cell_lines(screen, ["NK"]),
        unseen_pairs(screen, share=0.2),
        few_shot(screen, "B", drugs=2),
    ):
        assert sorted([*split.train, *split.valid, *split.test]) == sorted(screen.keys)
        assert DrugSplit.from_json(split.to_json()) == split
        seen = [*split.train, *split.valid]
        if split.kind == "unseen_drugs":
            assert {drug[key] for key in split.test} == {"ibuprofen", "vorinostat"}
            assert not {drug[key] for key in split.valid} & {drug[key] for key in split.train}
        if split.kind == "unseen_cell_lines":
            assert {line for line, _ in seen} == {"B", "CD14+ Mono"}
        if split.kind == "unseen_pairs":
            assert not {(key[0], drug[key]) for key in split.test} & {(key[0], drug[key]) for key in seen}
            assert {drug[key] for key in split.test} <= {drug[key] for key in split.train}
        if split.kind == "few_shot":
            assert len({drug[key] for key in split.train if key[0] == "B"}) == 2
    assert unseen_pairs(screen, seed=1) == unseen_pairs(screen, seed=1) != unseen_pairs(screen, seed=2)


def test_one_molecule_under_two_names_is_one_drug(cells):
    data = cells.copy()
    one = (data.obs["drug"] == "ibuprofen") & (data.obs["cell_line"] == "NK")
    data.obs.loc[one, "drug"] = "ibuprofen sodium"
    data.obs.loc[one, "smiles"] = "[Na+].CC(C)Cc1ccc(cc1)C(C)C(=O)[O-]"
    found = drug_screen(data)
    test = unseen_drugs(found, drugs=["ibuprofen"]).test
    assert {found.conditions[name].drug for _, name in test} == {"ibuprofen", "ibuprofen sodium"}
    named = [key for key in found.keys if found.conditions[key[1]].drug == "ibuprofen"]
    with pytest.raises(InputError, match="does not hold out what it says"):
        DrugSplit("unseen_drugs", tuple(k for k in found.keys if k not in named), (), tuple(named)).check(found)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda s: unseen_drugs(s, drugs=["water"]), "'water' is no drug of the screen"),
        (lambda s: unseen_cell_lines(s, ["HeLa"]), "'HeLa' is no cell line of the screen"),
        (lambda s: unseen_cell_lines(s, list(s.cell_lines)), "leaves 0 conditions to train on"),
        (lambda s: few_shot(s, "NK", drugs=12), "drugs=12"),
        (lambda s: unseen_drugs(s, drugs=1.5), "drugs=1.5 is no share"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(screen, split, message):
    with pytest.raises(InputError, match=message):
        split(screen)


def test_baselines_stand_beside_every_prediction(screen):
    split = unseen_pairs(screen)
    seen = [*split.train, *split.valid]
    truth = screen.profiles.values[screen.profiles.rows(split.test)]
    control = screen.profiles.control_of(split.test)
    table = score_responses(screen, seen, split.test, {"oracle": truth, "echo": control}).table
    assert list(table.index) == [
        "no change",
        "context mean",
        "same condition, other contexts",
        "mean effect",
        "oracle",
        "echo",
    ]
    assert table.loc["oracle", ["r2_delta", "pearson_delta", "r2_delta_top20"]].tolist() == pytest.approx([1, 1, 1])
    assert table.loc["echo", "r2_delta"] == 0
    assert table.loc["same condition, other contexts", "r2_delta"] > 0.2  # generated so
    with pytest.raises(InputError, match="in train and test"):
        score_responses(screen, screen.keys, split.test, {})
    with pytest.raises(InputError, match="finite numbers are needed"):
        score_responses(screen, seen, split.test, {"hole": truth * np.nan})
