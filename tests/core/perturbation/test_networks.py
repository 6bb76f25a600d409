"""The trained baselines, on screens whose truth is known."""

from itertools import combinations

import numpy as np
import pytest
import torch

from scfm.errors import InputError
from scfm.perturbation import Profiles, latent_additive, mean_response, simple_affine
from scfm.perturbation.networks import _distinct_responses

GENES = np.array([f"G{i}" for i in range(40)], dtype=object)
PANEL = [str(gene) for gene in GENES[:6]]
PAIRS = [f"{a}+{b}" for a, b in combinations(PANEL, 2)]
HELD_OUT = PAIRS[::3]


@pytest.fixture(scope="module")
def screen():
    """Two contexts; effects that add up, and every perturbed gene falls by 1.5."""
    rng = np.random.default_rng(0)
    effect = {gene: rng.normal(0, 0.5, 40) * (rng.random(40) < 0.4) for gene in PANEL}
    for i, gene in enumerate(PANEL):
        effect[gene][i] = -1.5
    keys, values = [], []
    for context in "kr":
        control = 3 * rng.random(40) + 3.5
        for name in ("ctrl", *PANEL, *PAIRS):
            keys.append((context, name))
            parts = [effect[gene] for gene in name.split("+") if gene != "ctrl"]
            values.append(control + np.sum(parts, axis=0) + rng.normal(0, 0.03, 40))
    return Profiles(GENES, tuple(keys), np.array(values), np.full(len(keys), 50), "ctrl")


@pytest.fixture(scope="module")
def train(screen):
    return screen.select([key for key in screen.perturbed if key[1] not in HELD_OUT])


def keys_of(*conditions):
    return [(context, condition) for context in "kr" for condition in conditions]


def test_latent_additive_learns_effects_that_add_up(screen, train):
    keys = keys_of(*HELD_OUT)
    truth = screen.values[screen.rows(keys)]
    of_mean = ((mean_response(train, keys) - truth) ** 2).mean()
    assert ((latent_additive(train, keys) - truth) ** 2).mean() < 0.4 * of_mean
    untouched = latent_additive(train, keys_of("ctrl+G0")) - train.control_of(keys_of("ctrl"))
    assert (untouched[:, 0] < -1).all()  # the two contexts' own controls, from which the perturbed gene falls


def test_latent_additive_reaches_unseen_genes_through_their_embeddings():
    rng = np.random.default_rng(1)
    names = [f"P{i}" for i in range(40)]
    vectors = {name: rng.normal(size=3) for name in names}
    readout = rng.normal(0, 0.3, (3, 40))
    control = 3 * rng.random(40) + 3
    values = [control, *(control + vectors[name] @ readout for name in names)]
    full = Profiles(GENES, (("", "ctrl"), *(("", n) for n in names)), np.array(values), np.ones(41, int), "ctrl")
    keys = [("", name) for name in names[30:]]
    seen = full.select([("", name) for name in names[:30]])
    truth = full.values[full.rows(keys)]
    of_mean = ((mean_response(seen, keys) - truth) ** 2).mean()
    assert ((latent_additive(seen, keys, perturbed=vectors) - truth) ** 2).mean() < 0.5 * of_mean
    np.testing.assert_array_equal(latent_additive(seen, keys), mean_response(seen, keys))  # one-hot: none was seen
    with pytest.raises(InputError, match="no perturbed gene of the training data has an embedding"):
        latent_additive(seen, keys, perturbed={"Q": np.ones(3)})


def test_a_gene_that_was_not_seen_adds_nothing_to_a_pair(train):
    found = latent_additive(train, [("k", "G0+G30"), ("k", "G0"), ("k", "G30")], steps=20)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], mean_response(train, [("k", "G30")])[0])


def test_simple_affine_learns_what_perturbing_does_to_the_perturbed_gene(screen, train):
    keys = keys_of(*HELD_OUT)
    truth, found, mean = screen.values[screen.rows(keys)], simple_affine(train, keys), mean_response(train, keys)
    own = np.array([np.isin(GENES, condition.split("+")) for _, condition in keys])
    assert np.abs(found - truth)[own].mean() < 0.3 * np.abs(mean - truth)[own].mean()
    assert ((found - truth) ** 2).mean() < ((mean - truth) ** 2).mean()
    # a gene that is never perturbed responds as in the mean to whatever is perturbed
    assert np.abs(found - mean)[:, 6:].mean() < 0.1 * np.abs(truth - mean)[:, 6:].mean()
    np.testing.assert_array_equal(found[0, 6:], found[1, 6:])
    unread = simple_affine(train, keys_of("elsewhere"))
    np.testing.assert_array_equal(unread[:, 6:], found[[0, len(HELD_OUT)], 6:])


def test_simple_affine_extends_the_flag_to_genes_that_were_not_perturbed(screen):
    seen = screen.select([key for key in screen.perturbed if "G5" not in key[1]])
    found = simple_affine(seen, [("k", "G5")])[0, 5] - seen.control_of([("k", "G5")])[0, 5]
    assert found < -0.7  # -1.5 in truth, and its own training mean is near 0


def test_profiles_that_differ_in_nothing_the_network_sees_are_fitted_as_their_mean(train):
    gene, value, flag, target, count = _distinct_responses(train)
    assert count.sum() == len(train.perturbed) * 40
    rows = train.values[train.rows(train.perturbed)]
    own = np.array([np.isin(GENES, condition.split("+")) for _, condition in train.perturbed])
    controls = train.control_of(train.perturbed)

    def difference(scale, shift, at_own):
        whole = ((controls * scale + shift + own * at_own - rows) ** 2).sum()
        return whole - (count * (value * scale + shift[gene] + flag * at_own - target) ** 2).sum()

    rng = np.random.default_rng(2)
    spread = [difference(rng.random(), rng.normal(size=40), rng.normal()) for _ in range(3)]
    np.testing.assert_allclose(spread, spread[0], rtol=1e-3)  # a constant has no gradient


@pytest.mark.parametrize("predict", [latent_additive, simple_affine])
def test_training_is_repeatable_and_leaves_torch_as_it_was(train, predict):
    keys, before, threads = keys_of("G0+G1"), torch.random.get_rng_state(), torch.get_num_threads()
    first = predict(train, keys, steps=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    with torch.no_grad():
        np.testing.assert_array_equal(predict(train, keys, steps=20), first)
    assert np.abs(predict(train, keys, steps=20, seed=1) - first).max() > 1e-4
    assert first.dtype == np.float64
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("predict", [latent_additive, simple_affine])
def test_nothing_to_train_on_is_refused(train, predict):
    with pytest.raises(InputError, match="no perturbed cells to train on"):
        predict(train.select([]), keys_of("G0"))


def test_a_flag_that_is_never_seen_is_refused(train):
    elsewhere = Profiles(
        np.array([f"x{i}" for i in range(40)], dtype=object), train.keys, train.values, train.cells, "ctrl"
    )
    with pytest.raises(InputError, match="no perturbed gene of the training data is among its genes"):
        simple_affine(elsewhere, keys_of("G0"))
