"""Statistics of in silico perturbations: Geneformer's own tables, and a null that is one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scfm.errors import InputError
from scfm.perturbation.shifts import goal_state_shift, impact_mixture, matched_genes, permutation_p, versus_null

PARITY = Path(__file__).parents[2] / "parity"
VERSIONS = ("geneformer_v1", "geneformer_v2")


@pytest.fixture(params=VERSIONS)
def recorded(request):
    folder = PARITY / request.param
    data = np.load(folder / "expected.npz")
    arrays = {
        name: data[name].astype(float) if data[name].dtype.kind == "f" else data[name]
        for name in data.files
        if "isp" in name
    }

    def table(name):
        return pd.read_csv(folder / f"isp_stats_{name}.csv", index_col=0).set_index("Gene")

    return arrays, table, request.param


def test_goal_state_shift_is_geneformers(recorded):
    arrays, table, _ = recorded
    expected = table("goal_state_shift")
    found = goal_state_shift({"goal": arrays["isp_goal_goal"], "alt": arrays["isp_goal_alt"]}, arrays["isp_goal_token"])
    assert list(found.index) == list(expected.index)
    columns = ["goal shift", "alt shift", "goal p", "alt p", "goal fdr", "alt fdr", "n", "significant"]
    np.testing.assert_allclose(found[columns].astype(float), expected.iloc[:, 2:].astype(float), atol=1e-12)


def test_versus_null_is_geneformers(recorded):
    arrays, table, _ = recorded
    expected = table("vs_null")
    found = versus_null(
        arrays["isp_delete_all"],
        arrays["isp_delete_all_token"],
        arrays["isp_overexpress_all"],
        arrays["isp_overexpress_all_token"],
    )
    assert list(found.index) == list(expected.index)
    columns = ["test", "null", "difference", "p", "fdr", "n_test", "n_null", "significant"]
    np.testing.assert_allclose(found[columns].astype(float), expected.iloc[:, 2:].astype(float), atol=1e-12)


def test_impact_mixture_is_geneformers_but_for_swapped_components(recorded):
    arrays, table, version = recorded
    expected = table("mixture_model")
    found = impact_mixture(arrays["isp_delete_all"], arrays["isp_delete_all_token"]).loc[expected.index]
    np.testing.assert_allclose(found["mean"], expected.Test_avg_shift, atol=1e-12)
    np.testing.assert_array_equal(found["n"], expected.N_Detections)
    if version == "geneformer_v1":
        np.testing.assert_array_equal(found["impact"], expected.Impact_component)
        np.testing.assert_allclose(100 * found["impact_share"], expected.Impact_component_percent)
    else:  # the original took the upper component for the lower one, and kept what lies below both means only
        low, _ = impact_mixture(arrays["isp_delete_all"], arrays["isp_delete_all_token"]).attrs["components"]
        np.testing.assert_array_equal(found["mean"] < low, expected.Impact_component)
        assert (found["impact"] >= (found["mean"] < low)).all()
        assert found["impact"].sum() > expected.Impact_component.sum()


def test_what_has_no_statistics_is_refused():
    with pytest.raises(InputError, match="two perturbations or more"):
        impact_mixture(np.array([0.9, 0.8]), np.array([1, 1]))
    with pytest.raises(InputError, match="1 shifts to 'goal' are not defined"):
        goal_state_shift({"goal": np.array([np.nan, 1.0])}, np.array([1, 1]))


def test_the_null_has_genes_of_similar_expression():
    expression = np.exp(np.linspace(0, 5, 200))
    expression[30:40] = 0
    drawn = matched_genes(expression, 100, 10, np.random.default_rng(0), near=20, but=(101, 102))
    assert len(set(drawn)) == 10
    assert (np.abs(drawn - 100) <= 13).all()
    assert not {100, 101, 102} & set(drawn)
    assert not (expression[matched_genes(expression, 35, 5, np.random.default_rng(0))] == 0).any()


def test_p_values_of_the_null_are_uniform():
    rng = np.random.default_rng(0)
    p = np.array([permutation_p(x[0], x[1:]) for x in rng.normal(size=(2000, 20))])
    counts = np.bincount(np.round(p * 20).astype(int), minlength=21)[1:]
    assert abs(counts / 2000 - 1 / 20).max() < 0.02
    assert permutation_p(5.0, np.zeros(19)) == 0.05
    assert np.isnan(permutation_p(5.0, np.full(3, np.nan)))
