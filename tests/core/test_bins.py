"""Bins against an independent implementation of the authors' description: one cell at a time, with np.quantile and np.digitize."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary, align
from scfm.tokenizers import BinTokenizer
from scfm.tokenizers.bins import bin_ranges

GENES = 30
VOCABULARY = Vocabulary(
    ("<pad>", "<cls>", *(f"G{i}" for i in range(GENES))), ids="symbol", special={"pad": "<pad>", "cls": "<cls>"}
)


def reference_ranges(x: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest bin of the non-zero values of a cell."""
    edges = np.quantile(x, np.linspace(0, 1, n_bins - 1))
    return np.digitize(x, edges, right=True), np.digitize(x, edges)


def block(counts: np.ndarray, columns: np.ndarray | None = None, **obs) -> Block:
    """Cells x genes whose columns are the tokens `columns` (-1: unknown); by default all genes in order."""
    tokens = np.arange(counts.shape[1]) + 2 if columns is None else columns
    names = np.array([VOCABULARY.tokens[token] if token >= 0 else "unknown" for token in tokens], dtype=object)
    alignment = align(pd.DataFrame(index=names), VOCABULARY, model="toy")
    return Block(sparse.csr_matrix(counts), alignment, pd.DataFrame(obs, index=range(len(counts))))


def random_counts(n_cells=12, seed=0, high=6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(1, high, (n_cells, GENES)) * (rng.random((n_cells, GENES)) < 0.6)).astype(np.float32)


def ragged(rows: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([v for row in rows for v in row], np.float32), np.cumsum([0, *map(len, rows)])


cells_of_counts = st.lists(st.lists(st.integers(1, 300), max_size=25), min_size=1, max_size=6)
cells_of_values = st.lists(st.lists(st.floats(0.015625, 50, width=32), max_size=25), min_size=1, max_size=6)


# Ranges of bins


@settings(max_examples=150, deadline=None)
@given(rows=cells_of_counts, n_bins=st.sampled_from([3, 7, 51]))
def test_ranges_of_counts_equal_quantile_and_digitize(rows, n_bins):
    compare_with_reference(rows, n_bins)


@settings(max_examples=150, deadline=None)
@given(rows=cells_of_values, n_bins=st.sampled_from([3, 7, 51]))
def test_ranges_of_values_equal_quantile_and_digitize(rows, n_bins):
    compare_with_reference(rows, n_bins)


def compare_with_reference(rows: list[list[float]], n_bins: int) -> None:
    values, offsets = ragged(rows)
    top, ties = bin_ranges(values, offsets, n_bins)
    for begin, end in itertools.pairwise(offsets):
        if begin < end:
            low, high = reference_ranges(values[begin:end], n_bins)
            np.testing.assert_array_equal(top[begin:end], high)
            np.testing.assert_array_equal(ties[begin:end], high - low)


@settings(max_examples=100, deadline=None)
@given(rows=cells_of_counts, other=cells_of_values, n_bins=st.sampled_from([5, 51]))
def test_counting_equals_sorting(rows, other, n_bins):
    """The bins of counts do not depend on whether another cell of the block has fractions."""
    values, offsets = ragged(rows)
    mixed, mixed_offsets = ragged([*rows, *other, [0.5]])
    for alone, among in zip(bin_ranges(values, offsets, n_bins), bin_ranges(mixed, mixed_offsets, n_bins), strict=True):
        np.testing.assert_array_equal(among[: len(values)], alone)


@settings(max_examples=50, deadline=None)
@given(row=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_bins_are_monotone(row):
    top, ties = bin_ranges(*ragged([sorted(row)]), 11)
    assert (np.diff(top) >= 0).all()
    assert (np.diff(top - ties) >= 0).all()
    assert top.min() >= 1
    assert top.max() == 10


# Tokens of a cell


def bins_of(tokens, row: int = 0) -> dict[int, float]:
    cell = tokens.cell(row)
    return dict(zip(cell["ids"].tolist(), cell["values"].tolist(), strict=True))


def test_default_bins_lie_in_the_authors_ranges():
    counts = random_counts()
    tokens = BinTokenizer(VOCABULARY, bins=9).tokenize(block(counts))
    for row, x in enumerate(counts):
        cell = tokens.cell(row)
        expressed = np.flatnonzero(x)
        assert cell["ids"].tolist() == [1, *(expressed + 2)]
        assert cell["values"][0] == -2
        low, high = reference_ranges(x[expressed], 9)
        assert ((cell["values"][1:] >= np.minimum(low + 1, high)) & (cell["values"][1:] <= high)).all()


def test_ties_are_spread_over_their_bins():
    counts = np.ones((200, GENES), np.float32)  # all edges coincide: any of 8 bins
    counts[:, 0] = np.arange(200) + 2  # cells that differ
    values = BinTokenizer(VOCABULARY, bins=9).tokenize(block(counts)).padded("values")[:, 2:]
    shares = np.bincount(values.astype(int).ravel(), minlength=9)[1:9] / values.size
    assert shares[shares > 0].min() > 0.08  # of about 1/7 each


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(GENES)))
def test_order_of_the_columns_changes_no_bin(seed, order):
    counts, order = random_counts(3, seed=7), np.array(order)
    tokenizer = BinTokenizer(VOCABULARY, bins=9, context=12)
    plain = tokenizer.tokenize(block(counts), seed)
    permuted = tokenizer.tokenize(block(counts[:, order], columns=order + 2), seed)
    for row in range(3):
        assert bins_of(permuted, row) == bins_of(plain, row)


