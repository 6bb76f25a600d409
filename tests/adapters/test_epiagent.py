"""EpiAgent: published size, its files, and input it refuses."""

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
from scfm.encoder import Request
from scfm.errors import CheckpointError, InputError
from scfm.genes import Vocabulary
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
