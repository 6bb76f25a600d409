"""Effects of in silico perturbations, on networks small enough to compute them by hand."""

from contextlib import closing
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scfm
import scfm.data
from scfm.cells import Block
from scfm.errors import CapabilityError
from scfm.in_silico import Change, changed_cells, effects_of, expressed_changes, genes_in, level_of
from scfm.in_silico.changes import CHANGE, ChangedTokenizer
from scfm.reading import InputWarning, read

PARITY = Path(__file__).parents[2] / "parity"


@pytest.fixture(scope="module")
def ranks():
    data = ad.read_h5ad(PARITY / "geneformer_v2" / "input.h5ad")
    return scfm.load(PARITY / "geneformer_v2" / "checkpoint"), data[data.obs.n_counts > 0].copy()


@pytest.fixture(scope="module")
def bins():
    data = ad.read_h5ad(PARITY / "scgpt" / "input.h5ad")
    return scfm.load(PARITY / "scgpt" / "checkpoint"), data[3:13].copy()


def opened(encoder, data):
    column = "ensembl_id" if "ensembl_id" in data.var else "feature_name"
    return read(encoder, data, gene_column=column)


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_effects_are_those_of_changed_data(bins):
    """The same numbers as embedding an AnnData in which the gene is 0."""
    encoder, data = bins
    encoder = encoder.with_options(ties="highest")  # nothing drawn
    reading = opened(encoder, data)
    row, gene, _ = genes_in(encoder, reading, np.arange(10), level="values")
    target = int(np.bincount(gene).argmax())
    cells, number = changed_cells([Change((target,))], np.arange(10), row, gene, len(encoder.vocabulary))
    found = effects_of(encoder, reading, [Change((target,))], (cells, number), progress=False)
    silent = data[cells].copy()
    dense = silent.X.toarray()
    dense[:, reading.parts[0].alignment.tokens == target] = 0
    silent.X = dense
    before = encoder.embed(data[cells].copy(), gene_column="feature_name", progress=False)
    after = encoder.embed(silent, gene_column="feature_name", progress=False)
    np.testing.assert_allclose(found.cosine, cosine(before, after), atol=1e-6)
    assert (found.cosine < 1 - 1e-6).any()
    assert np.isnan(found.gene_cosine).all()


def test_a_perturbed_cell_has_the_draws_of_its_original():
    """Else what a perturbation does drowns in other bins of ties, and in other genes of cells that are cut."""
    encoder = scfm.load("mini", device="cpu").with_options(context=200)
    data = scfm.data.pbmc_demo()[:3].copy()
    with closing(read(encoder, data)) as reading:
        (part,) = reading.parts
        _, gene, _ = genes_in(encoder, reading, np.arange(3), level="values")
        lacking = np.setdiff1d(encoder.vocabulary.genes, gene)[:1]  # no cell has it: nothing is changed
        block = Block(part.source.take(slice(0, 3)), part.alignment, data.obs.iloc[:, :0].assign(**{CHANGE: [0, 0, 0]}))
        target = int(np.bincount(gene).argmax())  # all cells have it
        plain, same, without = (
            ChangedTokenizer(encoder.tokenizer, (Change((int(g),)),), "values").tokenize(block)
            for g in (lacking[0], lacking[0], target)
        )
    np.testing.assert_array_equal(plain.fields["ids"], same.fields["ids"])
    np.testing.assert_array_equal(plain.fields["ids"], encoder.tokenizer.tokenize(block).fields["ids"])
    for before, after in zip(plain, without, strict=True):
        kept = np.isin(before["ids"], after["ids"])
        assert (~kept).sum() <= 1  # the gene itself, if it was drawn
        assert np.mean(before["values"][kept] == after["values"][np.isin(after["ids"], before["ids"])]) > 0.9


