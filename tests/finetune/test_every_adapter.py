"""Fine-tuning by every method reaches the network of every adapter, and nothing else."""

import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from anndata import AnnData

import scfm
from scfm.errors import CapabilityError
from scfm.tensors import fingerprint_of
from scfm.testing import example_data

CONFORMANCE = Path(__file__).parents[1] / "adapters" / "test_conformance.py"


def conformance() -> ModuleType:
    """The small encoders of the conformance tests."""
    if "scfm_conformance_encoders" not in sys.modules:
        spec = importlib.util.spec_from_file_location("scfm_conformance_encoders", CONFORMANCE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["scfm_conformance_encoders"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["scfm_conformance_encoders"]


NAMES = [name for _, name in conformance().encoders()]
ONE_A_FAMILY = sorted({family: name for family, name in reversed(list(conformance().encoders()))}.values())
METHODS = {
    "head": "head",
    "full": "full",
    "lora": scfm.LoRA(rank=4),
    "encoder_adapter": "encoder_adapter",
    "token_adapter": "token_adapter",
    "prefix": scfm.Prefix(layers="all"),
}
ADDED = (".lora_", ".after_attention.", ".token_adapter.", ".prefix.")
"""Parts of the names of what methods put into a network."""
LINEAR_MAPS = ("pca", "lsi")
"""Baselines without a Linear layer."""
NO_ATTENTION = (*LINEAR_MAPS, "cellmemory", "sc_mamba2", "student")
NOT_POSSIBLE = {
    "lora": (LINEAR_MAPS, "no Linear"),
    "encoder_adapter": (NO_ATTENTION, "not built of attention layers"),
    "prefix": (NO_ATTENTION, "not built of attention layers"),
    "token_adapter": ((*LINEAR_MAPS, "scplantformer", "student"), "no embedding of tokens"),
}
"""Families whose architecture a method does not fit, and what is said."""
OBJECTIVES = {
    "masked": scfm.MaskedExpression(0.3),
    "contrastive": scfm.Contrastive(),
    "integration": scfm.Integration("kind"),
}


@cache
def labelled(name: str) -> tuple[scfm.CellEncoder, AnnData]:
    encoder = conformance().load(name)
    if "context" in vars(encoder.tokenizer) and name == "mini":
        encoder = encoder.with_options(context=64)
    data = example_data(encoder)
    if encoder.tokenizer.grouped:
        encoder = encoder.with_options(group_key=None, group_size=None)
    data.obs["kind"] = ["a", "b"] * (data.n_obs // 2) + ["a"] * (data.n_obs % 2)
    return encoder, data


def tuned(name: str, method: str, **options) -> scfm.FineTuned:
    encoder, data = labelled(name)
    defaults = {"valid": None, "epochs": 1, "warmup": 0.0, "batch_size": 4, "learning_rate": 0.01, "progress": False}
    return scfm.finetune(encoder, data, "kind", method=METHODS[method], **{**defaults, **options})


NEWER = ("encoder_adapter", "token_adapter", "prefix")
QUICK = ("mini", "cellmemory", "cellplm", "pca", "scgpt", "scplantformer")


def every_pair() -> list:
    """Adapters and methods; a few adapters of different build stand for all where the slow tests are left out."""
    return [
        pytest.param(name, method, marks=[pytest.mark.slow] if method in NEWER and not name.startswith(QUICK) else [])
        for name in ONE_A_FAMILY
        for method in METHODS
    ]


@pytest.mark.parametrize(("name", "method"), every_pair())
def test_training_changes_what_it_says_and_saves_exactly(name, method, tmp_path):
    encoder, data = labelled(name)
    before = fingerprint_of(encoder.network)
    families, message = NOT_POSSIBLE.get(method, ((), ""))
    if encoder.card.family in families:
        with pytest.raises(CapabilityError, match=message) as caught:
            tuned(name, method)
        assert "method=" in caught.value.fix
        return
    found = tuned(name, method)
    assert fingerprint_of(encoder.network) == before, "the caller's encoder was changed"

    plain = encoder.embed(data, progress=False)
    trained = found.embed(data, progress=False)
    assert not found.network.training
    assert (np.abs(trained - plain).max() > 1e-6) == (method != "head")

    # frozen weights are bit-identical; what is trained is what is stated
    own = found.network.base.state_dict()
    base = {
        key.replace(".base_layer", ""): tensor for key, tensor in own.items() if not any(part in key for part in ADDED)
    }
    changed = set(found.record["changed"])
    assert set(base) == set(encoder.network.state_dict())
    for key, tensor in encoder.network.state_dict().items():
        if key not in changed:
            assert torch.equal(base[key], tensor), key
    if method == "full":
        assert changed <= set(base)
        assert any(not torch.equal(base[key], encoder.network.state_dict()[key]) for key in changed)
    counted = found.network.head.linear.weight.numel() + 2
    counted += sum(tensor.numel() for key, tensor in own.items() if any(part in key for part in ADDED))
    if method == "full":
        parameters = dict(encoder.network.named_parameters())
        counted += sum(parameters[key].numel() for key in changed if key in parameters)
    assert found.record["trainable"]["parameters"] == counted

    answer = found.predict(data, progress=False)
    found.save(tmp_path / "tuned")
    again = scfm.load(tmp_path / "tuned", base=encoder, device="cpu")
    assert again.predict(data, progress=False).equals(answer)
    assert np.array_equal(again.embed(data, progress=False), trained)
    if method not in ("head", "full", "lora"):
        with pytest.raises(CapabilityError, match="cannot be merged"):
            found.merge()
        return
    merged = found.merge()
    assert type(merged) is type(encoder)
    np.testing.assert_allclose(merged.embed(data, progress=False), trained, atol=1e-4 * np.abs(trained).max())


@pytest.mark.parametrize(
    "objective", ["masked", *(pytest.param(o, marks=pytest.mark.slow) for o in ("contrastive", "integration"))]
)
@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_objectives_without_labels_train_any_network(name, objective, tmp_path):
    encoder, data = labelled(name)
    method = scfm.Full() if name in LINEAR_MAPS else METHODS["lora"]
    run = {"valid": None, "epochs": 1, "warmup": 0.0, "batch_size": 4, "learning_rate": 0.01, "progress": False}
    apart = name in LINEAR_MAPS or encoder.card.family == "student"
    if apart and objective != "contrastive":
        with pytest.raises(CapabilityError, match="do not see each other"):
            scfm.finetune(encoder, data, OBJECTIVES[objective], method=method, **run)
        return
    before = fingerprint_of(encoder.network)
    found = scfm.finetune(encoder, data, OBJECTIVES[objective], method=method, **run)
    assert fingerprint_of(encoder.network) == before, "the caller's encoder was changed"
    trained = found.embed(data, progress=False)
    assert np.isfinite(trained).all()
    assert np.abs(trained - encoder.embed(data, progress=False)).max() > 1e-6

    own = found.network.base.state_dict()
    kept = {key.replace(".base_layer", ""): tensor for key, tensor in own.items() if ".lora_" not in key}
    for key, tensor in encoder.network.state_dict().items():  # frozen weights are bit-identical
        if key not in found.record["changed"]:
            assert torch.equal(kept[key], tensor), key
    with pytest.raises(CapabilityError, match="predicts nothing"):
        found.predict(data)
    found.save(tmp_path / "tuned")
    again = scfm.load(tmp_path / "tuned", base=encoder, device="cpu")
    assert np.array_equal(again.embed(data, progress=False), trained)
    merged = found.merge()
    np.testing.assert_allclose(merged.embed(data, progress=False), trained, atol=1e-4 * np.abs(trained).max())


@pytest.mark.parametrize("name", [name for name in ONE_A_FAMILY if name not in LINEAR_MAPS])
def test_predictions_do_not_depend_on_padding_or_batch_mates(name):
    encoder, data = labelled(name)
    if encoder.tokenizer.grouped:
        pytest.skip("cells see each other")
    found = tuned(name, "lora")
    together = found.predict(data, batch_size=data.n_obs, progress=False)["p_a"]
    alone = found.predict(data, batch_size=1, progress=False)["p_a"]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.fixture(autouse=True)
def _licences():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        yield


# Responses

NO_GENE_TOKENS = {
    "pca": "not built of attention layers",
    "lsi": "not built of attention layers",
    "scplantformer": "stand for no genes",
    "cellmemory": "not built of attention layers",
    "student": "not built of attention layers",
    "cellpatch": "not built of attention layers",  # its states of genes stand before the layers
    "cellplm": "not built of attention layers",
    "sc_mamba2": "not built of attention layers",
}


SAID_OF_ALL = {
    "nicheformer": {"species": "human", "assay": "10x 3' v3", "modality": "dissociated"},
    "transcriptformer": {"aux_columns": (None,)},
}
"""Options instead of columns of obs, which a sum of cells has none of."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name.startswith(QUICK) else [pytest.mark.slow]) for name in ONE_A_FAMILY],
)
def test_a_drug_reaches_every_network_of_attention_layers(name, tmp_path):
    pytest.importorskip("rdkit")
    from scfm.perturbation import drug_screen

    encoder, data = labelled(name)
    encoder = encoder.with_options(**SAID_OF_ALL.get(encoder.card.family, {}))
    cells = data.copy()
    count = cells.n_obs // 2 * 2
    cells = cells[:count].copy()
    half = np.arange(count) % 2 == 0
    cells.obs["drug"] = np.where(half, "control", np.where(np.arange(count) % 4 == 1, "one", "two"))
    cells.obs["smiles"] = np.where(cells.obs["drug"] == "one", "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C")
    cells.obs["cell_line"] = "x"
    if encoder.card.input.values != "counts":
        pytest.skip("reads no counts")
    screen = drug_screen(cells, dose=None)

    def run() -> scfm.FineTuned:
        options = {"valid": None, "epochs": 2, "warmup": 0.0, "batch_size": 1, "learning_rate": 0.02, "progress": False}
        objective = scfm.DrugResponse(screen, molecules=scfm.molecules.Morgan(size=64))
        return scfm.finetune(encoder, screen.examples(), objective, method="drug_conditional", **options)

    if encoder.card.family in NO_GENE_TOKENS:
        with pytest.raises(CapabilityError, match=NO_GENE_TOKENS[encoder.card.family]):
            run()
        return
    before = fingerprint_of(encoder.network)
    found = run()
    assert fingerprint_of(encoder.network) == before
    own = found.network.base.state_dict()
    for key, tensor in encoder.network.state_dict().items():
        assert torch.equal(own[key], tensor), key
    added = sum(tensor.numel() for key, tensor in own.items() if key not in encoder.network.state_dict())
    head = sum(p.numel() for p in found.network.head.parameters())
    assert found.record["trainable"]["parameters"] == added + head
    untreated = cells[half].copy()
    answer = found.predict_response(untreated, ["one", "two", "CCO"]).layers["predicted"]
    assert np.abs(answer[0] - answer[1]).max() > 1e-6
    assert np.abs(answer[0] - answer[2]).max() > 1e-6
    found.save(tmp_path)
    again = scfm.load(tmp_path, base=encoder, device="cpu")
    repeated = again.predict_response(untreated, ["one", "two", "CCO"]).layers["predicted"]
    np.testing.assert_array_equal(repeated, answer)
