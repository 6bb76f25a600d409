"""The promises of `scfm.finetune` that do not depend on the model, over the small model that ships with the package."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scfm
from scfm.adaptation import METHODS
from scfm.data import pbmc_demo
from scfm.errors import CheckpointError, InputError, ResumeError

QUICK = {"batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def encoder() -> scfm.CellEncoder:
    return scfm.load("mini", device="cpu").with_options(context=48)


@pytest.fixture(scope="module")
def cells(encoder: scfm.CellEncoder) -> AnnData:
    adata = pbmc_demo()
    adata = adata[adata.obs["cell_type"].isin(["B", "NK", "CD14+ Mono"])][:60].copy()
    assert adata.obs["cell_type"].nunique() >= 2
    adata.obs["donor"] = [f"d{i % 5}" for i in range(adata.n_obs)]
    adata.obs["age"] = 50 + 100 * encoder.embed(adata, progress=False)[:, 0].astype(float)
    adata.obs["high"] = adata.obs["age"] > adata.obs["age"].median()
    adata.obs["odd"] = np.arange(adata.n_obs) % 2
    return adata


def weights(tuned: scfm.FineTuned) -> dict[str, torch.Tensor]:
    return dict(tuned.network.state_dict())


# Objectives


def test_classes_are_learned_and_predicted(encoder, cells):
    tuned = scfm.finetune(encoder, cells, "cell_type", method="head", valid=None, epochs=40, **QUICK)
    answer = tuned.predict(cells, progress=False)
    assert list(answer.index) == list(cells.obs_names)
    assert (answer["label"].astype(str) == cells.obs["cell_type"].astype(str)).mean() > 0.9
    chances = answer[[f"p_{name}" for name in tuned.target.classes]].to_numpy()
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(answer["probability"], chances.max(axis=1))


def test_numbers_are_predicted_in_their_unit(encoder, cells):
    tuned = scfm.finetune(encoder, cells, "age", method="head", epochs=30, **QUICK)
    assert isinstance(tuned.target.record()["mean"], float)
    found = tuned.predict(cells, progress=False)["value"]
    assert np.corrcoef(found, cells.obs["age"])[0, 1] > 0.5
    assert abs(found.mean() - cells.obs["age"].mean()) < cells.obs["age"].std()


def test_several_labels_are_independent(encoder, cells):
    tuned = scfm.finetune(encoder, cells, scfm.MultiLabel(["high", "odd"], balanced=True), method="head", **QUICK)
    answer = tuned.predict(cells[:5], progress=False)
    assert list(answer.columns) == ["p_high", "p_odd"]
    assert answer.to_numpy().min() > 0
    assert answer.to_numpy().max() < 1


def test_loss_weights_and_smoothing_are_those_of_torch():
    obs = pd.DataFrame({"x": ["a", "a", "a", "b"]})
    target = scfm.Classification("x", class_weights="balanced", label_smoothing=0.1).target(obs)
    assert target.weights == pytest.approx((4 / 6, 4 / 2))
    outputs, labels = torch.randn(4, 2), torch.from_numpy(target.encode(obs))
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([4 / 6, 2.0]), label_smoothing=0.1)(outputs, labels)
    torch.testing.assert_close(target.loss(outputs, labels), loss)


# Refusals


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("nothing", "has no column 'nothing'"),
        ("gap", "has no value for 1 of"),
        ("same", "has one class only"),
        ("flat", "has one value only"),
        (scfm.Regression("cell_type"), "numbers are needed"),
        (scfm.Regression("infinite"), "is infinite for 1"),
        (scfm.MultiLabel(["age"]), "a label is 0 or 1"),
        (scfm.Classification("cell_type", class_weights={"B": 1.0}), "class_weights= names"),
        (7, "objective is a int"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(encoder, cells, objective, message):
    data = cells.copy()
    data.obs["gap"] = data.obs["cell_type"].astype(str).where(np.arange(data.n_obs) > 0)
    data.obs["same"], data.obs["flat"] = "x", 1.0
    data.obs["infinite"] = data.obs["age"].where(np.arange(data.n_obs) > 0, np.inf)
    with pytest.raises(InputError, match=message) as caught:
        scfm.finetune(encoder, data, objective, **QUICK)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prompt"}, "method='prompt' is not known"),
        ({"method": scfm.Full(layer_decay=0)}, "layer_decay=0"),
        ({"method": scfm.Full(frozen_layers=9)}, "frozen_layers=9; mini has 3 layers"),
        ({"method": scfm.LoRA(rank=0)}, "rank must be"),
        ({"method": scfm.LoRA(targets="nowhere")}, "matches none of the Linears"),
        ({"epochs": 0}, "epochs=0"),
        ({"schedule": "steps"}, "schedule='steps'"),
        ({"precision": "float16"}, "on CUDA devices only"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"valid": 1.5}, "no share"),
        ({"groups": "nothing"}, "no column 'nothing'"),
        ({"groups": "sample"}, "one value only"),
    ],
)
def test_settings_that_mean_nothing_are_refused(encoder, cells, options, message):
    data = cells.copy()
    data.obs["sample"] = "one"
    with pytest.raises(InputError, match=message):
        scfm.finetune(encoder, data, "cell_type", **{**QUICK, **options})


def test_unknown_options_are_refused(encoder, cells):
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        scfm.finetune(encoder, cells, "cell_type", lr=1)


# Splits


def test_no_group_is_on_both_sides(encoder, cells):
    tuned = scfm.finetune(encoder, cells, "cell_type", method="head", groups="donor", epochs=1, **QUICK)
    donor = cells.obs["donor"]
    assert not set(donor[list(tuned.split.train)]) & set(donor[list(tuned.split.valid)])
    assert sorted([*tuned.split.train, *tuned.split.valid]) == sorted(cells.obs_names)


def test_held_out_data_of_the_same_donor_are_refused(encoder, cells):
    with pytest.raises(InputError, match="same values in train and valid"):
        scfm.finetune(encoder, cells[:30], "cell_type", valid=cells[30:], groups="donor", method="head", **QUICK)
    with pytest.raises(InputError, match="are in train and in valid"):
        scfm.finetune(encoder, cells, "cell_type", valid=cells[30:], method="head", **QUICK)


# Training


def test_best_weights_are_those_of_the_best_epoch(encoder, cells, monkeypatch):
    """The held-out score says that the second epoch is best: weights are those of a run whose last epoch that is."""
    import scfm.objectives.labels

    worth = {}

    def scores(self, outputs, labels):
        worth.setdefault("n", 0)
        worth["n"] += 1
        return {"accuracy": 0.0, "macro_f1": {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2}[worth["n"]]}

    monkeypatch.setattr(scfm.objectives.labels.ClassTarget, "scores", scores)
    run = {**QUICK, "method": "head", "schedule": "constant", "warmup": 0.0}
    best = scfm.finetune(encoder, cells, "cell_type", epochs=4, **run)
    assert [epoch["best"] for epoch in best.history] == [False, True, False, False]
    worth.clear()
    two = scfm.finetune(encoder, cells, "cell_type", epochs=2, **run)
    worth.clear()
    four = scfm.finetune(encoder, cells, "cell_type", epochs=4, **run)
    worth.clear()
    patient = scfm.finetune(encoder, cells, "cell_type", epochs=4, patience=1, **run)
    assert len(patient.history) == 3
    for key, tensor in weights(best).items():
        assert torch.equal(tensor, weights(two)[key])
        assert torch.equal(tensor, weights(four)[key])
        assert torch.equal(tensor, weights(patient)[key])


def test_layer_decay_and_frozen_layers(encoder, cells):
    from scfm.adaptation import adapt

    tuned = scfm.finetune(
        encoder, cells, "cell_type", method=scfm.Full(layer_decay=0.5, frozen_layers=1), epochs=1, **QUICK
    )
    changed = set(tuned.record["changed"])
    assert not any(key.startswith(("genes.", "values.", "layers.0.")) for key in changed)
    assert any(key.startswith("layers.1.") for key in changed)
    from copy import deepcopy

    (tokens,) = encoder.tokenize(cells[:4])
    rates = adapt(deepcopy(encoder.network), scfm.Full(layer_decay=0.5), tokens.collate([0, 1]), name="mini").rates
    assert rates["norm.weight"] == 1
    assert rates["layers.2.ff1.weight"] == 0.5
    assert rates["layers.0.ff1.weight"] == 0.125
    assert rates["genes.weight"] == 0.0625


@pytest.mark.parametrize("flags", [{"dora": True}, {"rslora": True}, {"targets": r".*\.ff1", "dropout": 0.1}])
def test_kinds_of_lora_save_and_load(encoder, cells, flags, tmp_path):
    tuned = scfm.finetune(encoder, cells[:24], "high", method=scfm.LoRA(rank=4, **flags), epochs=1, **QUICK)
    tuned.save(tmp_path)
    again = scfm.load(tmp_path, device="cpu")
    assert again.predict(cells[:8], progress=False).equals(tuned.predict(cells[:8], progress=False))


def test_peft_reads_the_adapter(encoder, cells, tmp_path):
    from copy import deepcopy

    from peft import PeftModel

    tuned = scfm.finetune(encoder, cells[:24], "high", epochs=1, **QUICK)
    tuned.save(tmp_path)
    model = PeftModel.from_pretrained(deepcopy(encoder.network), str(tmp_path))
    (tokens,) = encoder.tokenize(cells[:4])
    batch = tokens.collate(range(4))
    with torch.inference_mode():
        assert torch.equal(model.eval()(batch).cells, tuned.network(batch).cells)


def test_accumulated_balanced_bfloat16_training_runs(encoder, cells):
    tuned = scfm.finetune(
        encoder, cells[:24], "high", epochs=1, accumulate=2, balanced=True, precision="bfloat16", **QUICK
    )
    assert np.isfinite(tuned.metrics["loss"])


def test_padding_does_not_change_the_loss(encoder, cells):
    from scfm.examples import Cells
    from scfm.heads import PredictionHead
    from scfm.training import TrainingModel

    (tokens,) = encoder.with_options(context=1024).tokenize(cells[:6])
    target = scfm.Classification("high").target(cells.obs)
    data = Cells(tokens, target.encode(cells.obs[:6]))
    model = TrainingModel(encoder.network, PredictionHead(encoder.dim, 2), target).eval()
    assert len(set(tokens.lengths)) > 1
    with torch.no_grad():
        together = model(**data.collate([(i, 0) for i in range(6)]))
        alone = [model(**data.collate([(i, 0)]))["loss"] for i in range(6)]
    torch.testing.assert_close(together["loss"], torch.stack(alone).mean(), atol=1e-5, rtol=0)


def test_batches_hold_each_cell_once_and_similar_lengths():
    from scfm.examples import Cells
    from scfm.sampling import LengthBuckets

    data = Cells(np.zeros((103, 2), np.float32), np.zeros(103, np.int64))
    sampler = LengthBuckets(data, 10, seed=1)
    first = list(sampler)
    assert sorted(row for batch in first for row, _ in batch) == list(range(103))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert len(sampler) == len(first)


def test_caller_is_left_as_it_was(encoder, cells, capfd):
    import logging

    def generators():
        legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return random.getstate(), legacy, torch.get_rng_state().tolist()

    obs, before = cells.obs.copy(), generators()
    environment, handlers = dict(os.environ), list(logging.root.handlers)
    one = scfm.finetune(encoder, cells, "high", method="head", epochs=1, **QUICK)
    assert generators() == before
    assert dict(os.environ) == environment
    assert logging.root.handlers == handlers
    assert capfd.readouterr() == ("", "")
    pd.testing.assert_frame_equal(cells.obs, obs)
    torch.manual_seed(5)  # another state outside: the same result
    two = scfm.finetune(encoder, cells, "high", method="head", epochs=1, **QUICK)
    assert all(torch.equal(weights(one)[key], weights(two)[key]) for key in weights(one))


# Files


def test_another_base_is_refused(encoder, cells, tmp_path):
    from copy import copy, deepcopy

    tuned = scfm.finetune(encoder, cells[:24], "high", method="head", epochs=1, **QUICK)
    tuned.save(tmp_path)
    assert scfm.load(tmp_path, device="cpu").tokenizer.context == 48
    other = copy(encoder)
    other.network = deepcopy(encoder.network)
    with torch.no_grad():
        other.network.norm.bias[0] += 1e-3
    with pytest.raises(CheckpointError, match="base has other weights"):
        scfm.load(tmp_path, base=other)
    with pytest.raises(InputError, match="cannot be loaded with 'heads'"):
        scfm.load(tmp_path, heads=3)
    (tmp_path / "head.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be read"):
        scfm.load(tmp_path)


def test_the_folder_says_what_it_holds(encoder, cells, tmp_path):
    tuned = scfm.finetune(encoder, cells, "high", method="head", groups="donor", epochs=1, **QUICK)
    tuned.save(tmp_path)
    assert json.loads((tmp_path / "splits.json").read_text())["train"] == list(tuned.split.train)
    assert json.loads((tmp_path / "metrics.json").read_text())["best"] == tuned.metrics
    assert "obs['donor']" in (tmp_path / "README.md").read_text()


RUN = """
import sys, os, signal, functools
import scfm
from scfm.adaptation import METHODS
from scfm.data import pbmc_demo
import scfm.training
kill, folder, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if kill:
    seen = [0]
    forward = scfm.training.TrainingModel.forward
    @functools.wraps(forward)  # Trainer looks at the signature
    def counted(self, *args, **options):
        seen[0] += self.training
        if seen[0] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, *args, **options)
    scfm.training.TrainingModel.forward = counted
