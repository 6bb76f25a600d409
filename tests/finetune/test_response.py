"""Responses to drugs and to perturbed genes, by encoders that were fine-tuned for them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scfm
from scfm.adaptation import adapt
from scfm.adapters.geneformer.network import GeneformerConfig, GeneformerNetwork
from scfm.adapters.scgpt.network import ScGPTConfig, ScGPTNetwork
from scfm.data.drugs import drug_demo
from scfm.encoder import Request
from scfm.errors import CapabilityError, InputError
from scfm.perturbation import drug_screen, gene_screen, mean_effect, predict_keys, score_responses, unseen_drugs
from scfm.perturbation.response import ResponsePredictor
from scfm.tokenizers import Batch

pytest.importorskip("rdkit")
QUICK = {"progress": False, "patience": None, "batch_size": 12}
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(scope="module")
def encoder():
    return scfm.load("mini", device="cpu").with_options(context=64)


@pytest.fixture(scope="module")
def cells():
    return drug_demo(genes=40, cells=4)


@pytest.fixture(scope="module")
def screen(cells):
    return drug_screen(cells)


@pytest.fixture(scope="module")
def split(screen):
    return unseen_drugs(screen, drugs=["dexamethasone", "naproxen"])


@pytest.fixture(scope="module")
def tuned(encoder, screen, split):
    return scfm.finetune(
        encoder,
        screen.examples(split.train),
        scfm.DrugResponse(screen, molecules=scfm.molecules.Morgan(size=256)),
        method="drug_conditional",
        valid=screen.examples(split.valid),
        epochs=14,
        learning_rate=5e-3,
        **{**QUICK, "batch_size": 6},
    )


def controls(cells):
    return cells[(cells.obs["drug"] == "control").to_numpy()].copy()


def test_unseen_drugs_of_known_families_are_predicted(tuned, screen, split):
    """The data are generated so that similar molecules act alike: structure must be of use."""
    assert isinstance(tuned, ResponsePredictor)
    table = score_responses(screen, [*split.train, *split.valid], split.test, {"mini": tuned}).table
    assert table.loc["mini", "r2_delta"] > table["r2_delta"].drop("mini").max() + 0.1


def test_drug_dose_and_context_matter_and_the_control_is_not_echoed(tuned, cells):
    names = ["vorinostat 100 nM", "vorinostat 1000 nM", f"{ASPIRIN} 1000 nM", "vorinostat"]
    before = cells.obs.copy()
    found = tuned.predict_response(controls(cells), names)
    pd.testing.assert_frame_equal(cells.obs, before)
    assert found.obs["condition"].tolist() == names * 3
    assert found.obs["smiles"].tolist()[2] == ASPIRIN
    assert found.uns["scfm_response"]["values"] == "lognorm"
    profiles = found.layers["predicted"].reshape(3, 4, -1)
    assert np.abs(found.layers["predicted"] - found.layers["control"]).max() > 0.1
    for one in range(4):
        for other in range(one):
            assert np.abs(profiles[:, one] - profiles[:, other]).max() > 1e-3, (names[one], names[other])
    change = (found.layers["predicted"] - found.layers["control"]).reshape(3, 4, -1)
    assert np.abs(change[0] - change[1]).max() > 1e-3


def test_a_new_cell_line_needs_its_control_only(tuned, cells):
    new = controls(cells)
    new.obs["cell_line"] = "HeLa"
    assert tuned.predict_response(new, ["vorinostat 100 nM"]).obs["cell_line"].tolist() == ["HeLa"]


def test_responses_are_the_same_after_loading_and_in_any_company(tuned, cells, encoder, tmp_path):
    tuned.save(tmp_path)
    again = scfm.load(tmp_path, base=encoder, device="cpu")
    names = ["vorinostat 100 nM", f"{ASPIRIN} 1000 nM"]
    found = tuned.predict_response(controls(cells), names).layers["predicted"]
    np.testing.assert_array_equal(again.predict_response(controls(cells), names).layers["predicted"], found)
    alone = again.predict_response(controls(cells), names[1:], batch_size=1).layers["predicted"]
    np.testing.assert_allclose(alone, found[1::2], atol=1e-5)


def test_cells_without_a_drug_are_embedded_by_the_plain_model(tuned, encoder, cells):
    np.testing.assert_array_equal(tuned.embed(cells[:6], progress=False), encoder.embed(cells[:6], progress=False))
    with pytest.raises(CapabilityError, match="predicts nothing"):
        tuned.predict(cells[:6])
    with pytest.raises(CapabilityError, match="cannot be merged"):
        tuned.merge()


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["aspirin 100 nM"], None, "'aspirin': no drug of training, and read as SMILES not usable"),
        ("vorinostat", None, "must be a list"),
        (["vorinostat"], lambda c: c[:, 1:], "the control has no"),
        (["vorinostat"], lambda c: c[:0], "there are no control cells"),
        (["vorinostat"], lambda c: AnnData(c.X, c.obs[["drug"]], c.var), "cell_line"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(tuned, cells, names, change, message):
    data = controls(cells)
    data = data if change is None else change(data).copy()
    with pytest.raises(InputError, match=message):
        tuned.predict_response(data, names)


def test_a_method_that_does_not_see_the_drug_is_refused(encoder, screen, cells):
    with pytest.raises(InputError, match="reaches nothing"):
        scfm.finetune(encoder, screen.examples(), scfm.DrugResponse(screen), method="lora", **QUICK)
    with pytest.raises(CapabilityError, match="leaves the network as it is"):
        scfm.finetune(encoder, screen.examples(), scfm.DrugResponse(screen), method="head", **QUICK)
    odd = scfm.finetune(encoder, controls(cells)[:20], "cell_line", method="head", epochs=1, progress=False)
    with pytest.raises(CapabilityError, match="predicts no response"):
        odd.predict_response(controls(cells), ["vorinostat"])


@pytest.mark.slow
@pytest.mark.parametrize("method", [scfm.LoRA(rank=4), "encoder_adapter", scfm.DrugConditional(mode="film")])
def test_other_methods_learn_too(encoder, screen, method):
    """The drugs trained on; whether structure helps is not asked."""
    objective = scfm.DrugResponse(screen, molecules=scfm.molecules.Morgan(size=256), interaction=8)
    run = {"method": method, "valid": None, "epochs": 10, "learning_rate": 5e-3, **QUICK}
    keys = [key for key in screen.keys if "vorinostat" in key[1] or "hydrocortisone" in key[1]]
    found = scfm.finetune(encoder, screen.examples(keys), objective, **run)
    truth = screen.profiles.values[screen.profiles.rows(keys)]
    error = ((predict_keys(found, screen, keys) - truth) ** 2).mean()
    assert error < 0.7 * ((screen.profiles.control_of(keys) - truth) ** 2).mean()


# The share that is trained


def _share(network, batch, molecule: int) -> tuple[int, float]:
    cells = {"molecule": torch.zeros(1, molecule, device="meta"), "setting": torch.zeros(1, 4, device="meta")}
    probe = Batch(batch, cells, None)
    adapted = adapt(network, scfm.DrugConditional(), probe, name="x", request=Request(frozenset({"tokens"})))
    assert set(adapted.rates) == {key for key, p in network.named_parameters() if p.requires_grad}
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return trained, trained / sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("molecule", "expected"), [(384, 455_488), (600, 469_312), (768, 480_064), (1024, 496_448)])
def test_less_than_one_percent_of_scgpt_is_trained(molecule, expected):
    """12 layers x 2 adapters x (512*16 + 16 + 16*512 + 512 + 64*16 + 16), and m*64 + 64 for what all of them share.

    Dose and time come on top."""
    with torch.device("meta"):
        network = ScGPTNetwork(ScGPTConfig(genes=60_697))
        batch = {"ids": torch.zeros(1, 3, dtype=torch.long), "values": torch.zeros(1, 3)}
        trained, share = _share(network, batch, molecule)
    assert expected == 24 * (512 * 16 + 16 + 16 * 512 + 512 + 64 * 16 + 16) + molecule * 64 + 64
    assert trained == expected + 4 * 64  # dose and time
    assert (trained + 513) / (trained / share) < 0.01  # with the head


@pytest.mark.parametrize(("dim", "layers", "heads", "hidden"), [(768, 12, 12, 3072), (1152, 18, 18, 4608)])
def test_less_than_one_percent_of_geneformer_v2_is_trained(dim, layers, heads, hidden):
    with torch.device("meta"):
        sizes = {"dim": dim, "layers": layers, "heads": heads, "hidden": hidden}
        network = GeneformerNetwork(GeneformerConfig(tokens=20_275, context=4096, cls=2, eos=3, **sizes))
        _, share = _share(network, {"ids": torch.zeros(1, 3, dtype=torch.long)}, 1024)
    assert share < 0.01


# Genes


@pytest.fixture(scope="module")
def perturbed(cells):
    """Generated: control cells, and cells in which a gene and its neighbours in the table are raised."""
    from scipy import sparse

    rng = np.random.default_rng(0)
    mean = np.asarray(controls(cells).X.mean(axis=0)).ravel() + 0.1
    genes = list(cells.var_names)
    names, counts = [], []
    for i in [None, *range(8)]:
        change = np.ones(len(genes))
        if i is not None:
            change[i : i + 6] = 3
        counts.append(rng.poisson(mean * change, (6, len(genes))))
        names += ["ctrl" if i is None else genes[i]] * 6
    obs = pd.DataFrame({"condition": names}, index=[f"c{i}" for i in range(len(names))])
    matrix = sparse.csr_matrix(np.concatenate(counts).astype(np.float32))
    return AnnData(matrix, obs=obs, var=cells.var[[]])


@pytest.mark.parametrize("loss", ["mse", "gears"])
def test_perturbed_genes_change_what_is_predicted(encoder, perturbed, loss, tmp_path):
    screen = gene_screen(perturbed, target_sum=1e4)
    genes = list(screen.profiles.genes)
    run = {"method": scfm.LoRA(rank=4), "valid": None, "epochs": 10, "learning_rate": 5e-3, **QUICK}
    found = scfm.finetune(encoder, screen.examples(), scfm.GeneResponse(screen, loss=loss), **run)
    answer = found.predict_response(perturbed[:6], [genes[0], genes[7], f"{genes[0]}+{genes[7]}"])
    one, two, both = answer.layers["predicted"]
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(both - one).max() > 1e-3
    found.save(tmp_path)
    again = scfm.load(tmp_path, base=encoder, device="cpu")
    repeated = again.predict_response(perturbed[:6], [genes[0]]).layers["predicted"][0]
    np.testing.assert_allclose(repeated, one, atol=1e-5)
    with pytest.raises(InputError, match="nothere"):
        found.predict_response(perturbed[:6], ["nothere"])


GENERATOR = {"bins": None, "cls_value": None, "zeros": True, "log1p": True, "target_sum": 1e4}
"""How scGPT's perturbation generator reads cells: every gene with its log expression."""


