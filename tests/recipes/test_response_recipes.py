"""Recipes that learn responses, through the command: measured cells of Norman et al., and a generated drug screen."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.data.drugs import drug_demo
from scfm.errors import InputError
from scfm.perturbation import DrugSplit, PerturbationSplit
from scfm.plans import read

NORMAN = Path(__file__).parent / "data" / "norman_slice.h5ad"
SMALL = ["model.tokenizer.context=64", "model.device=cpu", "train.epochs=2", "out=tuned"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(folder: Path, model: str) -> pd.DataFrame:
    table = pd.read_csv(folder / "tuned" / "scores_mean.csv", index_col="predictor")
    assert {"no change", "mean effect", model} <= set(table.index), "the baselines stand beside the model"
    return table


def test_perturbed_genes(folder: Path, command, capsys) -> None:
    given = [f"data.train={NORMAN}", "screen.control=control", "screen.min_cells=4", *SMALL]
    assert command("train", "perturbation_gears", *given) == 3
    assert "mini knows no 'CEBPE', 'CNN1', 'RUNX1T1'" in capsys.readouterr().err
    assert command("train", "perturbation_gears", *given, "unknown_genes=leave out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    table = scores(folder, summary["model"])
    assert summary["metrics"]["test_mse"] == pytest.approx(table.loc[summary["model"], "mse"])
    split = PerturbationSplit.from_json(folder / "tuned" / "split.json")
    tested = set(pd.read_csv(folder / "tuned" / "scores.csv")["condition"])
    assert tested <= set(split.test)
    assert not any("CNN1" in name for name in tested)
    tuned = scfm.load("./tuned", device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    assert not set(tuned.split.train) & tested
    assert read("tuned/recipe.yaml") == read(
        "perturbation_gears",
        {"data.train": str(NORMAN), "screen.control": "control", "screen.min_cells": 4, "model.tokenizer.context": 64}
        | {"model.device": "cpu", "train.epochs": 2, "out": "tuned", "unknown_genes": "leave out"},
    )


def test_drugs(folder: Path, command, capsys) -> None:
    pytest.importorskip("rdkit")
    drug_demo(genes=40, cells=4).write_h5ad("screen.h5ad")
    given = ["data.train=screen.h5ad", "screen.min_cells=1", "split.drugs=[naproxen, dexamethasone]", *SMALL]
    assert command("train", "drug_response", *given, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["trainable"]["share"] < 0.05
    scores(folder, summary["model"])
    split = DrugSplit.from_json(folder / "tuned" / "split.json")
    assert {name.split()[0] for _, name in split.test} == {"naproxen", "dexamethasone"}
    tuned = scfm.load("./tuned", device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    cells = drug_demo(genes=40, cells=4)
    found = tuned.predict_response(cells[(cells.obs["drug"] == "control").to_numpy()], ["CC(=O)Oc1ccccc1C(=O)O 100 nM"])
    assert np.isfinite(found.layers["predicted"]).all()

    assert command("train", "drug_response", *given, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["data"]["trained on"] == f"{len(split.train)} profiles"
    assert command("train", "drug_response", *given, "split=simulation") == 3
    assert "a screen of drugs is split by unseen_drugs or" in capsys.readouterr().err
    assert command("train", "drug_response", *given, "screen.dose=concentration") == 3
    error = capsys.readouterr().err
    assert "no column 'concentration'" in error
    assert "Set screen.dose=COLUMN" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"split": {"kind": "unseen_drugs", "share": 0.2}},
            "unseen_drugs has no 'share'. Keys: 'drugs', 'valid', 'seed'",
        ),
        ({"split": "unseen_cell_lines"}, "split.cell_lines is not set"),
        ({"screen": "drug"}, "Did you mean 'drugs', 'genes'|Did you mean 'drugs'"),
        ({"screen.controls": "DMSO"}, "Did you mean 'control'"),
        ({"response.loss": "mae"}, "response.loss is 'mae'; it must be 'mse' or 'gears'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("drug_response", settings)