adata = pbmc_demo()[:24].copy()
adata.obs["odd"] = [str(i % 2) for i in range(24)]
encoder = scfm.load("mini", device="cpu").with_options(context=24)
objective = {"label": "odd", "masked": scfm.MaskedExpression(0.3), "contrastive": scfm.Contrastive()}[sys.argv[4]]
tuned = scfm.finetune(encoder, adata, objective, method=scfm.LoRA(rank=2, dropout=0.1), epochs=3, batch_size=8,
                      checkpoints=folder, progress=False, patience=None)
tuned.save(out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["label", "masked", "contrastive"])
def test_a_killed_run_continues_to_the_same_weights(objective, tmp_path):
    def start(kill: int, folder: str, out: str) -> int:
        arguments = [str(kill), str(tmp_path / folder), str(tmp_path / out), objective]
        return subprocess.run([sys.executable, "-c", RUN, *arguments], timeout=300).returncode

    assert start(0, "whole", "whole_out") == 0
    assert start(7, "cut", "cut_out") == -signal.SIGKILL  # within the third epoch of three steps
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")]
    assert not (tmp_path / "cut_out").exists()
    assert start(0, "cut", "cut_out") == 0
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "cut_out" / name).read_bytes() == (tmp_path / "whole_out" / name).read_bytes()


