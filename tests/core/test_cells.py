import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from scfm.cells import (
    BLOCK_ROWS,
    Source,
    check_values,
    describe_values,
    open_sources,
    sample_rows,
    sampled_cells,
)
from scfm.errors import InputError

COUNTS = np.array([[0, 2, 0, 1], [3, 0, 0, 0], [0, 0, 0, 0], [5, 1, 7, 2], [0, 0, 4, 0]], dtype=np.float32)


def adata(x=COUNTS, **slots) -> AnnData:
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(x.shape[1])])
    return AnnData(x, obs=pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])]), var=var, **slots)


FORMS = {
    "dense": lambda x: x,
    "dense by columns": np.asfortranarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


def tidy(matrix) -> bool:
    return (
        isinstance(matrix, sparse.csr_matrix)
        and matrix.has_canonical_format
        and bool((matrix.data != 0).all())
        and matrix.dtype in (np.float32, np.float64)
    )


# Reading rows


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["memory", "view", "h5ad", "zarr", "backed"])
def test_rows_are_the_same_from_every_form_and_place(form, place, tmp_path):
    data = adata(FORMS[form](COUNTS))
    if place == "view":
        data = adata(FORMS[form](np.vstack([COUNTS, COUNTS])))[5:]
    elif place == "h5ad":
        data.write_h5ad(tmp_path / "x.h5ad")
        data = tmp_path / "x.h5ad"
    elif place == "zarr":
        data.write_zarr(tmp_path / "x.zarr")
        data = tmp_path / "x.zarr"
    elif place == "backed":
        data.write_h5ad(tmp_path / "x.h5ad")
        data = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    source = Source(data)
    for rows in (slice(0, 5), slice(1, 3), slice(2, 2), np.array([3, 0]), np.array([1, 4])):
        taken = source.take(rows)
        assert tidy(taken)
        np.testing.assert_array_equal(taken.toarray(), COUNTS[rows])
    assert source.shape == COUNTS.shape
    source.close()
    if place == "backed":
        data.file.close()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_values_survive_every_number_type(dtype, form):
    if (dtype, form) == ("float16", "csr"):
        pytest.skip("scipy has no float16 sparse matrices")
    x = (COUNTS > 0).astype(dtype) if dtype == "bool" else COUNTS.astype(dtype)
    taken = Source(adata(FORMS[form](x))).take(slice(0, 5))
    assert tidy(taken)
    np.testing.assert_array_equal(taken.toarray(), x.astype(np.float32))


def test_counts_beyond_float32_keep_their_digits():
    big = np.array([[2**24 + 1, 0], [1, 2]], dtype=np.int64)
    assert Source(adata(big)).take(slice(0, 1)).toarray().tolist() == [[2**24 + 1, 0]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_taken_rows_are_a_copy(dtype):
    for form in (sparse.csr_matrix, np.asarray):
        data = adata(form(COUNTS.astype(dtype)))
        taken = Source(data).take(slice(0, 5))
        taken.data[:] = 99
        taken.indices[:] = 0
        np.testing.assert_array_equal(data.X.toarray() if sparse.issparse(data.X) else data.X, COUNTS)


def test_untidy_rows_are_tidied_without_touching_the_callers():
    untidy = sparse.csr_matrix(
        (np.array([1, 2, 0, 5], np.float32), np.array([3, 1, 0, 2]), np.array([0, 3, 4])), shape=(2, 4)
    )
    data = adata(untidy)
    taken = Source(data).take(slice(0, 2))
    assert tidy(taken)
    np.testing.assert_array_equal(taken.toarray(), [[0, 2, 0, 1], [0, 0, 5, 0]])
    assert data.X.indices.tolist() == [3, 1, 0, 2]


@given(n=st.integers(0, 3 * BLOCK_ROWS), rows=st.integers(1, 700))
def test_ranges_cover_every_row_once_in_order(n, rows):
    ranges = list(Source(adata(np.zeros((n, 1), np.float32))).ranges(rows))
    covered = [row for r in ranges for row in range(r.start, r.stop)]
    assert covered == list(range(n))
    assert all(0 < r.stop - r.start <= rows for r in ranges)


@pytest.mark.parametrize("n", [0, 1, BLOCK_ROWS, BLOCK_ROWS + 1, 6 * BLOCK_ROWS + 7])
def test_sample_holds_the_cells_it_says(n):
    source = Source(adata(np.arange(n, dtype=np.float32)[:, None] + 1))
    sample, cells = sample_rows(source), sampled_cells(source)
    assert sample.toarray().ravel().tolist() == (cells + 1).tolist()
    assert len(cells) == min(n, 3 * BLOCK_ROWS + (n % BLOCK_ROWS or BLOCK_ROWS))
    assert n == 0 or {0, n - 1} <= set(cells.tolist())


# Layers, raw, obs and var


@pytest.mark.parametrize("place", ["memory", "h5ad", "zarr"])
def test_layers_and_raw_are_read_by_name(place, tmp_path):
    data = adata(COUNTS * 10)
    data.raw = data.copy()
    data = data[:, :2].copy()
    data.layers["counts"] = COUNTS[:, :2]
    data.X = COUNTS[:, :2] / 2
    if place == "h5ad":
        data.write_h5ad(tmp_path / "x.h5ad")
    elif place == "zarr":
        data.write_zarr(tmp_path / "x.zarr")
    where = data if place == "memory" else tmp_path / f"x.{place}"
    expected = {None: COUNTS[:, :2] / 2, "counts": COUNTS[:, :2], "raw": COUNTS * 10}
    for layer, values in expected.items():
        source = Source(where, layer)
        np.testing.assert_array_equal(source.take(slice(0, 5)).toarray(), values)
        assert list(source.var.index) == [f"GENE{i}" for i in range(values.shape[1])]
        assert list(source.obs.index) == [f"cell{i}" for i in range(5)]
        assert source.layers == ["counts"]
        source.close()
    source = Source(where, "cuonts")
    with pytest.raises(InputError, match=r"layer='cuonts' is not in .*'counts', 'raw'"):
        source.take(slice(0, 1))
    source.close()


def test_a_layer_called_raw_wins_over_raw():
    data = adata()
    data.raw = data.copy()
    data.layers["raw"] = COUNTS + 1
    np.testing.assert_array_equal(Source(data, "raw").take(slice(0, 5)).toarray(), COUNTS + 1)


def test_data_without_x_ask_for_a_layer():
    data = AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["x"]), layers={"c": np.ones((2, 1))})
    with pytest.raises(InputError, match=r"adata\.X is empty.*\n.*layer=.*'c'"):
        Source(data).take(slice(0, 1))


