"""Genes of encoders: programmes, sets and likeness, on vectors whose structure is known."""

import json
from copy import copy

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

import scfm
import scfm.data
from scfm.cli import app
from scfm.encoder import Capability
from scfm.errors import CapabilityError, GeneMatchError, InputError
from scfm.gene_spaces import encoder_space, expression_spaces, gene_programmes, read_gene_sets, set_separability


@pytest.fixture(scope="module")
def mini():
    return scfm.load("mini", device="cpu")


@pytest.fixture(scope="module")
def cells():
    return scfm.data.pbmc_demo()[:150].copy()


def blocks(n=60, groups=3, seed=0):
    """Vectors of genes in clear groups."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % groups
    return rng.normal(size=(n, 12)) * 0.3 + rng.normal(size=(groups, 12))[labels] * 3, labels


def test_programmes_are_the_groups_that_are_there():
    x, labels = blocks()
    found = gene_programmes(x, k=8)
    assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == 3
    np.testing.assert_array_equal(found, gene_programmes(x * 5, k=8))  # scale does not matter
    with pytest.raises(InputError, match="too few for 15 neighbours"):
        gene_programmes(x[:10])


def test_a_set_that_stands_apart_is_told_from_one_that_does_not():
    x, labels = blocks(n=120)
    real, null = set_separability(x, labels == 1, None, draws=6)
    assert real.min() > 0.95
    assert 0.3 < null.mean() < 0.7
    random = np.random.default_rng(1).permutation(labels == 1)
    real, _ = set_separability(np.random.default_rng(2).normal(size=(120, 12)), random, None, draws=10)
    assert 0.35 < real.mean() < 0.65


def test_expression_alone_separates_nothing_when_matched():
    """Vectors that hold only how much a gene is expressed can't tell a set from genes of the same expression."""
    rng = np.random.default_rng(0)
    expression = np.sort(rng.random(300))
    members = np.zeros(300, dtype=bool)
    members[np.arange(200, 290, 3)] = True  # highly expressed
    x = expression[:, None] + rng.normal(size=(300, 2)) * 0.01
    matched, _ = set_separability(x, members, expression, draws=10)
    loose, _ = set_separability(x, members, None, draws=10)
    assert matched.mean() < 0.65
    assert loose.mean() > 0.8


def test_correlation_space_is_pearsons(cells):
    names = cells.var_names[:200][np.asarray((cells.X[:, :200] > 0).sum(axis=0)).reshape(-1) > 5]
    spaces = expression_spaces(cells, list(names))
    dense = cells.X.toarray().astype(float)
    logged = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))[:, cells.var_names.get_indexer(names)]
    expected = np.corrcoef(logged.T)
    np.testing.assert_allclose(spaces["correlation"] @ spaces["correlation"].T, expected, atol=1e-9)
    loadings = spaces["PCA loadings"]
    assert loadings.shape[1] <= 50
    np.testing.assert_allclose(loadings.T @ loadings, np.diag(np.diag(loadings.T @ loadings)), atol=1e-8)


def test_genes_are_found_under_symbols_and_ensembl_ids(mini):
    symbols, known = encoder_space(mini, ["CD3E", "LYZ", "no such gene"])
    assert known.tolist() == [True, True, False]
    assert np.isnan(symbols[2]).all()
    ids, _ = encoder_space(mini, ["ENSG00000198851", "ENSG00000090382"])
    np.testing.assert_array_equal(ids, symbols[:2])
    with pytest.raises(GeneMatchError, match="knows none of the 1 genes"):
        encoder_space(mini, ["x"])


@pytest.fixture(scope="module")
def result(mini, cells):
    sets = {"ribosomal": [n for n in cells.var_names if n.startswith(("RPL", "RPS"))], "small": ["CD3E", "CD3D"]}
    return scfm.tasks.genes(mini, cells, sets=sets, query=["CD3E"], most_genes=300, draws=4)


