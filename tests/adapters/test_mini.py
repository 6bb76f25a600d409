"""mini: what ships, and what it reads."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scfm
from scfm.adapters.mini import Mini
from scfm.data import pbmc_demo
from scfm.genes import to_ensembl

FOLDER = Path(__import__("scfm.adapters.mini", fromlist=["mini"]).__file__).parent / "data"


@pytest.fixture(scope="module")
def mini() -> scfm.CellEncoder:
    return scfm.load("mini", device="cpu")


def test_it_is_small_enough_to_ship(mini: scfm.CellEncoder) -> None:
    assert 1e6 < sum(p.numel() for p in mini.network.parameters()) < 3e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6.2e6


def test_weights_ship_in_half_and_compute_in_single_precision(mini: scfm.CellEncoder) -> None:
    stored = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {p.dtype for p in mini.network.parameters()} == {torch.float32}


def test_the_card_of_the_adapter_is_the_one_that_counts(mini: scfm.CellEncoder) -> None:
    assert mini.card == next(card for card in scfm.registry.cards() if card.name == "mini")
    assert mini.card.default


def test_demo_cells_have_unit_embeddings_that_differ(mini: scfm.CellEncoder) -> None:
    x = mini.embed(pbmc_demo()[:20].copy(), progress=False)
    assert x.shape == (20, mini.dim)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert len(np.unique(x.round(4), axis=0)) == 20


def test_ensembl_ids_are_mapped_on_request(mini: scfm.CellEncoder) -> None:
    cells = pbmc_demo()[:10].copy()
    ids = to_ensembl(cells.var_names)
    mapped = cells[:, [i is not None for i in ids]].copy()
    by_symbol = mini.embed(mapped, progress=False)
    mapped.var_names = [i for i in ids if i is not None]
    with pytest.raises(scfm.errors.GeneMatchError, match="map_genes=True"):
        mini.embed(mapped, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_id = mini.embed(mapped, map_genes=True, progress=False)
    assert (by_symbol * by_id).sum(axis=1).min() > 0.99  # but for symbols that moved to another gene


def test_poolings_layers_and_gene_embeddings(mini: scfm.CellEncoder) -> None:
    cells = pbmc_demo()[:3].copy()
    mean, cls, first = (
        mini.embed(cells, progress=False, **options) for options in ({}, {"pooling": "cls"}, {"hidden_layer": 0})
    )
    assert not np.allclose(mean, cls, atol=1e-3)
    assert not np.allclose(mean, first, atol=1e-4)
    assert mini.gene_embeddings(["CD3D", "LYZ"]).shape == (2, mini.dim)


def test_attention_of_a_cell_sums_to_one(mini: scfm.CellEncoder) -> None:
    (cell,) = mini.attention(pbmc_demo()[:1].copy(), reduce="none", progress=False)
    assert cell.genes[0] == "<cls>"
    np.testing.assert_allclose(cell.weights.sum(axis=-1), 1, atol=1e-5)


def test_it_is_built_without_memory(mini: scfm.CellEncoder) -> None:
    with torch.device("meta"):
        fresh = Mini.build(mini.config, mini.vocabulary, mini.card)
    shapes = {name: p.shape for name, p in fresh.network.named_parameters()}
    assert shapes == {name: p.shape for name, p in mini.network.named_parameters()}
