"""Geneformer: released sizes, layouts of its files, the shipped dictionaries, and input it refuses."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scfm
from scfm.adapters.geneformer import Geneformer, dictionaries
from scfm.adapters.geneformer.network import GeneformerConfig
from scfm.checkpoint import Checkpoint
from scfm.encoder import Request
from scfm.errors import CheckpointError, GeneMatchError, SpeciesError
from scfm.registry import find
from scfm.tokenizers import Batch

PARITY = Path(__file__).parents[1] / "parity"
V1, V2 = {"tokens": 25_426}, {"tokens": 20_275, "context": 4096, "cls": 2, "eos": 3}
SIZES = {
    "geneformer/v1-10m": {**V1},
    "gf-12L-30M-i2048": {**V1, "layers": 12, "dim": 512, "heads": 8, "hidden": 1024},
    "gf-12L-95M-i4096": {**V2, "layers": 12, "dim": 512, "heads": 8, "hidden": 1024},
    "gf-20L-95M-i4096": {**V2, "layers": 20, "dim": 896, "heads": 14, "hidden": 1792},
    "geneformer/v2-104m": {**V2, "layers": 12, "dim": 768, "heads": 12, "hidden": 3072},
    "geneformer/v2-104m-clcancer": {**V2, "layers": 12, "dim": 768, "heads": 12, "hidden": 3072},
    "geneformer/v2-316m": {**V2, "layers": 18, "dim": 1152, "heads": 18, "hidden": 4608},
}
PARAMETERS = {"gf-12L-30M-i2048": 39_591_250, "gf-12L-95M-i4096": 37_997_363, "gf-20L-95M-i4096": 151_313_459}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the authors, V1, that a test may change."""
    shutil.copytree(PARITY / "geneformer_v1" / "checkpoint", tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    return tmp_path / "model"


@pytest.fixture
def data() -> ad.AnnData:
    adata = ad.read_h5ad(PARITY / "geneformer_v1" / "input.h5ad")
    adata.var_names = adata.var["ensembl_id"].astype(str)
    return adata[np.load(PARITY / "geneformer_v1" / "expected.npz")["kept_cells"]].copy()


@pytest.mark.parametrize("name", SIZES)
def test_released_sizes(name: str) -> None:
    card = find(name)[1] if "/" in name else find("geneformer")[1]
    with torch.device("meta"):
        encoder = Geneformer.build(GeneformerConfig(**SIZES[name]), _vocabulary(SIZES[name]["tokens"]), card)
    found = sum(p.numel() for p in encoder.network.parameters())
    assert found == PARAMETERS.get(name, card.parameters)
    if "/" in name:
        assert encoder.dim == card.dim


def _vocabulary(rows: int) -> scfm.genes.Vocabulary:
    """From the dictionaries shipped with the adapter."""
    return dictionaries.read(Checkpoint(Path(__file__).parent), rows)


def test_shipped_dictionaries() -> None:
    v1, v2 = _vocabulary(25_426), _vocabulary(20_275)
    assert (len(v1), len(v2)) == (25_426, 20_275)
    assert np.nanmedian(v1.columns["median"]) == pytest.approx(2.733, abs=1e-3)
    assert np.nanmedian(v2.columns["median"]) == pytest.approx(1.403, abs=1e-3)
    # a symbol, an alias and a lower-case id lead to the gene; one with its version does not, as in the original
    assert v2.lookup(["CD3E", "ensg00000198851"]).tolist() == [v2.index["ENSG00000198851"]] * 2
    assert v2.lookup(["ENSG00000198851.12", "<cls>"]).tolist() == [-1, -1]
    assert v1.lookup(["CD3E"]).tolist() == [-1]


@pytest.mark.slow
def test_full_size_forward() -> None:
    torch.manual_seed(0)
    config = GeneformerConfig(**SIZES["geneformer/v2-104m"])
    encoder = Geneformer.build(config, _vocabulary(20_275), find("geneformer")[1])
    batch = Batch({"ids": torch.randint(4, 20_275, (1, 256))}, {}, None)
    with torch.inference_mode():
        cells = encoder.network(batch, Request()).cells
    assert cells.shape == (1, 768)
    assert cells.isfinite().all()


def test_default_is_v2_104m() -> None:
    assert find("geneformer")[1].name == "geneformer/v2-104m"


def test_config_and_weights_alone_are_enough_for_released_sizes(tmp_path: Path) -> None:
    config = GeneformerConfig(tokens=20_275, context=16, dim=4, layers=1, heads=1, hidden=4, cls=2, eos=3)
    fresh = Geneformer.build(config, _vocabulary(20_275), find("geneformer")[1])
    theirs = {
        "embedding.words": "bert.embeddings.word_embeddings",
        "embedding.positions": "bert.embeddings.position_embeddings",
        "embedding.types": "bert.embeddings.token_type_embeddings",
        "embedding.norm": "bert.embeddings.LayerNorm",
        "layers.0.attention.q": "bert.encoder.layer.0.attention.self.query",
        "layers.0.attention.k": "bert.encoder.layer.0.attention.self.key",
        "layers.0.attention.v": "bert.encoder.layer.0.attention.self.value",
        "layers.0.attention.o": "bert.encoder.layer.0.attention.output.dense",
        "layers.0.norm1": "bert.encoder.layer.0.attention.output.LayerNorm",
        "layers.0.ff1": "bert.encoder.layer.0.intermediate.dense",
        "layers.0.ff2": "bert.encoder.layer.0.output.dense",
        "layers.0.norm2": "bert.encoder.layer.0.output.LayerNorm",
        "masked_lm.dense": "cls.predictions.transform.dense",
        "masked_lm.norm": "cls.predictions.transform.LayerNorm",
        "masked_lm": "cls.predictions",
    }
    tensors = {}
    for name, tensor in fresh.network.state_dict().items():
        module, _, last = name.rpartition(".")
        tensors[f"{theirs[module]}.{last}"] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {
        "model_type": "bert",
        "hidden_act": "relu",
        "vocab_size": 20_275,
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    encoder = scfm.load(tmp_path)
    assert encoder.vocabulary.tokens == fresh.vocabulary.tokens
    assert encoder.poolings == ("cls", "mean")


def test_prefixes_and_older_files_give_the_same_embedding(folder: Path, data: ad.AnnData) -> None:
    expected = scfm.load(folder).embed(data)
    tensors = load_file(folder / "model.safetensors")
    for change in (
        lambda name: f"module.{name}",
        lambda name: name.removeprefix("bert."),
    ):
        save_file({change(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
        np.testing.assert_array_equal(scfm.load(folder).embed(data), expected)
    pickled = shutil.copy(PARITY / "geneformer_v1" / "checkpoint" / "pytorch_model.bin", folder)
    (folder / "model.safetensors").unlink()
    assert Path(pickled).exists()
    np.testing.assert_array_equal(scfm.load(folder).embed(data), expected)


def test_every_tensor_is_accounted_for(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    removed = tensors.pop("bert.encoder.layer.0.output.dense.bias")
    save_file(tensors | {"foo.weight": removed}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"foo\.weight(.|\n)*layers\.0\.ff2\.bias"):
        scfm.load(folder)


def test_dictionaries_of_another_model_are_refused(folder: Path) -> None:
    for stem in ("token_dictionary", "gene_median_dictionary", "ensembl_mapping_dict"):
        (folder / f"{stem}_gc30M.pkl").unlink()
        shutil.copy(PARITY / "geneformer_v2" / "checkpoint" / f"{stem}_gc104M.pkl", folder)
    with pytest.raises(CheckpointError, match=r"212 rows.*214 tokens"):
        scfm.load(folder)


def test_a_classifier_names_its_classes() -> None:
    v2 = PARITY / "geneformer_v2"
    encoder = scfm.load(v2 / "checkpoint_cell_classifier", dictionaries=v2 / "checkpoint")
    assert encoder.config.labels == tuple(f"LABEL_{i}" for i in range(5))
    assert encoder.network.heads == {"logits"}


def test_other_species_and_symbols_are_refused(folder: Path, data: ad.AnnData) -> None:
    encoder = scfm.load(folder)
    mouse = data.copy()
    mouse.var_names = [f"ENSMUSG{i:011d}" for i in range(mouse.n_vars)]
    with pytest.raises(SpeciesError, match="to_orthologs"):
        encoder.embed(mouse)
    symbols = ad.read_h5ad(PARITY / "geneformer_v1" / "input.h5ad")
    with pytest.raises(GeneMatchError, match="gene_column='ensembl_id'"):
        encoder.embed(symbols)
