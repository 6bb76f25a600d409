"""The recipe that makes mini, on cells of two made-up types."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import sparse
from sklearn.metrics import f1_score

import scfm
from scfm.errors import InputError
from scfm.plans import find, read, train
from scfm.recipes.pretrain_mini import evaluation, recipe
from scfm.recipes.pretrain_mini.config import Config, ViewConfig
from scfm.recipes.pretrain_mini.corpus import assemble
from scfm.recipes.pretrain_mini.views import split, thin

GENES = 60


def cells(n: int, seed: int) -> ad.AnnData:
    """Counts of two types that differ in a third of the genes each."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 2
    rates = rng.gamma(1.0, 1.0, GENES) * np.where((np.arange(GENES)[None] % 3) == kind[:, None], 6.0, 0.7)
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(rates).astype(np.float32)),
        obs=pd.DataFrame({"lab": [f"lab {i % 3}" for i in range(n)]}, index=[f"cell {i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(GENES)]),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    cells(60, 0).write_h5ad(tmp_path / "one.h5ad")
    cells(90, 1).write_h5ad(tmp_path / "two.h5ad")
    cells(20, 0).write_h5ad(tmp_path / "held_out.h5ad")
    return tmp_path


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {
            "corpus": {
                "min_cells": 2,
                "sets": [
                    {"path": "one.h5ad", "share": 1, "leave_out": "held_out.h5ad", "components": 4},
                    {"path": "two.h5ad", "share": 1, "groups": "lab", "components": 3},
                ],
            },
            "network": {"dim": 16, "heads": 2, "hidden": 16, "layers": 1},
            "train": {
                "view": {"min_depth": 20},
                "stages": [
                    {"layers": 0, "steps": 30, "cells": 24, "context": 40, "learning_rate": 0.01, "warmup": 5},
                    {"steps": 30, "cells": 24, "context": 40, "learning_rate": 0.005, "warmup": 5},
                ],
            },
        }
    )


def test_the_loss_falls_and_the_result_loads(config: Config, data: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    encoder = recipe.pretrain(config, data, weights=tmp_path / "weights", results=tmp_path / "results")
    assert torch.equal(before, torch.get_rng_state())
    log = pd.read_csv(tmp_path / "results/log.csv")
    assert len(log) == 60
    assert log["loss"].tail(10).mean() < log["loss"].head(10).mean() - 0.05
    assert (tmp_path / "results/loss.png").stat().st_size > 1000
    loaded = scfm.load(tmp_path / "weights", device="cpu")
    query = cells(30, 2)
    np.testing.assert_allclose(
        loaded.embed(query, progress=False), encoder.embed(query, progress=False), atol=5e-3
    )  # stored in float16


def test_the_same_seed_gives_the_same_weights(config: Config, data: Path, tmp_path: Path) -> None:
    stages = tuple(stage.model_copy(update={"steps": 4}) for stage in config.train.stages)
    config = config.model_copy(update={"train": config.train.model_copy(update={"stages": stages})})
    first, second = (
        recipe.pretrain(config, data, weights=tmp_path / name, results=tmp_path / name) for name in ("a", "b")
    )
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_held_out_cells_are_left_out_and_groups_kept_apart(config: Config, data: Path) -> None:
    groups, vocabulary = assemble(config.corpus, data)
    assert [group.name for group in groups] == ["one", "two:lab 0", "two:lab 1", "two:lab 2"]
    assert [group.counts.shape for group in groups] == [(40, len(vocabulary)), *[(30, len(vocabulary))] * 3]
    assert [group.share for group in groups] == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    original = ad.read_h5ad(data / "one.h5ad")[20:]
    kept = [str(name) for name in original.var_names if name in vocabulary]
    np.testing.assert_array_equal(groups[0].counts[:, vocabulary.lookup(kept)].toarray(), original[:, kept].X.toarray())


def test_halves_add_up_and_views_show_less() -> None:
    whole, rng = cells(50, 3).X, np.random.default_rng(0)
    a, b = split(whole, rng)
    assert (a + b != whole).nnz == 0
    view = thin(a, ViewConfig(min_depth=10), rng)
    assert ((a - view).data >= 0).all()
    assert view.sum() < a.sum()
    assert (view.data > 0).all()


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(find("pretrain_mini").read_text().replace("min_cells", "min_cell"))
    with pytest.raises(InputError, match=r"corpus.min_cell is no key. Did you mean 'min_cells'"):
        read(tmp_path / "own.yaml")


def test_the_command_trains_as_the_recipe_says(data: Path, config: Config, tmp_path: Path) -> None:
    content = {"kind": "pretrain_mini", "title": "made up", **config.model_dump(mode="json")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="there is no file"):
        train(tmp_path / "own.yaml", {"data": str(tmp_path / "nowhere"), "out": str(tmp_path / "out")})
    short = {"train.stages": [{"steps": 3, "cells": 8, "context": 40}], "data": str(data), "out": str(tmp_path / "out")}
    plan = str(read(tmp_path / "own.yaml", short).plan())
    assert "3 steps of 8 cells" in plan
    assert not (tmp_path / "out").exists()
    summary = train(tmp_path / "own.yaml", short)
    assert summary["metrics"]["loss"] == pd.read_csv(tmp_path / "out/log.csv")["loss"].mean()
    assert read(tmp_path / "out/recipe.yaml") == read(tmp_path / "own.yaml", short)
    assert scfm.load(tmp_path / "out", device="cpu").embed(cells(3, 5), progress=False).shape == (3, 16)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 200)
    rounds = np.array([np.where(rng.random(200) < 0.6, truth, rng.integers(0, 6, 200)) for _ in range(3)])
    expected = [f1_score(truth, given, labels=np.unique(truth), average="macro") for given in rounds]
    assert evaluation.macro_f1(truth, rounds) == pytest.approx(np.mean(expected))
