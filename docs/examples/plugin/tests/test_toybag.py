"""ToyBag keeps the promises of the interface and gives the authors' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import scfm
from scfm.testing import check_encoder

GENES = ["CD3D", "CD3E", "CD4", "CD8A", "MS4A1", "CD79A", "NKG7", "GNLY", "LYZ", "CD14", "FCGR3A", "PPBP"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as the authors write them, with random weights."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "gene_emb.weight": (len(GENES), 8),
        "mlp.0.weight": (8, 8),
        "mlp.0.bias": (8,),
        "mlp.2.weight": (4, 8),
        "mlp.2.bias": (4,),
        "decoder.weight": (len(GENES), 4),
    }
    tensors = {f"module.{name}": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    torch.save(tensors, tmp_path / "toybag.pt")
    (tmp_path / "config.json").write_text(json.dumps({"n_genes": len(GENES), "hidden": 8, "emb": 4}))
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    return tmp_path


def test_toybag_keeps_the_promises_of_the_interface(folder: Path) -> None:
    check_encoder(scfm.load(folder))


def test_embedding_equals_the_original_code(folder: Path) -> None:
    """In a real adapter the right side is an array recorded from the authors' own code."""
    counts = np.random.default_rng(0).poisson(2.0, (5, len(GENES))).astype(np.float32)
    adata = AnnData(counts)
    adata.var_names = GENES
    w = {name.removeprefix("module."): t.numpy() for name, t in torch.load(folder / "toybag.pt").items()}
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    mean = (values / values.sum(axis=1, keepdims=True)) @ w["gene_emb.weight"]
    hidden = np.maximum(mean @ w["mlp.0.weight"].T + w["mlp.0.bias"], 0)
    expected = hidden @ w["mlp.2.weight"].T + w["mlp.2.bias"]
    np.testing.assert_allclose(scfm.load(folder).embed(adata), expected, atol=1e-5)


def test_a_tensor_too_many_is_refused(folder: Path) -> None:
    tensors = torch.load(folder / "toybag.pt")
    torch.save({**tensors, "module.surprise": torch.zeros(3)}, folder / "toybag.pt")
    with pytest.raises(scfm.errors.CheckpointError, match="surprise"):
        scfm.load(folder)
