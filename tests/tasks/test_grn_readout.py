"""Relations read from attention: the tutorial's recorded numbers, independent computations, and what is refused."""

import weakref
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scfm
from scfm.data import pbmc_demo
from scfm.errors import CapabilityError, InputError
from scfm.grn import readout
from scfm.grn.readout import Labels, rank_normalised, read_out
from scfm.reading import read

PARITY = Path(__file__).parents[1] / "parity"
TIE_FREE = {"gene_column": "feature_name", "layer": "tie_free", "values": "any"}


@pytest.fixture(scope="module")
def encoder():
    return scfm.load("mini", device="cpu").with_options(context=64)


@pytest.fixture(scope="module")
def cells():
    return pbmc_demo()[:24].copy()


def tokens_of(encoder, cells, n=60):
    """Those of the genes expressed in most cells."""
    share = np.asarray((cells.X > 0).mean(axis=0)).reshape(-1)
    names = cells.var_names[np.argsort(-share)]
    found = encoder.vocabulary.lookup(names)
    return found[found >= 0][:n]


def run(encoder, cells, recipe, tokens, labels=None, **options):
    labels = labels or Labels(np.zeros(cells.n_obs, np.int64))
    return read_out(encoder, read(encoder, cells), recipe, tokens, labels, progress=False, **options)


def test_ranks_are_those_of_the_tutorial():
    """Recorded from the tutorial's recipe. Near-ties of q·k swap ranks, which may move one element past a tied column: 1 of 44,402."""
    expected = np.load(PARITY / "scgpt" / "expected.npz")
    encoder = scfm.load(PARITY / "scgpt" / "checkpoint", device="cpu")
    encoder = encoder.with_options(**encoder.FINE_TUNING, zeros=True)
    ids = expected["grn/input_ids"][1:]  # without <cls>
    once = np.isin(ids, [i for i in ids if (ids == i).sum() == 1])  # a symbol that is repeated has two tokens
    tokens = ids[once].astype(np.int64)
    data = ad.read_h5ad(PARITY / "scgpt" / "input.h5ad")[expected["grn/cells"]]
    labels = np.repeat([0, 1], 4)
    found = read_out(
        encoder, read(encoder, data, **TIE_FREE), "attention_rank", tokens, Labels(labels), progress=False
    ).relations
    for ours, name in zip(found, ("mean_ctrl", "mean_pert"), strict=True):
        difference = np.abs(ours - expected[f"grn/{name}"][1:, 1:][np.ix_(once, once)])
        assert difference.mean() <= 1e-4
        assert (difference > 1e-2).sum() <= 1
    # the tutorial's slip: the first control cell is not added, but counted
    rest = read_out(
        encoder,
        read(encoder, data[1:4], **TIE_FREE),
        "attention_rank",
        tokens,
        Labels(np.zeros(3, np.int64)),
        progress=False,
    ).relations[0]
    slipped = expected["grn/upstream_sum_ctrl_over_n"][1:, 1:][np.ix_(once, once)]
    assert np.abs(rest * 3 / 4 - slipped).mean() <= 1e-4
    assert np.abs(found[0] - slipped).mean() > 0.05


def test_ranks_by_hand():
    scores = np.array([[[3.0, 1.0, 2.0], [5.0, 6.0, 4.0], [9.0, 8.0, 7.0]]])
    rows = np.array([[2, 0, 1], [1, 2, 0], [2, 1, 0]])
    columns = np.array([[1, 0, 2], [0, 2, 0], [2, 1, 1]])  # stable: of equal ranks the upper one is lower
    np.testing.assert_array_equal(rows, scores[0].argsort(axis=1).argsort(axis=1))
    np.testing.assert_allclose(rank_normalised(scores)[0], columns / 3, atol=1e-7)


def test_the_mean_is_that_of_single_cells(encoder, cells):
    tokens = tokens_of(encoder, cells)
    ours = run(encoder, cells, "attention", tokens).relations[0]
    names = [encoder.vocabulary.tokens[i] for i in tokens]
    sums, met = pd.DataFrame(0.0, names, names), pd.DataFrame(0, names, names)
    for cell in encoder.attention(cells, reduce="none", progress=False):
        own = pd.DataFrame(cell.weights.mean(axis=(0, 1)), cell.genes, cell.genes).reindex(index=names, columns=names)
        sums, met = sums + own.fillna(0), met + own.notna()
    expected = (sums / met.where(met > 0)).to_numpy()
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    whole = encoder.attention(cells, progress=False).reindex(index=names, columns=names)
    np.testing.assert_allclose(whole, expected, atol=1e-6)


