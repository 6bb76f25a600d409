"""Objectives without labels: what is hidden stays hidden, losses are those of the papers, and what is trained for gets better."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import stats
from sklearn.metrics import log_loss

import scfm
from scfm.data import pbmc_demo
from scfm.errors import CapabilityError, InputError
from scfm.examples import HELD_OUT, Labelled
from scfm.labelled import read_labelled
from scfm.objectives.contrastive import ContrastiveTarget, contrast, view_of
from scfm.objectives.integration import Discriminator
from scfm.objectives.masked import MaskedTarget, can_hide, class_sums, number_sums

QUICK = {"batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def encoder() -> scfm.CellEncoder:
    return scfm.load("mini", device="cpu").with_options(context=48)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    adata = pbmc_demo()[:40].copy()
    adata.obs["batch"] = ["x", "y"] * 20
    return adata


def labelled(encoder: scfm.CellEncoder, adata: AnnData, objective) -> Labelled:
    return read_labelled(encoder, adata, {}, objective, keep=True)


# Masked expression


def test_hidden_values_do_not_reach_the_network(encoder, cells):
    whole = labelled(encoder, cells, scfm.MaskedExpression())
    data = MaskedTarget(0.3).examples(encoder, whole, whole.tokens, seed=1)
    rows = [5, 2, 9]
    batch = data.collate([(row, 0) for row in rows])
    plain = whole.tokens.collate(rows)
    at, told = batch["at"], batch["told"]
    truth = plain["values"].gather(1, at)
    assert torch.equal(truth[told], batch["truth"][told])
    assert (batch["fields"]["values"].gather(1, at)[told] == encoder.tokenizer.hiding.value).all()
    rest = torch.ones_like(plain["values"], dtype=torch.bool).scatter(1, at, ~told)
    rest = rest | (plain["values"] == 0)
    assert torch.equal(batch["fields"]["values"][rest], plain["values"][rest])
    can = can_hide(encoder, whole.tokens.select(np.array(rows)), encoder.tokenizer.hiding)
    assert int(told.sum()) == pytest.approx(0.3 * can.sum(), abs=2)


def test_what_is_hidden_follows_from_seed_epoch_and_cells(encoder, cells):
    whole = labelled(encoder, cells, scfm.MaskedExpression())

    def hidden(seed: int, draw: int) -> list:
        data = MaskedTarget(0.3).examples(encoder, whole, whole.tokens, seed=seed)
        return data.collate([(row, draw) for row in (1, 2, 3)])["at"].tolist()

    assert hidden(0, 1) == hidden(0, 1)
    assert hidden(0, 1) != hidden(0, 2)
    assert hidden(0, 1) != hidden(1, 1)
    assert hidden(0, HELD_OUT) != hidden(0, 0)


def test_scores_of_hidden_numbers_are_scipys():
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(5, 7)).astype(np.float32)
    told = rng.random((5, 7)) < 0.6
    tensors = (torch.from_numpy(x) for x in (found, truth, told))
    sums = number_sums(*tensors, torch.tensor(1.0))
    scores = MaskedTarget(0.5).scores(sums["outputs"].numpy(), np.zeros(5))
    assert scores["pearson"] == pytest.approx(stats.pearsonr(truth[told], found[told]).statistic, abs=1e-5)
    assert scores["mse"] == pytest.approx(((truth - found)[told] ** 2).mean(), abs=1e-5)
    assert float(sums["loss"]) == pytest.approx(scores["mse"], abs=1e-5)


def test_scores_of_hidden_classes_are_scikit_learns():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(4, 6, 3)).astype(np.float32), rng.integers(0, 3, (4, 6))
    told = rng.random((4, 6)) < 0.7
    sums = class_sums(*(torch.from_numpy(x) for x in (logits, truth, told)))
    scores = MaskedTarget(0.5).scores(sums["outputs"].numpy(), np.zeros(4))
    chances = torch.from_numpy(logits).softmax(-1).numpy()[told]
    assert scores["cross_entropy"] == pytest.approx(log_loss(truth[told], chances, labels=[0, 1, 2]), abs=1e-5)
    assert scores["accuracy"] == pytest.approx((chances.argmax(1) == truth[told]).mean())


@pytest.mark.slow
def test_masked_expression_is_learned(encoder, cells):
    """Each gene has a value of its own, which is the same in all cells: it can be told from the gene."""
    some = cells[:, :30].copy()
    some.X = np.tile(2.0 ** (np.arange(30) % 6), (40, 1)).astype(np.float32)
    run = {**QUICK, "method": "full", "learning_rate": 5e-3, "patience": None}
    tuned = scfm.finetune(encoder, some, scfm.MaskedExpression(0.3), epochs=10, metric="mse", **run)
    best = tuned.metrics["valid_mse"]
    assert tuned.metrics["valid_pearson"] > 0.7
    assert [epoch["best"] for epoch in tuned.history] == [epoch["valid_mse"] == best for epoch in tuned.history]
    with pytest.raises(CapabilityError, match="predicts nothing"):
        tuned.predict(cells)


# Contrastive


def naive(z: np.ndarray, labels: np.ndarray, t: float) -> float:
    """The formula of the module's text, view by view."""
    losses = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        total = sum(np.exp(z[i] @ z[k] / t) for k in others)
        positive = [j for j in others if labels[j] == labels[i]]
        losses.append(np.mean([-np.log(np.exp(z[i] @ z[j] / t) / total) for j in positive]))
    return float(np.mean(losses))


