from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.sparse.linalg import svds

import scfm
from scfm.errors import InputError


def peaks_of(cells: int, groups: int = 4, peaks: int = 300, seed: int = 0) -> AnnData:
    """Counts of groups of cells with open peaks of their own, at depths from 20 to 200."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, cells)
    rates = np.random.default_rng(99).gamma(0.3, 1.0, (groups, peaks))
    depth = rng.uniform(20, 200, cells)
    counts = rng.poisson(rates[group] / rates[group].sum(axis=1, keepdims=True) * depth[:, None])
    names = [f"chr{1 + i % 3}:{1000 * i}-{1000 * i + 500}" for i in range(peaks)]
    obs = pd.DataFrame({"group": group}, index=[f"cell {i}" for i in range(cells)])
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=names))


def by_definition(counts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and loadings by the formula, dense, and ARPACK."""
    frequency = (counts > 0).mean(axis=0)
    counts, frequency = counts[:, frequency > 0], frequency[frequency > 0]
    x = np.log(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True) / frequency)
    _, strength, right = svds(sparse.csr_matrix(x), k=count, random_state=0)
    loadings = right[np.argsort(-strength)].T
    return x @ loadings, loadings


@pytest.mark.parametrize("drop_first", [True, False])
def test_scores_are_those_of_the_definition(drop_first):
    data = peaks_of(700)
    encoder = scfm.load("lsi", device="cpu", components=3, drop_first=drop_first).fit(data)
    expected, _ = by_definition(data.X.toarray().astype(float), 3 + drop_first)
    expected = expected[:, int(drop_first) :]
    found = encoder.embed(data)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=2e-3 * np.abs(expected).max())


def test_first_singular_vector_follows_depth_and_origin_says_so():
    data = peaks_of(400)
    kept = scfm.load("lsi", device="cpu", components=4, drop_first=False).fit(data)
    depth = np.log10(np.asarray(data.X.sum(axis=1)).reshape(-1))
    correlation = np.corrcoef(kept.embed(data)[:, 0], depth)[0, 1]
    assert abs(correlation) > 0.8
    assert kept.origin["first_component"] == f"kept; its correlation with log10 depth is {correlation:.3f}"
    dropped = scfm.load("lsi", device="cpu", components=3).fit(data)
    assert dropped.origin["first_component"].startswith("dropped")
    np.testing.assert_allclose(dropped.embed(data), kept.embed(data)[:, 1:], atol=1e-3)


def test_a_fit_on_files_is_that_on_the_cells_behind_one_another(tmp_path: Path):
    data = peaks_of(600)
    data[:250].copy().write_h5ad(tmp_path / "a.h5ad")
    other = data[250:, ::-1].copy()  # another order of peaks, and one more
    more = AnnData(
        sparse.hstack([other.X, np.ones((350, 1), np.float32)], format="csr"),
        obs=other.obs,
        var=pd.DataFrame(index=[*other.var_names, "chr9:1-2"]),
    )
    more.write_h5ad(tmp_path / "b.h5ad")
    load = scfm.load("lsi", device="cpu", components=3)
    from_files = load.fit([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    np.testing.assert_allclose(from_files.embed(data), load.fit(data).embed(data), rtol=1e-4, atol=1e-4)
    assert "chr9:1-2" not in from_files.vocabulary
    assert from_files.origin["source"] == "fitted on a.h5ad, b.h5ad"


def test_new_cells_are_projected_and_lie_near_their_group():
    reference, query = peaks_of(400), peaks_of(100, seed=1)
    encoder = scfm.load("lsi", device="cpu", components=5).fit(reference)
    from scfm.metrics import knn_labels

    labels = knn_labels(encoder.embed(reference), reference.obs["group"].to_numpy(), encoder.embed(query))
    assert (labels == query.obs["group"].to_numpy()).mean() > 0.9


def test_unfitted_encoder_fits_on_what_it_embeds():
    data = peaks_of(200)
    encoder = scfm.load("lsi", device="cpu", components=4)
    np.testing.assert_array_equal(encoder.embed(data), encoder.fit(data).embed(data))
    assert not encoder.fitted


def test_peaks_never_open_are_left_out_and_too_few_are_refused():
    data = peaks_of(100)
    closed = data.copy()
    closed.X = closed.X @ sparse.diags([0.0] * 200 + [1.0] * 100)
    assert len(scfm.load("lsi", device="cpu", components=4).fit(closed).vocabulary) <= 100
    with pytest.raises(InputError, match="100 cells with 300 features do not determine 101 components"):
        scfm.load("lsi", device="cpu", components=100).fit(data)
    closed.X = data.X @ sparse.diags([0.0] * 296 + [1.0] * 4)
    with pytest.raises(InputError, match=r"4 features are open in any cell; 6 components(.|\n)*components=<fewer>"):
        scfm.load("lsi", device="cpu", components=5).fit(closed)
