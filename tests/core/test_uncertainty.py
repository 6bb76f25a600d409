"""Prediction sets and rejection keep their level on exchangeable cells; temperature and novelty scores are those of their papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.covariance import LedoitWolf

from scfm.errors import InputError
from scfm.novelty import novel_clusters, type_width
from scfm.uncertainty import (
    Conformal,
    Mahalanobis,
    conformal_p_values,
    conformal_quantile,
    energy_score,
    fit_temperature,
    knn_distance,
    max_softmax_score,
    softmax,
)


def cells(n, rng, classes=4, signal=1.5, priors=None):
    truth = rng.choice(classes, n, p=priors)
    logits = rng.normal(size=(n, classes)) + signal * np.eye(classes)[truth]
    return logits, truth


# Prediction sets


def test_the_quantile_is_the_ranked_score():
    scores = np.arange(1, 10) / 10  # m = 9
    assert conformal_quantile(scores, 0.1) == 0.9  # ceil(10 x 0.9) = 9th
    assert conformal_quantile(scores, 0.5) == 0.5
    assert conformal_quantile(scores, 0.09) == np.inf  # the 10th of 9
    assert conformal_quantile(np.zeros(0), 0.5) == np.inf
    for alpha in (0, 1, -0.1):
        with pytest.raises(InputError, match="no error level"):
            conformal_quantile(scores, alpha)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(0.02, 0.6), st.integers(0, 1000))
def test_coverage_of_the_quantile_is_exact(m, alpha, seed):
    """Over random calibration sets a new score is covered with probability ceil((m + 1)(1 - alpha)) / (m + 1) (Vovk 2005)."""
    rng = np.random.default_rng(seed)
    draws = 2000
    scores = rng.random((draws, m + 1))
    q = np.array([conformal_quantile(row[:-1], alpha) for row in scores])
    covered = int((scores[:, -1] <= q).sum())
    expected = min(np.ceil(np.round((m + 1) * (1 - alpha), 9)) / (m + 1), 1.0)
    assert stats.binomtest(covered, draws, expected).pvalue > 1e-6
    assert expected >= 1 - alpha - 1e-9


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize("conditional", [False, True])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_sets_cover_exchangeable_cells_within_binomial_error(score, conditional, seed):
    rng = np.random.default_rng(seed)
    priors = [0.55, 0.3, 0.12, 0.03]
    missed, m, n = 0, 300, 400
    logits, truth = cells(m + n, rng, priors=priors)
    p = softmax(logits)
    made = Conformal.fit(p[:m], truth[:m], alpha=0.1, score=score, conditional=conditional)
    inside = made.sets(p[m:])[np.arange(n), truth[m:]]
    # the share covered given these calibration cells is Beta distributed: 300 of them give +- 0.017; with that of 400 new ones
    for c in range(4) if conditional else [None]:
        rows = np.ones(n, bool) if c is None else truth[m:] == c
        known = m if c is None else int((truth[:m] == c).sum())
        if known == 0 or rows.sum() == 0:
            continue
        rank = int(np.ceil(np.round((known + 1) * 0.9, 9)))
        if rank > known:
            assert inside[rows].all()  # too few cells: the label is in every set
            continue
        missed = int((~inside[rows]).sum())
        # at least this many covered but for a chance of 1e-6 (beta-binomial)
        law = stats.betabinom(int(rows.sum()), known + 1 - rank, rank)
        assert law.sf(missed - 1) > 1e-6


def test_sets_of_a_class_hold_the_level_only_when_conditional():
    rng = np.random.default_rng(0)
    logits, truth = cells(6000, rng, signal=2.0, priors=[0.6, 0.3, 0.09, 0.01])
    logits[:, 3] -= 2  # the rare class is hard
    p = softmax(logits)
    fit, new = slice(0, 3000), slice(3000, 6000)
    rare = truth[new] == 3
    plain = Conformal.fit(p[fit], truth[fit], alpha=0.1).sets(p[new])[rare, 3].mean()
    mondrian = Conformal.fit(p[fit], truth[fit], alpha=0.1, conditional=True).sets(p[new])[rare, 3].mean()
    assert plain < 0.6
    assert mondrian > 0.75


def test_sets_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    lac = Conformal(np.full(3, 0.65), np.ones(3, int), 0.1, "lac", False)
    np.testing.assert_array_equal(lac.sets(p), [[True, False, False], [True, True, False]])
    aps = Conformal(np.full(3, 0.8), np.ones(3, int), 0.1, "aps", False)
    np.testing.assert_array_equal(aps.sets(p), [[True, False, False], [True, True, False]])
    with pytest.raises(InputError, match="score='raps'"):
        Conformal.fit(p, np.array([0, 1]), alpha=0.5, score="raps")


def test_too_few_calibration_cells_are_said():
    p = np.full((5, 2), 0.5)
    made = Conformal.fit(p, np.array([0, 0, 0, 0, 1]), alpha=0.1)
    assert made.sets(p).all()
    assert "5 calibration cells are too few for alpha=0.1 (9 are needed)" in made.notes(["a", "b"])[0]
    made = Conformal.fit(p, np.array([0, 0, 0, 0, 1]), alpha=0.25, conditional=True)
    assert np.isfinite(made.thresholds).tolist() == [True, False]
    assert "of 'b': in every set" in made.notes(["a", "b"])[0]
    assert Conformal.fit(p, np.array([0, 0, 0, 0, 1]), alpha=0.5).notes(["a", "b"]) == []


# Rejection


def test_p_values_by_hand():
    p = conformal_p_values(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 3.0, 4.5, np.nan]))
    np.testing.assert_allclose(p, [1.0, 3 / 5, 1 / 5, np.nan])


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 80), st.floats(0.02, 0.5), st.integers(0, 1000))
def test_no_more_known_cells_are_rejected_than_stated(m, level, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(1500, m + 1))
    p = np.array([conformal_p_values(row[:-1], row[-1:])[0] for row in scores])
    rejected = int((p <= level).sum())
    expected = np.floor(np.round(level * (m + 1), 9)) / (m + 1)
    assert expected <= level + 1e-9
    assert stats.binomtest(rejected, 1500, expected).pvalue > 1e-6


# Temperature


def test_temperature_finds_the_scale_that_was_put_in():
    rng = np.random.default_rng(0)
    classes = 4
    logits = rng.normal(size=(20_000, classes)) * 2
    p = softmax(logits)
    truth = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)  # drawn from these very probabilities
    assert fit_temperature(logits, truth) == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(3 * logits, truth) == pytest.approx(3.0, abs=0.15)
    np.testing.assert_array_equal(softmax(logits, 3).argmax(axis=1), logits.argmax(axis=1))
    right = np.eye(3)[np.arange(98) % 3]  # all right: as sure as 98 cells allow, not surer
    p = softmax(right, fit_temperature(right, np.arange(98) % 3)).max(axis=1)
    np.testing.assert_allclose(1 - p, 2 / 3 / 100, rtol=1e-3)
    for bad in (np.zeros((0, 2)), np.array([[np.nan, 0]])):
        with pytest.raises(InputError, match="finite logits"):
            fit_temperature(bad, np.zeros(len(bad), int))


# Novelty


def test_scores_of_novelty_by_hand():
    logits = np.array([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(max_softmax_score(logits), [1 - 1 / (1 + np.exp(-2)), 0.5])
    np.testing.assert_allclose(energy_score(logits), -np.log([np.exp(2) + 1, 2]))
    np.testing.assert_allclose(energy_score(logits, 2.0), -2 * np.log([np.exp(1) + 1, 2]))
    np.testing.assert_allclose(knn_distance(np.array([[1.0, 2.0], [0.0, 5.0]])), [2, 5])
    with pytest.raises(InputError, match="log-probabilities"):
        energy_score(np.log(softmax(logits)))


def test_mahalanobis_is_the_quadratic_form():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    z = rng.normal(size=(90, 4)) @ rng.normal(size=(4, 4)) + 5 * np.eye(3, 4)[labels]
    new = rng.normal(size=(7, 4))
    means = np.array([z[labels == c].mean(axis=0) for c in range(3)])
    covariance = LedoitWolf(assume_centered=True).fit(z - means[labels]).covariance_
    inverse = np.linalg.inv(covariance)
    expected = [min((x - m) @ inverse @ (x - m) for m in means) for x in new]
    np.testing.assert_allclose(Mahalanobis.fit(z, labels).score(new), expected, rtol=1e-8)


def test_mahalanobis_stands_more_dimensions_than_cells_and_constant_ones():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(10, 30)), np.ones((10, 2))], axis=1)
    score = Mahalanobis.fit(z, [0] * 5 + [1] * 5).score(z)
    assert np.isfinite(score).all()
    assert np.isfinite(Mahalanobis.fit(np.ones((4, 2)), [0, 0, 1, 1]).score(np.ones((1, 2)))).all()


@pytest.mark.parametrize("dim", [3, 10, 50])
def test_rejected_cells_fall_into_their_groups(dim):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(300, dim)) + 20 * np.repeat(np.eye(3, dim), 100, axis=0)
    width = type_width(reference, np.repeat([0, 1, 2], 100))
    apart = stats.chi(dim).ppf(0.95) * np.sqrt(2)  # difference of two normal cells
    assert width == pytest.approx(apart, rel=0.06)
    one = rng.normal(size=(150, dim))
    assert (novel_clusters(one, width=width) == 0).mean() > 0.9
    z = np.concatenate([one[:100], one[100:] + 12 / np.sqrt(dim), np.full((1, dim), 50.0)])
    found = novel_clusters(z, width=width)
    assert (found[:100] == 0).mean() > 0.9
    assert (found[100:150] == 1).mean() > 0.9
    assert found[150] == -1
    assert len(set(novel_clusters(z, method="leiden"))) >= 2


def test_of_very_many_cells_some_are_drawn(monkeypatch):
    monkeypatch.setattr("scfm.novelty.MOST", 50)
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, 0.1, (200, 3)), rng.normal(5, 0.1, (100, 3)), [[50.0, 50, 50]]])
    found = novel_clusters(z, width=1.0)
    assert found.tolist() == [0] * 200 + [1] * 100 + [-1]


def test_clusters_refuse_what_cannot_be():
    z = np.zeros((6, 2))
    assert (novel_clusters(z[:3], width=1.0) == -1).all()
    for options, message in (
        ({"method": "louvain"}, "method='louvain'"),
        ({"least": 1}, "least=1"),
        ({}, "width=None"),
    ):
        with pytest.raises(InputError, match=message):
            novel_clusters(z, **options)
    with pytest.raises(InputError, match="no type has two"):
        type_width(z[:2], np.array([0, 1]))