@pytest.mark.parametrize("labels", [None, [0, 1, 0, 2]])
def test_contrastive_loss_is_the_papers(labels):
    z = np.random.default_rng(0).normal(size=(8, 5))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    same = np.tile(np.arange(4) if labels is None else labels, 2)
    found = contrast(torch.from_numpy(z), None if labels is None else torch.tensor(labels), 0.2)
    assert float(found["loss"]) == pytest.approx(naive(z, same, 0.2), rel=1e-6)


def test_views_are_thinner_cells(encoder, cells):
    whole = labelled(encoder, cells, scfm.Contrastive())
    ((_, block),) = whole.matrices.blocks(np.arange(40))
    view = view_of(block, 0.5, 0.2, np.random.default_rng(0))
    before, after = block.matrix.toarray(), view.matrix.toarray()
    assert (after <= before).all()
    assert after.sum() / before.sum() == pytest.approx(0.4, abs=0.03)
    nothing = view_of(block, 1e-9, 0.0, np.random.default_rng(0))
    assert np.array_equal(nothing.matrix.toarray(), before), "a cell without counts would have no tokens"


def test_rows_of_several_data_sets_keep_their_order(encoder, cells):
    encoder = encoder.with_options(context=2000)  # all genes: nothing is drawn
    one, two = cells[:15].copy(), cells[15:, ::-1].copy()
    two.obs_names = [f"two-{name}" for name in two.obs_names]
    whole = labelled(encoder, [one, two], scfm.Contrastive(thin=1, drop=0.1))
    data = ContrastiveTarget(1.0, 1e-12, 0.1).examples(encoder, whole, whole.tokens, seed=0)
    rows = [30, 2, 20, 7]
    batch = data.collate([(row, 0) for row in rows])
    assert torch.equal(batch["one"]["fields"]["ids"].sort().values, whole.tokens.collate(rows)["ids"].sort().values)


def test_views_find_each_other_after_training(encoder, cells):
    run = {**QUICK, "method": "lora", "epochs": 4, "patience": None, "metric": "retrieval"}
    tuned = scfm.finetune(encoder, cells, scfm.Contrastive(thin=0.5), **run)
    assert tuned.metrics["valid_retrieval"] > 0.25  # by chance 1 in 15


# Integration


