"""A student gives its teacher's embeddings, says how well, and says so when it extrapolates."""

import json
import warnings

import numpy as np
import pytest
from anndata import AnnData
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.data import pbmc_demo
from scfm.errors import DownloadError, InputError
from scfm.reading import InputWarning


@pytest.fixture(scope="module")
def cells() -> AnnData:
    data = pbmc_demo()
    data.obs["donor"] = [f"donor{i % 6}" for i in range(data.n_obs)]
    return data


@pytest.fixture(scope="module")
def teacher(cells):
    return scfm.load("pca", device="cpu", components=20, top_genes=500).fit(cells)


@pytest.fixture(scope="module")
def result(teacher, cells):
    return scfm.tasks.distill(teacher, cells, groups="donor", labels="cell_type", panels=0.0, progress=False)


def scores(result) -> dict[str, float]:
    return dict(zip(result.table["metric"], result.table["value"], strict=True))


def test_held_out_cells_are_embedded_like_the_teacher_does(result):
    found = scores(result)
    assert found["cosine, centred"] > 0.99  # a linear teacher
    assert found["kNN overlap at 15"] > 0.9
    assert found["label transfer, student"] > found["label transfer, teacher"] - 0.02
    assert set(result.table["resampled"]) == {"cells"}  # one donor of six is held out


@pytest.mark.filterwarnings("ignore::scfm.reading.InputWarning")
def test_data_with_few_of_the_genes_are_embedded_alike(result, teacher, cells):
    """A student that was trained through gene panels gives nearer embeddings from a quarter of the genes; one that was not does not."""
    robust = scfm.tasks.distill(teacher, cells, groups="donor", progress=False).student
    rng = np.random.default_rng(1)
    known = np.flatnonzero(np.isin(cells.var_names, teacher.vocabulary.tokens))
    some = cells[:200, np.sort(rng.choice(known, len(known) // 4, replace=False))].copy()
    whole = teacher.embed(cells[:200])
    error = {
        name: np.nanmean((student.embed(some) - whole) ** 2)
        for name, student in (("robust", robust), ("plain", result.student))
    }
    assert error["robust"] < 0.5 * error["plain"]


def test_fidelity_is_that_of_the_student_as_it_is(result, teacher, cells):
    """The numbers on the card can be had again from the encoders themselves."""
    from scfm.splits import hold_out

    held = hold_out(cells.n_obs, share=0.2, groups=cells.obs["donor"], seed=0)[1]
    mean = teacher.embed(cells).mean(axis=0)
    theirs, own = teacher.embed(cells[held]) - mean, result.student.embed(cells[held]) - mean
    cosine = (theirs * own).sum(axis=1) / np.linalg.norm(theirs, axis=1) / np.linalg.norm(own, axis=1)
    assert cosine.mean() == pytest.approx(scores(result)["cosine, centred"], abs=5e-3)


def test_agreement_is_low_where_there_is_nothing_to_learn(teacher, cells):
    shuffled = teacher.embed(cells)[np.random.default_rng(0).permutation(cells.n_obs)]
    found = scores(scfm.tasks.distill(teacher, cells, embedding=shuffled, groups="donor", progress=False))
    assert found["cosine, centred"] < 0.3
    assert found["kNN overlap at 15"] < 0.2


def test_it_is_saved_with_its_card_and_loads(result, cells, tmp_path):
    folder = result.student.save(tmp_path / "student")
    again = scfm.load(folder, device="cpu")
    np.testing.assert_array_equal(again.embed(cells[:50]), result.student.embed(cells[:50]))
    np.testing.assert_array_equal(again.novelty(cells[:50]), result.student.novelty(cells[:50]))
    assert again.record["teacher"]["model"] == "pca"
    assert again.name == "student/pca"
    card = (folder / "README.md").read_text()
    assert "label transfer, student" in card
    assert "whole values of obs['donor']" in card


def test_cells_unlike_the_training_cells_are_new_and_warned_of(result, cells):
    held = cells[[i for i in range(cells.n_obs) if i % 6 == 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        result.student.embed(held)
    rng = np.random.default_rng(0)
    odd = cells[:100].copy()
    odd.X = odd.X[:, rng.permutation(cells.n_vars)]  # the same counts, of other genes
    assert np.median(result.student.novelty(odd)) > 0.99 > np.median(result.student.novelty(held))
    with pytest.warns(InputWarning, match=r"of 100 cells are farther .*extrapolated"):
        result.student.embed(odd)


def test_the_same_call_gives_the_same_student(teacher, cells):
    first, second = (
        scfm.tasks.distill(teacher, cells[:200], epochs=2, progress=False).student.embed(cells[:20]) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_given_embeddings_are_used_and_checked(teacher, cells, tmp_path):
    some = cells[:200].copy()
    z = teacher.embed(some)
    given = scfm.tasks.distill(teacher, some, embedding=z, epochs=2, progress=False).student.embed(some)
    kept = scfm.tasks.distill(teacher, some, embedding=tmp_path / "z.npy", epochs=2, progress=False).student.embed(some)
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), z)
    with pytest.raises(InputError, match="has shape"):
        scfm.tasks.distill(teacher, some, embedding=z[1:], progress=False)


def test_refusals(teacher, cells):
    with pytest.raises(InputError, match="at least 50 are needed"):
        scfm.tasks.distill(teacher, cells[:30], progress=False)
    with pytest.raises(InputError, match="unknown setting"):
        scfm.tasks.distill(teacher, cells, layers=3, progress=False)
    with pytest.raises(InputError, match="no column 'nobody'"):
        scfm.tasks.distill(teacher, cells, groups="nobody", progress=False)
    with pytest.raises(DownloadError, match="scfm distill"):
        scfm.load("student")


def test_the_command(teacher, cells, tmp_path):
    teacher.save(tmp_path / "teacher")
    cells[:200].copy().write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["distill", str(tmp_path / "teacher"), str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "student")]
    done = CliRunner().invoke(app, [*arguments, "--labels", "cell_type", "--epochs", "2", "--json"])
    assert done.exit_code == 0, done.output
    stored = json.loads(done.stdout)
    assert stored["student"] == "student/pca"
    assert scfm.load(tmp_path / "student").record["cells"]["valid"] == 40