def test_other_draws_are_told(monkeypatch):
    encoder = scfm.load("mini", device="cpu").with_options(ties="upstream")
    with (
        closing(read(encoder, scfm.data.pbmc_demo()[:1].copy())) as reading,
        pytest.warns(InputWarning, match="draws tokens at random"),
    ):
        effects_of(encoder, reading, [Change((5,))], (np.array([0]), np.array([0])), progress=False)


def test_no_effect_depends_on_the_block_it_is_in(ranks, monkeypatch):
    encoder, data = ranks
    reading = opened(encoder, data)
    changes, pairs = expressed_changes(encoder, reading, np.arange(4), level="ranks", kind="knock-out", factor=0.0)
    options = dict(gene_states=True, affected=True, level="ranks", progress=False)
    whole = effects_of(encoder, reading, changes, pairs, **options)
    monkeypatch.setattr("scfm.in_silico.effects.BLOCK_ROWS", 7)  # a cell's changes go on in the next block
    parts = effects_of(encoder, reading, changes, pairs, **options)
    np.testing.assert_array_equal(whole.cell, parts.cell)
    np.testing.assert_array_equal(whole.affected[1], parts.affected[1])
    np.testing.assert_allclose(whole.cosine, parts.cosine, atol=1e-6)
    np.testing.assert_allclose(whole.affected[2], parts.affected[2], atol=1e-6)
    assert len(whole.cell) == len(pairs[0])


def test_values_and_ranks_agree_where_no_cell_is_cut(ranks):
    encoder, data = ranks
    reading = opened(encoder, data)
    row, _, _ = genes_in(encoder, reading, np.arange(data.n_obs), level="ranks")
    short = np.flatnonzero(np.bincount(row) < encoder.tokenizer.context - 2)[:5]
    changes, pairs = expressed_changes(encoder, reading, short, level="ranks", kind="knock-out", factor=0.0)
    listed, valued = (
        effects_of(encoder, reading, changes, pairs, level=level, progress=False) for level in ("ranks", "values")
    )
    np.testing.assert_allclose(listed.cosine, valued.cosine, atol=1e-6)
    assert (level_of(encoder, "knock-out"), level_of(encoder, "knock-down")) == ("ranks", "values")


def test_shifts_to_states(ranks):
    encoder, data = ranks
    reading = opened(encoder, data)
    state = np.arange(encoder.dim, dtype=float)
    changes, pairs = expressed_changes(encoder, reading, np.array([5]), level="ranks", kind="knock-out", factor=0.0)
    found = effects_of(encoder, reading, changes, (pairs[0][:1], pairs[1][:1]), states={"goal": state}, level="ranks")
    assert found.shifts["goal"].shape == (1,)
    assert abs(found.shifts["goal"][0]) > 0


def test_data_and_caller_are_left_alone(ranks):
    encoder, data = ranks
    before, columns = data.X.copy(), list(data.obs.columns)
    tokenizer = encoder.tokenizer
    changes, pairs = expressed_changes(
        encoder, opened(encoder, data), np.array([3]), level="ranks", kind="knock-out", factor=0
    )
    effects_of(encoder, opened(encoder, data), changes, pairs, level="ranks")
    assert abs(before - data.X).max() == 0
    assert list(data.obs.columns) == columns
    assert encoder.tokenizer is tokenizer


def test_cells_that_see_each_other_are_refused():
    data = ad.read_h5ad(PARITY / "cellplm" / "input.h5ad")
    encoder = scfm.load(PARITY / "cellplm" / "checkpoint", weights="fixture_gmvae.best.ckpt")
    assert encoder.tokenizer.grouped
    with pytest.raises(CapabilityError, match="cells see each other"):
        effects_of(encoder, _any_reading(encoder, data), [Change((0,))], (np.array([0]), np.array([0])))


def _any_reading(encoder, data):
    for column in [None, *data.var.columns]:
        try:
            return read(encoder, data, gene_column=column)
        except scfm.errors.ScfmError:
            continue
    raise AssertionError("no column fits")