def test_the_discriminators_gradient_comes_back_reversed():
    torch.manual_seed(0)
    judge, cells = Discriminator(6, 2), torch.randn(5, 6, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1, 1])
    loss = torch.nn.functional.cross_entropy(judge(cells), labels)
    (backward,) = torch.autograd.grad(loss, cells)
    with torch.no_grad():
        away = torch.nn.functional.cross_entropy(judge(cells - 0.1 * backward), labels)
        towards = torch.nn.functional.cross_entropy(judge(cells + 0.1 * backward), labels)
    assert away > loss > towards  # a step down this gradient hides the batch


@pytest.mark.slow
def test_integration_hides_the_batch(encoder):
    adata = pbmc_demo()[:160].copy()
    adata.obs["batch"] = ["x", "y"] * 80
    dense = adata.X.toarray()
    amplified = np.random.default_rng(0).random(adata.n_vars) < 0.3
    dense[1::2, amplified] *= 4
    adata.X = dense

    def apart(embedding: np.ndarray) -> float:
        """Distance of the batches' means, in units of the spread within batches."""
        x, y = embedding[::2], embedding[1::2]
        return float(np.linalg.norm(x.mean(0) - y.mean(0)) / np.sqrt((x.var(0) + y.var(0)).sum() / 2))

    run = {"method": "full", "valid": None, "epochs": 6, "batch_size": 16, "progress": False, "learning_rate": 1e-3}
    with_adversary = scfm.finetune(encoder, adata, scfm.Integration("batch", weight=10.0), **run)
    without = scfm.finetune(encoder, adata, scfm.Integration("batch", weight=0.0), **run)
    before, after = (apart(tuned.embed(adata, progress=False)) for tuned in (without, with_adversary))
    assert after < 0.8 * before


# Settings


@pytest.mark.parametrize(
    ("objective", "options", "error", "message"),
    [
        (scfm.MaskedExpression(1.5), {}, InputError, "share=1.5"),
        (scfm.MaskedExpression(), {"method": "head"}, CapabilityError, "leaves the network as it is"),
        (scfm.MaskedExpression(), {"balanced": True}, InputError, "balanced=True is for classification"),
        (scfm.MaskedExpression(), {"metric": "f1"}, InputError, "metric='f1' is no score"),
        (scfm.MaskedExpression(), {"metric": "accuracy"}, InputError, "metric='accuracy' is no score of these tokens"),
        (scfm.Contrastive(thin=0), {}, InputError, "thin=0"),
        (scfm.Contrastive(thin=1, drop=0), {}, InputError, "both views are the cell itself"),
        (scfm.Contrastive(temperature=0), {}, InputError, "temperature=0"),
        (scfm.Contrastive(labels="nothing"), {}, InputError, "'nothing'"),
        (scfm.Integration("nothing"), {}, InputError, "'nothing'"),
        (scfm.Integration("batch", keep="all"), {}, InputError, "keep='all'"),
        (scfm.Integration("one"), {}, InputError, "has one class only"),
    ],
)
def test_settings_that_mean_nothing_are_refused(encoder, cells, objective, options, error, message):
    data = cells.copy()
    data.obs["one"] = "x"
    with pytest.raises(error, match=message):
        scfm.finetune(encoder, data, objective, epochs=1, **{**QUICK, **options})


def test_values_that_are_no_counts_are_not_thinned(encoder, cells):
    data = cells.copy()
    data.X = data.X.astype(np.float32) * 0.5
    whole = read_labelled(encoder, data, {"values": "any"}, scfm.Contrastive(), keep=True)
    with pytest.raises(InputError, match="no whole numbers"):
        ContrastiveTarget(0.5, 0.1, 0.1).examples(encoder, whole, whole.tokens, seed=0)
    assert ContrastiveTarget(None, 0.1, 0.1).examples(encoder, whole, whole.tokens, seed=0).thin == 1


# scGPT's parts for batches


