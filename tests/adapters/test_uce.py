"""UCE's files, species, draws and padding."""

import pickle
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.uce import UCE
from scfm.adapters.uce.network import UCEConfig, UCENetwork
from scfm.errors import CheckpointError, InputError, SpeciesError
from scfm.genes import Vocabulary
from scfm.registry import find
from scfm.tokenizers import Batch

FIXTURE = Path(__file__).parents[1] / "parity" / "uce"


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[:6].copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "checkpoint", tmp_path / "checkpoint"))


def load(folder: Path = FIXTURE / "checkpoint", **options) -> UCE:
    return scfm.load(folder, heads=4, **options).with_options(sample=64)


def rewrite(folder: Path, change) -> None:
    tensors = torch.load(folder / "4layer_model.torch", weights_only=True)
    torch.save(change(tensors), folder / "4layer_model.torch")


@pytest.mark.parametrize(("layers", "trained"), [(4, 104_100_097), (33, 674_745_857)])
def test_published_sizes(layers, trained):
    with torch.device("meta"):
        network = UCENetwork(UCEConfig(tokens=145_469, layers=layers))
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trained
    assert sum(p.numel() for p in network.parameters()) == trained + 145_469 * 5120
    assert find(f"uce/{layers}-layer")[1].parameters == trained


def test_a_forward_pass_at_full_size():
    with torch.device("meta"):
        network = UCENetwork(UCEConfig(tokens=50))
    network = network.to_empty(device="cpu").eval()  # numbers do not matter, shapes do
    for tensor in network.state_dict().values():
        tensor.fill_(0.01)
    with torch.inference_mode():
        encoded = network(Batch({"ids": torch.arange(40)[None]}, {}, None))
    assert encoded.cells.shape == (1, 1280)
    torch.testing.assert_close(encoded.cells.norm(), torch.tensor(1.0))


def test_data_parallel_prefix_gives_the_same_embedding(folder, data):
    expected = load().embed(data)
    rewrite(folder, lambda tensors: {f"module.{k}": v for k, v in tensors.items()})
    np.testing.assert_array_equal(load(folder).embed(data), expected)


def test_a_tensor_too_many_or_too_few_is_named(folder):
    rewrite(folder, lambda t: {**t, "extra.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"extra\.weight \(3,\)"):
        load(folder)
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "extra" not in k and "layers.1.norm2.bias" not in k})
    with pytest.raises(CheckpointError, match=r"1 parameters have no tensor.*layers\.1\.norm2\.bias"):
        load(folder)


def test_two_models_in_one_folder_are_told_apart_by_name(folder, data):
    shutil.copy(folder / "4layer_model.torch", folder / "33l_8ep_1024t_1280.torch")
    with pytest.raises(CheckpointError, match="weights="):
        load(folder, adapter="uce")
    np.testing.assert_array_equal(load(folder, weights="4layer_model.torch").embed(data), load().embed(data))


def test_a_folder_without_proteins_says_what_to_unpack(folder):
    shutil.rmtree(folder / "protein_embeddings")
    with pytest.raises(CheckpointError, match=r"protein_embeddings\.tar\.gz"):
        load(folder)


def test_head_count_that_does_not_fit_is_refused():
    with pytest.raises(CheckpointError, match="heads="):
        scfm.load(FIXTURE / "checkpoint")


def test_only_the_rows_of_the_species_are_kept():
    table = torch.load(FIXTURE / "checkpoint" / "4layer_model.torch", weights_only=True)["pe_embedding.weight"]
    human, mouse = load(), load(species="mouse")
    assert len(human.network.table.weight) == len(human.vocabulary) < len(table)
    for encoder in (human, mouse, load(species="Macaca_mulatta")):
        rows = encoder.vocabulary.columns["row"].astype(int)
        assert len(set(rows)) == len(rows)
        torch.testing.assert_close(encoder.network.table.weight, table[rows], rtol=0, atol=0)
    shared = [gene for gene in mouse.vocabulary.tokens if gene.upper() in human.vocabulary and gene.isalnum()]
    assert "Srsf2" in shared  # spelled as in the protein file, found in any case
    assert not np.allclose(human.gene_embeddings(shared), mouse.gene_embeddings(shared))


def test_mouse_data_are_refused_by_the_human_model_and_named(data):
    mouse = ad.read_h5ad(FIXTURE / "input_mouse.h5ad")
    with pytest.raises(SpeciesError, match="species='mouse'"):
        load().embed(mouse)
    with pytest.raises(SpeciesError, match="species='human'"):
        load(species="mouse").embed(data)
    assert load(species="Mus musculus").embed(mouse).shape == (14, 20)


