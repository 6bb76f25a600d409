"""Scores of predicted responses, against cell-eval2, scanpy, scikit-learn and scipy."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.metrics import r2_score, roc_auc_score

from scfm.errors import InputError
from scfm.perturbation import calibrated, de, metrics
from scfm.perturbation.conditions import panel_genes
from scfm.perturbation.pseudobulk import jackknife_variance, log_profiles, profiles_of, pseudobulk

FOLDER = Path(__file__).parent / "cell_eval2"
VALUES = json.loads((FOLDER / "values.json").read_text())  # by record.py, with cell-eval2 0.20.0
CONDITIONS = sorted(VALUES["pds_cosine"])
GENES = np.array([f"g{i:02d}" for i in range(60)], dtype=object)


@pytest.fixture(scope="module")
def panel():
    data = np.load(FOLDER / "panel.npz")
    return {name: data[name] for name in data.files}


def cells(panel, side, condition):
    return panel[f"{side}_X"][panel[f"{side}_labels"] == condition]


@pytest.fixture(scope="module")
def profiles(panel):
    return {
        side: profiles_of(
            sparse.csr_matrix(panel[f"{side}_X"]),
            [("", str(label)) for label in panel[f"{side}_labels"]],
            GENES,
            control="ctrl",
        )
        for side in ("real", "pred")
    }


@pytest.fixture(scope="module")
def tables(panel):
    """Differential expression of both sides, against the measured control."""
    control = de.cpm(cells(panel, "real", "ctrl"))
    return {
        c: [de.differential_expression(de.cpm(cells(panel, side, c)), control) for side in ("pred", "real")]
        for c in CONDITIONS
    }


def row(profiles, condition):
    return profiles.values[profiles.rows([("", condition)])[0]]


def test_profiles_and_their_variance_are_those_of_cell_eval2(panel, profiles):
    np.testing.assert_allclose(row(profiles["real"], "g00"), VALUES["profile_real_g00"], rtol=1e-13)
    for condition, value in VALUES["jackknife_real"].items():
        assert jackknife_variance(cells(panel, "real", condition)) == pytest.approx(value, rel=1e-10)
        assert jackknife_variance(sparse.csr_matrix(cells(panel, "real", condition))) == pytest.approx(value, rel=1e-10)


def test_discrimination_is_that_of_cell_eval2(profiles):
    keys = [("", c) for c in CONDITIONS]
    real, pred = profiles["real"], profiles["pred"]
    targets = np.isin(GENES, panel_genes(CONDITIONS, "ctrl"))
    predicted = pred.values[pred.rows(keys)] - real.control_of(keys)
    found = calibrated.perturbation_discrimination(predicted, real.deltas(keys), np.arange(len(keys)), targets)
    assert dict(zip(CONDITIONS, found.tolist(), strict=True)) == pytest.approx(VALUES["pds_cosine"])
    assert min(found) < 1


@pytest.mark.parametrize("condition", CONDITIONS)
def test_expression_error_is_that_of_cell_eval2(panel, profiles, condition):
    noise = {
        name: jackknife_variance(cells(panel, *name))
        for name in (("real", condition), ("pred", condition), ("real", "ctrl"))
    }
    kept = condition != GENES
    truth = row(profiles["real"], condition)
    error = calibrated.expression_error(
        row(profiles["pred"], condition), truth, noise["pred", condition], noise["real", condition], kept
    )
    assert error / 59 == pytest.approx(VALUES["mse_unbiased"][condition], abs=1e-12)
    distance = calibrated.expression_error(
        row(profiles["real"], "ctrl"), truth, noise["real", "ctrl"], noise["real", condition], kept
    )
    assert distance / 59 == pytest.approx(VALUES["distance_unbiased"][condition], abs=1e-12)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("fidelity", calibrated.direction_fidelity),
        ("reach", calibrated.direction_reach),
        ("jaccard", calibrated.jaccard_significant),
        ("lfc_error", calibrated.lfc_error),
    ],
)
def test_scores_of_significant_genes_are_those_of_cell_eval2(tables, name, score, condition):
    found = score(*tables[condition], skip=condition == GENES)
    assert found == pytest.approx(VALUES[name].get(condition, np.nan), nan_ok=True)  # the original omits too few genes


def test_differential_expression_is_that_of_cell_eval2(tables):
    table = tables["g01"][1]
    for gene, expected in VALUES["de_g01"].items():
        at = int(gene[1:])
        np.testing.assert_allclose([table.log2fc[at], table.p[at], table.q[at]], expected, rtol=1e-5)
    assert set(np.flatnonzero(table.tested)) == {int(gene[1:]) for gene in VALUES["de_g01"]}


def test_a_perfect_prediction_is_perfect(panel, profiles, tables):
    truth = tables["g03"][1]
    assert calibrated.direction_fidelity(truth, truth) == 1
    assert calibrated.direction_reach(truth, truth) == 1
    assert calibrated.jaccard_significant(truth, truth) == 1
    assert calibrated.lfc_error(truth, truth) == 0


def test_no_change_calls_nothing(panel, tables):
    control = de.cpm(cells(panel, "real", "ctrl"))
    nothing = de.differential_expression(control, control)
    truth = tables["g03"][1]
    assert calibrated.direction_fidelity(nothing, truth) == 0
    assert calibrated.direction_reach(nothing, truth) == 0
    assert calibrated.jaccard_significant(nothing, truth) == 0
    assert calibrated.lfc_error(nothing, truth) == pytest.approx(1)
    assert np.isnan(calibrated.direction_fidelity(truth, nothing))


def test_a_constant_prediction_discriminates_at_random():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(7, 30))
    same = np.tile(rng.normal(size=30), (7, 1))
    none = np.zeros(30, dtype=bool)
    assert calibrated.perturbation_discrimination(same, truth, np.arange(7), none).mean() == pytest.approx(0.5)
    zero = calibrated.perturbation_discrimination(np.zeros((7, 30)), truth, np.arange(7), none)
    np.testing.assert_array_equal(zero, 0.5)
    assert np.isnan(metrics.rank_of_own(np.ones((1, 1)), np.array([0]))).all()


def lognorm(counts):
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def test_rank_sums_and_t_are_those_of_scanpy(panel):
    sc = pytest.importorskip("scanpy")
    both = np.concatenate([cells(panel, "real", "g02"), cells(panel, "real", "ctrl")]).astype(np.float64)
    both[:, 7] = 0  # a gene nobody expresses
    data = ad.AnnData(lognorm(both), obs=pd.DataFrame({"c": ["g02"] * 40 + ["ctrl"] * 60}, index=map(str, range(100))))
    data.var_names = GENES.astype(str)
    options = dict(groupby="c", reference="ctrl", n_genes=60)
    perturbed, control = data.X[:40], data.X[40:]
    z, p = de.wilcoxon(perturbed, control)
    keep = np.arange(60) != 7  # scanpy divides 0 by 0 there
    some = data[:, keep].copy()
    sc.tl.rank_genes_groups(some, method="wilcoxon", tie_correct=True, **options)
    found = sc.get.rank_genes_groups_df(some, "g02").set_index("names").loc[GENES[keep]]
    np.testing.assert_allclose(z[keep], found.scores.to_numpy(), atol=1e-5)
    np.testing.assert_allclose(p[keep], found.pvals.to_numpy(), rtol=1e-6)
    assert (z[7], p[7]) == (0, 1)
    sc.tl.rank_genes_groups(data, method="t-test", **options)
    found = sc.get.rank_genes_groups_df(data, "g02").set_index("names").loc[GENES]
    np.testing.assert_allclose(de.welch_scores(perturbed, control), found.scores.fillna(0), atol=1e-4)


def test_rank_sum_is_scipys_mann_whitney(panel):
    a, b = (de.cpm(cells(panel, "real", c)) for c in ("g04", "ctrl"))
    expected = stats.mannwhitneyu(a, b, axis=0, method="asymptotic", use_continuity=False).pvalue
    np.testing.assert_allclose(de.wilcoxon(a, b)[1], expected, rtol=1e-9)


def test_adjusted_p_values():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(de.benjamini_hochberg(p), [0.03, np.nan, 0.04, 0.04])


def test_top_genes_are_no_dropouts():
    scores = np.array([9.0, -8, 7, 1, 1])
    perturbed = np.array([0.0, 1, 0, 1, 1])
    control = np.array([2.0, 1, 0, 1, 1])
    np.testing.assert_array_equal(de.top_non_dropout(scores, perturbed, control, 3), [1, 2, 3])


def test_classic_scores():
    rng = np.random.default_rng(1)
    control, truth = rng.normal(size=(2, 40))
    predicted = truth + rng.normal(size=40)
    assert metrics.mse(truth, predicted) == pytest.approx(np.mean((truth - predicted) ** 2))
    assert metrics.pearson(truth, predicted) == pytest.approx(stats.pearsonr(truth, predicted)[0])
    assert metrics.pearson_delta(truth, predicted, control) == pytest.approx(
        stats.pearsonr(truth - control, predicted - control)[0]
    )
    assert metrics.r2_mean(truth, predicted) == pytest.approx(r2_score(truth, predicted))
    assert metrics.r2_delta(truth, control, control) == 0
    assert metrics.r2_delta(truth, truth, control) == 1
    assert metrics.r2_delta(truth, 2 * control - truth, control) < 0
    assert metrics.direction_shares(truth, truth, control) == (1, 0)
    assert metrics.direction_shares(truth, 2 * control - truth, control) == (0, 1)
    assert metrics.within_sigma(truth, truth + 1, np.r_[np.ones(10), np.zeros(30)]) == 0.25
    assert np.isnan(metrics.pearson(truth, np.full(40, 0.1)))
    assert np.isnan(metrics.pearson_delta(truth, predicted, predicted))


def test_weighted_scores():
    rng = np.random.default_rng(2)
    truth, predicted, reference = rng.normal(size=(3, 30))
    weights = metrics.weights_of(np.full(30, 2.0))
    assert weights == pytest.approx(np.full(30, 1 / 30))
    assert metrics.weighted_mse(truth, predicted, weights) == pytest.approx(metrics.mse(truth, predicted))
    assert metrics.weighted_r2_delta(truth, predicted, reference, weights) == pytest.approx(
        r2_score(truth - reference, predicted - reference)
    )
    sharp = metrics.weights_of(np.r_[5.0, np.ones(29)])
    assert sharp[0] == 1
    assert metrics.weighted_r2_delta(truth, truth, reference, metrics.weights_of(rng.normal(size=30))) == 1


def test_finding_significant_genes():
    rng = np.random.default_rng(3)
    hit, score = rng.random(50) < 0.3, rng.integers(0, 5, 50).astype(float)
    assert metrics.auroc_de(hit, score) == pytest.approx(roc_auc_score(hit, score))
    assert metrics.auprc_ratio(hit, hit.astype(float)) == pytest.approx(1 / hit.mean())
    assert np.isnan(metrics.auroc_de(np.ones(5, bool), np.arange(5.0)))
    assert np.isnan(metrics.auprc_ratio(np.zeros(5, bool), np.arange(5.0)))


def test_scale_between_baseline_and_replicate():
    assert metrics.scaled(0.5, 0.5, 0.9) == 0
    assert metrics.scaled(0.1, 1.0, 0.1) == 1  # an error, where less is better
    assert np.isnan(metrics.scaled(1.0, 0.5, 0.5))


def test_the_log_is_taken_once():
    deep, shallow = np.array([[90.0, 10.0]]), np.array([[0.0, 2.0]])
    both = np.concatenate([deep, shallow])
    made = profiles_of(both, [("", "ctrl")] * 2, ["a", "b"], control="ctrl", target_sum=100)
    np.testing.assert_allclose(made.values[0], np.log1p(100 * np.array([90, 12]) / 102))


def test_data_that_hold_no_screen_are_refused():
    counts = np.ones((4, 2))
    data = ad.AnnData(counts, obs=pd.DataFrame({"condition": ["A", "A", "ctrl", "ctrl"]}, index=list("abcd")))
    assert pseudobulk(data).perturbed == (("", "A"),)
    with pytest.raises(InputError, match="has no 'control'; it has 'A', 'ctrl'"):
        pseudobulk(data, control="control")
    with pytest.raises(InputError, match="no column 'drug'"):
        pseudobulk(data, condition="drug")
    data.X = counts / 3
    with pytest.raises(InputError, match="pseudobulk reads raw counts"):
        pseudobulk(data)
    with pytest.raises(InputError, match="no counts"):
        log_profiles(np.zeros((1, 3)))
    with pytest.raises(InputError, match="no 'ctrl' cells in context 'k562'"):
        profiles_of(counts, [("k562", "A")] * 4, ["a", "b"], control="ctrl")
    with pytest.raises(InputError, match="in one cell"):
        jackknife_variance(np.array([[1.0, 2.0], [0.0, 0.0]]))
