"""Evaluation of predicted responses: what is perfect scores 1, the mean 0, and every refusal says why."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.errors import InputError
from scfm.perturbation import hold_out_conditions, response
from scfm.perturbation.evaluation import SCORES
from scfm.reading import InputWarning
from scfm.tasks.perturbation_evaluation import HEADLINE

SINGLES = ("A", "B", "C", "D")
PAIRS = ("A+B", "A+C", "B+D", "C+D")
GENES = [*SINGLES, *(f"g{i}" for i in range(46))]


def screen(seed=0, cells=24):
    """Counts whose effects add up on the log scale."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    base = truth.gamma(2, 3, 50) + 1
    effect = {gene: truth.normal(0, 1, 50) * (truth.random(50) < 0.4) for gene in SINGLES}
    counts, labels = [], []
    for name in ("ctrl", *SINGLES, *PAIRS):
        n = 2 * cells if name == "ctrl" else cells
        log = sum((effect[gene] for gene in name.split("+") if gene != "ctrl"), np.zeros(50))
        counts.append(rng.poisson(base * np.exp(log) * rng.gamma(9, 1 / 9, (n, 1))))
        labels += [name] * n
    obs = pd.DataFrame({"condition": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(np.vstack(counts).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def split():
    return hold_out_conditions([*SINGLES, *PAIRS, "ctrl"], ["A+C", "B+D", "C+D"], control="ctrl")


def oracle():
    """Other cells of the same truth."""
    cells = screen(seed=1)
    return response(cells.X, cells.X, obs=cells.obs, var=cells.var, values="counts", predictor="oracle")


@pytest.fixture(scope="module")
def result():
    return scfm.tasks.evaluate_perturbation(
        screen(), split(), [oracle()], effect="interference", target_sum=200, resamples=100
    )


def test_an_oracle_is_at_the_replicates_and_the_mean_at_zero(result):
    scale = result.wide("scaled")
    assert (scale.loc["mean"].dropna().abs() < 1e-12).all()
    np.testing.assert_allclose(scale.loc["replicate"].dropna(), 1)
    assert (scale.loc["oracle", list(HEADLINE)] > 0.8).all()
    assert result.wide().loc["oracle", "pds_cosine"] == 1
    assert result.wide().loc["oracle", "expression_error"] < 0.1
    assert result.wide().loc["no change", "r2_delta"] == 0
    assert result.wide().loc["no change", "pds_cosine"] == pytest.approx(0.5)


def test_effects_that_add_up_are_found_by_the_additive_baseline(result):
    assert result.wide("scaled").loc["additive", ["pds_cosine", "expression_error", "r2_delta"]].min() > 0.7


def test_trained_baselines_are_rows_of_the_table_unless_refused(result):
    found = result.wide("scaled")
    assert found.loc["latent additive", "r2_delta"] > 0.2
    assert np.isfinite(found.loc["SimpleAffine", "r2_delta"])
    few = scfm.tasks.evaluate_perturbation(screen(), split(), networks=False, target_sum=200, resamples=5, halves=1)
    assert set(result.table.predictor) - set(few.table.predictor) == {
        "latent additive",
        "SimpleAffine",
        "CRISPR-informed",
        "oracle",
    }


def test_every_score_of_every_predictor_is_there_with_its_interval(result):
    table = result.table
    assert set(table.metric) == set(SCORES)
    whole = table[(table.stratum == "all") & table.value.notna()]
    assert (whole.low <= whole.value + 1e-12).all()
    assert (whole.value <= whole.high + 1e-12).all()
    assert len(result.conditions) == len(set(result.conditions.predictor)) * 3 * len(SCORES)
    correlation = row_of(table, "mean", "pearson_calibrated")
    assert correlation.n == 0  # a constant has none: undefined, and counted
    assert np.isnan(correlation.value)
    assert np.isfinite(row_of(table, "additive", "pearson_calibrated").scaled)
    assert result.provenance["settings"]["target_sum"] == 200


def row_of(table, predictor, metric):
    return table[(table.stratum == "all") & (table.predictor == predictor) & (table.metric == metric)].iloc[0]


def test_the_same_call_gives_the_same_numbers(result):
    again = scfm.tasks.evaluate_perturbation(
        screen(), split(), [oracle()], effect="interference", target_sum=200, resamples=100
    )
    pd.testing.assert_frame_equal(result.table, again.table)


def test_contexts_are_scored_apart():
    both = [screen(seed) for seed in (0, 1)]
    for adata, line in zip(both, ("k", "r"), strict=True):
        adata.obs["line"] = line
        adata.obs_names = [f"{line}{name}" for name in adata.obs_names]
    found = scfm.tasks.evaluate_perturbation(
        ad.concat(both), split(), context="line", target_sum=200, networks=False, resamples=20, halves=1
    )
    assert set(found.conditions.context) == {"k", "r"}
    assert {"perturbation mean", "context mean"} <= set(found.table.predictor)
    assert found.table.n.max() == 6


def test_a_predictor_is_asked_with_the_control_cells_only():
    class Asked:
        name = "asked"

        def predict_response(self, control, conditions):
            assert set(control.obs.condition) == {"ctrl"}
            self.conditions = conditions
            obs = control.obs.iloc[:0]
            rows = [obs.assign()] + [control.obs.assign(condition=c) for c in conditions]
            logged = np.log1p(1e4 * control.X / control.X.sum(axis=1, keepdims=True))
            many = np.vstack([logged - 5] * len(conditions))
            return response(
                many,
                np.vstack([logged] * len(conditions)),
                obs=pd.concat(rows),
                var=control.var,
                values="lognorm",
                predictor="asked",
                target_sum=1e4,
            )

    predictor = Asked()
    found = scfm.tasks.evaluate_perturbation(
        screen(), split(), [predictor], networks=False, target_sum=200, resamples=5, halves=1
    )
    assert predictor.conditions == ["A+C", "B+D", "C+D"]
    assert "below 0 were taken as 0" in found.skipped["asked"]


def test_gene_embeddings_of_an_encoder_enter_the_bilinear_baseline():
    adata = screen()
    names = dict(zip(SINGLES, ("CD3E", "MS4A1", "NKG7", "LYZ"), strict=True))
    adata.obs["condition"] = ["+".join(names.get(g, g) for g in c.split("+")) for c in adata.obs.condition]
    cut = hold_out_conditions(sorted(set(adata.obs.condition)), ["CD3E+NKG7", "MS4A1+LYZ"], control="ctrl")
    mini = scfm.load("mini")
    found = scfm.tasks.evaluate_perturbation(adata, cut, embeddings=[mini], target_sum=200, resamples=5, halves=1)
    assert "bilinear, mini genes" in set(found.table.predictor)
    assert "no perturbed gene of the training data has an embedding" in found.skipped["bilinear"]
    assert "no perturbed gene of the training data is among its genes" in found.skipped["SimpleAffine"]
    assert found.provenance["encoders"][0]["model"] == "mini"


def test_a_shallow_screen_is_told():
    with pytest.warns(InputWarning, match="the log of rare genes is noise. Pass target_sum="):
        scfm.tasks.evaluate_perturbation(screen(), split(), networks=False, resamples=5, halves=1)


def test_predictions_that_cannot_be_scored_are_refused():
    def run(prediction=None, cut=None, adata=None):
        scfm.tasks.evaluate_perturbation(
            adata or screen(),
            cut or split(),
            [prediction] if prediction else [],
            networks=False,
            target_sum=200,
            resamples=5,
            halves=1,
        )

    with pytest.raises(InputError, match="predicts nothing for"):
        run(oracle()[oracle().obs.condition != "A+C"].copy())
    with pytest.raises(InputError, match="another order"):
        run(oracle()[:, ::-1].copy())
    with pytest.raises(InputError, match="is no predicted response"):
        run(screen())
    with pytest.raises(InputError, match="'E' of the split is no condition"):
        run(cut=hold_out_conditions(["A", "E", "ctrl"], ["A"], control="ctrl"))
    clash = oracle()
    clash.uns["scfm_response"]["predictor"] = "mean"
    with pytest.raises(InputError, match="two predictions are called 'mean'"):
        run(clash)
    few = screen()
    with pytest.raises(InputError, match="fewer than 4 cells"):
        run(adata=few[(few.obs.condition != "A+C") | (np.cumsum(few.obs.condition == "A+C") <= 3)].copy())


def test_from_the_shell(tmp_path):
    screen().write_h5ad(tmp_path / "screen.h5ad")
    oracle().write_h5ad(tmp_path / "oracle.h5ad")
    split().to_json(tmp_path / "split.json")
    files = [
        str(tmp_path / name) for name in ("screen.h5ad", "oracle.h5ad", "split.json", "r.json", "r.png", "drawn.json")
    ]
    options = ["--target-sum", "200", "--effect", "activation"]
    done = CliRunner().invoke(
        app,
        [
            "evaluate_perturbation",
            files[0],
            "-p",
            files[1],
            "--split",
            files[2],
            "-o",
            files[3],
            "--plot",
            files[4],
            *options,
        ],
    )
    assert done.exit_code == 0, done.output
    assert "3 test conditions" in done.output
    assert "CRISPR-informed" in done.output
    assert json.loads((tmp_path / "r.json").read_text())["split"]["test"] == ["A+C", "B+D", "C+D"]
    assert (tmp_path / "r.png").stat().st_size > 10_000
    drawn = CliRunner().invoke(
        app, ["evaluate_perturbation", files[0], "--save-split", files[5], "-q", "--no-networks", *options]
    )
    assert drawn.exit_code == 0, drawn.output
    assert json.loads((tmp_path / "drawn.json").read_text())["settings"]["kind"] == "simulation"
