"""Baselines, on screens whose truth is known."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge

from scfm.errors import InputError
from scfm.perturbation import (
    Baseline,
    Profiles,
    ResponsePredictor,
    additive,
    bilinear_response,
    context_mean,
    crispr_informed,
    linear_additive,
    linear_response,
    mean_response,
    no_change,
    perturbation_mean,
    response,
)

GENES = np.array(["A", "B", "C", "D", "x", "y", "z"], dtype=object)
RNG = np.random.default_rng(0)
CONTROL = {"k": RNG.random(7) + 2, "r": RNG.random(7) + 2}
EFFECT = {gene: RNG.normal(size=7) for gene in "ABCD"}


def screen(*names, contexts=("k", "r")):
    """Profiles whose effects add up, and are the same in both contexts."""
    keys = [(context, name) for context in contexts for name in ("ctrl", *names)]
    values = [CONTROL[c] + sum(EFFECT[g] for g in name.split("+") if g != "ctrl") for c, name in keys]
    return Profiles(GENES, tuple(keys), np.array(values), np.arange(1, len(keys) + 1), "ctrl")


def test_no_change_is_the_contexts_control():
    np.testing.assert_array_equal(no_change(screen("A"), [("r", "B"), ("k", "B")]), [CONTROL["r"], CONTROL["k"]])


def test_means():
    train = screen("A", "B", "A+B")
    expected = CONTROL["r"] + (2 * EFFECT["A"] + 2 * EFFECT["B"]) / 3
    np.testing.assert_allclose(mean_response(train, [("r", "C")])[0], expected)
    by_cell = np.average(train.values[[5, 6, 7]], axis=0, weights=[6, 7, 8])
    np.testing.assert_allclose(mean_response(train, [("r", "C")], weight="cell")[0], by_cell)


def test_a_context_without_perturbations_gets_the_effects_of_the_others():
    seen = screen("A", "B")
    train = seen.select([key for key in seen.perturbed if key[0] == "k"])
    expected = CONTROL["r"] + (EFFECT["A"] + EFFECT["B"]) / 2
    np.testing.assert_allclose(mean_response(train, [("r", "C")])[0], expected)
    np.testing.assert_allclose(perturbation_mean(train, [("r", "A")])[0], CONTROL["r"] + EFFECT["A"])
    np.testing.assert_allclose(perturbation_mean(train, [("r", "C")])[0], expected)
    assert np.isnan(context_mean(train, [("r", "A")])).all()
    np.testing.assert_allclose(context_mean(train, [("k", "A")])[0], CONTROL["k"] + EFFECT["B"])


def test_effects_that_add_up_are_added():
    found = additive(screen("A", "B", contexts=("k",)), [("k", "A+B"), ("k", "ctrl+A"), ("k", "A+C")])
    np.testing.assert_allclose(found[0], CONTROL["k"] + EFFECT["A"] + EFFECT["B"])
    np.testing.assert_allclose(found[1], CONTROL["k"] + EFFECT["A"])
    np.testing.assert_allclose(found[2], CONTROL["k"] + EFFECT["A"] + (EFFECT["A"] + EFFECT["B"]) / 2)
    pairs_only = additive(screen("A+B", contexts=("k",)), [("k", "C")])
    np.testing.assert_allclose(pairs_only[0], CONTROL["k"] + EFFECT["A"] + EFFECT["B"])


def test_the_perturbed_gene_is_silenced_or_doubled():
    train = screen("A", "B")
    mean = mean_response(train, [("k", "C+D")])[0]
    down, up = (crispr_informed(train, [("k", "C+D")], effect=e)[0] for e in ("interference", "activation"))
    assert (down[[2, 3]] == 0).all()
    np.testing.assert_allclose(np.expm1(up[[2, 3]]), 2 * np.expm1(mean[[2, 3]]))
    np.testing.assert_array_equal(down[[0, 1, 4, 5, 6]], mean[[0, 1, 4, 5, 6]])
    with pytest.raises(InputError, match="effect='knockout'"):
        crispr_informed(train, [("k", "C")], effect="knockout")


def test_bilinear_is_the_ridge_regression_it_says():
    rng = np.random.default_rng(1)
    g, names = rng.normal(size=(30, 3)), [f"P{i}" for i in range(12)]
    p = {name: rng.normal(size=4) for name in names}
    k, b = rng.normal(size=(3, 4)), rng.normal(size=30)
    control = rng.random(30)
    effects = np.array([b + g @ k @ p[name] for name in names])
    keys = (("", "ctrl"), *(("", name) for name in names))
    train = Profiles(
        np.arange(30).astype(object), keys, np.vstack([control, control + effects]), np.ones(13, int), "ctrl"
    )
    found = bilinear_response(train, [("", "P3"), ("", "P3+P5"), ("", "unknown")], genes=g, perturbed=p, ridge=1e-12)
    centre = np.mean([p[name] for name in names], axis=0)
    # the offset takes what the mean perturbation does, so that only embeddings of mean 0 are recovered exactly
    assert np.abs(found[0] - train.values[4]).max() < np.abs(g @ k @ centre).max() * 5
    np.testing.assert_allclose(found[2], control + effects.mean(axis=0))
    np.testing.assert_allclose(found[1] - found[2], (found[0] - found[2]) + _one(train, "P5", g, p) - found[2])
    centred = {name: vector - centre for name, vector in p.items()}
    exact = bilinear_response(train, [("", "P3")], genes=g, perturbed=centred, ridge=1e-12)
    np.testing.assert_allclose(exact[0], train.values[4], atol=1e-8)
    # with G orthonormal the two ridges are one of scikit-learn after the other
    q = np.linalg.qr(g)[0]
    y = (effects - effects.mean(axis=0)).T
    left = Ridge(alpha=0.1, fit_intercept=False).fit(q, y).coef_.T  # (3, perturbations)
    right = Ridge(alpha=0.1, fit_intercept=False).fit(np.array([p[n] for n in names]), left.T).coef_  # (3, 4)
    found = bilinear_response(train, [("", "P3")], genes=q, perturbed=p, ridge=0.1)
    np.testing.assert_allclose(found[0], control + effects.mean(axis=0) + q @ right @ p["P3"])


def _one(train, name, g, p):
    return bilinear_response(train, [("", name)], genes=g, perturbed=p, ridge=1e-12)[0]


def test_bilinear_embeds_by_itself_and_refuses_what_it_cannot():
    train = screen("A", "B", "C")
    assert bilinear_response(train, [("k", "A+D")]).shape == (1, 7)
    with pytest.raises(InputError, match="no perturbed gene of the training data has an embedding"):
        bilinear_response(train, [("k", "A")], perturbed={"Q": np.ones(3)})
    with pytest.raises(InputError, match="5 rows for 7 genes"):
        bilinear_response(train, [("k", "A")], genes=np.ones((5, 2)))


def test_linear_additive_learns_singles_from_pairs():
    train = screen("A+B", "A", "B+C", contexts=("k",))
    found = linear_additive(train, [("k", "C"), ("k", "D")], ridge=1e-9)
    np.testing.assert_allclose(found[0], CONTROL["k"] + EFFECT["C"], atol=1e-6)
    np.testing.assert_array_equal(found[1], CONTROL["k"])


def test_a_baseline_is_a_predictor_with_explicit_layers():
    control = ad.AnnData(
        np.ones((4, 7), np.float32),
        obs=pd.DataFrame({"line": list("kkrr")}, index=list("1234")),
        var=pd.DataFrame(index=GENES),
    )
    baseline = Baseline("additive", screen("A", "B"), additive, context="line")
    assert isinstance(baseline, ResponsePredictor)
    made = baseline.predict_response(control, ["A+B", "A"])
    assert made.X is None
    assert list(made.obs["line"]) == ["k", "k", "r", "r"]
    assert list(made.obs["condition"]) == ["A+B", "A"] * 2
    np.testing.assert_allclose(made.layers["predicted"][3], CONTROL["r"] + EFFECT["A"])
    np.testing.assert_allclose(made.layers["control"][3], CONTROL["r"])
    linear, clipped = linear_response(made)
    np.testing.assert_allclose(linear[3], np.expm1((CONTROL["r"] + EFFECT["A"]).clip(min=0)))
    assert clipped == (made.layers["predicted"] < 0).sum()
    with pytest.raises(InputError, match="others or another order"):
        baseline.predict_response(control[:, ::-1].copy(), ["A"])
    alone = screen("A").select([("k", "A")])
    with pytest.raises(InputError, match="context mean has nothing to learn from in context 'r'"):
        Baseline("context mean", alone, context_mean, context="line").predict_response(control, ["B"])
    control.obs["line"] = "other"
    with pytest.raises(InputError, match="no control of context 'other'"):
        baseline.predict_response(control, ["A"])


def test_a_response_says_what_it_holds():
    obs, var = pd.DataFrame({"condition": ["A"]}, index=["1"]), pd.DataFrame(index=["g", "h"])
    one = sparse.csr_matrix(np.array([[1.0, 2.0]]))
    made = response(one, one, obs=obs, var=var, values="counts", predictor="toy")
    assert made.uns["scfm_response"]["values"] == "counts"
    assert linear_response(made)[0] is made.layers["predicted"]
    logged = response(-one, one, obs=obs, var=var, values="lognorm", predictor="toy", target_sum=1e4)
    assert linear_response(logged)[1] == 2
    with pytest.raises(InputError, match="negative counts"):
        response(-one, one, obs=obs, var=var, values="counts", predictor="toy")
    with pytest.raises(InputError, match="missing or infinite"):
        response(one * np.nan, one, obs=obs, var=var, values="counts", predictor="toy")
    with pytest.raises(InputError, match="are to be"):
        response(one[:, :1], one, obs=obs, var=var, values="counts", predictor="toy")
    with pytest.raises(InputError, match="no 'condition'"):
        response(one, one, obs=obs.rename(columns={"condition": "c"}), var=var, values="counts", predictor="toy")
    with pytest.raises(InputError, match="target_sum"):
        response(one, one, obs=obs, var=var, values="lognorm", predictor="toy")
    with pytest.raises(InputError, match="no predicted response"):
        linear_response(ad.AnnData(np.ones((1, 2))))