@pytest.mark.slow
def test_a_perturbation_generator_reads_flags(perturbed):
    """scGPT's own way: flags at the perturbed genes' tokens, and its decoder gives the expression itself."""
    folder = Path(__file__).parents[1] / "parity" / "scgpt" / "checkpoint_perturbation"
    generator = scfm.load(folder, device="cpu").with_options(**GENERATOR)
    names = [token for token in generator.vocabulary.tokens if token.isalnum()][: perturbed.n_vars]
    data = perturbed.copy()
    renamed = dict(zip(data.var_names, names, strict=True))
    data.var_names = names
    data.obs["condition"] = [renamed.get(name, "ctrl") for name in data.obs["condition"]]
    screen = gene_screen(data, target_sum=1e4)
    objective = scfm.GeneResponse(screen, interaction=0)
    run = {"method": "full", "valid": None, "epochs": 40, "learning_rate": 3e-3, **QUICK, "batch_size": 3}
    found = scfm.finetune(generator, screen.examples(), objective, **run)
    changed = set(found.record["changed"])
    assert {"flags.weight", "decoder.coeff.layers.0.weight"} & changed
    one, two = found.predict_response(data[:6], [names[0], names[7]]).layers["predicted"]
    assert np.abs(one - two).max() > 1e-4
    keys = list(screen.keys)
    truth = screen.profiles.values[screen.profiles.rows(keys)]
    error = ((predict_keys(found, screen, keys) - truth) ** 2).mean()
    assert error < ((screen.profiles.control_of(keys) - truth) ** 2).mean()

    # the same numbers as the authors' own call
    sums = np.asarray(data.X[:6].sum(axis=0)).ravel()
    values = np.log1p(1e4 * sums / sums.sum()).astype(np.float32)[None]
    tokens = generator.vocabulary.lookup(names)
    flags = np.array([[name == names[0] for name in names]], dtype=np.int64)
    by_hand = found.base.predict_perturbation(values, flags, tokens)
    np.testing.assert_allclose(by_hand[0], one, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*counts together:scfm.reading.InputWarning")
def test_the_evaluation_task_asks_for_unseen_drugs_by_their_smiles(tuned, cells, split):
    """The drugs of the test side are named by SMILES: what the task passes on is all the model gets."""
    from scfm.perturbation import condition_name, hold_out_conditions
    from scfm.tasks.perturbation_evaluation import evaluate_perturbation

    data = cells.copy()
    new = data.obs["drug"].isin(["dexamethasone", "naproxen"])
    names = data.obs["smiles"].where(new, data.obs["drug"])
    data.obs["condition"] = [
        name if name == "control" else condition_name(name, dose)
        for name, dose in zip(names, data.obs["dose"], strict=True)
    ]
    data = data[data.obs["dose"].isna() | (data.obs["dose"] == 1000)].copy()
    conditions = sorted(set(data.obs["condition"]))
    test = sorted(set(data.obs["condition"][data.obs["drug"].isin(["dexamethasone", "naproxen"])]))
    chosen = hold_out_conditions(conditions, test, control="control")
    result = evaluate_perturbation(data, chosen, [tuned], context="cell_line", halves=1, resamples=20)
    assert tuned.name in set(result.table.predictor)
    wide = result.wide()
    assert wide.loc[tuned.name, "r2_delta"] > wide.loc["no change", "r2_delta"]


def test_whole_drugs_can_be_held_out_by_the_call_itself(encoder, screen):
    objective = scfm.DrugResponse(screen, molecules=scfm.molecules.Morgan(size=64))
    run = {"method": "drug_conditional", "valid": 0.3, "groups": "drug", "epochs": 1, **QUICK}
    found = scfm.finetune(encoder, screen.examples(), objective, **run)
    drug = screen.examples().obs["drug"]
    assert found.split.valid
    assert not set(drug[list(found.split.train)]) & set(drug[list(found.split.valid)])
    assert set(found.metrics) >= {"valid_mse", "valid_r2_delta"}


def test_predictions_can_start_from_the_mean_effect(encoder, screen, split, tmp_path):
    """Before training has changed anything to speak of, the prediction is the baseline's; held-out conditions are no part of it."""
    objective = scfm.DrugResponse(screen, molecules=scfm.molecules.Morgan(size=64), offset="mean")
    run = {"method": "drug_conditional", "valid": screen.examples(split.valid), "epochs": 1, "learning_rate": 1e-9}
    found = scfm.finetune(encoder, screen.examples(split.train), objective, **run, **QUICK)
    expected = mean_effect(screen.profiles.select(split.train), split.test)
    np.testing.assert_allclose(predict_keys(found, screen, split.test), expected, atol=1e-4)
    found.save(tmp_path)
    again = scfm.load(tmp_path, base=encoder, device="cpu")
    np.testing.assert_allclose(predict_keys(again, screen, split.test), expected, atol=1e-4)