def test_no_more_maps_than_threads_are_held(encoder, cells, monkeypatch):
    """Not those of a block of cells, which would not fit."""
    maps, most = [], 0
    forward = type(encoder.network).forward

    def watched(network, *arguments):
        nonlocal most
        encoded = forward(network, *arguments)
        maps.extend(weakref.ref(weights) for weights in encoded.attention.values())
        most = max(most, sum(ref() is not None for ref in maps))
        return encoded

    monkeypatch.setattr(type(encoder.network), "forward", watched)
    long = encoder.with_options(context=1024)  # hardly any two cells in a batch
    threads = torch.get_num_threads()
    for read_maps in (
        lambda: run(long, cells, "attention", tokens_of(encoder, cells, 10)),
        lambda: long.attention(cells, progress=False),
    ):
        maps.clear()
        read_maps()
        assert len(maps) > 3 * 12  # three layers a batch
    assert most <= 2 * 3 * threads


def test_averaged_queries_and_keys_by_another_way(encoder, cells):
    encoder, cells = encoder.with_options(context=600), cells[:8]
    tokens = tokens_of(encoder, cells, 30)
    ours = run(encoder, cells, "attention_qk", tokens, layers=[1]).relations[0]
    layer = encoder.network.layers[1]
    sums = {token: [] for token in tokens.tolist()}
    batches = encoder.encode(cells, outputs=("tokens",), hidden_layer=1, progress=False)
    for _, found, encoded in batches:
        for row in range(len(found)):
            ids = found.cell(row)["ids"]
            with torch.inference_mode():
                x = layer.norm1(encoded.tokens[row, : len(ids)])
                pair = torch.stack([layer.attention.q(x), layer.attention.k(x)], dim=1).numpy()  # (t, 2, dim)
            for token, values in zip(ids.tolist(), pair, strict=True):
                if token in sums:
                    sums[token].append(values)
    q, k = np.stack([np.mean(values, axis=0) for values in sums.values()]).astype(np.float64).transpose(1, 0, 2)
    expected = np.zeros((30, 30))
    for head in np.split(np.arange(q.shape[1]), 4):
        scores = np.exp(q[:, head] @ k[:, head].T / np.sqrt(len(head)))
        expected += scores / scores.sum(axis=1, keepdims=True) / 4
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    np.testing.assert_allclose(ours.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("recipe", readout.RECIPES)
def test_classes_of_one_pass_are_passes_of_their_own(encoder, cells, recipe):
    tokens = tokens_of(encoder, cells, 20)
    classes = np.arange(cells.n_obs) % 2
    together = run(encoder, cells, recipe, tokens, Labels(classes)).relations
    for c in (0, 1):
        np.testing.assert_allclose(
            together[c], run(encoder, cells[classes == c], recipe, tokens).relations[0], atol=1e-6
        )


@pytest.mark.parametrize("recipe", readout.RECIPES)
def test_shuffles_that_change_nothing_give_the_observed_difference(encoder, cells, recipe):
    tokens, regulators = tokens_of(encoder, cells, 20), np.array([3, 7, 11])
    classes = np.arange(cells.n_obs) % 2
    shuffled = np.stack([classes == 1, classes == 0])
    found = run(encoder, cells, recipe, tokens, Labels(classes, shuffled, regulators))
    change = found.relations[1] - found.relations[0]
    for sign, null in zip((1, -1), found.shuffled, strict=True):
        np.testing.assert_allclose(null[0], sign * change.T[regulators], atol=2e-6)  # the regulator is the key
        np.testing.assert_allclose(null[1], sign * change[regulators], atol=2e-6)  # the regulator is the query


def test_nothing_is_left_on_the_network(encoder, cells):
    run(encoder, cells[:4], "attention_qk", tokens_of(encoder, cells, 5))
    assert not any(module._forward_hooks for module in encoder.network.modules())


@pytest.mark.parametrize(
    ("folder", "works"),
    [
        ("aido_cell/checkpoint", True),
        ("geneformer_v2/checkpoint", True),
        ("langcell/checkpoint", True),
        ("nicheformer/checkpoint", True),
        ("scfoundation/checkpoint", True),
        ("scplantllm/checkpoint", True),
        ("scbert/checkpoint", False),  # kernel
        ("scmulan/checkpoint", False),  # causal
        ("transcriptformer/checkpoint", False),  # causal, with a bias
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_which_models_have_queries_and_keys(folder, works):
    from scfm.testing.example import example_data

    encoder = scfm.load(PARITY / folder, device="cpu")
    cells = example_data(encoder, 4)
    tokens = encoder.vocabulary.genes[:40]
    assert np.isfinite(run(encoder, cells, "attention", tokens).relations).any()
    for recipe in ("attention_rank", "attention_qk"):
        if works:
            assert np.isfinite(run(encoder, cells, recipe, tokens).relations).any()
        else:
            with pytest.raises(CapabilityError, match="not the softmax of queries and keys"):
                run(encoder, cells, recipe, tokens)


def test_sums_that_would_not_fit_and_layers_that_do_not_exist_are_refused(encoder, cells, monkeypatch):
    tokens = tokens_of(encoder, cells, 20)
    with pytest.raises(InputError, match=r"layers=3 do not exist; mini has layers 0 to 2"):
        run(encoder, cells, "attention", tokens, layers=[3])
    monkeypatch.setattr(readout, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="Pass fewer genes"):
        run(encoder, cells, "attention", tokens)
