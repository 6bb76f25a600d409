"""Metrics of integration: the golden case, agreement with scikit-learn, scanpy and umap-learn, invariances, known extremes.

GOLDEN was made by scib-metrics 0.5.10 (jax 0.10.2) in an environment of its own, on the case of the fixture `golden`:
`silhouette_label(Z, y)`, `silhouette_batch(Z, y, b)`, `bras(Z, y, b)`, `ilisi_knn` and `clisi_knn` (90 neighbours), `kbet` (50),
`graph_connectivity` (15), `isolated_labels(Z, y, b)`, `pcr_comparison(Z, U, b, categorical=True)`, and
`utils.principal_component_regression(Z, b, categorical=True)`; neighbours by scikit-learn, each cell its own first.
"""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn import metrics as sklearn_metrics
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsClassifier

from scfm import metrics
from scfm.clustering import fuzzy_graph, kmeans, leiden
from scfm.errors import InputError
from scfm.metrics.estimates import from_subsamples
from scfm.metrics.silhouette import stratified_rows
from scfm.neighbours import neighbours

GOLDEN = {
    "silhouette label": 0.578497,
    "silhouette batch": 0.903126,
    "BRAS": 0.854386,
    "iLISI": 0.664994,
    "cLISI": 0.944489,
    "kBET": 0.838571,
    "connectivity B": 0.685234,
    "isolated silhouette": 0.548568,
    "PCR": 0.011525,
    "PCR comparison": 0.851072,
}