def test_a_saved_encoder_keeps_its_species(tmp_path):
    mouse = ad.read_h5ad(FIXTURE / "input_mouse.h5ad")
    encoder = load(species="mouse")
    folder = encoder.save(tmp_path / "saved")
    np.testing.assert_array_equal(scfm.load(folder).embed(mouse), encoder.embed(mouse))
    with pytest.raises(InputError, match="cannot be loaded with 'species'"):
        scfm.load(folder, species="human")


def test_unknown_species_are_listed():
    with pytest.raises(SpeciesError, match=r"no species 'dog'; it has .*'zebrafish'.*dog_pe_tokens\.torch"):
        load(species="dog")


def test_offsets_that_do_not_fit_the_table_are_refused(folder):
    (folder / "species_offsets.pkl").write_bytes(pickle.dumps({"human": 200}))
    with pytest.raises(CheckpointError, match="do not fit"):
        load(folder)


def test_draws_follow_the_logarithm_of_the_counts(data):
    encoder = load().with_options(sample=1000)
    drawn = np.zeros(len(encoder.vocabulary))
    for seed in range(30):
        (tokens,) = encoder.tokenize(data[:1], seed=seed)
        drawn += np.bincount(tokens.cell(0)["ids"], minlength=len(drawn))
    ids = encoder.vocabulary.lookup(data.var_names)
    weights = np.log1p(np.asarray(data.X[:1].todense()).reshape(-1))[ids >= 0]
    expected = np.bincount(ids[ids >= 0], weights=30_000 * weights / weights.sum(), minlength=len(drawn))
    genes = encoder.vocabulary.genes
    kept = expected[genes] > 0
    assert (drawn[genes][~kept] == 0).all()
    chi2 = ((drawn - expected)[genes][kept] ** 2 / expected[genes][kept]).sum()
    assert chi2 < kept.sum() + 5 * np.sqrt(2 * kept.sum())


def test_a_sentence_is_written_chromosome_by_chromosome(data):
    encoder = load()
    vocabulary = encoder.vocabulary
    (tokens,) = encoder.tokenize(data)
    for cell in tokens:
        words = [vocabulary.tokens[i] for i in cell["ids"]]
        assert words[0] == "<cls>"
        seen = []
        for chapter in " ".join(words[1:]).split(" </chromosome>"):
            if chapter:
                chromosome, *genes = chapter.split()
                ids = vocabulary.lookup(genes)
                assert (vocabulary.columns["chromosome"][ids] == vocabulary.tokens.index(chromosome)).all()
                assert (np.diff(vocabulary.columns["start"][ids]) >= 0).all()
                seen.append(chromosome)
        assert len(set(seen)) == len(seen)
        assert len(words) == 1 + 64 + 2 * len(seen)


def test_default_embedding_does_not_depend_on_columns_or_other_cells(data):
    encoder = load()
    expected = encoder.embed(data)
    order = np.random.default_rng(0).permutation(data.n_vars)
    np.testing.assert_array_equal(encoder.embed(data[:, order]), expected)
    np.testing.assert_allclose(encoder.embed(data[3:4]), expected[3:4], atol=1e-6)


def test_padding_of_the_original_lets_cells_see_each_other(data):
    encoder = load().with_options(group_size=3)
    together, apart = encoder.embed(data), encoder.embed(data[::-1])[::-1]
    assert np.abs(together - load().embed(data)).max() > 1e-4
    np.testing.assert_allclose(together, encoder.embed(data, batch_size=1), atol=1e-6)
    np.testing.assert_allclose(together[:3], apart[:3], atol=1e-6)  # the same three cells


def test_more_chromosomes_than_positions_are_refused():
    n = 700
    vocabulary = Vocabulary(
        tokens=("<pad>", "<open>", "<close>", "<cls>", *(f"G{i}" for i in range(n)), *(f"<c{i}>" for i in range(n))),
        ids="symbol",
        special={"pad": "<pad>", "close": "<close>", "cls": "<cls>", **{f"c{i}": f"<c{i}>" for i in range(n)}},
        fold_case=True,
        columns={
            "chromosome": np.concatenate([np.full(4, np.nan), np.arange(n) + 4 + n, np.full(n, np.nan)]),
            "start": np.zeros(4 + 2 * n),
        },
    )
    config = UCEConfig(len(vocabulary), token_dim=4, dim=8, heads=2, hidden=8, layers=1, output_dim=8, decoder_hidden=8)
    encoder = UCE.build(config, vocabulary, find("uce")[1])
    cells = ad.AnnData(np.ones((2, n), dtype=np.float32))
    cells.var_names = [f"G{i}" for i in range(n)]
    with pytest.raises(InputError, match=r"with_options\(sample=511\)"):
        encoder.embed(cells)
    assert encoder.with_options(sample=511).embed(cells).shape == (2, 8)
