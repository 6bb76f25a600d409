import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from scfm.errors import InputError
from scfm.metrics import bootstrap_mean, knn_labels


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