@pytest.fixture
def scgpt() -> scfm.CellEncoder:
    from pathlib import Path

    return scfm.load(Path(__file__).parents[1] / "parity" / "scgpt" / "checkpoint", device="cpu")


def scgpt_cells(encoder: scfm.CellEncoder) -> AnnData:
    from scfm.testing import example_data

    data = example_data(encoder)
    data.obs["batch"] = ["x", "y"] * (data.n_obs // 2) + ["x"] * (data.n_obs % 2)
    return data


def test_decoders_begin_as_they_were_pre_trained_although_they_now_see_the_batch(scgpt):
    from scfm.encoder import Request

    data = scgpt_cells(scgpt)
    other = scgpt.for_batches("batch", ("x", "y"))
    assert other.network.heads >= {"batch_logits", "expression"}
    assert not scgpt.network.heads & {"batch_logits"}
    (tokens,), (own,) = other.tokenize(data), scgpt.tokenize(data)
    other.network.domain_norm = None  # its statistics are of no data yet
    wanted = Request(frozenset({"cells", "expression", "expression_from_cell"}))
    with torch.inference_mode():
        before, after = (e.network(t.collate(range(4)), wanted) for e, t in ((scgpt, own), (other, tokens)))
    assert torch.equal(before.cells, after.cells)
    for name in ("expression", "expression_from_cell"):
        torch.testing.assert_close(before.heads[name], after.heads[name])


def test_integration_of_scgpt_has_statistics_of_each_batch_and_asks_for_it(scgpt, tmp_path):
    data = scgpt_cells(scgpt)
    run = {**QUICK, "valid": None, "epochs": 1}
    tuned = scfm.finetune(scgpt, data, scfm.Integration("batch"), method=scfm.LoRA(rank=2), **run)
    means = [bn.running_mean for bn in tuned.network.base.domain_norm.bns]
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[0], torch.zeros_like(means[0]))
    assert "domain_norm.bns.0.running_mean" in tuned.record["changed"]
    tuned.save(tmp_path)
    again = scfm.load(tmp_path, base=scgpt, device="cpu")
    assert np.array_equal(again.embed(data, progress=False), tuned.embed(data, progress=False))
    unknown = data.copy()
    unknown.obs["batch"] = "z"
    with pytest.raises(InputError, match="unknown to the checkpoint"):
        tuned.embed(unknown, progress=False)
    plain = scfm.finetune(scgpt, data, scfm.Integration("batch", own_parts=False), method=scfm.LoRA(rank=2), **run)
    del data.obs["batch"]
    assert np.isfinite(plain.embed(data, progress=False)).all()


# By name, and in the shell


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "kind='nothing' is not known"),
        (("masked_expression", "cell_type"), "reads no column"),
        (("integration",), "needs 'batch'"),
    ],
)
def test_objectives_by_name_say_what_they_need(arguments, message):
    from scfm.objectives import objective_named

    with pytest.raises(InputError, match=message):
        objective_named(*arguments)
    with pytest.raises(InputError, match="has no 'rate'"):
        objective_named("contrastive", rate=1)
    assert objective_named("integration", "donor", share=0.2) == scfm.Integration("donor", share=0.2)


def test_masked_expression_in_the_shell(cells, tmp_path):
    import json

    from typer.testing import CliRunner

    from scfm.cli import app

    cells[:16].copy().write_h5ad(tmp_path / "cells.h5ad")
    out = str(tmp_path / "tuned")
    common = ["finetune", "mini", str(tmp_path / "cells.h5ad"), "--out", out, "--device", "cpu", "--json"]
    options = ["--kind", "masked_expression", "-K", "share=0.4", "-O", "context=24", "--epochs", "1", "--metric", "mse"]
    result = CliRunner().invoke(app, [*common, *options, "--gradient-checkpointing"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["target"] == "masked expression"
    assert scfm.load(out, device="cpu").target.share == 0.4
    assert CliRunner().invoke(app, common).exit_code == 2
