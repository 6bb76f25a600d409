"""scPlantLLM: published size, layouts of its files, bins and draws of a cell's own, and input it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.scplantllm import ScPlantLLM
from scfm.adapters.scplantllm.network import ScPlantLLMConfig
from scfm.cells import value_range
from scfm.encoder import Request
from scfm.errors import CheckpointError, InputError, SpeciesError
from scfm.gene_tables import gene_table
from scfm.genes import Vocabulary
from scfm.registry import find
from scfm.tokenizers import Batch

FIXTURE = Path(__file__).parents[1] / "parity" / "scplantllm"
WEIGHTS = "model_params/scPlantLLM_model.pth"

pytestmark = pytest.mark.filterwarnings("ignore::scfm.LicenceWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the authors that a test may change."""
    shutil.copytree(FIXTURE / "checkpoint", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[[0, 1, 2, 4]].copy()


def load(folder: Path, **options: object) -> ScPlantLLM:
    return scfm.load(folder, heads=4, **options)


def change(folder: Path, edit: Callable[[dict], dict]) -> None:
    torch.save(edit(torch.load(folder / WEIGHTS, weights_only=True)), folder / WEIGHTS)


def published() -> ScPlantLLM:
    config = ScPlantLLMConfig()
    tokens = ("<PAD>", *(f"AT1G{i}" for i in range(config.genes - 2)), "<cls>")
    special = {"pad": "<PAD>", "cls": "<cls>"}
    vocabulary = Vocabulary(tokens, ids="locus", species=("arabidopsis",), special=special)
    return ScPlantLLM.build(config, vocabulary, find("scplantllm")[1])


def test_published_size() -> None:
    with torch.device("meta"):
        encoder = published()
    assert sum(p.numel() for p in encoder.network.parameters()) == encoder.card.parameters
    assert encoder.dim == encoder.card.dim
    assert (encoder.tokenizer.context, encoder.tokenizer.kept, encoder.tokenizer.bins) == (1501, 1125, 101)


@pytest.mark.slow
def test_full_size_forward() -> None:
    encoder = published()
    batch = Batch({"ids": torch.randint(1, 185_621, (1, 100)), "bins": torch.randint(0, 101, (1, 100))}, {}, None)
    with torch.inference_mode():
        encoded = encoder.network(batch, Request(frozenset({"cells", "logits_rice"})))
    assert encoded.cells.norm().item() == pytest.approx(1, abs=1e-5)
    assert encoded.heads["logits_rice"].shape == (1, 44)


def test_layouts_give_the_same_embedding(folder: Path, data: ad.AnnData) -> None:
    encoder = load(folder)
    assert encoder.name == "scplantllm"
    assert encoder.vocabulary.species == ("arabidopsis",)
    assert encoder.network.heads == {"expression", "logits", "logits_ara", "logits_rice", "logits_maize"}
    expected = encoder.embed(data)
    for edit in (
        lambda name: f"module.{name}",
        lambda name: name.replace("self_attn.Wqkv.", "self_attn.in_proj_"),
    ):
        change(folder, lambda tensors, edit=edit: {edit(name): tensor for name, tensor in tensors.items()})
        np.testing.assert_array_equal(load(folder).embed(data), expected)
    shutil.move(folder / WEIGHTS, folder / "anything.pth")
    np.testing.assert_array_equal(load(folder).embed(data), expected)


def test_a_vocabulary_without_cls_ends_with_it(folder: Path, data: ad.AnnData) -> None:
    expected = load(folder).embed(data)
    genes = json.loads((folder / "gene_vocab.json").read_text())
    assert genes.pop("<cls>") == len(genes)
    (folder / "gene_vocab.json").write_text(json.dumps(genes))
    np.testing.assert_array_equal(load(folder).embed(data), expected)
    genes.popitem()
    (folder / "gene_vocab.json").write_text(json.dumps(genes))
    with pytest.raises(CheckpointError, match=r"229 tokens.*230 rows"):
        load(folder)


def test_models_of_other_species_lie_in_a_folder_inside(folder: Path) -> None:
    inside = folder / "cross-species"
    inside.mkdir()
    shutil.copy(folder / WEIGHTS, inside / "Rice_model.pth")
    types = {f"type {i}": i for i in range(7)}
    (inside / "Rice_celltype.vocab.meta.json").write_text(json.dumps(types))
    for place, weights in ((folder, "cross-species/Rice_model.pth"), (inside, "Rice_model.pth")):
        encoder = load(place, weights=weights)
        assert encoder.name == "scplantllm/rice"
        assert encoder.config.labels == tuple(types)


def test_every_tensor_is_accounted_for(folder: Path, data: ad.AnnData) -> None:
    expected = load(folder).embed(data)
    change(folder, lambda tensors: {**tensors, "foo.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"foo\.weight(.|\n)*drop_unknown=True"):
        load(folder)
    with pytest.warns(UserWarning, match=r"left out: 'foo\.weight'"):
        encoder = load(folder, drop_unknown=True)
    np.testing.assert_array_equal(encoder.embed(data), expected)
    change(
        folder,
        lambda tensors: {name: tensors[name] for name in tensors if "linear1" not in name and name != "foo.weight"},
    )
    with pytest.raises(CheckpointError, match=r"layers\.0\.ff1|linear1"):
        load(folder, adapter="scplantllm")


def test_bins_are_a_cells_own_unless_the_edges_are_a_files(data: ad.AnnData) -> None:
    encoder = load(FIXTURE / "checkpoint")
    np.testing.assert_allclose(encoder.embed(data[:2]), encoder.embed(data)[:2], atol=1e-6)
    low, high = value_range(data)
    assert (low, high) == (data.X.data.min(), data.X.data.max())
    (tokens,) = encoder.with_options(edges=(low, high), unknown="pad").tokenize(data)  # also of genes it does not know
    bins = np.concatenate([cell["bins"][1:] for cell in tokens])
    assert (bins.min(), bins.max()) == (1, 100)
    with pytest.raises(InputError, match="edges="):
        encoder.with_options(edges=(2.0, 1.0))


def test_unknown_features_as_padding_change_nothing(data: ad.AnnData) -> None:
    encoder = load(FIXTURE / "checkpoint")
    assert encoder.check(data).genes.matched < data.n_vars
    padded = encoder.with_options(unknown="pad")
    np.testing.assert_allclose(padded.embed(data), encoder.embed(data), atol=1e-6)


@pytest.mark.parametrize("unknown", ["drop", "pad"])
def test_genes_of_long_cells_are_drawn_by_the_cell_and_the_seed(data: ad.AnnData, unknown: str) -> None:
    encoder = load(FIXTURE / "checkpoint")
    whole = encoder.with_options(unknown=unknown)
    encoder = whole.with_options(most=90, kept=20)
    (everything,), (found,), (alone,), (other,) = (
        list(e.tokenize(d, seed=s))
        for e, d, s in ((whole, data, 0), (encoder, data, 0), (encoder, data[1:2], 0), (encoder, data, 1))
    )
    long = everything.lengths > 91
    assert long.any()
    assert not long.all()
    np.testing.assert_array_equal(found.lengths, np.where(long, 21, everything.lengths))
    np.testing.assert_array_equal(found.cell(1)["ids"], alone.cell(0)["ids"])
    np.testing.assert_array_equal(found.expressed, everything.expressed)
    row = int(np.flatnonzero(long)[0])
    assert set(found.cell(row)["ids"]) <= set(everything.cell(row)["ids"])
    assert set(found.cell(row)["ids"]) != set(other.cell(row)["ids"])


def test_human_data_are_refused(data: ad.AnnData) -> None:
    encoder = load(FIXTURE / "checkpoint")
    table = gene_table("human")
    human = data.copy()
    coding = table.loc[table["biotype"] == "protein_coding", "symbol"].drop_duplicates()
    for names in (coding[: data.n_vars], table.index[: data.n_vars]):
        human.var_names = names.astype(str).tolist()
        with pytest.raises(SpeciesError, match=r"look like human(.|\n)*arabidopsis(.|\n)*'AT\dG"):
            encoder.embed(human)
