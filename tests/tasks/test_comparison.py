"""compare: likeness of embeddings over all cells and within labels, beside chance; from Python and the shell."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import InputError
from scfm.metrics import linear_cka, neighbourhood_overlap
from scfm.neighbours import neighbours


def cells(n=160):
    """One embedding, the same turned and scaled, one of noise; types only in the first two."""
    rng = np.random.default_rng(0)
    y = rng.choice(["B", "NK", "T"], n, p=[0.5, 0.05, 0.45])
    z = rng.normal(size=(n, 5)) + 5 * (y == "T")[:, None] * np.eye(5)[0]
    turned = z @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * 30 + 4
    obs = pd.DataFrame(
        {"cell_type": y, "donor": [f"d{i % 6}" for i in range(n)], "batch": [f"b{i % 2}" for i in range(n)]},
        index=[f"c{i}" for i in range(n)],
    )
    obsm = {"z": z, "turned": turned, "noise": rng.normal(size=(n, 8))}
    return anndata.AnnData(np.zeros((n, 1), np.float32), obs=obs, obsm=obsm)


@pytest.fixture(scope="module")
def result():
    return scfm.tasks.compare(
        ["z", "turned"],
        cells(),
        labels="cell_type",
        batch="batch",
        donors="donor",
        baseline="noise",
        resamples=60,
        subsamples=20,
    )


def test_turned_and_scaled_embeddings_are_the_same(result):
    pairs = result.table.set_index(["metric", "encoder", "other"])
    for metric in ("CKA", "neighbours shared", "Procrustes"):
        assert pairs.loc[(metric, "z", "turned"), ["value", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
        row = pairs.loc[(metric, "z", "noise")]
        assert row["value"] == pytest.approx(row["chance"], abs=0.08)
        assert row["low"] <= row["value"] <= row["high"]
    assert abs(pairs.loc[("transfer macro F1 apart", "z", "turned"), "value"]) < 1e-12
    assert pairs.loc[("transfer macro F1 apart", "z", "noise"), "low"] > 0
    assert set(result.table["unit"]) == {"groups", "subsamples"}


def test_numbers_are_those_of_the_metrics(result):
    adata = cells()
    pairs = result.table.set_index(["metric", "encoder", "other"])["value"]
    assert pairs["CKA", "z", "noise"] == linear_cka(adata.obsm["z"], adata.obsm["noise"])
    near = [neighbours(adata.obsm[key], k=15)[1] for key in ("z", "noise")]
    shared = neighbourhood_overlap(*near)
    assert pairs["neighbours shared", "z", "noise"] == pytest.approx(shared.mean())
    inside = (adata.obs["cell_type"] == "T").to_numpy()
    types = result.types.set_index(["label", "metric", "encoder", "other"])["value"]
    assert types["T", "neighbours shared", "z", "noise"] == pytest.approx(shared[inside].mean())
    assert types["T", "CKA", "z", "noise"] == linear_cka(adata.obsm["z"][inside], adata.obsm["noise"][inside])
    assert ("NK", "CKA", "z", "noise") not in types.index  # too few cells
    assert types["T", "transfer recall", "z", ""] > 0.9


def test_summary_matrix_picture_and_json(result, tmp_path):
    text = result.summary()
    assert "z / turned" in text
    assert "chance" in text
    square = result.matrix("CKA")
    assert square.loc["noise", "z"] == square.loc["z", "noise"]
    assert (np.diag(square) == 1).all()
    ax = result.plot(save=tmp_path / "c.png")
    assert len(ax.get_figure().axes) == 4
    assert (tmp_path / "c.png").exists()
    assert json.loads(result.to_json())["provenance"]["task"] == "compare"
    with pytest.raises(InputError, match="no metric of pairs"):
        result.matrix("accuracy")


def test_without_batches_the_flattery_is_told():
    result = scfm.tasks.compare(["z", "noise"], cells(), labels="cell_type", baseline=None, resamples=20, subsamples=5)
    assert any("flatters" in note for note in result.notes)
    assert "leave one cell out" in result.summary()
    plain = scfm.tasks.compare(["z", "noise"], cells(), baseline=None, resamples=20, subsamples=5)
    assert plain.types["metric"].unique().tolist() == []
    assert len(plain.plot().get_figure().axes) == 3


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="only z is given"):
        scfm.tasks.compare(["z"], cells(), baseline=None)
    with pytest.raises(InputError, match="no column 'nothing'"):
        scfm.tasks.compare(["z", "noise"], cells(), labels="nothing", baseline=None)
    with pytest.raises(InputError, match="16 cells are left"):
        scfm.tasks.compare(["z", "noise"], cells(16), baseline=None)


def test_from_the_shell(tmp_path):
    cells().write_h5ad(tmp_path / "cells.h5ad")
    call = ["compare", "z", "turned", str(tmp_path / "cells.h5ad"), "--baseline", "none", "--labels", "cell_type"]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "r.csv"), "--plot", str(tmp_path / "r.png")])
    assert done.exit_code == 0, done.output
    assert "z / turned" in done.output
    assert len(pd.read_csv(tmp_path / "r.csv")) == 8
    assert (tmp_path / "r.png").exists()


def test_a_baseline_that_is_fitted_reads_features_of_any_name():
    from scfm.data import pbmc_demo

    adata = pbmc_demo()[:80].copy()
    adata.obsm["other"] = np.random.default_rng(0).normal(size=(80, 3))
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    result = scfm.tasks.compare("other", adata, options={"map_genes": True}, resamples=5, subsamples=2)
    assert result.table["other"].unique().tolist() == ["pca"]