def test_a_folder_of_another_run_is_refused(encoder, cells, tmp_path):
    run = {**QUICK, "method": "head", "epochs": 2, "checkpoints": tmp_path / "run"}
    first = scfm.finetune(encoder, cells, "high", **run)
    again = scfm.finetune(encoder, cells, "high", **run)  # nothing is left to do
    assert all(torch.equal(weights(first)[key], weights(again)[key]) for key in weights(first))
    assert again.history == first.history
    with pytest.raises(ResumeError, match="differs in settings"):
        scfm.finetune(encoder, cells, "high", **{**run, "epochs": 3})
    scfm.finetune(encoder, cells, "high", **{**run, "epochs": 3}, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(ResumeError, match="is not empty"):
        scfm.finetune(encoder, cells, "high", **{**run, "checkpoints": tmp_path / "other"})
    assert Path(tmp_path / "other" / "mine.txt").exists()


def test_a_fine_tuned_encoder_keeps_the_promises_of_every_encoder(encoder, cells):
    from scfm.testing import applicable, check_encoder

    tuned = scfm.finetune(encoder, cells[:24], "high", method=scfm.LoRA(rank=4), valid=None, epochs=1, **QUICK)
    check_encoder(tuned, checks=applicable(tuned))


def test_nothing_is_predicted_for_empty_cells(encoder, cells):
    tuned = scfm.finetune(encoder, cells[:24], "high", method="head", epochs=1, **QUICK)
    data = cells[:3].copy()
    counts = data.X.tolil()
    counts[1] = 0
    data.X = counts.tocsr()
    with pytest.warns(scfm.InputWarning, match="1 of 3 cells"):
        answer = tuned.predict(data, progress=False)
    assert answer.isna().all(axis=1).tolist() == [False, True, False]
    assert len(tuned.predict(cells[:0], progress=False)) == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (scfm.EncoderAdapter(hidden=0), "hidden=0"),
        (scfm.EncoderAdapter(layers=9), "layers=9; mini has 3"),
        (scfm.Prefix(layers="most"), "layers='most'"),
        (scfm.Prefix(vectors=0), "vectors=0"),
        ("drug_conditional", "needs a drug for every example"),
    ],
)
def test_adapters_that_mean_nothing_are_refused(encoder, cells, method, message):
    with pytest.raises(InputError, match=message):
        scfm.finetune(encoder, cells, "cell_type", method=method, **QUICK)


