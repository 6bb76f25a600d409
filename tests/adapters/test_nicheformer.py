"""Nicheformer: published size, layouts of its files, context tokens, technology means, and input it refuses."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import scfm
from scfm.adapters.nicheformer import Nicheformer
from scfm.adapters.nicheformer.adapter import _vocabulary
from scfm.adapters.nicheformer.network import NicheformerConfig
from scfm.adapters.nicheformer.tokenizer import _quicksort
from scfm.checkpoint import Checkpoint
from scfm.encoder import Request
from scfm.errors import CheckpointError, InputError, SpeciesError
from scfm.reading import InputWarning
from scfm.registry import find
from scfm.tokenizers import Batch

PARITY = Path(__file__).parents[1] / "parity" / "nicheformer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The authors' files, which a test may change."""
    return Path(shutil.copytree(PARITY / "checkpoint", tmp_path / "model"))


@pytest.fixture
def data() -> ad.AnnData:
    adata = ad.read_h5ad(PARITY / "input.h5ad")
    (tokens,) = scfm.load(PARITY / "checkpoint").tokenize(adata)
    return adata[tokens.expressed > 0].copy()


def released(tmp_path: Path) -> Nicheformer:
    """Of the released size, with the genes and means shipped here."""
    config = NicheformerConfig(tokens=20_340)
    return Nicheformer.build(config, _vocabulary(Checkpoint(tmp_path), config.tokens), find("nicheformer")[1])


def test_released_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = released(tmp_path)
    template, pooler, unused = 2_102_784, 512 * 512 + 512, 164 * 512 + 164  # not loaded, see weights.py
    found = sum(p.numel() for p in encoder.network.parameters())
    assert found + template + pooler + unused == encoder.card.parameters == 49_302_040
    assert len(encoder.vocabulary) == 20_340
    assert encoder.vocabulary.tokens[30] == "ENSG00000000003"
    assert int(np.isnan(encoder.vocabulary.columns["dissociated"]).sum()) == 30 + 60


@pytest.mark.slow
def test_full_size_forward(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.cat([torch.randint(30, 20_340, (1, 200)), torch.ones(1, 1300, dtype=torch.int64)], dim=1)
    with torch.inference_mode():
        cells = released(tmp_path).network(Batch({"ids": ids}, {}, None), Request()).cells
    assert cells.shape == (1, 512)
    assert cells.isfinite().all()


def test_the_hub_s_and_fine_tuned_files_give_the_same_embedding(folder: Path, data: ad.AnnData) -> None:
    plain = scfm.load(folder).embed(data)
    path = folder / "nicheformer.ckpt"
    tensors = torch.load(path, weights_only=True)["state_dict"]
    content = torch.load(path, weights_only=True)
    path.unlink()
    hub = {
        name if name.startswith("classifier_head") else f"nicheformer.{name}": tensor
        for name, tensor in tensors.items()
    }
    hub["nicheformer.pos"] = torch.arange(72)
    save_file({name: tensor.contiguous() for name, tensor in hub.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"nheads": 4, "n_tokens": 225}))
    np.testing.assert_array_equal(scfm.load(folder).embed(data), plain)
    (folder / "model.safetensors").unlink()
    tuned = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    tuned |= {"linear_head.weight": torch.zeros(3, 32), "pooler_head.weight": torch.zeros(32, 32)}
    torch.save({**content, "state_dict": tuned, "hyper_parameters": {}}, path)
    with pytest.raises(CheckpointError, match="heads="):
        scfm.load(folder)
    np.testing.assert_array_equal(scfm.load(folder, heads=4).embed(data), plain)


def test_every_tensor_is_accounted_for(folder: Path) -> None:
    content = torch.load(folder / "nicheformer.ckpt", weights_only=True)
    moved = content["state_dict"].pop("encoder.layers.0.linear2.bias")
    content["state_dict"]["foo.weight"] = moved
    torch.save(content, folder / "nicheformer.ckpt")
    with pytest.raises(CheckpointError, match=r"foo\.weight(.|\n)*layers\.0\.ff2\.bias"):
        scfm.load(folder)


