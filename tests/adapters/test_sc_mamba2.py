"""SC-MAMBA2's files, its size, and what reads the order of genes."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.sc_mamba2 import SCMamba2
from scfm.adapters.sc_mamba2.network import SCMamba2Config
from scfm.errors import CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.genes import Vocabulary
from scfm.registry import find

FIXTURE = Path(__file__).parents[1] / "parity" / "sc_mamba2"
READING = {"gene_column": "feature_name"}

pytestmark = pytest.mark.filterwarnings("ignore::scfm.LicenceWarning")


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "checkpoint", tmp_path / "checkpoint"))


def rewrite(folder: Path, change) -> None:
    torch.save(change(torch.load(folder / "best_model.pt", weights_only=True)), folder / "best_model.pt")


def vocabulary(genes) -> Vocabulary:
    return Vocabulary(("<pad>", "<cls>", *genes), ids="symbol", special={"pad": "<pad>", "cls": "<cls>"})


def test_published_size():
    with torch.device("meta"):
        encoder = SCMamba2.build(SCMamba2Config(genes=2), vocabulary(()), find("sc_mamba2")[1])
    layers = sum(p.numel() for p in encoder.network.layers.parameters())
    assert round(layers / 1e6) == encoder.card.parameters / 1e6 == 520
    assert encoder.dim == encoder.card.dim


def test_full_width_embeds(data):
    genes = data.var["feature_name"].astype(str)
    encoder = SCMamba2.build(SCMamba2Config(genes=len(genes) + 2, layers=2), vocabulary(genes), find("sc_mamba2")[1])
    assert np.isfinite(encoder.embed(data[:4], **READING)).all()


def test_prefixed_tensors_and_absent_special_tokens_load_to_the_same(folder, data):
    expected = scfm.load(folder).embed(data, **READING)
    rewrite(folder, lambda tensors: {f"module.{k}": v for k, v in tensors.items()})
    np.testing.assert_array_equal(scfm.load(folder).embed(data, **READING), expected)
    index = json.loads((folder / "vocab.json").read_text())
    last = [token for token, i in index.items() if i >= len(index) - 3]
    assert last == ["<pad>", "<cls>", "<eoc>"]
    (folder / "vocab.json").write_text(json.dumps({k: v for k, v in index.items() if k not in last}))
    again = scfm.load(folder)
    assert again.vocabulary.tokens[-3:] == tuple(last)


def test_missing_and_unknown_tensors_are_listed(folder):
    rewrite(folder, lambda t: {k: v for k, v in t.items() if k != "bn.bias"} | {"foo": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"foo \(2,\)(.|\n)*batch_norm.bias"):
        scfm.load(folder)


def test_the_first_state_alone_equals_that_of_a_whole_pass(folder, data):
    encoder = scfm.load(folder)
    whole = np.empty((24, 64), np.float32)
    for cells, _, encoded in encoder.encode(data, outputs=("cells", "tokens"), batch_size=7, **READING):
        whole[cells] = encoded.cells.numpy()
    np.testing.assert_allclose(encoder.embed(data, **READING), whole, atol=1e-6)


def test_columns_in_another_order_are_another_sequence(folder, data):
    encoder = scfm.load(folder)
    order = np.random.default_rng(0).permutation(data.n_vars)
    assert np.abs(encoder.embed(data[:, order].copy(), **READING) - encoder.embed(data, **READING)).max() > 0.01


def test_long_cells_keep_a_subset_of_their_own_in_random_order(folder, data):
    encoder = scfm.load(folder).with_options(context=20)
    (tokens,) = encoder.tokenize(data, **READING)
    (full,) = encoder.with_options(context=1200).tokenize(data, **READING)
    columns = {int(i): place for place, i in enumerate(encoder.vocabulary.lookup(data.var["feature_name"].astype(str)))}
    ordered = 0
    for cell, whole in zip(tokens, full, strict=True):
        assert len(cell["ids"]) == min(20, len(whole["ids"]))
        bins = dict(zip(whole["ids"].tolist(), whole["values"].tolist(), strict=True))
        assert all(bins[i] == v for i, v in zip(cell["ids"].tolist(), cell["values"].tolist(), strict=True))
        places = [columns[int(i)] for i in cell["ids"][1:]]
        ordered += places == sorted(places)
    assert ordered == (full.lengths <= 20).sum()
    (alone,) = encoder.tokenize(data[3:4], **READING)
    np.testing.assert_array_equal(alone.cell(0)["ids"], tokens.cell(3)["ids"])


def test_integration_checkpoints_normalise_by_batch(folder, data):
    def tuned(tensors):
        norm = {k: v for k, v in tensors.items() if k.startswith("bn.")}
        rest = {k: v for k, v in tensors.items() if k not in norm}
        for b in range(2):
            rest |= {
                f"dsbn.bns.{b}.running_mean": norm["bn.running_mean"] + b,
                f"dsbn.bns.{b}.running_var": norm["bn.running_var"],
                f"dsbn.bns.{b}.num_batches_tracked": norm["bn.num_batches_tracked"],
            }
        return rest

    rewrite(folder, tuned)
    encoder = scfm.load(folder, batches=["x", "y"])
    data.obs["batch"] = ["x", "y"] * 12
    one = encoder.embed(data, **READING)
    data.obs["batch"] = ["x"] * 24
    other = encoder.embed(data, **READING)
    np.testing.assert_allclose(one[::2], other[::2], atol=1e-6)
    assert np.abs(one[1::2] - other[1::2]).max() > 0.01
    with pytest.raises(InputError, match="the checkpoint has 2"):
        scfm.load(folder, batches=["x"])


def test_wrong_input_is_refused(folder, data):
    encoder = scfm.load(folder)
    with pytest.raises(GeneMatchError, match="feature_name"):
        encoder.embed(data)
    data.var["mouse"] = [name.capitalize() for name in data.var["feature_name"].astype(str)]
    with pytest.raises((SpeciesError, GeneMatchError)):
        encoder.embed(data, gene_column="mouse")
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="raw counts"):
        encoder.embed(data, **READING)