def test_cells_do_not_depend_on_the_block():
    counts = random_counts()
    tokenizer = BinTokenizer(VOCABULARY, bins=9, context=12)
    together = tokenizer.tokenize(block(counts))
    with_fractions = tokenizer.tokenize(block(np.vstack([counts, random_counts(2, seed=9) / 3])))
    for row in range(len(counts)):
        alone = tokenizer.tokenize(block(counts[row : row + 1]))
        assert bins_of(alone) == bins_of(together, row) == bins_of(with_fractions, row)


def test_seed_decides_the_draws_alone():
    counts = random_counts()
    tokenizer = BinTokenizer(VOCABULARY, bins=9)
    first, again, other = (tokenizer.tokenize(block(counts), seed).fields["values"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_unknown_features_take_no_part():
    counts = random_counts(4)
    padded = np.concatenate([np.full((4, 5), 1000, np.float32), counts], axis=1)
    columns = np.concatenate([np.full(5, -1), np.arange(GENES) + 2])
    tokenizer = BinTokenizer(VOCABULARY, bins=9, target_sum=1e4, log1p=True)
    plain, wide = tokenizer.tokenize(block(counts)), tokenizer.tokenize(block(padded, columns))
    for row in range(4):
        assert bins_of(wide, row) == bins_of(plain, row)
    assert (wide.expressed == (counts > 0).sum(axis=1)).all()


@pytest.mark.parametrize("options", [{}, {"log1p": True}, {"target_sum": 1e4}, {"target_sum": 1e4, "log1p": True}])
def test_float64_gives_the_tokens_of_float32(options):
    counts = random_counts()
    tokenizer = BinTokenizer(VOCABULARY, bins=9, **options)
    single, double = tokenizer.tokenize(block(counts)), tokenizer.tokenize(block(counts.astype(np.float64)))
    np.testing.assert_array_equal(double.fields["values"], single.fields["values"])


def test_values_are_normalised_before_binning():
    counts = random_counts(3)
    values = BinTokenizer(VOCABULARY, bins=None, target_sum=100.0, log1p=True, cls_value=None).tokenize(block(counts))
    for row, x in enumerate(counts):
        expected = np.log1p(x[x > 0].astype(np.float64) * (100 / x.sum()))
        np.testing.assert_allclose(values.cell(row)["values"], expected, rtol=1e-6)


# Long cells


@pytest.mark.parametrize("zeros", [False, True])
def test_long_cells_keep_a_subset_with_unchanged_bins(zeros):
    counts = random_counts(20)
    whole = BinTokenizer(VOCABULARY, bins=9, zeros=zeros).tokenize(block(counts))
    cut = BinTokenizer(VOCABULARY, bins=9, zeros=zeros, context=12).tokenize(block(counts))
    assert (cut.lengths == np.minimum(whole.lengths, 12)).all()
    assert (cut.expressed == (counts > 0).sum(axis=1)).all()
    for row in range(20):
        assert bins_of(cut, row).items() <= bins_of(whole, row).items()
        assert 1 in bins_of(cut, row)  # <cls>
        assert np.diff(cut.cell(row)["ids"][1:]).min(initial=1) > 0  # in the order of the columns, each once


def test_every_gene_has_a_chance_in_long_cells():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, (300, GENES)).astype(np.float32)
    cut = BinTokenizer(VOCABULARY, bins=None, cls_value=None, context=10).tokenize(block(counts))
    kept = np.bincount(cut.fields["ids"], minlength=GENES + 2)[2:] / 300
    assert abs(kept.mean() - 1 / 3) < 1e-9
    assert kept.min() > 0.2  # 1/3 +- 5 standard deviations
    assert kept.max() < 0.47


# The original's random stream


def upstream_bins(counts: np.ndarray, n_bins: int, seed: int) -> list[np.ndarray]:
    """As published: uniform draws for all values of a cell, cells in order, from numpy's legacy stream."""
    stream = np.random.RandomState(seed)
    found = []
    for x in counts:
        low, high = reference_ranges(x[x > 0], n_bins)
        found.append(np.ceil(stream.rand(len(low)) * (low - high) + high))
    return found


@pytest.mark.parametrize("cut", [12, 5, 1])
def test_upstream_ties_follow_the_legacy_stream_across_blocks(cut):
    counts = random_counts()
    tokenizer = BinTokenizer(VOCABULARY, bins=9, ties="upstream", cls_value=None)
    assert tokenizer.sequential
    stream = tokenizer.stream(3)
    found = [cell["values"] for begin in range(0, 12, cut) for cell in stream(block(counts[begin : begin + cut]))]
    for ours, theirs in zip(found, upstream_bins(counts, 9, seed=3), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_upstream_subset_is_torch_randperm_after_the_stated_draws():
    counts = random_counts()
    tokenizer = BinTokenizer(VOCABULARY, bins=None, ties="upstream", cls_value=None, context=10, torch_draws=1000)
    tokens = tokenizer.stream(3)(block(counts))
    generator = torch.Generator().manual_seed(3)
    torch.rand(1000, generator=generator)
    for row, x in enumerate(counts):
        expressed = np.flatnonzero(x) + 2
        if len(expressed) > 10:
            expressed = expressed[torch.randperm(len(expressed), generator=generator)[:10].numpy()]
        assert tokens.cell(row)["ids"].tolist() == expressed.tolist()


def test_no_global_random_state_is_touched():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for ties in ("cell", "upstream"):
        BinTokenizer(VOCABULARY, ties=ties, context=10).stream(3)(block(random_counts()))
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


# Edges


def test_zeros_are_tokens_on_request():
    counts = random_counts(2)
    tokens = BinTokenizer(VOCABULARY, bins=None, zeros=True, cls_value=None).tokenize(block(counts))
    np.testing.assert_array_equal(tokens.padded("values"), counts)
    assert tokens.expressed.tolist() == (counts > 0).sum(axis=1).tolist()


def test_empty_cells_and_blocks():
    tokenizer = BinTokenizer(VOCABULARY, bins=9)
    none = tokenizer.tokenize(block(np.zeros((0, GENES), np.float32)))
    assert len(none) == 0
    tokens = tokenizer.tokenize(block(np.zeros((2, GENES), np.float32)))
    assert tokens.lengths.tolist() == [1, 1]
    assert tokens.expressed.tolist() == [0, 0]


def test_batches_become_labels_and_unknown_ones_are_refused():
    tokenizer = BinTokenizer(VOCABULARY, batch_key="donor", batches=("a", "b"))
    tokens = tokenizer.tokenize(block(random_counts(3), donor=["b", "a", "b"]))
    assert tokens.cells["batch"].tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"obs\['donor'\] has batches unknown to the checkpoint: 'c'"):
        tokenizer.tokenize(block(random_counts(1), donor=["c"]))


def test_unknown_way_to_break_ties_is_refused():
    with pytest.raises(InputError, match="ties='random' is not known"):
        BinTokenizer(VOCABULARY, ties="random")
