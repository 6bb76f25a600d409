"""TranscriptFormer's files, species, assays and attention."""

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.transcriptformer import network as network_module
from scfm.adapters.transcriptformer.network import CountAttention, TranscriptFormerConfig, TranscriptFormerNetwork
from scfm.encoder import Capability
from scfm.errors import CapabilityError, CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.proteins import protein_genes
from scfm.tokenizers import Batch

FIXTURE = Path(__file__).parents[1] / "parity" / "transcriptformer"
READING = {"gene_column": "ensembl_id", "map_genes": True}


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[[0, 1, 2, 3, 5, 10]].copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "checkpoint", tmp_path / "checkpoint"))


def rewrite(folder: Path, change) -> None:
    torch.save(change(torch.load(folder / "model_weights.pt", weights_only=True)), folder / "model_weights.pt")


@pytest.mark.parametrize(
    ("tokens", "gene_hidden", "trained", "frozen"),
    [
        (23_829, 2048, 368_781_867, 61_002_240),  # Sapiens: published 368 M and 61 M
        (110_290, 2048, 546_026_917, 282_342_400),  # Exemplar: published 542 M and 282 M
        (247_388, 512, 443_939_513, 633_313_280),  # Metazoa: published 444 M and 633 M
    ],
)
def test_published_sizes(tokens, gene_hidden, trained, frozen):
    with torch.device("meta"):
        network = TranscriptFormerNetwork(TranscriptFormerConfig(tokens=tokens, pad=5, gene_hidden=gene_hidden))
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trained
    assert sum(p.numel() for p in network.parameters() if not p.requires_grad) == frozen


@pytest.mark.slow
def test_a_forward_pass_at_full_size():
    with torch.device("meta"):
        network = TranscriptFormerNetwork(TranscriptFormerConfig(tokens=50, pad=5, gene_hidden=0))
    network = network.to_empty(device="cpu").eval()  # numbers do not matter, shapes do
    for tensor in network.state_dict().values():
        tensor.fill_(0.01)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        encoded = network(Batch({"ids": ids, "counts": torch.ones(1, 40), "targets": ids}, {}, None))
    assert encoded.cells.shape == (1, 2048)
    assert encoded.cells.isfinite().all()


@pytest.mark.parametrize("own", [True, False])
def test_attention_by_parts_equals_attention_at_once(own, monkeypatch):
    torch.manual_seed(0)
    attention = CountAttention(12, 3, bias=True, softcap=2.0, own=own)
    x, bias, hidden = torch.randn(2, 23, 12), torch.rand(2, 23), torch.rand(2, 23) < 0.3
    hidden[1, :2] = True  # queries without any key
    monkeypatch.setattr(network_module, "_QUERIES", 5)
    out, weights = attention(x, bias.masked_fill(hidden, -torch.inf), weights=True)
    q, k, v = (linear(x).view(2, 23, 3, 4).transpose(1, 2) for linear in (attention.q, attention.k, attention.v))
    place = torch.arange(23)
    added = bias[:, None, None] * (torch.ones(23, 23) if own else (place[None] < place[:, None]).float())
    scores = 2 * torch.tanh((q @ k.transpose(-1, -2) / 2 + added) / 2)
    blocked = (place[None] > place[:, None]) | hidden[:, None, None]
    expected = scores.masked_fill(blocked, -torch.inf).softmax(-1).nan_to_num(0)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(out, attention.o((expected @ v).transpose(1, 2).flatten(2)))


def test_data_parallel_prefix_gives_the_same_embedding(folder, data):
    expected = scfm.load(folder).embed(data, **READING)
    rewrite(folder, lambda tensors: {f"module.{k}": v for k, v in tensors.items()})
    np.testing.assert_array_equal(scfm.load(folder).embed(data, **READING), expected)


def test_a_tensor_too_many_or_too_few_is_named(folder):
    rewrite(folder, lambda t: {**t, "extra.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"extra\.weight \(3,\)"):
        scfm.load(folder)
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "extra" not in k and "layers.1.norm2.bias" not in k})
    with pytest.raises(CheckpointError, match=r"1 parameters have no tensor.*layers\.1\.norm2\.bias"):
        scfm.load(folder)


def test_a_checkpoint_without_aux_columns_or_gene_head(folder, data):
    settings = json.loads((folder / "config.json").read_text())
    settings["model"]["data_config"]["aux_cols"] = None
    settings["model"]["loss_config"]["gene_id_loss_weight"] = 0
    (folder / "config.json").write_text(json.dumps(settings))
    rewrite(folder, lambda t: {k: v for k, v in t.items() if not k.startswith(("aux_embeddings", "gene_id_head"))})
    encoder = scfm.load(folder)
    del data.obs["assay"]
    hidden = scfm.load(FIXTURE / "checkpoint").with_options(aux_columns=(None,))
    np.testing.assert_allclose(encoder.embed(data, **READING), hidden.embed(data, **READING), atol=1e-6)
    assert "gene_logits" not in encoder.network.heads
    assert encoder.network.heads == {"expression", "llh"}


def test_a_vocabulary_of_another_length_is_refused(folder):
    rewrite(folder, lambda t: {k: v[:-1] if len(v) == 264 else v for k, v in t.items()})
    with pytest.raises(CheckpointError, match=r"263 rows.* are 264"):
        scfm.load(folder)


def test_missing_settings_are_named(folder):
    settings = json.loads((folder / "config.json").read_text())
    del settings["model"]["model_config"]["softcap"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="softcap"):
        scfm.load(folder)


