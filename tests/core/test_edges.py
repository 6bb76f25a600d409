"""Scored edges against known ones: compared with scikit-learn, and with numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from scfm.errors import InputError
from scfm.metrics.edges import (
    auprc,
    auroc,
    early_precision_ratio,
    edge_metrics,
    evaluate_edges,
    odds_ratio,
    per_tf_auroc,
)

TOY_SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
TOY_TRUTH = np.array([True, False, True, False, False, False])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 200), st.booleans())
def test_areas_are_those_of_scikit_learn_with_ties_and_weights(seed, n, tied):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, n).astype(float) if tied else rng.random(n)
    truth = rng.random(n) < 0.3
    truth[:2] = True, False
    for weights in (None, rng.integers(0, 4, n).astype(float) + (np.arange(n) < 2)):
        assert auroc(scores, truth, weights) == pytest.approx(roc_auc_score(truth, scores, sample_weight=weights))
        expected = average_precision_score(truth, scores, sample_weight=weights)
        assert auprc(scores, truth, weights) == pytest.approx(expected)


def test_early_precision_and_odds_of_a_toy():
    # 2 true edges of 6: the best 2 hold 1 of them. Precision 1/2 over prevalence 1/3; odds (1.5 * 3.5) / (1.5 * 1.5) with 0.5 added.
    assert early_precision_ratio(TOY_SCORES, TOY_TRUTH) == pytest.approx(1.5)
    assert odds_ratio(TOY_SCORES, TOY_TRUTH) == pytest.approx((1.5 * 3.5) / (1.5 * 1.5))
    perfect = TOY_TRUTH.astype(float)
    assert early_precision_ratio(perfect, TOY_TRUTH) == pytest.approx(3.0)
    metrics = edge_metrics(TOY_SCORES, TOY_TRUTH)
    assert metrics["auprc_ratio"] == pytest.approx(average_precision_score(TOY_TRUTH, TOY_SCORES) * 3)


def test_a_tie_across_the_border_counts_as_expected():
    scores = np.array([1.0, 0.5, 0.5, 0.5, 0.0])
    truth = np.array([True, True, False, False, False])
    # 1 true surely, and 1 place among three tied pairs of which one is true
    assert early_precision_ratio(scores, truth) == pytest.approx((1 + 1 / 3) / 2 / (2 / 5))
    assert early_precision_ratio(np.zeros(5), truth) == pytest.approx(1.0)


def test_without_true_or_false_pairs_there_is_no_number():
    for truth in (np.zeros(3, bool), np.ones(3, bool)):
        assert np.isnan(auroc(np.arange(3.0), truth))
        assert np.isnan(early_precision_ratio(np.arange(3.0), truth))


def table():
    names = ["A", "B", "c", "d", "e"]
    scores = pd.DataFrame(
        [[np.nan, 0.1, 0.9, 0.8, 0.2], [0.3, np.nan, 0.1, 0.7, np.nan]], index=["A", "B"], columns=names
    )
    truth = pd.DataFrame({"source": ["A", "A", "B", "Z"], "target": ["c", "d", "d", "e"]})
    return scores, truth


def test_candidates_are_pairs_of_genes_in_both():
    scores, truth = table()
    found = evaluate_edges(scores, truth, resamples=50).set_index("metric")
    # regulators A, B; targets c, d, e (A and B are no targets there); the pair B > e has no score and ranks last
    assert found["candidates"].unique().tolist() == [6]
    assert found["true"].unique().tolist() == [3]
    flat = [0.9, 0.8, 0.2, 0.1, 0.7, -1.0]
    known = [True, True, False, False, True, False]
    assert found.loc["auroc", "value"] == pytest.approx(roc_auc_score(known, flat))
    assert found.loc["auprc", "value"] == pytest.approx(average_precision_score(known, flat))
    assert found.loc["tf_auroc", "value"] == pytest.approx(1.0)
    assert (found["low"] <= found["value"]).all()


def test_a_regulator_with_itself_is_no_candidate():
    scores, truth = table()
    self_edge = pd.concat([truth, pd.DataFrame({"source": ["A"], "target": ["A"]})])
    scores.loc["A", "A"] = 5.0
    assert evaluate_edges(scores, self_edge, resamples=20)["candidates"].iloc[0] == 7  # + B > A
    assert evaluate_edges(scores, self_edge, resamples=20)["true"].iloc[0] == 3


def test_auroc_of_each_regulator():
    rng = np.random.default_rng(0)
    scores, truth = rng.random((4, 30)), rng.random((4, 30)) < 0.3
    truth[3] = False
    scores[0, :5] = np.nan
    own = per_tf_auroc(scores, truth)
    assert own[0] == pytest.approx(roc_auc_score(truth[0, 5:], scores[0, 5:]))
    assert own[1] == pytest.approx(roc_auc_score(truth[1], scores[1]))
    assert np.isnan(own[3])


def test_intervals_come_from_regulators():
    """One regulator holds all the signal: resampling pairs would hide how little is known."""
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(100)]
    truth = rng.random((10, 100)) < 0.1
    scores = rng.random((10, 100))
    scores[0] += 2 * truth[0]
    names = [f"T{i}" for i in range(10)]
    edges = [(names[i], genes[j]) for i, j in zip(*np.nonzero(truth), strict=True)]
    found = evaluate_edges(
        pd.DataFrame(scores, names, genes), pd.DataFrame(edges, columns=["source", "target"]), resamples=200
    ).set_index("metric")
    assert found.loc["auprc", "unit"] == "regulators"
    assert found.loc["auprc", "high"] - found.loc["auprc", "low"] > 0.1


def test_nothing_to_compare_is_refused():
    scores, truth = table()
    with pytest.raises(InputError, match="share 0 regulators"):
        evaluate_edges(scores, truth.assign(source="mouse"))
    with pytest.raises(InputError, match="0 of 1 candidate pairs"):
        evaluate_edges(scores.loc[["B"]], pd.DataFrame({"source": ["B", "Q"], "target": ["q", "c"]}))
