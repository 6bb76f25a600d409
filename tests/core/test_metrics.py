import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import rankdata
from sklearn.neighbors import KNeighborsClassifier

from scfm.errors import InputError
from scfm.metrics import bootstrap, bootstrap_mean, foscttm, knn_labels, median_rank, pair_ranks, recall_at_k


def test_knn_votes_by_cosine_whatever_the_length_of_the_vectors():
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(60, 5)), rng.normal(size=(20, 5))
    labels = rng.integers(0, 3, 60)
    unit = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    unit_query = query / np.linalg.norm(query, axis=1, keepdims=True)
    expected = (
        KNeighborsClassifier(7, algorithm="kd_tree").fit(unit, labels).predict(unit_query)
    )  # same order as cosine
    np.testing.assert_array_equal(knn_labels(reference * rng.uniform(1, 9, (60, 1)), labels, query, k=7), expected)


def test_knn_refuses_nan_and_too_few_cells():
    z = np.ones((20, 3))
    with pytest.raises(InputError, match="smaller k"):
        knn_labels(z[:3], np.zeros(3), z)
    holes = z.copy()
    holes[0] = np.nan
    with pytest.raises(InputError, match="1 query cells have NaN"):
        knn_labels(z, np.zeros(20), holes)


def test_bootstrap_interval_covers_the_mean_at_about_its_level():
    rng = np.random.default_rng(1)
    covered = 0
    for repeat in range(200):
        estimate = bootstrap_mean(rng.random(150) < 0.7, seed=repeat)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_is_reproducible_and_brackets_the_value():
    values = np.random.default_rng(2).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    estimate = bootstrap_mean(values)
    assert estimate.low < estimate.value < estimate.high
    assert str(estimate).count(".") == 3


def views(n: int = 70, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(n, 6))
    return shared * rng.uniform(1, 5, (n, 1)), shared + noise * rng.normal(size=(n, 6))


def test_ranks_are_scipys_average_ranks_of_cosine_distances():
    a, b = views(1500)  # more than one block
    b[10] = 2 * b[4]
    b[11] = b[4]  # ties, whatever the length
    distance = cdist(a, b, "cosine").round(10)
    expected = [rankdata(row)[i] for i, row in enumerate(distance)]  # 1 + closer + half of the ties
    np.testing.assert_allclose(pair_ranks(a, b), expected)
    assert pair_ranks(a, b)[4] % 1 == 0  # two others
    assert (pair_ranks(a[:3], b[:3] * 0 + 1) == 2).all()


def test_retrieval_scores_equal_their_definitions_cell_by_cell():
    a, b = views()
    found, closer, ranks = [], [], ([], [])
    for way, (query, gallery) in enumerate([(a, b), (b, a)]):
        for i in range(len(a)):
            cosine = [q @ query[i] / np.linalg.norm(q) for q in gallery]
            better = sum(c > cosine[i] for c in cosine)
            found.append(better < 5)
            closer.append(better / (len(a) - 1))
            ranks[way].append(better + 1)
    assert 0.2 < np.mean(found) < 0.95
    assert recall_at_k(a, b, k=5) == pytest.approx(np.mean(found))
    assert recall_at_k(a, b, k=5, normalised=True) == pytest.approx((np.mean(found) - 5 / 70) / (1 - 5 / 70))
    assert foscttm(a, b) == pytest.approx(np.mean(closer))
    assert median_rank(a, b) == pytest.approx((np.median(ranks[0]) + np.median(ranks[1])) / 2)


def test_retrieval_of_equal_views_is_perfect_and_of_constant_ones_is_chance():
    a, _ = views()
    assert (recall_at_k(a, a, k=1), median_rank(a, a), foscttm(a, a)) == (1.0, 1.0, 0.0)
    same = np.ones_like(a)
    assert (recall_at_k(same, same, k=10), median_rank(same, same), foscttm(same, same)) == (0.0, 35.5, 0.5)
    shuffled = a[np.random.default_rng(0).permutation(70)]
    assert foscttm(a, shuffled) == pytest.approx(0.5, abs=0.08)


def test_retrieval_refuses_what_is_not_paired():
    a, b = views()
    with pytest.raises(InputError, match=r"shapes \(70, 6\) and \(69, 6\)"):
        recall_at_k(a, b[1:])
    with pytest.raises(InputError, match="k=70 of 70"):
        recall_at_k(a, b, k=70)
    b[3, 2] = np.nan
    with pytest.raises(InputError, match="1 cells of the second view have NaN"):
        foscttm(a, b)


def test_bootstrap_of_a_mean_is_that_of_bootstrap_mean():
    values = np.random.default_rng(0).random(80)
    found = bootstrap(lambda rows: float(values[rows].mean()), 80, resamples=2000, seed=1)
    other = bootstrap_mean(values, resamples=2000, seed=2)
    assert found.value == pytest.approx(other.value)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.01)
    assert found.unit == "cells"


def test_bootstrap_of_groups_is_wider_where_groups_differ():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 50)
    values = np.repeat(rng.normal(size=8), 50) + rng.normal(size=400) * 0.1

    def mean(rows):
        return float(values[rows].mean())

    cells, donors = bootstrap(mean, 400), bootstrap(mean, 400, groups=groups)
    assert donors.unit == "groups"
    assert donors.high - donors.low > 3 * (cells.high - cells.low)
    assert bootstrap(mean, 400, groups=groups // 3).unit == "cells"  # 3 groups are too few


def test_bootstrap_leaves_undefined_draws_out_and_says_when_most_are():
    assert np.isnan(bootstrap(lambda rows: np.nan if rows[0] != 0 else 1.0, 50).low)
    found = bootstrap(lambda rows: np.nan if rows[0] == 0 else float(rows.mean()), 50)
    assert np.isfinite([found.low, found.high]).all()
