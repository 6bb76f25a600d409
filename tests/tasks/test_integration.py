"""integrate: from embeddings to a table with conventions, intervals and rivals; from Python and the shell."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.data import pbmc_demo
from scfm.errors import InputError
from scfm.metrics.integration import BATCH, BIO, subsampled
from scfm.neighbours import neighbours


def cells(n=180, donors=6):
    """Three types in two batches, one embedding that mixes them and one that does not."""
    rng = np.random.default_rng(0)
    y, b = rng.choice(["B", "NK", "T"], n, p=[0.5, 0.1, 0.4]), rng.choice(["one", "two"], n)
    mixed = rng.normal(size=(n, 6))
    mixed[:, 0] += 6 * (y == "T")
    mixed[:, 1] += 6 * (y == "NK")
    apart = mixed + 8 * (b == "two")[:, None] * np.eye(6)[2]
    obs = pd.DataFrame({"cell_type": pd.Categorical(y), "library": b}, index=[f"c{i}" for i in range(n)])
    obs["donor"] = [f"d{i % donors}" for i in range(n)]
    obs["time"] = np.where(y == "B", mixed[:, 3], np.nan)
    return anndata.AnnData(
        np.zeros((n, 1), np.float32), obs=obs, obsm={"mixed": mixed, "apart": apart, "X_pca": apart.copy()}
    )


@pytest.fixture(scope="module")
def result():
    return scfm.tasks.integrate(
        ["mixed", "apart"],
        cells(),
        batch="library",
        labels="cell_type",
        donors="donor",
        pseudotime="time",
        baseline="X_pca",
        resamples=60,
    )


def test_every_score_has_its_convention_and_interval(result):
    table = result.table
    assert list(table["encoder"].unique()) == ["mixed", "apart", "X_pca", "random"]
    assert set(BIO) | set(BATCH) <= set(table["metric"])
    defined = table[table["value"].notna()]
    assert (defined["convention"] != "").all()
    without = defined[defined["low"].isna()]["metric"].unique()
    assert set(without) == {"iLISI ceiling"}  # of the batches' sizes, not of the cells
    assert (defined["low"].dropna() <= defined["high"].dropna()).all()
    assert (table[table["value"].isna()]["reason"] != "").all()
    assert set(defined["unit"]) == {"groups", "subsamples", ""}
    assert (table["n"] == 180).all()
    assert table.groupby("encoder")["metric"].nunique().tolist().count(table["metric"].nunique()) >= 3


def test_what_mixes_is_ahead_of_what_does_not(result):
    wide = result.wide()
    assert wide.at["mixed", "overall"] > wide.at["apart", "overall"] + 0.1
    assert wide.at["apart", "iLISI"] < 0.05
    assert wide.at["mixed", "iLISI"] > 0.8
    assert wide.at["random", "bio"] < 0.5
    assert wide.at["X_pca", "PCR comparison"] == 0
    assert wide.at["apart", "batch leakage linear"] > 0.95
    assert wide.at["mixed", "batch leakage linear"] < 0.65
    rows = result.differences.set_index(["encoder", "metric"])
    assert rows.loc[("mixed", "overall"), "low"] > 0
    assert rows.loc[("apart", "overall"), "value"] == 0  # the same numbers
    assert rows.loc[("apart", "graph connectivity A"), ["value", "low", "high"]].tolist() == [0, 0, 0]


def test_overall_is_the_weighted_mean_of_its_members(result):
    wide = result.wide()
    for name in wide.index:
        bio, batch = wide.loc[name, list(BIO)].mean(), wide.loc[name, list(BATCH)].mean()
        assert wide.at[name, "overall"] == pytest.approx(0.6 * bio + 0.4 * batch)
    assert result.members == {"bio": BIO, "batch": BATCH}


def test_summary_picture_and_json(result, tmp_path):
    text = result.summary()
    assert "mixed is ahead of X_pca" in text
    assert "apart is not told apart from X_pca" in text
    assert "6 donors are in several batches" in text
    stored = json.loads(result.to_json())
    assert stored["provenance"]["settings"]["batch"] == "library"
    assert "embeddings" not in stored
    assert stored["kind"] == "Integration"
    ax = result.plot(save=tmp_path / "scores.png")
    shown = {text.get_text() for text in ax.texts}
    assert {"bio", "batch", "overall", "iLISI"} <= shown
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no embedding 'other'"):
        result.umap("other")


@pytest.mark.slow
def test_umap_by_batch_and_label(result, tmp_path):
    axes = result.umap("apart", save=tmp_path / "umap.png")
    assert [ax.get_title() for ax in axes] == ["library", "cell_type"]
    assert (tmp_path / "umap.png").exists()


def test_without_labels_there_is_no_overall_score():
    adata = cells(90)
    result = scfm.tasks.integrate("mixed", adata, batch="library", baseline=None, leakage=False, resamples=20)
    wide = result.wide()
    assert np.isnan(wide.at["mixed", "overall"])
    assert np.isfinite(wide.at["mixed", "iLISI"])
    assert "overall is not defined: NMI k-means: no labels are given" in result.summary()
    assert "no donors are given" in result.summary()
    assert set(result.table["unit"]) <= {"cells", ""}
    assert result.plot() is not None


def test_cells_without_label_or_embedding_are_left_out_and_told():
    adata = cells(100)
    adata.obs.loc[adata.obs_names[:4], "cell_type"] = None
    adata.obsm["mixed"][10] = np.nan
    before = adata.copy()
    result = scfm.tasks.integrate(
        {"a": "mixed", "b": adata.obsm["apart"]},
        adata,
        batch="library",
        labels="cell_type",
        ignore=["NK"],
        baseline="X_pca",
        clusters="kmeans",
        leakage=False,
        resamples=20,
    )
    nk = (adata.obs["cell_type"] == "NK").sum()
    left = 100 - result.table["n"].iloc[0]
    assert left == nk + 4 + (before.obs["cell_type"].astype(str).iloc[10] not in ("NK", "nan"))
    assert f"{nk + 4} cells without a label that counts were left out." in result.notes
    assert "NMI Leiden best" not in set(result.table["metric"])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert adata.obsm.keys() == before.obsm.keys()


def test_harmony_mixes_batches():
    pytest.importorskip("harmonypy")
    result = scfm.tasks.integrate(
        "apart",
        cells(),
        batch="library",
        labels="cell_type",
        correct="harmony",
        baseline="X_pca",
        leakage=False,
        resamples=20,
    )
    assert list(result.wide().index) == ["apart", "apart + harmony", "X_pca", "X_pca + harmony", "random"]
    assert result.baselines == ("X_pca", "X_pca + harmony", "random")
    wide = result.wide()
    assert wide.at["apart + harmony", "iLISI"] > wide.at["apart", "iLISI"] + 0.3
    assert result.embeddings["apart + harmony"].shape == (180, 6)


def test_the_same_seed_gives_the_same_numbers():
    first, second = (
        scfm.tasks.integrate("mixed", cells(90), batch="library", labels="cell_type", baseline=None, resamples=20)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first.table, second.table)


def test_subsampled_neighbours_are_those_found_anew():
    z = np.random.default_rng(0).normal(size=(200, 4))
    rows = np.sort(np.random.default_rng(1).permutation(200)[:160])
    assert np.array_equal(subsampled(neighbours(z, k=89)[1], rows, 14), neighbours(z[rows], k=14)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch="nothing"), r"no column 'nothing' \(columns: 'cell_type', 'library', 'donor', 'time'\)"),
        (dict(labels="nothing"), "no column 'nothing'"),
        (dict(embeddings="X_nothing"), "neither a key of adata.obsm"),
        (dict(embeddings=[]), "no embedding is given"),
        (dict(embeddings=np.zeros((3, 2))), r"shape \(3, 2\); there are 90 cells"),
        (dict(embeddings=["mixed", "mixed"]), "two embeddings would be called 'mixed'"),
        (dict(embeddings={"random": "mixed"}), "the name of the floor"),
        (dict(correct="combat"), "'harmony' or None"),
        (dict(pseudotime="donor"), "no column 'donor' with numbers"),
        (dict(k=90), "90 cells are left"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    given = {"embeddings": "mixed", "batch": "library", "labels": "cell_type", "baseline": None, **arguments}
    with pytest.raises(InputError, match=message):
        scfm.tasks.integrate(given.pop("embeddings"), cells(90), **given)


def test_from_the_shell_with_a_model(tmp_path):
    adata = pbmc_demo()[:120].copy()
    adata.obs["library"] = np.where(np.arange(120) % 2, "one", "two")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    run = CliRunner()
    files = [tmp_path / name for name in ("r.json", "r.png")]
    call = ["integrate", "mini", str(tmp_path / "cells.h5ad"), "--batch", "library", "--labels", "cell_type"]
    done = run.invoke(
        app, [*call, "--no-leakage", "--out", str(files[0]), "--plot", str(files[1]), "--clusters", "kmeans"]
    )
    assert done.exit_code == 0, done.output
    assert "mini" in done.output
    assert "pca" in done.output
    assert "random" in done.output
    record = json.loads(files[0].read_text())["provenance"]
    assert [used["model"] for used in record["encoders"]] == ["mini", "pca"]
    assert all(path.exists() for path in files)
    assert "neither both nor kmeans" in run.invoke(app, [*call, "--clusters", "x"]).output
