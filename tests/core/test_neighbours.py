"""Nearest cells are those of scikit-learn, ties go by row number, and approximate search finds nearly all of them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from scfm import neighbours as module
from scfm.errors import InputError, MissingExtraError
from scfm.neighbours import neighbours


def blobs(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) + 4 * rng.integers(0, 5, (n, 1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("itself", [True, False])
def test_exact_neighbours_are_those_of_scikit_learn(metric, itself):
    x, q = blobs(700, 8), None if itself else blobs(90, 8, seed=1)
    distances, indices = neighbours(x, q, 12, metric=metric)
    expected = NearestNeighbors(n_neighbors=12, metric=metric, algorithm="brute").fit(x).kneighbors(q)
    assert np.array_equal(indices, expected[1])
    assert np.allclose(distances, expected[0], atol=1e-12)
    assert indices.dtype == np.int64
    assert distances.dtype == np.float64


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=4, max_size=25),
    scale=st.sampled_from([2.0**-60, 0.25, 1.0, 2.0**60]),
    offset=st.sampled_from([0.0, 1024.0]),
)
def test_ties_go_by_row_whatever_the_scale(points, scale, offset):
    x = np.array(points, dtype=float) * scale + offset * scale
    squares = ((np.array(points)[:, None] - np.array(points)[None]) ** 2).sum(-1)
    expected = [[j for j in np.lexsort((np.arange(len(x)), row)) if j != i][:3] for i, row in enumerate(squares)]
    assert neighbours(x, k=3)[1].tolist() == expected


def test_tiny_distances_far_from_the_origin_keep_their_order():
    x = np.zeros((50, 3))
    x[:, 0] = 1.0 + np.arange(50) ** 2 * 1e-12  # float32 can't tell these apart
    x[-1] = -1e6
    near = neighbours(x, k=4)[1]
    apart = np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag([np.inf] * 50)
    assert near.tolist() == np.argsort(apart, axis=1, kind="stable")[:, :4].tolist()


def test_a_cell_is_its_own_first_neighbour_even_among_equals():
    x = np.repeat(blobs(5, 3), 4, axis=0)
    distances, indices = neighbours(x, k=4, include_self=True)
    assert np.array_equal(indices[:, 0], np.arange(20))
    assert not distances.any()
    assert np.array_equal(neighbours(x, k=3)[1], indices[:, 1:])
    assert np.array_equal(neighbours(x, k=1, include_self=True)[1], np.arange(20)[:, None])


def test_blocks_do_not_matter(monkeypatch):
    x = blobs(300, 5)
    whole = neighbours(x, k=7)
    monkeypatch.setattr(module, "_BLOCK", 1)
    monkeypatch.setattr(module, "_PAIRS", 1)
    for a, b in zip(whole, neighbours(x, k=7), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_hnsw_finds_nearly_all_neighbours_at_their_exact_distances(metric):
    x, q = blobs(2500, 16), blobs(200, 16, seed=1)
    for query in (None, q):
        distances, indices = neighbours(x, query, 15, metric=metric, method="hnsw")
        expected = neighbours(x, query, 15, metric=metric, method="exact")
        found = [len(np.intersect1d(a, b)) / 15 for a, b in zip(indices, expected[1], strict=True)]
        assert np.mean(found) > 0.98
        same = indices == expected[1]
        assert np.allclose(distances[same], expected[0][same], atol=1e-12)
        assert (np.diff(distances, axis=1) >= 0).all()
    assert not (neighbours(x, k=5, method="hnsw")[1] == np.arange(2500)[:, None]).any()
    again = neighbours(x, k=15, metric=metric, method="hnsw")
    assert np.array_equal(again[1], neighbours(x, k=15, metric=metric, method="hnsw")[1])


def test_a_graph_that_finds_too_few_is_helped_by_exact_search(monkeypatch):
    x = blobs(60, 3)
    real = module.hnsw_search

    def short(index, vectors, k):
        keys, squared, counts = real(index, vectors, k)
        counts = counts.copy()
        counts[:5] = 2
        return keys, squared, counts

    monkeypatch.setattr(module, "hnsw_search", short)
    assert np.array_equal(neighbours(x, k=6, method="hnsw")[1], neighbours(x, k=6)[1])
    assert np.array_equal(neighbours(x, x[:7], 6, method="hnsw")[1], neighbours(x, x[:7], 6)[1])


def test_one_query_cell():
    x = blobs(40, 3)
    assert np.array_equal(neighbours(x, x[:1], 3, method="hnsw")[1], neighbours(x, x[:1], 3)[1])


def test_large_references_ask_for_the_extra(monkeypatch):
    monkeypatch.setattr(module, "EXACT_MOST", 10)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(MissingExtraError, match="neighbours among 40 cells needs usearch"):
        neighbours(blobs(40, 3), k=3)
    assert neighbours(blobs(40, 3), k=3, method="exact")[1].shape == (40, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=0), "k=0 neighbours are asked for, 19 cells"),
        (dict(k=20), "Pass a k from 1 to 19"),
        (dict(k=21, include_self=True), "Pass a k from 1 to 20"),
        (dict(query=np.ones((2, 4))), "reference embeddings have 3 dimensions, query embeddings 4"),
        (dict(query=np.ones((2, 3)), include_self=True), "none of which is in the reference"),
        (dict(query=np.full((2, 3), np.nan)), "2 of 2 query cells have embeddings that are not finite"),
        (dict(query=np.zeros((2, 3)), metric="cosine"), "which have no direction"),
        (dict(query=np.zeros(3)), "shape"),
        (dict(metric="pq"), "'euclidean' or 'cosine'"),
        (dict(method="pq"), "'auto', 'exact' or 'hnsw'"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        neighbours(blobs(20, 3), **{"k": 3, **arguments})


def test_import_is_light():
    code = "import sys, scfm.neighbours; print({'torch', 'sklearn', 'scipy', 'usearch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