def test_additions_start_as_the_identity_and_have_scpefts_sizes():
    """conventions of scPEFT, for scGPT's 12 layers of width 512: weights added, in the first half of the layers."""
    from copy import deepcopy

    from scfm.adaptation import adapt
    from scfm.adapters.scgpt.network import ScGPTConfig, ScGPTNetwork
    from scfm.tokenizers import Batch

    torch.manual_seed(0)
    network = ScGPTNetwork(ScGPTConfig(genes=30)).eval()
    batch = Batch({"ids": torch.arange(1, 6)[None], "values": torch.rand(1, 5)}, {}, None)
    before = network(batch).cells
    for method, count in (("encoder_adapter", 790_272), ("token_adapter", 525_312), ("prefix", 24_576 + 6 * 8)):
        other = deepcopy(network)
        adapt(other, METHODS[method](), batch, name="scgpt")
        assert sum(p.numel() for p in other.parameters() if p.requires_grad) == count, method
        assert torch.equal(other.eval()(batch).cells, before), method


# Memory and logs


@pytest.mark.parametrize("method", ["full", scfm.LoRA(rank=2, dropout=0.2)])
def test_computing_layers_again_changes_nothing_but_memory(encoder, cells, method, monkeypatch):
    from scfm.nn import TransformerLayer

    calls = []
    forward = TransformerLayer.forward

    def counted(self, *args, **options):
        calls.append(torch.is_grad_enabled())
        return forward(self, *args, **options)

    monkeypatch.setattr(TransformerLayer, "forward", counted)
    run = {**QUICK, "method": method, "epochs": 1, "valid": None, "learning_rate": 1e-3}
    kept = scfm.finetune(encoder, cells[:16], "high", **run)
    without = sum(calls)
    calls.clear()
    again = scfm.finetune(encoder, cells[:16], "high", gradient_checkpointing=True, **run)
    steps = 2 * encoder.network.depth
    assert sum(calls) == without + steps
    for key, tensor in weights(kept).items():
        assert torch.equal(tensor, weights(again)[key]), key
    assert all("forward" not in vars(module) for module in again.network.modules())


