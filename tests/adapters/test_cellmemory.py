"""CellMemory's projects, both modes, padding, types and scores."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.cellmemory import CellMemory
from scfm.adapters.cellmemory.adapter import reference_vocabulary
from scfm.adapters.cellmemory.network import CellMemoryConfig
from scfm.errors import CheckpointError, GeneMatchError, InputError
from scfm.registry import find
from scfm.testing import check_encoder

FIXTURE = Path(__file__).parents[1] / "parity" / "cellmemory"
FOLDERS = {"fast": FIXTURE / "checkpoint_cm", "full": FIXTURE / "checkpoint_cmfull"}


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDERS["fast"], tmp_path / "cm"))


def rewrite(folder: Path, change) -> None:
    (path,) = folder.glob("*.pth")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "net": change(content["net"])}, path)


def test_size_for_3000_genes():
    genes = [f"G{i}" for i in range(3000)]
    config = CellMemoryConfig(3000, labels=tuple("abcdefghij"))
    with torch.device("meta"):
        encoder = CellMemory.build(config, reference_vocabulary(genes, "fast"), find("cellmemory")[1])
    unused = 2 * 3001 * 256  # positions, of the tokens and of the gate
    count = sum(p.numel() for p in encoder.network.parameters()) + unused
    assert round(count / 1e6, 1) == encoder.card.parameters / 1e6 == 4.6
    assert encoder.dim == encoder.card.dim


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_full_size_embeds(data, mode):
    genes = list(data.var_names)
    config = CellMemoryConfig(len(genes), mode=mode, labels=("a", "b"))
    encoder = CellMemory.build(config, reference_vocabulary(genes, mode), find("cellmemory")[1])
    assert np.isfinite(encoder.embed(data)).all()


@pytest.mark.parametrize(
    ("mode", "options"), [("fast", {"topk": 5}), ("full", {"passes": 1}), ("full", {"topk": 1000})]
)
def test_further_settings_keep_the_promises_of_the_interface(mode, options):
    check_encoder(scfm.load(FOLDERS[mode], device="cpu", **options))


def test_a_prefix_changes_nothing(folder, data):
    expected = scfm.load(folder).embed(data)
    rewrite(folder, lambda tensors: {f"module.{k}": v for k, v in tensors.items()})
    np.testing.assert_array_equal(scfm.load(folder).embed(data), expected)


def test_missing_and_unknown_tensors_are_listed(folder):
    rewrite(folder, lambda t: {k: v for k, v in t.items() if k != "mlp_head.bias"} | {"foo": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"foo \(2,\)(.|\n)*classifier.bias"):
        scfm.load(folder)


def test_gene_lists_of_another_project_are_refused(folder):
    genes = (folder / "cm_ref_gene.txt").read_text().splitlines()
    (folder / "cm_ref_gene.txt").write_text("\n".join(genes[:-1]))
    with pytest.raises(CheckpointError, match=r"130 genes(.|\n)*129"):
        scfm.load(folder)


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_the_order_of_columns_does_not_matter(data, mode):
    encoder = scfm.load(FOLDERS[mode])
    order = np.random.default_rng(0).permutation(data.n_vars)
    np.testing.assert_array_equal(encoder.embed(data[:, order].copy()), encoder.embed(data))


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_genes_that_are_not_measured_are_not_expressed(data, mode):
    encoder = scfm.load(FOLDERS[mode])
    zeroed = data.copy()
    zeroed.X = data.X.toarray()
    zeroed.X[:, 100:] = 0
    np.testing.assert_array_equal(encoder.embed(data[:, :100].copy()), encoder.embed(zeroed))


def test_padding_is_part_of_the_model_only_on_request(data):
    encoder = scfm.load(FOLDERS["fast"])
    padded = encoder.with_options(pad_to=58)
    assert np.abs(padded.embed(data) - encoder.embed(data)).max() > 0.1
    np.testing.assert_allclose(padded.embed(data[:3]), padded.embed(data)[:3], atol=1e-5)
    longest = int((data.X != 0).sum(axis=1).argmax())
    np.testing.assert_allclose(padded.embed(data)[longest], encoder.embed(data)[longest], atol=1e-5)


def test_types_below_the_cutoff_are_unassigned(data):
    encoder = scfm.load(FOLDERS["fast"])
    types = encoder.classify(data)
    assert set(types["label"]) <= {f"type{i}" for i in range(5)}
    cutoff = float(types["probability"].median())
    found = encoder.classify(data, cutoff=cutoff)
    np.testing.assert_array_equal(found["label"] == "UnAssigned", types["probability"] < cutoff)
    assert len(encoder.classify(data[:0])) == 0


def test_scores_belong_to_their_genes(data):
    encoder = scfm.load(FOLDERS["fast"])
    scores, shifted = encoder.memory_scores(data), encoder.memory_scores(data, shifted=True)
    assert list(scores.columns) == (FOLDERS["fast"] / "cm_ref_gene.txt").read_text().split()
    expressed = data[:, list(scores.columns)].X.toarray() != 0
    assert (scores.to_numpy()[~expressed] == 0).all()
    for own, moved, at in zip(scores.to_numpy(), shifted.to_numpy(), expressed, strict=True):
        np.testing.assert_allclose(moved[at][1:], own[at][:-1], rtol=1e-5)


def test_long_cells_keep_a_subset_of_their_own(data):
    encoder = scfm.load(FOLDERS["fast"]).with_options(context=20)
    (tokens,) = encoder.tokenize(data)
    (whole,) = encoder.with_options(context=10_000).tokenize(data)
    assert tokens.lengths.max() == 20
    for cell, all_of_it in zip(tokens, whole, strict=True):
        assert (np.diff(cell["ids"]) > 0).all()
        assert set(cell["ids"]) <= set(all_of_it["ids"])
    (alone,) = encoder.tokenize(data[5:6])
    np.testing.assert_array_equal(alone.cell(0)["ids"], tokens.cell(5)["ids"])


def test_values_may_be_rounded_up_to_bins(data):
    encoder = scfm.load(FOLDERS["fast"]).with_options(binning="norm", bins=5)
    (tokens,) = encoder.tokenize(data[:1])
    values = data[:1, list(encoder.vocabulary.tokens[1:-1])].X.toarray()[0]
    np.testing.assert_array_equal(tokens.fields["bins"], np.minimum(np.ceil(values[values != 0]), 5))
    with pytest.raises(InputError, match="'scale' or 'norm'"):
        encoder.with_options(binning="log")


def test_wrong_input_is_refused(folder, data):
    encoder = scfm.load(folder)
    counts = data.copy()
    counts.X = np.ceil(data.X.toarray())
    with pytest.raises(InputError, match="normalize_total"):
        encoder.embed(counts)
    data.var_names = [name.capitalize() + "x" for name in data.var_names]
    with pytest.raises(GeneMatchError):
        encoder.embed(data)