def test_every_space_is_beside_the_baselines(result):
    assert list(result.programmes) == ["mini", "correlation", "PCA loadings"]
    assert len(result.programmes) == 300
    table = result.table
    auroc = table[table.metric == "auroc"]
    assert set(auroc.of) == {"ribosomal"}  # a set of two genes is not measured
    assert (auroc.value > auroc.null).all()
    assert set(table[table.metric == "knn_overlap"].space) == {"mini", "correlation"}
    coherence = table[table.metric == "coherence"].set_index("space")
    assert (coherence.value > coherence.null).all()
    assert (table.low <= table.high + 1e-12).all()


def test_neighbours_are_other_genes_by_falling_cosine(result):
    for _, rows in result.neighbours.groupby("space"):
        assert len(rows) == 15
        assert "CD3E" not in set(rows.neighbour)
        assert (np.diff(rows.cosine) <= 1e-9).all()
    assert "CD3D" in set(result.neighbours[result.neighbours.space == "mini"].neighbour)


def test_without_data_there_is_no_baseline(mini):
    found = scfm.tasks.genes(mini, names=[f"RPL{i}" for i in range(3, 40)], k=5)
    assert list(found.programmes) == ["mini"]
    assert found.table.empty
    with pytest.raises(InputError, match="nothing to draw"):
        found.plot()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query": ["nothing"]}, InputError, "'nothing' is not among the 300 genes"),
        ({"sets": {"few": ["CD3E"]}}, InputError, "no gene set has 10 genes"),
        ({"names": ["nothing"]}, InputError, "'nothing' is not expressed"),
    ],
)
def test_what_cannot_be_compared_is_refused(mini, cells, options, error, message):
    with pytest.raises(error, match=message):
        scfm.tasks.genes(mini, cells, most_genes=300, draws=2, **options)


def test_encoders_without_gene_embeddings_and_twins_are_refused(mini, cells):
    plain = copy(mini)
    plain.capabilities = frozenset({Capability.EMBED})
    with pytest.raises(CapabilityError, match="genes needs gene_embeddings"):
        scfm.tasks.genes(plain, cells)
    with pytest.raises(InputError, match="same name"):
        scfm.tasks.genes([mini, mini], cells)
    scaled = ad.AnnData(cells.X / 3, var=pd.DataFrame(index=cells.var_names))
    with pytest.raises(InputError, match="genes reads raw counts"):
        scfm.tasks.genes(mini, scaled)


def test_gene_sets_of_a_file(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("one\tno link\tA\tB\n\ntwo\t\tC\n")
    assert read_gene_sets(path) == {"one": ["A", "B"], "two": ["C"]}
    path.write_text("one\tA\n")
    with pytest.raises(InputError, match=r"line 1 of .* has no genes"):
        read_gene_sets(path)
    path.write_text("")
    with pytest.raises(InputError, match="no gene sets"):
        read_gene_sets(path)


def test_from_the_shell(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    ribosomal = [n for n in cells.var_names if n.startswith(("RPL", "RPS"))]
    (tmp_path / "sets.gmt").write_text("\t".join(["ribosomal", "", *ribosomal]))
    files = {name: str(tmp_path / name) for name in ("cells.h5ad", "sets.gmt", "r.json", "r.png")}
    options = ["--query", "CD3E", "--most-genes", "500", "-o", files["r.json"], "--plot", files["r.png"]]
    done = CliRunner().invoke(
        app, ["genes", "mini", "--data", files["cells.h5ad"], "--sets", files["sets.gmt"], *options]
    )
    assert done.exit_code == 0, done.output
    assert "CD3E, mini:" in done.output
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == "GenePrograms"
    assert (tmp_path / "r.png").stat().st_size > 5000


def test_cells_are_left_alone(mini, cells):
    before = cells.X.copy()
    scfm.tasks.genes(mini, cells, most_genes=100, k=5, draws=2)
    assert abs(sparse.csr_matrix(before) - cells.X).max() == 0
    assert list(cells.obs) == ["cell_type"]
