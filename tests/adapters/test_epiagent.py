"""EpiAgent: published size, its files, and input it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.adapters.epiagent import EpiAgent
from scfm.adapters.epiagent.network import EpiAgentConfig, EpiAgentNetwork
from scfm.document_frequency import counted_in
from scfm.encoder import Request
from scfm.errors import CheckpointError, InputError
from scfm.fragments import count_fragments
from scfm.genes import Vocabulary
from scfm.regions import Regions
from scfm.registry import find
from scfm.tokenizers import Batch

FIXTURE = Path(__file__).parents[1] / "parity" / "epiagent"
WEIGHTS = "pretrained_EpiAgent.pth"
REGIONS = 1_355_445


@pytest.fixture
def data() -> ad.AnnData:
    return ad.read_h5ad(FIXTURE / "input.h5ad")[:5].copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pre-trained file and the reference, that a test may change."""
    for name in (WEIGHTS, "cCRE.bed", "cCRE_document_frequency.npy"):
        shutil.copy(FIXTURE / "checkpoint" / name, tmp_path)
    return tmp_path


def change(folder: Path, edit: Callable[[dict], dict]) -> None:
    torch.save(edit(torch.load(folder / WEIGHTS, weights_only=True)), folder / WEIGHTS)


def published(regions: int) -> EpiAgentConfig:
    return EpiAgentConfig(regions + 4, regions, signals=regions, openness=64, membership=128)


def test_published_size() -> None:
    card = find("epiagent")[1]
    special = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}
    vocabulary = Vocabulary(tuple(special.values()), ids="region", special=special)  # its length decides nothing
    vocabulary.columns["document_frequency"] = np.full(3, np.nan)  # type: ignore[index]
    with torch.device("meta"):
        encoder = EpiAgent.build(published(REGIONS), vocabulary, card)
    assert sum(p.numel() for p in encoder.network.parameters()) == card.parameters == 1_450_434_999
    assert encoder.dim == card.dim


def test_full_size_forward() -> None:
    network = EpiAgentNetwork(published(100)).eval()  # regions only make tables longer
    with torch.inference_mode():
        cells = network(Batch({"ids": torch.arange(1, 60)[None]}, {}, None), Request()).cells
    assert cells.shape == (1, 512)
    assert cells.isfinite().all()


