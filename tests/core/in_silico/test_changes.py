"""What is changed in a cell before it is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scfm.in_silico import Change, changed_cells, changed_ranks, changed_values
from scfm.tokenizers.base import Tokens

TOKENS = np.array([5, 9, 7, -1, 9])  # two columns share token 9, one is unknown to the model
VALUES = sparse.csr_matrix(np.array([[1.0, 2, 4, 8, 2], [0, 0, 3, 8, 0], [6, 1, 0, 0, 3]], dtype=np.float32))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change((9,)), [[1, 0, 4, 8, 0], [0, 0, 3, 8, 0], [6, 0, 0, 0, 0]]),
        (Change((5, 7)), [[0, 2, 0, 8, 2], [0, 0, 0, 8, 0], [0, 1, 0, 0, 3]]),
        (Change((9,), "knock-down", 0.5), [[1, 1, 4, 8, 1], [0, 0, 3, 8, 0], [6, 0.5, 0, 0, 1.5]]),
        (Change((7,), "over-express", 3.0), [[1, 2, 12, 8, 2], [0, 0, 9, 8, 0], [6, 1, 0, 0, 3]]),
        (Change((9,), "activate", 1.0), [[1, 8, 4, 8, 2], [0, 8, 3, 8, 0], [6, 6, 0, 0, 3]]),
    ],
)
def test_values_are_changed_as_asked(change, expected):
    made = changed_values(VALUES, TOKENS, np.zeros(3, int), [change])
    np.testing.assert_array_equal(made.toarray(), expected)
    assert made.dtype == np.float32
    assert made.has_sorted_indices
    assert (made.data != 0).all()


def test_rows_have_their_own_changes_and_the_matrix_stays():
    before = VALUES.copy()
    made = changed_values(VALUES, TOKENS, np.array([-1, 1, 0]), [Change((5,)), Change((7,), "over-express", 2.0)])
    np.testing.assert_array_equal(made.toarray(), [[1, 2, 4, 8, 2], [0, 0, 6, 8, 0], [0, 1, 0, 0, 3]])
    assert (before != VALUES).nnz == 0
    assert changed_values(VALUES, TOKENS, np.full(3, -1), []) is VALUES


def lists(*rows):
    lengths = [len(row) for row in rows]
    return Tokens(
        fields={"ids": np.array([i for row in rows for i in row], dtype=np.int32)},
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        expressed=np.array(lengths),
        padding={"ids": 0},
    )


def rows_of(tokens):
    return [cell["ids"].tolist() for cell in tokens]


def test_ranked_lists_lose_genes_or_get_them_in_front():
    cells = lists([2, 10, 11, 12, 3], [2, 12, 13, 3], [2, 10, 3])
    out = changed_ranks(cells, np.array([0, 0, -1]), [Change((12,))], (1, 1), 5, 0)
    assert rows_of(out) == [[2, 10, 11, 3], [2, 13, 3], [2, 10, 3]]
    front = Change((13, 11), "activate")
    out = changed_ranks(cells, np.array([0, 0, 0]), [front], (1, 1), 6, 0)
    assert rows_of(out) == [[2, 13, 11, 10, 12, 3], [2, 13, 11, 12, 3], [2, 13, 11, 10, 3]]
    out = changed_ranks(cells, np.array([0, -1, 0]), [front], (1, 1), 5, 0)
    assert rows_of(out) == [
        [2, 13, 11, 10, 3],
        [2, 12, 13, 3],
        [2, 13, 11, 10, 3],
    ]  # the last gene is cut, the end stays


def test_a_cell_that_loses_all_genes_keeps_a_pad():
    out = changed_ranks(lists([10], [10, 11]), np.array([0, 0]), [Change((10,))], (0, 0), 5, 0)
    assert rows_of(out) == [[0], [11]]
    assert out.fields["ids"].dtype == np.int32


@given(
    st.lists(st.lists(st.integers(4, 20), unique=True, min_size=1, max_size=8), min_size=1, max_size=6),
    st.integers(4, 20),
)
def test_deleting_and_moving_are_what_a_loop_does(cells, gene):
    tokens = lists(*[[2, *cell, 3] for cell in cells])
    deleted = changed_ranks(tokens, np.zeros(len(cells), int), [Change((gene,))], (1, 1), 10, 0)
    assert rows_of(deleted) == [[2, *(g for g in cell if g != gene), 3] for cell in cells]
    moved = changed_ranks(tokens, np.zeros(len(cells), int), [Change((gene,), "activate")], (1, 1), 10, 0)
    assert rows_of(moved) == [[2, *[gene, *(g for g in cell if g != gene)][:8], 3] for cell in cells]


def test_only_cells_that_express_all_genes_are_changed():
    row, gene = np.array([0, 0, 1, 2, 2]), np.array([5, 9, 9, 5, 9])
    cells, change = changed_cells(
        [Change((5, 9)), Change((9,)), Change((7,), "activate")], np.array([10, 20, 30]), row, gene, 12
    )
    assert list(zip(cells.tolist(), change.tolist(), strict=True)) == [
        (10, 0),
        (10, 1),
        (10, 2),
        (20, 1),
        (20, 2),
        (30, 0),
        (30, 1),
        (30, 2),
    ]
