"""scGPT's files in every layout the authors released, and its full size."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.scgpt import ScGPT
from scfm.adapters.scgpt.network import ScGPTConfig
from scfm.errors import CheckpointError, GeneMatchError, InputError
from scfm.genes import Vocabulary
from scfm.registry import find

FIXTURE = Path(__file__).parents[1] / "parity" / "scgpt"
READING = {"gene_column": "feature_name"}


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "checkpoint", tmp_path / "checkpoint"))


def rewrite(folder: Path, change) -> None:
    """Replace the state dict by a changed one."""
    tensors = torch.load(folder / "best_model.pt", weights_only=True)
    torch.save(change(tensors), folder / "best_model.pt")


def layout_b(tensors: dict) -> dict:
    return {
        k.replace("Wqkv.weight", "in_proj_weight").replace("Wqkv.bias", "in_proj_bias"): v for k, v in tensors.items()
    }


def layout_c(tensors: dict) -> dict:
    names = {"self_attn.Wqkv": "self_attn._impl.Wqkv", "self_attn.out_proj": "self_attn._impl.out_proj"}
    for old, new in names.items():
        tensors = {k.replace(old, new): v for k, v in tensors.items()}
    return tensors


def data_parallel(tensors: dict) -> dict:
    return {f"module.{k}": v for k, v in tensors.items()}


@pytest.mark.parametrize("change", [layout_b, layout_c, data_parallel, lambda t: data_parallel(layout_b(t))])
def test_every_layout_gives_the_same_embedding(folder, data, change):
    expected = scfm.load(folder).embed(data, **READING)
    rewrite(folder, change)
    np.testing.assert_array_equal(scfm.load(folder).embed(data, **READING), expected)


def test_batch_norm_of_older_organ_files_is_applied_and_can_be_ignored(folder, data):
    plain = scfm.load(folder).embed(data, **READING)
    rng = torch.Generator().manual_seed(0)
    norm = {
        "bn.weight": torch.rand(32, generator=rng) + 0.5,
        "bn.bias": torch.rand(32, generator=rng),
        "bn.running_mean": torch.rand(32, generator=rng),
        "bn.running_var": torch.rand(32, generator=rng) + 0.5,
        "bn.num_batches_tracked": torch.tensor(7),
    }
    rewrite(folder, lambda tensors: {**tensors, **norm})
    encoder = scfm.load(folder)
    x = torch.randn(2, 3, 32, generator=rng)
    expected = (x - norm["bn.running_mean"]) / (norm["bn.running_var"] + 6.1e-5).sqrt() * norm["bn.weight"] + norm[
        "bn.bias"
    ]
    torch.testing.assert_close(encoder.network.batch_norm(x.transpose(1, 2)).transpose(1, 2), expected)
    assert not np.allclose(encoder.embed(data, **READING), plain, atol=1e-3)
    np.testing.assert_array_equal(scfm.load(folder, batch_norm=False).embed(data, **READING), plain)


def test_a_tensor_too_many_or_too_few_is_named(folder):
    rewrite(folder, lambda tensors: {**tensors, "mod_encoder.embedding.weight": torch.zeros(3, 32)})
    with pytest.raises(CheckpointError, match=r"mod_encoder\.embedding\.weight \(3, 32\)"):
        scfm.load(folder)
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "mod_encoder" not in k and "layers.1.norm2.bias" not in k})
    with pytest.raises(CheckpointError, match=r"1 parameters have no tensor.*layers\.1\.norm2\.bias"):
        scfm.load(folder)


def test_attention_under_unknown_names_is_refused_not_left_random(folder):
    rewrite(folder, lambda tensors: {k.replace("Wqkv", "qkv_proj"): v for k, v in tensors.items()})
    with pytest.raises(CheckpointError, match="qkv_proj"):
        scfm.load(folder)


def test_a_gene_table_one_row_short_is_refused(folder):
    rewrite(folder, lambda t: {k: v[:-1] if k == "encoder.embedding.weight" else v for k, v in t.items()})
    with pytest.raises(CheckpointError, match=r"213 tokens.*212 rows"):
        scfm.load(folder)


def test_missing_special_tokens_are_appended_in_the_authors_order(folder):
    index = json.loads((folder / "vocab.json").read_text())
    assert [index[token] for token in ("<pad>", "<cls>", "<eoc>")] == [210, 211, 212]  # they stand at the end here
    for token in ("<pad>", "<cls>", "<eoc>"):
        del index[token]
    (folder / "vocab.json").write_text(json.dumps(index))
    vocabulary = scfm.load(folder).vocabulary
    assert [vocabulary.id(role) for role in ("pad", "cls", "eoc")] == [210, 211, 212]


def test_integration_checkpoint_asks_for_its_batches(data):
    encoder = scfm.load(FIXTURE / "checkpoint_integration", batches=["x", "y", "z"])
    data.obs["batch"] = "w"
    with pytest.raises(InputError, match=r"unknown to the checkpoint: 'w'; it knows 'x', 'y', 'z'"):
        encoder.embed(data, **READING)
    with pytest.raises(InputError, match="names 2 batches; the checkpoint has 3"):
        scfm.load(FIXTURE / "checkpoint_integration", batches=["x", "y"])


def test_domain_norm_uses_each_cells_own_batch(data):
    encoder = scfm.load(FIXTURE / "checkpoint_integration")
    data.obs["batch"] = [str(i % 3) for i in range(data.n_obs)]
    together = encoder.embed(data, **READING)
    for batch in "012":
        own = (data.obs["batch"] == batch).to_numpy()
        np.testing.assert_allclose(encoder.embed(data[own], **READING), together[own], atol=1e-6)


def test_ensembl_ids_are_refused_and_mapped_when_asked():
    card = find("scgpt")[1]
    genes = ("TP53", "CD3E", "CD4", "CD8A", "MS4A1", "LYZ", "NKG7", "GNLY", "PPBP", "ACTB", "GAPDH", "<pad>", "<cls>")
    special = {"pad": "<pad>", "cls": "<cls>"}
    config = ScGPTConfig(genes=len(genes), dim=16, heads=2, hidden=16, layers=1, pad=11)
    encoder = ScGPT.build(config, Vocabulary(genes, ids="symbol", special=special), card)
    symbols = np.array(genes[:-2], dtype=object)
    counts = np.random.default_rng(0).poisson(1.0, (5, len(symbols))).astype(np.float32) + 1
    named = ad.AnnData(counts)
    named.var_names = symbols
    ensembl = named.copy()
    ensembl.var_names = [f"{gene}.{i}" for i, gene in enumerate(scfm.genes.to_ensembl(symbols))]
    with pytest.raises(GeneMatchError, match="map_genes=True"):
        encoder.embed(ensembl)
    np.testing.assert_array_equal(encoder.embed(ensembl, map_genes=True), encoder.embed(named))


def test_full_size_has_the_published_number_of_parameters():
    card = find("scgpt")[1]
    tokens = (*(f"G{i}" for i in range(60_694)), "<pad>", "<cls>", "<eoc>")
    vocabulary = Vocabulary(tokens, ids="symbol", special={"pad": "<pad>", "cls": "<cls>", "eoc": "<eoc>"})
    config = ScGPTConfig(genes=len(tokens), pad=60_694, decoder="expression", cell_decoder=True)
    with torch.device("meta"):
        network = ScGPT.build(config, vocabulary, card).network
    flags = 2 * config.dim  # in the released file, used by pre-training only
    assert sum(p.numel() for p in network.parameters()) + flags == card.parameters == 51_330_049
