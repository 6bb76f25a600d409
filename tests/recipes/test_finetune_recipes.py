"""Every shipped recipe that fine-tunes runs through the command, on real cells and with small weights of the model's architecture."""

import json
from pathlib import Path

import numpy as np
import pytest
from anndata import read_h5ad

import scfm
from scfm.data import pbmc_demo
from scfm.errors import InputError
from scfm.plans import read

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with blood cells of four made-up donors."""
    monkeypatch.chdir(tmp_path)
    adata = pbmc_demo()
    adata = adata[adata.obs["cell_type"].isin(["B", "NK", "CD14+ Mono"])][:96].copy()
    adata.obs["donor"] = [f"d{i % 4}" for i in range(adata.n_obs)]
    adata.write_h5ad("cells.h5ad")
    return tmp_path


ANNOTATION = {
    "annotation_lora_mini": ["model.tokenizer.context=96"],
    "annotation_lora_scgpt": [f"model.name={PARITY / 'scgpt' / 'checkpoint'}"],
    "annotation_lora_geneformer": [f"model.name={PARITY / 'geneformer_v2' / 'checkpoint'}", "data.map_genes=true"],
}
EPIAGENT = [
    f"model.name={PARITY / 'epiagent' / 'checkpoint'}",
    "model.weights=pretrained_EpiAgent.pth",
    "model.load.heads=4",
]


def test_annotation_of_chromatin(folder: Path, command, capsys) -> None:
    cells = read_h5ad(PARITY / "epiagent" / "input.h5ad")
    cells[np.asarray(cells.X.sum(axis=1)).ravel() > 0].write_h5ad("atac.h5ad")
    given = ["data.train=atac.h5ad", "data.groups=batch_id", "train.epochs=2", "out=tuned"]
    assert command("train", "annotation_atac", *EPIAGENT, *given, "model.device=cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["valid_macro_f1"] >= 0
    tuned = scfm.load(
        "./tuned",
        base=scfm.load(PARITY / "epiagent" / "checkpoint", weights="pretrained_EpiAgent.pth", heads=4),
        device="cpu",
    )
    assert isinstance(tuned, scfm.FineTuned)
    assert tuned.record["method"]["kind"] == "lora"
    assert command("train", "annotation_atac", *EPIAGENT, "data.train=cells.h5ad", "out=other") == 3
    assert "are regions of epiagent" in capsys.readouterr().err  # genes are none


@pytest.mark.parametrize("name", ANNOTATION)
def test_annotation(name: str, folder: Path, command, capsys) -> None:
    given = ["data.train=cells.h5ad", "data.groups=donor", "train.epochs=2", "model.device=cpu", "out=tuned"]
    assert command("train", name, *given, *ANNOTATION[name], "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert 0 < summary["trainable"]["share"] < 1
    assert summary["trained_cells"] + summary["held_out_cells"] == 96
    assert summary["metrics"]["valid_macro_f1"] >= 0
    tuned = scfm.load("./tuned", device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    assert tuned.record["method"]["kind"] == "lora"
    assert tuned.split.groups == "donor"
    assert read("tuned/recipe.yaml").train["epochs"] == 2  # type: ignore[attr-defined]

    # the stored configuration is the same run: it has nothing left to do, and writes the same
    before = (folder / "tuned" / "adapter_model.safetensors").read_bytes()
    assert command("train", "tuned/recipe.yaml", "--quiet") == 0
    assert (folder / "tuned" / "adapter_model.safetensors").read_bytes() == before
    assert command("train", "tuned/recipe.yaml", "train.epochs=3", "--quiet") == 5
    assert "holds another run: it differs in settings" in capsys.readouterr().err


def test_recipes_are_listed_shown_and_copied(folder: Path, command, capsys) -> None:
    assert command("recipes", "--json") == 0
    assert set(ANNOTATION) <= {recipe["name"] for recipe in json.loads(capsys.readouterr().out)}
    assert command("recipes", "copy", "annotation_lora_mini", "mine.yaml") == 0
    assert command("recipes", "show", "mine.yaml") == 0
    assert "scfm train annotation_lora_mini" in capsys.readouterr().out
    assert command("recipes", "copy", "annotation_lora_mini", "mine.yaml") == 3
    assert read("mine.yaml") == read("annotation_lora_mini")
    assert command("recipes", "keys", "annotation_lora_mini", "train.epochs=7") == 0
    assert "epochs: 7" in capsys.readouterr().out
    assert command("train", "annotation_lora_mini", "train.epoch=7") == 3
    assert "Did you mean 'epochs'" in capsys.readouterr().err


def test_third_partys_recipe_is_given_by_its_path(folder: Path, command, capsys) -> None:
    (folder / "theirs.yaml").write_text(
        "kind: finetune\ntitle: donors\nmodel: {name: mini, device: cpu, tokenizer: {context: 32}}\n"
        "data: {train: cells.h5ad, valid: null}\nobjective: {kind: classification, column: donor}\nmethod: head\n"
        "train: {epochs: 1, learning_rate: 1e-2}\nout: theirs\n"
    )
    assert command("train", "theirs.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained_cells"] == 96


def test_pre_training_begins_with_random_weights(folder: Path) -> None:
    settings = {"data.train": "cells.h5ad", "out": "tuned", "model.tokenizer.context": 32, "model.device": "cpu"}
    first = {
        name: read("pretrain_masked", {**settings, "model.fresh": name != "shipped"}).encoder()  # type: ignore[attr-defined]
        for name in ("shipped", "fresh", "again")
    }
    shipped, fresh, again = (first[name].embed(pbmc_demo()[:4], progress=False) for name in first)
    assert (fresh == again).all()
    assert abs(fresh - shipped).max() > 1e-3
    assert "architecture" in first["fresh"].origin
    with pytest.raises(InputError, match=r"leaves most as they are.*\n  Set method=full"):
        read("pretrain_masked", {**settings, "method": "lora"}).run()
    with pytest.raises(InputError, match=r"has no 'layer'\. Did you mean 'layers'"):
        read("pretrain_masked", {**settings, "model.sizes.layer": 1}).encoder()  # type: ignore[attr-defined]


def test_masked_pre_training_gives_an_encoder(folder: Path, command, capsys) -> None:
    settings = ["data.train=cells.h5ad", "data.groups=donor", "model.tokenizer.context=32", "model.sizes={layers: 1}"]
    more = ["train.epochs=3", "data.valid=0.25", "model.device=cpu", "out=pretrained"]
    assert command("train", "pretrain_masked", *settings, *more, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    epochs = json.loads(Path("pretrained/metrics.json").read_text())["epochs"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert summary["trainable"]["share"] > 0.95
    encoder = scfm.load("./pretrained", device="cpu")
    assert not isinstance(encoder, scfm.FineTuned)
    assert encoder.config.layers == 1
    assert encoder.embed("cells.h5ad", progress=False).shape == (96, encoder.dim)
    annotate = ["train", "annotation_lora_mini", "model.name=./pretrained", "train.epochs=1", *settings[:2]]
    assert command(*annotate, "model.device=cpu", "out=tuned") == 0
    assert isinstance(scfm.load("./tuned", device="cpu"), scfm.FineTuned)  # found by where it was saved


def test_integration(folder: Path, command, capsys) -> None:
    settings = ["data.train=cells.h5ad", "objective.batch=donor", "model.tokenizer.context=32", "train.epochs=2"]
    assert command("train", "integration", *settings, "model.device=cpu", "out=integrated", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["valid_kept"] > 0
    embedding = scfm.load("./integrated", device="cpu").embed("cells.h5ad", progress=False)
    assert np.isfinite(embedding).all()
    assert command("train", "integration", "data.train=cells.h5ad", "out=other") == 3
    assert "Set objective.batch=COLUMN" in capsys.readouterr().err


def test_weights_that_nobody_else_has_are_kept_with_what_was_trained(folder: Path, command) -> None:
    settings = [
        "data.train=cells.h5ad",
        "model.tokenizer.context=32",
        "train.epochs=1",
        "model.fresh=true",
        "method=full",
    ]
    assert command("train", "annotation_lora_mini", *settings, "model.device=cpu", "out=tuned", "--quiet") == 0
    tuned = scfm.load("./tuned", device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    assert len(tuned.predict("cells.h5ad", progress=False)) == 96


def test_a_dry_run_tells_what_is_then_done(folder: Path, command, capsys) -> None:
    settings = [
        "data.train=cells.h5ad",
        "data.groups=donor",
        "train.epochs=1",
        "out=tuned",
        *ANNOTATION["annotation_lora_mini"],
    ]
    assert command("train", "annotation_lora_mini", *settings, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in folder.iterdir()) == ["cells.h5ad"]
    assert command("train", "annotation_lora_mini", *settings, "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert plan["data"]["trained on"].startswith(f"{done['trained_cells']} cells, obs['donor'] ")
    assert plan["data"]["held out"].startswith(f"{done['held_out_cells']} cells")
    share = done["trainable"]
    assert plan["model"]["parameters"] == f"{share['of']:,}"
    assert plan["model"]["trained"].startswith(f"{share['parameters']:,} ")
    state = json.loads(next((folder / "tuned.checkpoints").glob("checkpoint-*/trainer_state.json")).read_text())
    assert plan["training"]["steps"].endswith(f"{state['max_steps']} in all")


def test_what_autograd_keeps_is_counted() -> None:
    """By hand: Linear keeps its input, ReLU its output, and the same storage is not counted twice."""
    import torch
    from torch import nn

    from scfm.memory import training_memory

    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    model[0].requires_grad_(False)

    def forward(cells: int) -> torch.Tensor:
        return model(torch.zeros(cells, 10)).sum()

    memory = training_memory(model, forward, cells=64, sample=2)
    assert memory.activations == 64 * 20 * 4  # the frozen layer keeps nothing; the last one keeps its input
    assert memory.training == 3 * 4 * (20 * 5 + 5)
    assert memory.weights == 4 * (10 * 20 + 20 + 20 * 5 + 5)
    model[0].requires_grad_(True)
    assert training_memory(model, forward, cells=64).activations == 64 * (10 + 20) * 4