@pytest.fixture(scope="module")
def golden():
    """700 cells of scanpy's pbmc68k_reduced, 20 PCs, three unequal random batches, one of them moved by 2 along the first PC."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is in the format of 2018
        adata = scanpy.datasets.pbmc68k_reduced()
    unshifted, y = adata.obsm["X_pca"][:, :20].astype(np.float64), adata.obs["bulk_labels"].astype(str).to_numpy()
    b = np.random.RandomState(0).choice(["b0", "b1", "b2"], 700, p=[0.5, 0.3, 0.2])
    shifted = unshifted.copy()
    shifted[b == "b1", 0] += 2.0
    distances, indices = neighbours(shifted, k=89)
    return SimpleNamespace(U=unshifted, Z=shifted, y=y, b=b, distances=distances, indices=indices)


def scores(z, y, b, before=None):
    """Every metric that needs no clustering."""
    d, i = neighbours(z, k=min(89, len(z) - 1))
    found = {
        "silhouette label": metrics.silhouette_label(z, y),
        "silhouette batch": metrics.silhouette_batch(z, y, b),
        "BRAS": metrics.bras(z, y, b),
        "iLISI": metrics.ilisi(d, b, i),
        "cLISI": metrics.clisi(d, y, i),
        "kBET": metrics.kbet(b, i),
        "connectivity A": metrics.graph_connectivity(i, y),
        "connectivity B": metrics.graph_connectivity(i, y, convention="B"),
        "isolated silhouette": metrics.isolated_silhouette(z, y, b),
        "PCR": metrics.pcr(z, b),
        "purity micro": metrics.knn_purity(i, y),
        "purity macro": metrics.knn_purity(i, y, average="macro"),
        "transfer": metrics.leave_one_batch_out(z, y, b)["accuracy"],
    }
    if before is not None:
        found["PCR comparison"] = metrics.pcr_comparison(z, before, b)
    return found


def test_golden_case(golden):
    found = scores(golden.Z, golden.y, golden.b, golden.U)
    for name, expected in GOLDEN.items():
        assert found[name].value == pytest.approx(expected, abs=1.5e-6), name
    assert found["connectivity A"].value == pytest.approx(0.930817, abs=1e-6)  # scIB's convention; not in scib-metrics
    own = neighbours(golden.U, k=15)[1]
    assert metrics.knn_purity(own, golden.y).value == pytest.approx(0.718, abs=5e-4)
    assert metrics.knn_purity(own, golden.y, average="macro").value == pytest.approx(0.546, abs=5e-4)
    for name, score in found.items():
        assert score.convention, name
        assert score.n == 700
        if score.resample is not None:
            assert score.resample(np.arange(700)) == pytest.approx(score.value, abs=1e-12), name


def test_clusters_agree_with_labels_about_as_well_as_those_of_igraph(golden):
    graph = fuzzy_graph(golden.distances[:, :14], golden.indices[:, :14])
    clusters = [leiden(graph, resolution=r / 5) for r in range(1, 11)]
    best = max(clusters, key=lambda c: metrics.nmi(golden.y, c).value)
    # scib-metrics 0.5.10 with igraph 1.0: 0.6451 and 0.4870; seeds of ours differ by 0.01
    assert metrics.nmi(golden.y, best).value == pytest.approx(0.6451, abs=0.02)
    assert metrics.ari(golden.y, best).value == pytest.approx(0.4870, abs=0.02)
    assert np.array_equal(clusters[4], leiden(graph, resolution=1.0))
    # its k-means (jax, one start) gives 0.6466 and 0.4424
    found = kmeans(golden.Z, 10)
    assert metrics.nmi(golden.y, found).value == pytest.approx(0.6466, abs=0.02)
    assert metrics.ari(golden.y, found).value == pytest.approx(0.4424, abs=0.08)
    f1 = metrics.isolated_f1(golden.y, golden.b, clusters)
    assert (
        f1.value >= metrics.cluster_f1(golden.y, best).value
    )  # all labels are in all batches, the best clustering for each
    with pytest.raises(InputError, match="above 0"):
        leiden(graph, resolution=0)


@pytest.mark.slow
def test_neighbour_weights_are_those_of_umap(golden):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a part of it that needs Tensorflow
        from umap.umap_ import fuzzy_simplicial_set

    d, i = golden.distances[:, :14], golden.indices[:, :14]
    d = np.concatenate([np.zeros((700, 1)), d], axis=1)
    i = np.concatenate([np.arange(700)[:, None], i], axis=1)
    expected = fuzzy_simplicial_set(golden.Z, 15, np.random.RandomState(0), "euclidean", knn_indices=i, knn_dists=d)
    assert abs(fuzzy_graph(d[:, 1:], i[:, 1:]) - expected[0]).max() < 1e-4  # it stops at 1e-5 in log2(k)


def random_case(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y, b = rng.choice(["B", "T", "NK"], n, p=[0.6, 0.3, 0.1]), rng.choice(["x", "y"], n)
    return rng.normal(size=(n, 6)) + (y == "T")[:, None] * 2.5 + (b == "x")[:, None] * 0.5, y, b


@settings(max_examples=6)
@given(scale=st.sampled_from([1e-3, 0.1, 7.0, 1e4]), seed=st.integers(0, 50))
def test_no_metric_changes_with_the_unit_of_the_embedding(scale, seed):
    z, y, b = random_case(seed=seed)
    first, second = scores(z, y, b, z[::-1]), scores(z * scale, y, b, z[::-1])
    for name in first:
        tolerance = 2e-4 if "LISI" in name else 1e-9  # whose entropy is met to 1e-5, from wherever the search begins
        assert second[name].value == pytest.approx(first[name].value, abs=tolerance, nan_ok=True), name


@settings(max_examples=6)
@given(seed=st.integers(0, 50))
def test_no_metric_changes_with_the_order_of_cells(seed):
    z, y, b = random_case(seed=seed)
    order = np.random.default_rng(seed).permutation(len(z))
    first, second = scores(z, y, b, z[::-1]), scores(z[order], y[order], b[order], z[::-1][order])
    for name in first:
        assert second[name].value == pytest.approx(first[name].value, abs=1e-9, nan_ok=True), name
        assert second[name].strata == pytest.approx(first[name].strata, abs=1e-9, nan_ok=True), name


def test_labels_apart_and_batches_mixed_score_best():
    rng = np.random.default_rng(0)
    y, b = np.repeat(["a", "b"], 150), np.tile(["x", "y"], 150)
    z = rng.normal(size=(300, 4)) + (y == "b")[:, None] * 1000.0
    good = scores(z, y, b, z)
    for name in (
        "silhouette label",
        "cLISI",
        "connectivity A",
        "connectivity B",
        "purity micro",
        "purity macro",
        "transfer",
    ):
        assert good[name].value == pytest.approx(1, abs=0.01), name
    assert good["iLISI"].value > 0.9
    assert good["kBET"].value > 0.9
    assert good["BRAS"].value > 0.9
    bad = scores(z, b, y, z)  # the same with the roles exchanged
    assert bad["iLISI"].value == 0
    assert bad["kBET"].value == 0
    assert bad["PCR"].value > 0.99
    assert bad["cLISI"].value < 0.1
    assert bad["transfer"].value == pytest.approx(0.5, abs=0.15)


def test_ceiling_of_ilisi_is_what_mixed_batches_reach():
    b = np.random.default_rng(0).choice(3, 6000, p=[0.7, 0.2, 0.1])
    d, i = neighbours(np.random.default_rng(1).normal(size=(6000, 2)), k=89)
    ceiling = metrics.ilisi_ceiling(b)
    assert ceiling == pytest.approx((1 / (0.49 + 0.04 + 0.01) - 1) / 2, abs=0.02)
    assert metrics.ilisi(d, b, i).value == pytest.approx(ceiling, abs=0.05)
    assert metrics.ilisi_ceiling(np.tile([0, 1], 9)) == 1
    assert np.isnan(metrics.ilisi_ceiling(np.zeros(5)))


def test_lisi_of_copies_counts_groups():
    z = np.zeros((30, 2))
    d, i = neighbours(z, k=29)
    near = np.arange(30) % 3
    expected = [1 / ((np.bincount(near[row], minlength=3) / 29) ** 2).sum() for row in i]
    assert metrics.lisi(d, near, i, k=30) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_silhouettes_are_those_of_scikit_learn(metric, monkeypatch):
    z, y, _ = random_case()
    y = y.astype(object)
    y[0] = "alone"
    expected = sklearn_metrics.silhouette_samples(z, y, metric=metric)
    assert metrics.silhouettes(z, y, metric=metric) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr("scfm.metrics.silhouette._BLOCK", 1)
    assert metrics.silhouettes(z, y, metric=metric) == pytest.approx(expected, abs=1e-12)
    s = metrics.silhouettes(z, y, metric=metric, other="pooled")
    a = [
        np.delete(row, i)[np.delete(y, i) == y[i]].mean() if y[i] != "alone" else 0
        for i, row in enumerate(sklearn_metrics.pairwise_distances(z, metric=metric))
    ]
    o = [row[y != y[i]].mean() for i, row in enumerate(sklearn_metrics.pairwise_distances(z, metric=metric))]
    expected = [0 if y[i] == "alone" else (o[i] - a[i]) / max(o[i], a[i]) for i in range(len(y))]
    assert s == pytest.approx(expected, abs=1e-12)


def test_subsample_keeps_rare_strata():
    rng = np.random.default_rng(0)
    y, b = rng.choice(["common", "rare"], 5000, p=[0.99, 0.01]), rng.choice(["x", "y"], 5000)
    rows = stratified_rows(y, b, most=500, least=20)
    for batch in "xy":
        there = ((y == "rare") & (b == batch)).sum()
        assert ((y[rows] == "rare") & (b[rows] == batch)).sum() == min(there, 20)
    assert 500 <= len(rows) < 600
    assert np.array_equal(rows, stratified_rows(y, b, most=500, least=20))
    assert np.array_equal(stratified_rows(y, b, most=5000), np.arange(5000))


def test_agreement_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, c = rng.choice(["a", "b", "c"], 200, p=[0.7, 0.2, 0.1]), rng.integers(0, 5, 200)
    c[y == "a"] = c[y == "a"] // 3
    assert metrics.ari(y, c).value == pytest.approx(sklearn_metrics.adjusted_rand_score(y, c))
    assert metrics.nmi(y, c).value == pytest.approx(sklearn_metrics.normalized_mutual_info_score(y, c))
    assert metrics.ami(y, c).value == pytest.approx(sklearn_metrics.adjusted_mutual_info_score(y, c))
    rows = rng.integers(0, 200, 200)
    assert metrics.ari(y, c).resample(rows) == pytest.approx(sklearn_metrics.adjusted_rand_score(y[rows], c[rows]))
    assert metrics.nmi(y, c).resample(rows) == pytest.approx(
        sklearn_metrics.normalized_mutual_info_score(y[rows], c[rows])
    )
    best = [max(sklearn_metrics.f1_score(y == name, c == j) for j in range(5)) for name in "abc"]
    assert metrics.cluster_f1(y, c).value == pytest.approx(np.mean(best))
    for score in (metrics.ari, metrics.nmi, metrics.ami, metrics.cluster_f1):
        assert score(y, y).value == pytest.approx(1)


def test_pcr_is_the_regression_of_principal_components():
    z, _, b = random_case()
    pcs = PCA().fit(z)
    x, design = pcs.transform(z), (b == "x")[:, None].astype(float)
    r2 = [LinearRegression().fit(design, pc).score(design, pc) for pc in x.T]
    assert metrics.pcr(z, b).value == pytest.approx(r2 @ pcs.explained_variance_ / pcs.explained_variance_.sum())
    rows = np.random.default_rng(0).integers(0, 120, 120)
    assert metrics.pcr(z, b).resample(rows) == pytest.approx(metrics.pcr(z[rows], b[rows]).value)
    assert metrics.pcr_comparison(z, z, b).value == 0
    assert metrics.pcr_comparison(z, z - design @ [[0.5] * 6], b).value > 0.5
    assert metrics.pcr_comparison(z, z + design @ [[9.0] * 6], b).value == 0  # clipped


def test_transfer_leaves_each_batch_out():
    z, y, b = random_case(200)
    y = y.astype(object)
    y[b == "x"] = np.where(y[b == "x"] == "NK", "only in x", y[b == "x"])
    found = metrics.leave_one_batch_out(z, y, b, k=5)
    means = []
    for batch in "xy":
        query, reference = b == batch, b != batch
        query &= np.isin(y, y[reference])
        given = KNeighborsClassifier(5).fit(z[reference], y[reference]).predict(z[query])
        means.append((given == y[query]).mean())
        assert found["accuracy"].strata[batch] == pytest.approx(means[-1], abs=0.02)  # votes tie otherwise there
        shown = found["balanced accuracy"].strata[batch]
        recall = sklearn_metrics.recall_score(y[query], given, average=None, labels=np.unique(y[query]))
        assert shown == pytest.approx(recall.mean(), abs=0.05)
        assert found["macro F1"].strata[batch] == pytest.approx(
            sklearn_metrics.f1_score(y[query], given, average="macro"), abs=0.05
        )
    assert found["accuracy"].value == pytest.approx(np.mean(list(found["accuracy"].strata.values())))


def test_tied_votes_go_to_the_nearest():
    z = np.array([[0.0], [1.0], [-1.5], [3.0], [-3.5]])
    y, b = np.array(["q", "near", "far", "far", "near"]), np.array(["q", "r", "r", "r", "r"])
    y[0] = "far"
    assert metrics.leave_one_batch_out(z, y, b, k=4)["accuracy"].strata["q"] == 0
    assert metrics.leave_one_batch_out(-z, y, b, k=4)["accuracy"].strata["q"] == 0
    z[1] = 1.6
    assert metrics.leave_one_batch_out(z, y, b, k=4)["accuracy"].strata["q"] == 1


def test_pseudotime_is_scanpys(golden):
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(np.zeros((700, 1), np.float32), obsm={"X": golden.U})
    sc.pp.neighbors(adata, 15, use_rep="X", method="gauss")
    sc.tl.diffmap(adata, 11)
    adata.uns["iroot"] = 3
    sc.tl.dpt(adata, n_dcs=11)
    found = metrics.diffusion_pseudotime(*neighbours(golden.U, k=14), 3)
    assert found == pytest.approx(adata.obs["dpt_pseudotime"].to_numpy(), abs=1e-4)  # scanpy's is float32


def course(n=240, seed=0):
    """Two branches from a common start, and five cells far from all."""
    rng = np.random.default_rng(seed)
    t, branch = np.linspace(0, 1, n), np.tile(["one", "two"], n // 2)
    z = np.stack([t, np.where(branch == "one", t, -t)], axis=1) + rng.normal(size=(n, 2)) * 0.02
    z = np.concatenate([z, 50 + rng.normal(size=(20, 2)) * 0.01])
    return z, np.concatenate([t, np.full(20, 0.5)]), np.concatenate([branch, ["one"] * 20])


def test_trajectory_is_compared_within_lineages():
    z, t, branch = course()
    d, i = neighbours(z, k=14)
    tau = metrics.trajectory_tau(t, d, i, lineages=branch)
    assert tau.value > 0.9
    assert set(tau.strata) == {"one", "two", "share left out"}
    assert tau.strata["share left out"] == pytest.approx(20 / 260)  # not connected with the root
    u = metrics.diffusion_pseudotime(d, i, 0)
    assert np.isnan(u[240:]).all()
    inside = (branch == "two") & np.isfinite(u)
    assert tau.strata["two"] == pytest.approx(kendalltau(t[inside], u[inside]).statistic)
    rho = metrics.trajectory_spearman(t, d, i, lineages=branch)
    assert 0.95 < rho.value <= 1
    only_two = metrics.trajectory_tau(np.where(branch == "two", t, np.nan), d, i, lineages=branch)
    assert set(only_two.strata) == {"two", "share left out"}
    shuffled = np.random.default_rng(1).permutation(t)
    assert abs(metrics.trajectory_tau(shuffled, d, i).value) < 0.2
    assert "19 cells" in metrics.trajectory_tau(np.where(np.arange(260) < 19, t, np.nan), d, i).reason


def test_leakage_finds_batches_that_only_an_interaction_shows():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 2))
    b = np.where(z[:, 0] * z[:, 1] > 0, "x", "y")
    linear = metrics.batch_leakage(z, b)
    assert linear.value == pytest.approx(0.5, abs=0.06)
    assert metrics.batch_leakage(z, b, classifier="mlp").value > 0.8
    donors = np.char.add(b, (np.arange(600) % 3).astype(str))
    assert metrics.batch_leakage(z, b, donors=donors).value == pytest.approx(0.5, abs=0.1)
    assert "one of the donors only" in metrics.batch_leakage(z, b, donors=b).reason


def test_guards():
    rng = np.random.default_rng(0)
    y = np.repeat(["big", "small"], [960, 40])
    before = rng.normal(size=(1000, 3)) + (y == "small")[:, None] * 8
    near = [neighbours(z, k=15)[1] for z in (before, metrics.random_embedding(1000, 3))]
    found = metrics.overmixing(*near, y)
    assert found.rare == ("small",)
    assert found.flagged == ("small",)
    assert found.ratios["big"] == pytest.approx(0.96, abs=0.02)
    assert not metrics.overmixing(near[0], near[0], y).flagged
    harmed = metrics.negative_transfer(rng.random(500) < 0.6, rng.random(500) < 0.8)
    assert harmed.high < 0
    assert metrics.negative_transfer(np.ones(9), np.ones(9)).value == 0
    with pytest.raises(InputError, match="same cells"):
        metrics.negative_transfer(np.ones(9), np.ones(8))


def test_isolated_labels_are_those_of_the_fewest_batches():
    y, b = np.array(["a", "a", "b", "b", "c", "c"]), np.array([1, 2, 1, 1, 2, 2])
    assert metrics.isolated_labels(y, b) == ("b", "c")
    assert metrics.isolated_labels(y, b, most_batches=2) == ("a", "b", "c")
    assert metrics.isolated_f1(y, b, [np.array([0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1])]).strata == {
        "b": pytest.approx(2 / 3),
        "c": pytest.approx(0.8),
    }


def test_undefined_is_nan_with_a_reason():
    z, y, b = random_case()
    one = np.array(["x"] * 120)
    d, i = neighbours(z, k=89)
    undefined = [
        metrics.silhouette_label(z, one),
        metrics.silhouette_batch(z, y, one),
        metrics.bras(z, y, one),
        metrics.ilisi(d, one, i),
        metrics.clisi(d, one, i),
        metrics.kbet(one, i),
        metrics.pcr(z, one),
        metrics.pcr(z * 0, b),
        metrics.pcr_comparison(z * 0, z, b),
        metrics.ari(one, b),
        metrics.nmi(one, b),
        metrics.ami(one, b),
        metrics.isolated_silhouette(z, one, b),
        metrics.isolated_f1(y, b, []),
        metrics.batch_leakage(z, one),
        metrics.leave_one_batch_out(z, y, one)["macro F1"],
        metrics.trajectory_tau(np.full(120, np.nan), d, i),
        metrics.trajectory_tau(np.zeros(120), d, i),
    ]
    for score in undefined:
        assert np.isnan(score.value), score
        assert score.reason, score
        assert np.isnan(score.interval().low)


def test_intervals_are_of_donors_where_there_are_five():
    z, y, _ = random_case(300)
    score = metrics.silhouette_label(z, y)
    cells = score.interval(resamples=200)
    assert cells.unit == "cells"
    assert cells.low < score.value < cells.high
    donors = score.interval(np.arange(300) % 6, resamples=200)
    assert donors.unit == "groups"
    assert score.interval(resamples=200, seed=3) == score.interval(resamples=200, seed=3)


def test_an_interval_from_subsamples_is_as_wide_as_that_of_resamples():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    draws = np.array([values[rng.permutation(400)[:320]].mean() for _ in range(2000)])
    found = from_subsamples(values.mean(), draws, kept=0.8)
    other = metrics.bootstrap_mean(values, resamples=2000)
    assert found.high - found.low == pytest.approx(other.high - other.low, rel=0.1)
    assert (found.low + found.high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert from_subsamples(0.99, draws, kept=0.8).high == 1
    assert np.isnan(from_subsamples(np.nan, draws, kept=0.8).low)


def test_missing_labels_and_neighbours_are_refused():
    z, y, b = random_case()
    _, i = neighbours(z, k=10)
    with pytest.raises(InputError, match="1 of 120 cells have no value in labels"):
        metrics.silhouette_label(z, np.where(np.arange(120) == 4, None, y))
    with pytest.raises(InputError, match="there are 120 cells"):
        metrics.silhouette_label(z, y[1:])
    with pytest.raises(InputError, match="15 neighbours without the cell itself are needed, 10 are given"):
        metrics.purities(i, y, k=15)
    with pytest.raises(InputError, match="have no cosine"):
        metrics.bras(z * 0, y, b)


def test_cka_is_that_of_whole_gram_matrices():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 9))
    y[:, :3] += x[:, :3]
    n, centre = 40, np.eye(40) - 1 / 40

    def plain(k, m):
        return np.trace(centre @ k @ centre @ m)

    def unbiased(k, m):  # Song et al. 2012, equation 5
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        return (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3))

    for debiased, hsic in ((False, plain), (True, unbiased)):
        k, m = x @ x.T, y @ y.T
        expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        assert metrics.linear_cka(x + 3, y - 1, debiased=debiased) == pytest.approx(expected)
        turned = x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * 1e9
        assert metrics.linear_cka(x, turned, debiased=debiased) == pytest.approx(1)
    wide = rng.normal(size=(40, 1500))
    assert metrics.linear_cka(wide, rng.normal(size=(40, 1500)), debiased=False) > 0.9
    assert abs(metrics.linear_cka(wide, rng.normal(size=(40, 1500)))) < 0.1


def test_procrustes_is_scipys():
    from scipy.spatial import procrustes

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 3))
    wide = np.concatenate([y, np.zeros((50, 1))], axis=1)
    assert metrics.procrustes_similarity(x, y) == pytest.approx(1 - procrustes(x, wide)[2])
    assert metrics.procrustes_similarity(x, x @ np.linalg.qr(rng.normal(size=(4, 4)))[0] * 3 + 1) == pytest.approx(1)
    with pytest.raises(InputError, match="same four cells"):
        metrics.procrustes_similarity(x, y[1:])


def test_overlap_of_random_sets_is_that_of_chance():
    rng = np.random.default_rng(0)
    near = [neighbours(rng.normal(size=(400, 3)), k=15)[1] for _ in range(2)]
    found = metrics.neighbourhood_overlap(*near)
    assert found.mean() == pytest.approx(metrics.overlap_by_chance(400, 15), abs=0.005)
    expected = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(*near, strict=True)]
    assert found == pytest.approx(expected)
    assert (metrics.neighbourhood_overlap(near[0], near[0]) == 1).all()