def test_one_species_gives_the_same_numbers_from_its_rows_alone(data, tmp_path):
    every, human = scfm.load(FIXTURE / "checkpoint"), scfm.load(FIXTURE / "checkpoint", species="homo_sapiens")
    table = torch.load(FIXTURE / "checkpoint" / "model_weights.pt", weights_only=True)
    own = set(protein_genes(FIXTURE / "checkpoint/vocabs/homo_sapiens_gene.h5"))
    rows = [i for i, token in enumerate(every.vocabulary.tokens[:264]) if i < 7 or token in own]
    kept = human.network.state_dict()
    for ours, theirs in (
        ("table.weight", "gene_embeddings.embedding.weight"),
        ("counts.bias.weight", "mu.gene_embedding.weight"),
    ):
        torch.testing.assert_close(kept[ours], table[theirs][rows], rtol=0, atol=0)
    data = data[:, data.var["ensembl_id"].str.partition(".")[0].isin(own)]
    np.testing.assert_array_equal(human.embed(data, **READING), every.embed(data, **READING))
    outputs = {"outputs": ("expression", "llh")}
    for one, all_of_them in zip(
        human.encode(data, **outputs, **READING), every.encode(data, **outputs, **READING), strict=True
    ):
        torch.testing.assert_close(one[2].heads, all_of_them[2].heads)
    np.testing.assert_array_equal(
        scfm.load(human.save(tmp_path / "saved")).embed(data, **READING), human.embed(data, **READING)
    )


def test_wrong_genes_are_refused_with_what_to_pass(data):
    with pytest.raises(GeneMatchError, match="gene_column='ensembl_id'"):
        scfm.load(FIXTURE / "checkpoint").embed(data)
    data.var["ensembl_id"] = [f"ENSMUSG{i:011d}" for i in range(data.n_vars)]
    with pytest.raises(SpeciesError, match="species='mouse'"):
        scfm.load(FIXTURE / "checkpoint", species="human").embed(data, gene_column="ensembl_id")
    with pytest.raises(SpeciesError, match="'dog'; it has 'human', 'mouse'"):
        scfm.load(FIXTURE / "checkpoint", species="dog")


def test_an_unknown_assay_hides_its_token(data):
    encoder = scfm.load(FIXTURE / "checkpoint")
    known = encoder.embed(data, **READING)
    data.obs["assay"] = "spatial"
    unknown = encoder.embed(data, **READING)
    assert np.abs(known - unknown).max() > 1e-2
    del data.obs["assay"]
    with pytest.raises(InputError, match=r"no column 'assay'[\s\S]*10x 3' v2[\s\S]*aux_columns"):
        encoder.embed(data, **READING)
    np.testing.assert_array_equal(encoder.with_options(aux_columns=(None,)).embed(data, **READING), unknown)
    with pytest.raises(InputError, match="names 2 columns; the model reads 1"):
        encoder.with_options(aux_columns=("assay", "tissue"))


def test_the_state_before_a_gene_is_its_contextual_embedding(data):
    encoder = scfm.load(FIXTURE / "checkpoint")
    expected = {cell: (genes, vectors) for cell, genes, vectors in encoder.contextual_genes(data, **READING)}
    column = data.var["ensembl_id"].str.partition(".")[0].to_numpy()
    last = column[(data.X[0].toarray() > 0).reshape(-1) & (encoder.vocabulary.lookup(column) >= 0)][-1]
    assert expected[0][0][-1] == last
    without = data[:, column != last]  # the last gene's state has not read it
    found = {cell: vectors for cell, _, vectors in encoder.contextual_genes(without, **READING)}
    np.testing.assert_allclose(found[0], expected[0][1][:-1], atol=1e-6)


def test_a_new_species_keeps_start_and_padding(data):
    old = scfm.load(FIXTURE / "checkpoint")
    new = scfm.load(FIXTURE / "checkpoint", proteins="ood_species_gene.h5", species="human")
    for role in ("start", "pad"):
        rows = [e.network.table.weight[e.vocabulary.id(role)] for e in (old, new)]
        torch.testing.assert_close(rows[0], rows[1])
    shared = [gene for gene in new.vocabulary.tokens if gene.startswith("ENSG") and gene in old.vocabulary]
    data = data[:, data.var["ensembl_id"].isin(shared)].copy()
    table = dict(zip(shared, new.gene_embeddings(shared, kind="protein").to_numpy(), strict=True))
    with torch.no_grad():  # the same proteins in both: the same embedding
        for gene, vector in table.items():
            old.network.table.weight[old.vocabulary.index[gene]] = torch.from_numpy(vector)
    np.testing.assert_allclose(new.embed(data, **READING), old.embed(data, **READING), atol=1e-6)
    upstream = scfm.load(FIXTURE / "checkpoint", proteins="ood_species_gene.h5", species="human", upstream=True)
    assert np.abs(upstream.embed(data, **READING) - new.embed(data, **READING)).max() > 1e-2


def test_a_new_species_has_no_count_head(data):
    encoder = scfm.load(FIXTURE / "checkpoint", proteins=FIXTURE / "checkpoint/ood_species_gene.h5", species="human")
    assert Capability.EXPRESSION not in encoder.capabilities
    with pytest.raises(CapabilityError, match="expression"):
        next(encoder.encode(data, outputs=("expression",), **READING))
    with pytest.raises(InputError, match="proteins="):
        scfm.load(FIXTURE / "checkpoint", upstream=True)
