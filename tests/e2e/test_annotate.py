"""What a user types to label cells."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from scfm.cli import app
from scfm.data import pbmc_demo
from scfm.errors import InputError
from scfm.reading import InputWarning


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A labelled and an unlabelled file of few genes, where we work."""
    monkeypatch.chdir(tmp_path)
    cells = pbmc_demo()[:, ::10].copy()
    cells.obs["donor"] = [f"d{i % 3}" for i in range(cells.n_obs)]
    cells[:700].copy().write_h5ad("reference.h5ad")
    query = cells[700:].copy()
    query.write_h5ad("query.h5ad")
    del query.obs["cell_type"]
    query.write_h5ad("unlabelled.h5ad")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["annotate", *arguments])


def test_label_score_draw_and_write(folder):
    arguments = (
        "-M", "k=10", "--term", "DC=CL:0000451", "--out", "labels.csv", "--plot", "reliability.png",
        "--kind", "reliability", "-L", "components=20",
    )  # fmt: skip
    with pytest.warns(InputWarning, match="without a Cell Ontology term: 'CD14"):
        done = run("pca", "reference.h5ad", "query.h5ad", *arguments)
    assert done.exit_code == 0, done.output
    assert "283 cells labelled by pca + knn" in done.output
    assert "logCPM + probe" in done.output
    table = pd.read_csv("labels.csv", index_col=0)
    assert len(table) == 283
    assert {"label", "probability", "set", "rejected", "novel_cluster", "term", "ancestor_name"} <= set(table)
    assert (folder / "reliability.png").stat().st_size > 10_000


def test_cells_without_a_truth_are_labelled(folder):
    done = run("pca", "reference.h5ad", "unlabelled.h5ad", "--json", "-q", "--method", "prototype", "-M", "shots=5")
    assert done.exit_code == 0, done.output
    stored = json.loads(done.output)
    assert stored["scores"] is None
    assert stored["provenance"]["settings"]["method"] == {"name": "prototype", "shots": 5}
    assert len(stored["table"]["data"]) == 283


def test_cross_validation_over_donors(folder):
    done = run("pca", "reference.h5ad", "--groups", "donor", "--baseline", "none")
    assert done.exit_code == 0, done.output
    assert "700 cells labelled by pca + knn" in done.output
    assert "LEAK" not in done.output
    done = run("pca", "reference.h5ad", "--split", "random_cells", "--folds", "2", "--baseline", "none")
    assert "LEAK: cells were split at random" in done.output


def test_mistakes_are_told(folder):
    assert "knn has no setting 'neighbours'" in run("pca", "reference.h5ad", "query.h5ad", "-M", "neighbours=3").output
    assert "is not label=CL:0000000" in run("pca", "reference.h5ad", "query.h5ad", "--term", "DC").output
    for arguments, message in (
        (("pca", "reference.h5ad"), "no groups="),
        (("pca", "reference.h5ad", "query.h5ad", "--labels", "type"), "no column 'type'"),
        (("pca", "reference.h5ad", "nothing.h5ad"), "does not exist"),
        (("pca", "reference.h5ad", "query.h5ad", "--alpha", "2"), "alpha=2.0 is no share"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, InputError)
        assert message in str(error)
