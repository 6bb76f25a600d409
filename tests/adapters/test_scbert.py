"""scBERT beyond parity: sizes, layouts of its files, levels, attention, classification."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfm
from scfm.adapters.scbert import ScBERT
from scfm.adapters.scbert.network import ScBERTConfig
from scfm.errors import CapabilityError, CheckpointError, InputError, SpeciesError
from scfm.genes import Vocabulary
from scfm.registry import find

FIXTURE = Path(__file__).parents[1] / "parity" / "scbert"


def load(folder: Path, **options: object) -> ScBERT:
    with pytest.warns(scfm.LicenceWarning, match="GPL"):
        return scfm.load(folder, **options)


@pytest.fixture(scope="module")
def encoder() -> ScBERT:
    return load(FIXTURE / "checkpoint")


@pytest.fixture(scope="module")
def tuned() -> ScBERT:
    return load(FIXTURE / "checkpoint", weights="finetune_best.pth")


@pytest.fixture
def data() -> ad.AnnData:
    with pytest.warns(UserWarning, match="not unique"):
        data = ad.read_h5ad(FIXTURE / "input.h5ad")
    return data[2:8, ~data.var_names.duplicated()].copy()


@pytest.fixture
def stored() -> dict:
    return torch.load(FIXTURE / "checkpoint" / "panglao_pretrain.pth", weights_only=True)


def folder_with(content: object, folder: Path, name: str = "panglao_pretrain.pth") -> Path:
    torch.save(content, folder / name)
    shutil.copyfile(FIXTURE / "checkpoint" / "panglao_10000.h5ad", folder / "panglao_10000.h5ad")
    return folder


def cells(genes: list[str], counts: list[list[float]]) -> ad.AnnData:
    return ad.AnnData(sparse.csr_matrix(np.array(counts, dtype=np.float32)), var=pd.DataFrame(index=genes))


def full_size() -> ScBERT:
    tokens = (*(f"GENE{i}" for i in range(16_906)), "<cls>")
    return ScBERT.build(ScBERTConfig(), Vocabulary(tokens, ids="symbol", special={"cls": "<cls>"}), find("scbert")[1])


def test_published_size() -> None:
    with torch.device("meta"):
        encoder = full_size()
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.network.named_children()}
    assert sizes["layers"] == 6 * (512_200 + 321_000 + 800)
    assert sizes["genes"] == 16_907 * 200
    assert sum(sizes.values()) == encoder.card.parameters
    assert encoder.dim == encoder.card.dim == 200


@pytest.mark.slow
def test_full_size_forward() -> None:
    encoder = full_size()
    genes = list(encoder.vocabulary.tokens[:16_906:50])
    embedding = encoder.embed(cells(genes, np.random.default_rng(0).poisson(1.0, (1, len(genes))).tolist()))
    assert embedding.shape == (1, 200)
    assert np.isfinite(embedding).all()


def test_bare_state_dict_and_prefix_load_the_same(
    encoder: ScBERT, data: ad.AnnData, stored: dict, tmp_path: Path
) -> None:
    state = {f"module.{name}": tensor for name, tensor in stored["model_state_dict"].items()}
    other = load(folder_with(state, tmp_path, "weights.pth"))
    np.testing.assert_array_equal(other.embed(data), encoder.embed(data))


def test_gene_order_may_be_given(encoder: ScBERT, data: ad.AnnData, stored: dict, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "panglao_pretrain.pth")
    with pytest.raises(CheckpointError, match=r"no panglao_10000\.h5ad"):
        scfm.load(tmp_path)
    genes = list(encoder.vocabulary.tokens[:-1])
    np.testing.assert_array_equal(load(tmp_path, genes=genes).embed(data), encoder.embed(data))
    with pytest.raises(CheckpointError, match="names 739 genes"):
        scfm.load(tmp_path, genes=genes[1:])
    with pytest.raises(CheckpointError, match="repeats"):
        scfm.load(tmp_path, genes=[genes[1], *genes[1:]])


def test_missing_and_unknown_tensors_are_listed(stored: dict, tmp_path: Path) -> None:
    state = stored["model_state_dict"]
    state["surprise"] = state.pop("performer.net.layers.1.0.fn.fast_attention.projection_matrix")
    with pytest.raises(CheckpointError, match="surprise") as error:
        scfm.load(folder_with(stored, tmp_path))
    assert "layers.1.attention.projection" in str(error.value)


def test_levels_are_floors_of_log2(encoder: ScBERT) -> None:
    names = list(encoder.vocabulary.tokens[:8])
    counts = [10_000 - 57, 0.5, 1, 2.9, 3, 6.9, 15, 27.7]  # sum 10,000
    (tokens,) = encoder.tokenize(cells(names, [counts]), values="any")
    assert tokens.cell(0)["levels"][:8].tolist() == [5, 0, 1, 1, 2, 2, 4, 4]
    assert tokens.lengths.tolist() == [741]
    assert not tokens.cell(0)["levels"][8:].any()


def test_implied_attention_gives_the_recorded_attention_branch(encoder: ScBERT, data: ad.AnnData) -> None:
    expected = np.load(FIXTURE / "expected.npz")[
        "branches_row0"
    ]  # attention and feed-forward of two layers, first cell
    (cell,) = encoder.attention(data[:1].copy(), reduce="none")
    np.testing.assert_allclose(cell.weights.sum(axis=-1), 1, atol=1e-5)
    (batch,) = (tokens.collate([0]) for tokens in encoder.tokenize(data[:1].copy()))
    network = encoder.network
    with torch.inference_mode():
        states = network.levels(batch["levels"]) + network.genes(batch["ids"])
        for i, layer in enumerate(network.layers):
            values = layer.attention.v(layer.norm1(states)).unflatten(-1, (3, 64)).transpose(1, 2)[0]
            branch = layer.attention.o((torch.from_numpy(cell.weights[i]) @ values).transpose(0, 1).flatten(1))
            np.testing.assert_allclose(branch, expected[2 * i], atol=1e-5)
            states = layer(states)[0]


def test_cells_depend_on_batch_mates_only_when_asked(encoder: ScBERT, data: ad.AnnData) -> None:
    joint = load(FIXTURE / "checkpoint", key_maximum="batch")
    alone = encoder.embed(data, batch_size=1)
    np.testing.assert_allclose(encoder.embed(data, batch_size=6), alone, atol=1e-5)
    np.testing.assert_allclose(joint.embed(data, batch_size=1), alone, atol=1e-5)
    assert np.abs(joint.embed(data, batch_size=6) - alone).max() > 1e-3


def test_probabilities_name_the_classes(tuned: ScBERT, encoder: ScBERT, data: ad.AnnData) -> None:
    p = tuned.probabilities(data)
    assert list(p.columns) == ["CD14+ Monocyte", "CD8+ Cytotoxic T", "CD8+/CD45RA+ Naive Cytotoxic", "Dendritic"]
    assert list(p.index) == list(range(6))
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    with pytest.raises(CapabilityError, match="no classifier"):
        encoder.probabilities(data)


def test_classes_survive_saving(tuned: ScBERT, data: ad.AnnData, tmp_path: Path) -> None:
    again = load(tuned.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(again.probabilities(data), tuned.probabilities(data))


def test_mouse_symbols_and_normalised_values_are_refused(encoder: ScBERT, data: ad.AnnData) -> None:
    genes = ["Cd3e", "Cd4", "Cd19", "Ptprc", "Actb", "Gapdh", "Malat1", "Lyz2", "Ms4a1", "Nkg7", "Trp53", "Cd8a"]
    with pytest.raises(SpeciesError, match="to_orthologs"):
        encoder.embed(cells(genes, [[1.0] * 12]))
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="raw counts"):
        encoder.embed(data)
