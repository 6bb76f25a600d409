"""CellPLM's checkpoints, groups and drawn clusters."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.cellplm import CellPLM
from scfm.adapters.cellplm.network import CellPLMConfig
from scfm.errors import CapabilityError, CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.genes import Vocabulary
from scfm.registry import find
from scfm.testing import check_encoder

FIXTURE = Path(__file__).parents[1] / "parity" / "cellplm"
KINDS = ("gmvae", "vae", "performer_vae", "annotation")
UNUSED = (
    10_000 * 1024 + 1024 + 2 * 1024
)  # table of positions, its stand-in, and a norm: in the file, not in the forward


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One pair alone, as a user downloads it."""
    for ending in (".config.json", ".best.ckpt"):
        shutil.copy(FIXTURE / "checkpoint" / f"fixture_vae{ending}", tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    (path,) = folder.glob("*.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "model_state_dict": change(content["model_state_dict"])}, path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_promises_of_the_interface(kind):
    check_encoder(scfm.load(FIXTURE / "checkpoint", weights=f"fixture_{kind}.best.ckpt", device="cpu"))


def test_published_size():
    config = CellPLMConfig(19374, decoder_hidden=1024, batches=12596, datasets=484)
    card = find("cellplm/20230926-85m")[1]
    with torch.device("meta"):
        encoder = CellPLM.build(config, Vocabulary(tuple(map(str, range(19374))), ids="ensembl"), card)
    state = encoder.network.state_dict()
    assert sum(x.numel() for x in state.values()) + UNUSED == 82_402_543
    assert sum(p.numel() for p in encoder.network.parameters()) == card.parameters


def test_full_size_embeds(data):
    config = CellPLMConfig(genes=220)  # the released width; genes only make the table longer
    genes = json.loads((FIXTURE / "checkpoint/fixture_vae.config.json").read_text())["gene_list"]
    encoder = CellPLM.build(config, Vocabulary(tuple(genes), ids="ensembl"), find("cellplm")[1])
    found = encoder.embed(data, empty_cells="embed")
    assert found.shape == (30, 512)
    assert np.isfinite(found).all()


def test_a_folder_with_one_pair_needs_no_names(folder, data):
    expected = scfm.load(FIXTURE / "checkpoint", weights="fixture_vae.best.ckpt").embed(data, empty_cells="embed")
    np.testing.assert_array_equal(scfm.load(folder).embed(data, empty_cells="embed"), expected)
    rewrite(folder, lambda tensors: {f"module.{k}": v for k, v in tensors.items()})
    np.testing.assert_array_equal(scfm.load(folder).embed(data, empty_cells="embed"), expected)


def test_several_pairs_ask_which():
    with pytest.raises(CheckpointError, match="weights="):
        scfm.load(FIXTURE / "checkpoint")


def test_missing_and_unknown_tensors_are_listed(folder):
    rewrite(
        folder, lambda t: {k: v for k, v in t.items() if k != "embedder.extra_linear.0.bias"} | {"foo": torch.ones(2)}
    )
    with pytest.raises(CheckpointError, match=r"foo \(2,\)(.|\n)*embed.bias"):
        scfm.load(folder)


@pytest.mark.parametrize(("setting", "value"), [("enc_mod", "cosformer"), ("dsbn", True), ("norm", "batchnorm")])
def test_configurations_that_were_never_released_are_refused(folder, setting, value):
    path = folder / "fixture_vae.config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(CheckpointError, match=setting):
        scfm.load(folder)


def test_the_authors_batch_column_decides_the_groups(folder, data):
    encoder = scfm.load(folder)
    whole = encoder.embed(data, empty_cells="embed")
    alone = data[data.obs["batch"] == "mB"]
    np.testing.assert_allclose(encoder.embed(alone, empty_cells="embed"), whole[data.obs["batch"] == "mB"], atol=1e-5)
    del data.obs["batch"]
    assert np.abs(encoder.embed(data, empty_cells="embed") - whole).max() > 0.5
    with pytest.raises(InputError, match="group_key"):
        encoder.with_options(group_key="donor").embed(data)


def test_only_the_upstream_clusters_depend_on_the_seed(data):
    encoder = scfm.load(FIXTURE / "checkpoint", weights="fixture_gmvae.best.ckpt")
    settings = {"empty_cells": "embed"}
    np.testing.assert_array_equal(encoder.embed(data, seed=0, **settings), encoder.embed(data, seed=1, **settings))
    upstream = encoder.with_options(clusters="upstream")
    assert np.abs(upstream.embed(data, seed=0, **settings) - upstream.embed(data, seed=1, **settings)).max() > 0.1
    with pytest.raises(InputError, match="upstream"):
        encoder.with_options(clusters="random")


def test_imputation_predicts_genes_that_were_not_measured(folder, data):
    encoder = scfm.load(folder)
    known = encoder.vocabulary.lookup(data.var_names) >= 0
    unmeasured = sorted(set(encoder.vocabulary.tokens) - set(data.var_names))[:3]
    found = encoder.impute(data, unmeasured)
    assert found.shape == (30, 3)
    assert (found >= 0).all()
    totals = np.asarray(data.X.sum(axis=1)).reshape(-1)
    totals -= np.asarray(data.X[:, ~known].sum(axis=1)).reshape(-1)
    np.testing.assert_allclose(encoder.impute(data).sum(axis=1), totals, rtol=1e-4)
    with pytest.raises(GeneMatchError, match="1 of 1 genes"):
        encoder.impute(data, ["CD3E"])
    with pytest.raises(CapabilityError, match="expression"):
        scfm.load(FIXTURE / "checkpoint", weights="fixture_annotation.best.ckpt").impute(data)


def test_wrong_input_is_refused(folder, data):
    encoder = scfm.load(folder)
    symbols = data.copy()
    symbols.var_names = data.var["gene_symbol"].astype(str).to_numpy()
    with pytest.raises(GeneMatchError, match="map_genes"):
        encoder.embed(symbols)
    mouse = data.copy()
    mouse.var_names = [f"ENSMUSG{i:011d}" for i in range(data.n_vars)]
    with pytest.raises(SpeciesError, match="mouse"):
        encoder.embed(mouse)
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="raw counts"):
        encoder.embed(data)
