"""Scores of labels agree with scikit-learn's and with values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from scfm.errors import InputError
from scfm.metrics import classification as ours
from scfm.metrics.estimates import bootstrap, bootstrap_all
from scfm.metrics.labelling import Labelling, label_scores, score_differences

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60)


def drawn(n=200, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, p


@settings(deadline=None, max_examples=60)
@given(labels)
def test_scores_of_labels_are_those_of_scikit_learn(pairs):
    truth, given_ = np.array(pairs).T
    confusion = ours.confusion_matrix(truth, given_, 5)
    assert ours.accuracy(confusion) == pytest.approx(sk.accuracy_score(truth, given_))
    assert ours.f1(confusion) == pytest.approx(sk.f1_score(truth, given_, average="macro", zero_division=0))
    assert ours.f1(confusion, "weighted") == pytest.approx(
        sk.f1_score(truth, given_, average="weighted", zero_division=0)
    )
    precision, recall, _, _ = sk.precision_recall_fscore_support(truth, given_, average="macro", zero_division=0)
    assert ours.macro_precision_recall(confusion) == pytest.approx((precision, recall))
    assert ours.balanced_accuracy(confusion) == pytest.approx(
        np.mean([(given_[truth == c] == c).mean() for c in np.unique(truth)])
    )


def test_balanced_accuracy_is_that_of_scikit_learn():
    truth, p = drawn()
    confusion = ours.confusion_matrix(truth, p.argmax(axis=1), 5)
    assert ours.balanced_accuracy(confusion) == pytest.approx(sk.balanced_accuracy_score(truth, p.argmax(axis=1)))
    np.testing.assert_array_equal(confusion[:, :5], sk.confusion_matrix(truth, p.argmax(axis=1)))


def test_auroc_is_that_of_scikit_learn_with_ties_too():
    truth, p = drawn()
    p = np.round(p, 1)  # ties
    p[:, 0] += 1 - p.sum(axis=1)
    for c in range(5):
        assert ours.auroc(truth == c, p[:, c]) == pytest.approx(sk.roc_auc_score(truth == c, p[:, c]))
    assert np.isnan(ours.auroc(np.ones(3, bool), np.arange(3)))
    assert ours.average_precision(truth == 1, p[:, 1]) == sk.average_precision_score(truth == 1, p[:, 1])
    assert np.isnan(ours.average_precision(np.zeros(3, bool), np.arange(3)))


def test_class_auroc_is_exactly_that_of_scikit_learn():
    truth, p = drawn(seed=3)
    assert ours.class_auroc(truth, p).mean() == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr"))


def test_brier_and_calibration_by_hand():
    truth, p = np.array([0, 1]), np.array([[0.8, 0.2], [0.6, 0.4]])
    assert ours.brier_score(truth, p) == pytest.approx((0.04 + 0.04 + 0.36 + 0.36) / 2)
    truth, p = drawn()
    binary = (truth == 0).astype(int)
    assert ours.brier_score(binary, np.stack([1 - p[:, 0], p[:, 0]], axis=1)) == pytest.approx(
        2 * sk.brier_score_loss(binary, p[:, 0])
    )
    # two bins: (0, 0.5] with confidence 0.4, right half the time; (0.5, 1] with 0.9, always right
    confidence, correct = np.array([0.4, 0.4, 0.9, 0.9]), np.array([1, 0, 1, 1])
    assert ours.expected_calibration_error(confidence, correct, 2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    table = ours.reliability(confidence, correct, 2)
    assert table["cells"].tolist() == [2, 2]
    assert table["accuracy"].tolist() == [0.5, 1.0]
    gap = (table["accuracy"] - table["confidence"]).abs()
    assert (gap * table["cells"]).sum() / 4 == pytest.approx(0.1)


def test_reliability_and_error_agree_at_the_edges_of_bins():
    confidence = np.linspace(0, 1, 31)
    correct = np.arange(31) % 2
    table = ours.reliability(confidence, correct, 10)
    assert table["cells"].sum() == 31
    expected = ((table["accuracy"] - table["confidence"]).abs() * table["cells"]).sum() / 31
    assert ours.expected_calibration_error(confidence, correct, 10) == pytest.approx(expected)
    with pytest.raises(InputError, match="not probabilities"):
        ours.reliability(np.array([1.2]), np.array([1]))


def test_risk_by_hand():
    coverage, risk = ours.coverage_risk(np.array([0.9, 0.8, 0.8, 0.5]), np.array([1, 1, 0, 0]))
    np.testing.assert_allclose(coverage, [0.25, 0.75, 1.0])  # equal confidences are answered together
    np.testing.assert_allclose(risk, [0, 1 / 3, 0.5])
    assert ours.risk_at(np.array([0.9, 0.8, 0.8, 0.5]), np.array([1, 1, 0, 0]), 0.5) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="coverage=0"):
        ours.risk_at(np.array([0.9]), np.array([1]), 0)


def test_cells_without_a_label_are_wrong():
    truth, given_ = np.array([0, 0, 1]), np.array([0, -1, 1])
    confusion = ours.confusion_matrix(truth, given_, 2)
    assert ours.accuracy(confusion) == pytest.approx(2 / 3)
    assert ours.balanced_accuracy(confusion) == pytest.approx(0.75)
    table = ours.per_class(truth, given_, ["a", "b"])
    assert table["given"].tolist() == [1, 1]
    assert table["recall"].tolist() == [0.5, 1.0]


def test_bad_labels_are_refused():
    for truth, given_ in (([0, 2], [0, 1]), ([-1], [0]), ([0], [-2]), ([0, 1], [0])):
        with pytest.raises(InputError):
            ours.confusion_matrix(np.array(truth), np.array(given_), 2)
    with pytest.raises(InputError, match="average='micro'"):
        ours.f1(np.eye(2, 3), "micro")


def test_several_statistics_are_resampled_alike():
    x = np.random.default_rng(0).normal(size=50)
    one, two = bootstrap_all(lambda rows: np.array([x[rows].mean(), x[rows].mean() + 1]), 50, resamples=100)
    assert two.low == pytest.approx(one.low + 1)
    alone = bootstrap(lambda rows: float(x[rows].mean()), 50, resamples=100)
    assert alone == one


def labelling(truth, given_, classes=("a", "b", "c"), **fields):
    truth, given_ = np.array(truth), np.array(given_)
    p = np.full((len(truth), len(classes)), 0.1)
    p[np.arange(len(truth)), np.maximum(given_, 0)] = 0.8
    sets = p > 0.5
    none = np.zeros(len(truth), dtype=bool)
    return Labelling(classes, truth, given_, p, sets, fields.pop("rejected", none), **fields)


def one(table, metric, stratum="all", of=""):
    rows = table[(table["metric"] == metric) & (table["stratum"] == stratum) & (table["of"] == of)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_table_of_scores():
    truth, given_ = [0, 0, 1, 1, 2, -1, -2], [0, 1, 1, 1, 2, 0, 0]
    novelty = np.array([0.1, 0.2, 0.1, 0.2, 0.3, 0.9, 0.9])
    rejected = novelty > 0.25
    distance = np.full((4, 4), np.nan)
    distance[:3, :3] = [[0, 2, 4], [2, 0, 4], [4, 4, 0]]
    own = labelling(truth, given_, rejected=rejected, novelty=novelty, distance=distance)
    batches = np.array(["x", "y", "x", "y", "x", "x", "x"])
    table = label_scores(own, strata={"batch": batches}, rare=["c"], resamples=50)
    assert one(table, "accuracy")["value"] == pytest.approx(4 / 5)
    assert one(table, "accuracy")["cells"] == 5
    assert one(table, "coverage")["value"] == pytest.approx(4 / 5)
    assert one(table, "unknown_share")["value"] == pytest.approx(1 / 6)
    assert one(table, "unknown_auroc")["value"] == 1
    assert one(table, "unknown_rejected")["value"] == 1
    assert one(table, "unknown_f1")["value"] == pytest.approx(2 / 3)  # one known cell is rejected too
    assert one(table, "rejected")["value"] == pytest.approx(1 / 5)
    assert one(table, "ontology_distance")["value"] == pytest.approx(2 / 5)
    assert one(table, "ontology_distance_of_errors")["value"] == 2
    assert one(table, "accuracy", "batch", "y")["value"] == 0.5
    mean = one(table, "accuracy", "batch", "mean")
    assert (mean["low"], mean["high"], mean["unit"]) == (0.5, 1.0, "range")
    assert mean["value"] == 0.75
    assert one(table, "rejected", "class", "c")["value"] == 1
    assert one(table, "recall", "class", "a")["value"] == 0.5
    assert one(table, "macro_f1", "rare", "1 classes")["value"] == 1
    assert (table["low"].isna() | (table["low"] <= table["value"] + 1e-12)).all()


def test_nothing_to_score_is_refused():
    with pytest.raises(InputError, match="nothing can be scored"):
        label_scores(labelling([-1, -2], [0, 0]))


def test_the_difference_of_two_labellings_is_paired():
    a, b = labelling([0, 1, 2, 0], [0, 1, 2, 0]), labelling([0, 1, 2, 0], [0, 1, 1, 0])
    difference = score_differences(a, b, resamples=200)
    assert difference["accuracy"].value == 0.25
    assert difference["accuracy"].low >= 0  # never worse in any resample
    same = score_differences(a, a, resamples=20)
    assert (same["macro_f1"].value, same["macro_f1"].high) == (0, 0)
    with pytest.raises(InputError, match="no cell in common"):
        score_differences(labelling([-1], [0]), labelling([0], [0]))
