"""scfm.tokenizers.ranks: rank tokens against a plain per-cell implementation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary, align
from scfm.tokenizers import RankTokenizer
from scfm.tokenizers.ranks import ranked

GENES = [f"ENSG{i:011d}" for i in range(1, 41)]


def vocabulary(aliases: dict[str, str] | None = None) -> Vocabulary:
    medians = np.concatenate([[np.nan] * 3, np.tile([0.5, 1.0, 1.0, 2.0], 10)])
    special = {"pad": "<pad>", "cls": "<cls>", "eos": "<eos>"}
    return Vocabulary(
        ("<pad>", "<cls>", "<eos>", *GENES),
        "ensembl",
        special=special,
        aliases=aliases or {},
        columns={"median": medians},
    )


def block(counts: np.ndarray, names: list[str], words: Vocabulary) -> Block:
    var = pd.DataFrame(index=names)
    return Block(
        sparse.csr_matrix(counts.astype(np.float32)),
        align(var, words, model="toy"),
        pd.DataFrame(index=range(len(counts))),
    )


@given(st.lists(st.lists(st.integers(0, 6), min_size=40, max_size=40), max_size=5), st.integers(1, 50))
def test_ranks_are_those_of_a_stable_sort_of_each_cell(rows: list[list[int]], most: int) -> None:
    matrix = sparse.csr_matrix(np.array(rows, dtype=float).reshape(-1, 40))
    order, offsets = ranked(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), most)
    for row, values in enumerate(rows):
        expected = sorted((i for i in range(40) if values[i]), key=lambda i: (-values[i], i))[:most]
        assert matrix.indices[order[offsets[row] : offsets[row + 1]]].tolist() == expected


CLOSE = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2.0**-52, 1.0 - 2.0**-53, 1e300, -1.0, -1.0 - 2.0**-50, 5e-324, -5e-324])


@given(
    st.lists(st.lists(st.one_of(CLOSE, st.floats(-9, 9)), max_size=30), max_size=5), st.integers(1, 40), st.randoms()
)
def test_scores_that_differ_in_their_last_bit_and_negative_ones_are_ranked_exactly(rows, most, random) -> None:
    ids = [random.sample(range(1000), len(row)) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    flat, names = np.array([x for row in rows for x in row], float), np.array([i for row in ids for i in row], np.int32)
    order, starts = ranked(flat, names, offsets, most)
    for i, (row, known) in enumerate(zip(rows, ids, strict=True)):
        expected = sorted(range(len(row)), key=lambda j: (-row[j], known[j]))[:most]
        assert (order[starts[i] : starts[i + 1]] - offsets[i]).tolist() == expected


def test_tokens_do_not_depend_on_the_order_of_the_columns() -> None:
    words = vocabulary()
    counts = np.random.default_rng(0).poisson(1.0, (70, 40))
    shuffled = np.random.default_rng(1).permutation(40)
    tokenizer = RankTokenizer(words, context=20, prefix=("cls",), suffix=("eos",), keep_values=True)
    one = tokenizer.tokenize(block(counts, GENES, words))
    other = tokenizer.tokenize(block(counts[:, shuffled], [GENES[i] for i in shuffled], words))
    assert (one.padded("ids") == other.padded("ids")).all()
    assert (one.padded("values") == other.padded("values")).all()
    assert one.lengths.max() == 20
    assert (one.fields["ids"][one.offsets[:-1]] == 1).all()
    assert (one.fields["ids"][one.offsets[1:] - 1] == 2).all()


def test_features_of_one_gene_are_summed_or_kept() -> None:
    words = vocabulary({"other": GENES[3]})
    counts = np.array([[3, 1, 2], [0, 0, 0], [0, 0, 5]])  # GENES[3] twice: 3 + 2 over a median of 2
    data = block(counts, [GENES[3], GENES[1], "other"], words)
    summed = RankTokenizer(words, keep_values=True).tokenize(data)
    assert [cell["ids"].tolist() for cell in summed] == [[6, 4], [0], [6]]  # a cell without genes is one <pad>
    assert summed.cell(0)["values"].tolist() == [5, 1]
    assert summed.expressed.tolist() == [2, 0, 1]
    kept = RankTokenizer(words, duplicates="keep").tokenize(data)
    assert [cell["ids"].tolist() for cell in kept] == [[6, 4, 6], [0], [6]]


def test_no_cells() -> None:
    words = vocabulary()
    tokens = RankTokenizer(words, prefix=("cls",)).tokenize(block(np.zeros((0, 40)), GENES, words))
    assert len(tokens) == 0


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="duplicates"):
        RankTokenizer(vocabulary(), duplicates="mean")
    with pytest.raises(InputError, match="context"):
        RankTokenizer(vocabulary(), context=1, prefix=("cls",))