def test_genes_of_another_model_are_refused(folder: Path) -> None:
    (folder / "model.h5ad").unlink()
    with pytest.raises(CheckpointError, match=r"225 rows.*20,310 genes"):
        scfm.load(folder)


def test_context_tokens_and_means_go_by_the_cell(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint")
    (tokens,) = encoder.tokenize(data)
    heads = np.array([cell["ids"][:3] for cell in tokens])
    expected = {"10x 3' v3": 11, "10x 5' v2": 10, "10x 3' v2": 12, "CITE-seq": 17, "Xenium": 9}
    assert heads[:, 1].tolist() == [expected[assay] for assay in data.obs["assay"]]
    assert set(heads[:, 0]) == {5, 6}
    assert (tokens.lengths == 72).all()
    for means, cells in (("xenium", heads[:, 1] == 9), ("dissociated", heads[:, 1] != 9)):
        (fixed,) = encoder.with_options(means=means).tokenize(data)
        assert (fixed.padded("ids")[cells] == tokens.padded("ids")[cells]).all()
    everyone = data.copy()
    everyone.obs = pd.DataFrame(index=data.obs_names)
    said = encoder.with_options(species="human", assay="10x 3' v3", modality="dissociated")
    (one,) = said.tokenize(everyone)
    assert (one.padded("ids")[:, :3] == [5, 11, 3]).all()


def test_missing_and_unknown_context_is_refused(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint")
    with pytest.raises(InputError, match=r"'assay'(.|\n)*with_options\(species="):
        encoder.embed(ad.AnnData(data.X, obs=data.obs.drop(columns="assay"), var=data.var))
    data.obs["assay"] = "Drop-seq"
    with pytest.raises(InputError, match=r"obs\['assay'\] holds 'Drop-seq'(.|\n)*cite-seq"):
        encoder.embed(data)
    with pytest.raises(InputError, match="species='rat'"):
        encoder.with_options(species="rat")
    with pytest.raises(InputError, match="no means of iss"):
        encoder.with_options(means="iss", assay="xenium").embed(data)


def test_mouse_ids_are_refused(data: ad.AnnData) -> None:
    data.var_names = [f"ENSMUSG{i:011d}" for i in range(data.n_vars)]
    with pytest.raises(SpeciesError, match="to_orthologs"):
        scfm.load(PARITY / "checkpoint").embed(data)


def test_negative_means_are_told(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint").with_options(means="merfish")
    negative = encoder.vocabulary.columns["merfish"] < 0
    assert negative.any()
    data = data[:3, :1].copy()
    data.var_names = [encoder.vocabulary.tokens[int(np.flatnonzero(negative)[0])]]
    data.X = np.ones((3, 1), np.float32)
    with pytest.warns(InputWarning, match="merfish are negative for 1"):
        list(encoder.tokenize(data))


def test_the_mean_without_padding_does_not_depend_on_the_context(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint")
    (tokens,) = encoder.tokenize(data)
    few = (tokens.padded("ids") == 1).sum(axis=1) > 12
    short = data[few].copy()
    one = encoder.embed(short, pooling="genes")
    np.testing.assert_allclose(encoder.with_options(context=60).embed(short, pooling="genes"), one, atol=1e-5)
    assert np.abs(encoder.with_options(context=60).embed(short) - encoder.embed(short)).max() > 1e-2


@given(st.lists(st.integers(0, 8), max_size=80))
def test_the_authors_sort_sorts(values: list[int]) -> None:
    order = _quicksort(np.array(values, dtype=float))
    assert sorted(order.tolist()) == list(range(len(values)))
    assert np.array(values)[order].tolist() == sorted(values)


def test_both_orders_of_ties_rank_the_same_scores(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint").with_options(means="dissociated", context=400)
    ours, theirs = (next(iter(e.tokenize(data))) for e in (encoder, encoder.with_options(ties="upstream")))
    for a, b in zip(ours, theirs, strict=True):
        assert sorted(a["ids"]) == sorted(b["ids"])
    assert (ours.padded("ids") != theirs.padded("ids")).any()