def test_missing_and_unknown_tensors_are_listed(folder: Path, data: ad.AnnData) -> None:
    assert scfm.load(folder, heads=4).embed(data).shape == (5, 32)
    bias = "EpiAgent_transformer.layers.1.norm2.bias"
    change(folder, lambda tensors: {k: v for k, v in tensors.items() if k != bias} | {"foo": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"foo \(2,\)(.|\n)*layers\.1\."):
        scfm.load(folder, heads=4)


def test_without_its_reference_it_says_where_that_is(folder: Path) -> None:
    (folder / "cCRE.bed").unlink()
    with pytest.raises(CheckpointError, match=r"cCRE\.bed(.|\n)*reference="):
        scfm.load(folder, heads=4)


def test_genes_are_refused(folder: Path, data: ad.AnnData) -> None:
    data.var_names = [f"GENE{i}" for i in range(data.n_vars)]
    with pytest.raises(InputError, match="regions"):
        scfm.load(folder, heads=4).embed(data)


def test_document_frequency_is_counted_in_the_data_when_asked_for_and_said(
    folder: Path, data: ad.AnnData, tmp_path: Path
) -> None:
    given = scfm.load(folder, heads=4)
    assert given.tokenizer.settings()["frequency_of"] == "checkpoint"
    (folder / "cCRE_document_frequency.npy").unlink()
    with pytest.raises(CheckpointError, match="document_frequency='data'"):
        scfm.load(folder, heads=4)
    with pytest.raises(InputError, match="'guess' is not known"):
        scfm.load(folder, heads=4, document_frequency="guess")
    unknown = scfm.load(folder, heads=4, document_frequency="data")
    with pytest.raises(InputError, match="counted_in"):
        unknown.embed(data)
    counted = counted_in(unknown, data)
    opened = (data.X.toarray() > 0).sum(axis=0)
    expected = np.where(opened > 0, opened, 1) / (data.X.getnnz(axis=1) > 0).sum()
    np.testing.assert_array_equal(counted.vocabulary.columns["document_frequency"][4:], expected)
    for tokens, row in zip(next(iter(counted.with_options(context=200).tokenize(data))), data.X.toarray(), strict=True):
        open_ = np.flatnonzero(row)
        assert (tokens["ids"][1:-1] - 4).tolist() == sorted(open_, key=lambda j: (-row[j] / expected[j], j))
    data = data.copy()
    counted.embed(data, key_added="X_epi")
    assert json.loads(data.uns["scfm"]["X_epi"])["tokenizer"]["frequency_of"] == "data: 5 cells"
    again = scfm.load(counted.save(tmp_path / "saved"))
    np.testing.assert_array_equal(again.embed(data), counted.embed(data))
    assert again.tokenizer.settings() == counted.tokenizer.settings()
    assert not np.array_equal(given.embed(data), counted.embed(data))
    with pytest.raises(InputError, match="does not rank regions"):
        counted_in(scfm.load("lsi"), data)


def test_peaks_whose_reference_is_stated_to_be_another_build_are_refused(folder: Path, data: ad.AnnData) -> None:
    encoder = scfm.load(folder, heads=4)
    data = data.copy()
    data.var["genome"] = "refdata-gex-GRCh38-2020-A"
    assert encoder.embed(data, map_genes=True).shape == (5, 32)
    data.var["genome"] = "hg19"
    for mapped in (False, True):
        with pytest.raises(InputError, match="stated to be hg19"):
            encoder.embed(data, map_genes=mapped)


def test_a_decoder_of_other_regions_is_not_accessibility() -> None:
    from scfm.encoder import Capability

    folder = FIXTURE / "checkpoint"
    assert Capability.ACCESSIBILITY in scfm.load(folder, weights=WEIGHTS, heads=4).capabilities
    perturbed = scfm.load(folder, weights="EpiAgent_PT.pth", heads=4)
    assert Capability.ACCESSIBILITY not in perturbed.capabilities
    assert "signal" in perturbed.network.heads


def test_fragments_are_counted_in_the_encoders_regions(folder: Path) -> None:
    encoder = scfm.load(folder, heads=4)
    path = FIXTURE / "fragments.bed"
    counted = count_fragments(path, encoder)
    given = count_fragments(path, Regions.read_bed(folder / "cCRE.bed"))
    assert list(counted.var_names) == list(given.var_names)
    assert (counted.X != given.X).nnz == 0
    assert encoder.embed(counted).shape == (28, 32)
    with pytest.raises(InputError, match="reads genes"):
        count_fragments(path, scfm.load("mini", device="cpu"))
    with pytest.raises(InputError, match="before it is fitted"):
        count_fragments(path, scfm.load("lsi"))
    with pytest.raises(InputError, match="count them first"):
        encoder.embed(path)


def test_the_genes_of_a_multiome_are_left_out(folder: Path, data: ad.AnnData) -> None:
    encoder = scfm.load(folder, heads=4)
    genes = ad.AnnData(np.full((5, 300), 90, np.float32), obs=data.obs, var={"": [f"GENE{i}" for i in range(300)]})
    genes.var_names = [f"GENE{i}" for i in range(300)]
    both = ad.concat([data, genes], axis=1)
    both.X = both.X.astype(np.float32)
    np.testing.assert_array_equal(encoder.embed(both), encoder.embed(data))
    assert encoder.check(both).genes.features == data.n_vars


def test_multiome_files_say_how_they_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.h5mu").write_bytes(b"")
    with pytest.raises(InputError, match="embed_multi"):
        scfm.load(folder, heads=4).embed(tmp_path / "x.h5mu")
