"""LangCell: its files, its two sides, and typing by text."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.langcell import LangCell
from scfm.adapters.langcell.network import LangCellConfig
from scfm.encoder import Capability
from scfm.errors import CapabilityError, CheckpointError, GeneMatchError, InputError, SpeciesError
from scfm.registry import find

PARITY = Path(__file__).parents[1] / "parity" / "langcell"
TEXTS = {
    "monocyte": "cell type: classical monocyte. a circulating myeloid cell; ",
    "b": "cell type: b cell. a lymphocyte of the b lineage that can make antibodies; ",
    "t": "cell type: cd8-positive t cell. ",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The authors' files, which a test may change."""
    return Path(shutil.copytree(PARITY / "checkpoint", tmp_path / "model"))


@pytest.fixture
def data() -> ad.AnnData:
    adata = ad.read_h5ad(PARITY / "input.h5ad")
    adata.var_names = adata.var["ensembl_id"].astype(str)
    return adata[adata.obs["cell_type"] != "out_of_vocab"].copy()


def test_sizes_of_a_geneformer_and_a_pubmedbert() -> None:
    """The released configs are unverified; the paper starts from these two models."""
    tokens = tuple(f"ENSG{i:011d}" for i in range(25_424))
    vocabulary = scfm.genes.Vocabulary(
        ("<pad>", "<mask>", *tokens, "<cls>"), "ensembl", special={"pad": "<pad>", "mask": "<mask>", "cls": "<cls>"}
    )
    with torch.device("meta"):
        encoder = LangCell.build(LangCellConfig(tokens=25_427, words=30_524), vocabulary, find("langcell")[1])
    assert encoder.text is not None
    cells, texts = (sum(p.numel() for p in side.parameters()) for side in (encoder.network, encoder.text))
    layer = 4 * (512 * 512 + 512) + 2 * 512 * 1024 + 1024 + 512 + 4 * 512
    assert cells == (25_427 + 2048 + 2) * 512 + 2 * 512 + 12 * layer + 512 * 256 + 256
    bert = (
        109_482_240 - (768 * 768 + 768) - 2 * 768 + 2 * 768
    )  # BERT-base without pooler and token types, two words more
    cross = 12 * (2 * (768 * 768 + 768) + 2 * (512 * 768 + 768) + 2 * 768)
    assert texts == bert + cross + (768 * 256 + 256) + (768 * 2 + 2)


def test_the_folder_above_and_one_without_texts_give_the_same_cells(folder: Path, data: ad.AnnData) -> None:
    expected = scfm.load(folder).embed(data)
    above = folder.parent / "LangCell"
    shutil.copytree(folder, above / "ckpt")
    np.testing.assert_array_equal(scfm.load(above).embed(data), expected)
    for name in ("text_proj.bin", "ctm_head.bin"):
        (folder / name).unlink()
    cells_only = scfm.load(folder)
    np.testing.assert_array_equal(cells_only.embed(data), expected)
    assert Capability.TEXT not in cells_only.capabilities
    with pytest.raises(CapabilityError, match="text"):
        cells_only.embed_text(["cell type: b cell. "])


def test_every_tensor_is_accounted_for(folder: Path) -> None:
    for part in ("cell_bert", "text_bert"):
        path = folder / part / "pytorch_model.bin"
        whole = torch.load(path, weights_only=True)
        tensors = dict(whole)
        moved = tensors.pop("encoder.layer.0.output.dense.bias")
        torch.save(tensors | {"foo.weight": moved}, path)
        with pytest.raises(CheckpointError, match=r"foo\.weight(.|\n)*layers\.0\.ff2\.bias"):
            scfm.load(folder)
        torch.save(whole, path)


def test_a_dictionary_of_another_size_is_refused(folder: Path) -> None:
    (folder / "token_dictionary.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"185 tokens.*25,427"):
        scfm.load(folder)


def test_texts_need_their_vocabulary(folder: Path) -> None:
    vocabulary = shutil.move(folder / "text_tokenizer" / "vocab.txt", folder.parent / "vocab.txt")
    encoder = scfm.load(folder)
    with pytest.raises(CheckpointError, match="text_vocabulary="):
        encoder.embed_text(list(TEXTS.values()))
    given = scfm.load(folder, text_vocabulary=vocabulary)
    assert given.embed_text(list(TEXTS.values())).shape == (3, 24)


def test_typing_does_not_depend_on_batches_or_the_order_of_texts(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint")
    one = encoder.type_by_text(data, TEXTS, alpha=0.5)
    other = encoder.type_by_text(data, dict(reversed(TEXTS.items())), alpha=0.5, batch_size=3)
    np.testing.assert_allclose(other.score[:, ::-1], one.score, atol=5e-5)  # rounding, times 1 / 0.05
    np.testing.assert_allclose(one.score.sum(axis=1), 1, atol=1e-6)
    assert set(one.labels) <= set(TEXTS)
    quick = encoder.type_by_text(data, TEXTS, matching=False)
    assert quick.matching is None
    np.testing.assert_allclose(
        quick.similarity, encoder.embed(data) @ encoder.embed_text(list(TEXTS.values())).T, atol=1e-6
    )
    assert encoder.type_by_text(data[:0], TEXTS).score.shape == (0, 3)
    with pytest.raises(InputError, match="at least one"):
        encoder.type_by_text(data, {})


def test_both_sides_are_saved(tmp_path: Path, data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint")
    again = scfm.load(encoder.with_texts(list(TEXTS.values())).save(tmp_path / "saved"))
    np.testing.assert_array_equal(again.embed(data), encoder.embed(data))
    np.testing.assert_array_equal(again.embed_text(list(TEXTS.values())), encoder.embed_text(list(TEXTS.values())))
    assert again.words == encoder.words


def test_other_species_and_symbols_are_refused(data: ad.AnnData) -> None:
    encoder = scfm.load(PARITY / "checkpoint")
    mouse = data.copy()
    mouse.var_names = [f"ENSMUSG{i:011d}" for i in range(mouse.n_vars)]
    with pytest.raises(SpeciesError, match="to_orthologs"):
        encoder.embed(mouse)
    with pytest.raises(GeneMatchError, match="gene_column='ensembl_id'"):
        encoder.embed(ad.read_h5ad(PARITY / "input.h5ad"))