def test_file_without_x_asks_for_a_layer(tmp_path):
    data = AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["x"]), layers={"c": np.ones((2, 1))})
    data.write_h5ad(tmp_path / "x.h5ad")
    source = Source(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r"layer=.*'c'"):
        source.take(slice(0, 1))
    source.close()


# What is no source


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere.h5ad", "there is no file"),
        (np.ones((2, 2)), r"data is a ndarray.*\n.*anndata\.AnnData\(X"),
        ([], "the list of data sets is empty"),
        ([3], "data is a int"),
    ],
)
def test_wrong_data_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        open_sources(data)


def test_wrong_files_are_refused(tmp_path):
    for name, content in (("x.csv", "a"), ("x.h5ad", "no HDF5")):
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"neither \.h5ad nor \.zarr"):
        open_sources(tmp_path / "x.csv")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        open_sources(tmp_path / "x.h5ad")


def test_a_bad_item_of_a_list_leaves_no_file_open(tmp_path):
    adata().write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r"nowhere\.h5ad") as caught:
        open_sources([tmp_path / "x.h5ad", tmp_path / "nowhere.h5ad"])
    with h5py.File(tmp_path / "x.h5ad", "r+"):  # refused while open elsewhere
        assert caught.value.fix


# What the values are


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2, 70_000], "counts"),
        ([0.69, 1.1], "lognorm"),
        ([0.5, 120.0], "normalised"),
        ([-1.0, 2.0], "negative"),
        ([np.nan, 1], "not finite"),
        ([np.inf, -1], "not finite"),
        ([0, 0], "empty"),
    ],
)
def test_values_are_described(values, found):
    assert describe_values(sparse.csr_matrix(np.array([values], dtype=np.float64))) == found


@settings(max_examples=50)
@given(arrays(np.float32, (3, 4), elements=st.floats(0, 100, width=32)))
def test_counts_are_whole_numbers_and_nothing_else(x):
    found = describe_values(Source(adata(x)).take(slice(0, 3)))
    assert (found in ("counts", "empty")) == bool((x == np.floor(x)).all())


@pytest.mark.parametrize(("expected", "bad"), [("counts", 1.5), ("counts", -2.0), ("counts", np.nan), ("any", np.inf)])
def test_error_names_the_first_bad_value(expected, bad):
    x = COUNTS.copy()
    x[3, 2] = bad
    source = Source(adata(x))
    with pytest.raises(InputError, match=r"in cell 'cell3', gene 'GENE2'\); toy reads"):
        check_values(source.take(slice(2, 5)), expected, source, slice(2, 5), "toy")


@pytest.mark.parametrize("values", ["counts", "any"])
def test_right_values_pass(values):
    source = Source(adata())
    check_values(source.take(slice(0, 5)), values, source, slice(0, 5), "toy")


def test_lognormalised_values_are_wanted_where_the_model_reads_them():
    source = Source(adata())
    with pytest.raises(InputError, match=r"integer counts .*log1p of counts per 10,000.*\n.*normalize_total"):
        check_values(source.take(slice(0, 5)), "lognorm", source, slice(0, 5), "toy")
    source = Source(adata(np.log1p(COUNTS * 1.7)))
    check_values(source.take(slice(0, 5)), "lognorm", source, slice(0, 5), "toy")


@pytest.mark.parametrize("place", ["memory", "h5ad"])
def test_fix_names_the_layer_that_fits(place, tmp_path):
    data = adata(np.log1p(COUNTS))
    data.layers["scaled"] = COUNTS - 1.5
    data.layers["umi"] = COUNTS
    if place == "h5ad":
        data.write_h5ad(tmp_path / "x.h5ad")
    source = Source(data if place == "memory" else tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r"Pass layer='umi' \(raw counts found in adata\.layers\)"):
        check_values(source.take(slice(0, 5)), "counts", source, slice(0, 5), "toy")
    source.close()


def test_fix_names_raw_where_it_fits():
    data = adata()
    data.raw = data.copy()
    data.X = np.log1p(COUNTS)
    source = Source(data)
    with pytest.raises(InputError, match=r"Pass layer='raw' \(raw counts found in adata\.raw\)"):
        check_values(source.take(slice(0, 5)), "counts", source, slice(0, 5), "toy")
