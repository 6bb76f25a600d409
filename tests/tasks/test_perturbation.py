"""In silico perturbation as a user runs it."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import CapabilityError, GeneMatchError, InputError

PARITY = Path(__file__).parents[1] / "parity"
COLUMN = {"gene_column": "ensembl_id"}


@pytest.fixture(scope="module")
def encoder():
    return scfm.load(PARITY / "geneformer_v2" / "checkpoint")


@pytest.fixture(scope="module")
def data(encoder):
    """Cells with genes that the encoder knows; `var["known"]` says which."""
    data = ad.read_h5ad(PARITY / "geneformer_v2" / "input.h5ad")
    data.var["known"] = encoder.vocabulary.lookup(data.var["ensembl_id"]) >= 0
    return data[np.asarray(data[:, data.var.known].X.sum(axis=1)).reshape(-1) > 0].copy()


def perturb(encoder, data, genes, **options):
    return scfm.tasks.perturb(encoder, data, genes, progress=False, **COLUMN, **options)


def often(data, n=3):
    """Genes that most cells express, by their names."""
    share = np.asarray((data.X > 0).mean(axis=0)).reshape(-1)
    order = np.argsort(-share * data.var["known"].to_numpy() * (share < 0.95), kind="stable")
    return data.var_names[order[:n]].tolist()


def test_named_genes_and_pairs_have_effects_intervals_and_a_null(encoder, data):
    one, two, _ = often(data)
    found = perturb(encoder, data, [one, f"{one}+{two}", [two]], null=9)
    table = found.table.set_index("perturbation")
    assert set(table.index) == {one, two, f"{one}+{two}"}
    assert (table.low <= table.effect).all()
    assert (table.effect <= table.high).all()
    assert table.p.between(0.1, 1).all()  # of nine draws
    assert (table.fdr >= table.p - 1e-12).all()
    assert table.n[f"{one}+{two}"] <= min(table.n[one], table.n[two])
    for name, rows in found.cells.groupby("perturbation"):
        assert table.effect[name] == pytest.approx((1 - rows.cosine).mean())
    assert found.affected is None
    again = perturb(encoder, data, [one, f"{one}+{two}", [two]], null=9)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_more_of_a_change_does_more(encoder, data):
    gene = often(data, 1)
    effect = {
        factor: perturb(encoder, data, gene, kind="knock-down", factor=factor, null=0).table.effect[0]
        for factor in (0.9, 0.01)
    }
    assert effect[0.9] < effect[0.01]
    none = perturb(encoder, data, gene, kind="over-express", factor=1.0, null=0).table
    assert none.effect[0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(none.p[0])


def test_all_genes_are_compared_with_their_likes(encoder, data):
    found = perturb(encoder, data, "all", most_cells=3, gene_effects=True)
    assert len(set(found.cells.cell)) == 3
    assert found.table.p.notna().all()
    assert (found.table.effect.diff().dropna() <= 0).all()
    assert set(found.affected.perturbation) == set(found.table.perturbation)
    assert (found.affected.perturbation != found.affected.gene).all()
    assert found.table.gene_effect.between(0, 2).all()


def test_activation_reaches_cells_without_the_gene(encoder, data):
    gene = often(data, 1)[0]
    expressed = int((data[:, gene].X > 0).sum())
    assert expressed < data.n_obs
    assert perturb(encoder, data, [gene], null=0).table.n[0] <= expressed
    assert perturb(encoder, data, [gene], kind="activate", null=0).table.n[0] == data.n_obs


def test_goal_states(encoder, data):
    found = perturb(
        encoder, data, "all", states="state", start="start", goal="goal", alternatives=["alt"], most_cells=2
    )
    assert {"goal shift", "goal p", "goal fdr", "alt shift", "significant"} <= set(found.table)
    assert set(found.cells.cell) <= set(data.obs_names[data.obs.state == "start"])
    embedding = encoder.embed(data, progress=False, **COLUMN).astype(float)
    goal = embedding[(data.obs.state == "goal").to_numpy()].mean(axis=0)
    row = found.cells.iloc[0]
    before = embedding[data.obs_names.get_loc(row.cell)]
    base = before @ goal / np.linalg.norm(before) / np.linalg.norm(goal)
    assert abs(row["goal shift"] + base) <= 1 + 1e-9  # the cosine after it


@pytest.mark.parametrize(
    ("genes", "options", "error", "message"),
    [
        (["NOSUCH"], {}, GeneMatchError, "does not know 'NOSUCH'"),
        ([], {}, InputError, "genes is empty"),
        ("all", {"kind": "delete"}, InputError, "kind='delete' is not known"),
        ("all", {"kind": "knock-down", "factor": 2}, InputError, "factor=2 is no knock-down"),
        ("all", {"null": -1}, InputError, "both are counts"),
        ("all", {"states": "state", "goal": "goal"}, InputError, "start= is not"),
        ("all", {"states": "state", "start": "start"}, InputError, "goal= is not"),
        ("all", {"goal": "goal"}, InputError, "states= is not"),
        ("all", {"states": "state", "start": "start", "goal": "x"}, InputError, "has no 'x'; it has"),
        ("all", {"states": "none", "start": "start", "goal": "goal"}, InputError, "no column 'none'"),
        ("all", {"states": "state", "start": "y", "goal": "goal"}, InputError, "no cell is 'y'"),
    ],
)
def test_what_cannot_be_done_is_refused(encoder, data, genes, options, error, message):
    with pytest.raises(error, match=message):
        perturb(encoder, data, genes, **options)


def test_a_gene_that_no_cell_expresses_is_refused(encoder, data):
    gene = often(data, 1)[0]
    silent = data.copy()
    silent.X = silent.X.toarray()
    silent.X[:, silent.var_names.get_loc(gene)] = 0
    with pytest.raises(InputError, match=f"no cell expresses '{gene}'"):
        perturb(encoder, silent, [gene])


def test_from_the_shell(data, tmp_path):
    data.write_h5ad(tmp_path / "cells.h5ad")
    gene = often(data, 1)[0]
    model, files = (
        str(PARITY / "geneformer_v2" / "checkpoint"),
        [str(tmp_path / n) for n in ("cells.h5ad", "r.json", "r.png")],
    )
    common = ["--gene-column", "ensembl_id", "--genes", gene, "--null", "3"]
    done = CliRunner().invoke(
        app, ["perturb", model, files[0], *common, "--kind", "activate", "-o", files[1], "--plot", files[2]]
    )
    assert done.exit_code == 0, done.output
    assert gene in done.output
    assert "activate in" in done.output
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["provenance"]["settings"]["kind"] == "activate"
    assert (tmp_path / "r.png").stat().st_size > 5000
    refused = CliRunner().invoke(app, ["perturb", model, files[0], *common, "--expression", str(tmp_path / "e.h5ad")])
    assert isinstance(refused.exception, CapabilityError)
    assert "has no expression" in str(refused.exception)