def test_networks_without_layers_have_none_to_compute_again(cells):
    with pytest.raises(scfm.errors.CapabilityError, match="no stack of layers"):
        scfm.finetune(scfm.load("mini"), cells, "high", method="head", gradient_checkpointing=True, **QUICK)


def test_loss_and_scores_go_to_tensorboard(encoder, cells, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = {**QUICK, "method": "head", "epochs": 2, "checkpoints": tmp_path / "run", "log": "tensorboard"}
    tuned = scfm.finetune(encoder, cells, "high", **run)
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([epoch["loss"] for epoch in tuned.history])
    scores = [event.value for event in events.Scalars("eval/macro_f1")]
    assert scores == pytest.approx([epoch["valid_macro_f1"] for epoch in tuned.history])


def test_weights_and_biases_offline(encoder, cells, tmp_path, monkeypatch):
    from importlib.util import find_spec

    run = {**QUICK, "method": "head", "epochs": 1, "log": "wandb"}
    if find_spec("wandb") is None:
        with pytest.raises(scfm.errors.MissingExtraError, match=r"pip install 'scfm-sdk\[wandb\]'"):
            scfm.finetune(encoder, cells, "high", **run)
        return
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    scfm.finetune(encoder, cells, "high", **run)
    import wandb

    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"log": "csv"}, "log='csv' is not known"), ({"log": "tensorboard"}, "writes beside the checkpoints")],
)
def test_logs_that_go_nowhere_are_refused(encoder, cells, options, message):
    with pytest.raises(InputError, match=message):
        scfm.finetune(encoder, cells, "high", method="head", **QUICK, **options)
