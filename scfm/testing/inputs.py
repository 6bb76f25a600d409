"""Any number of cells, in any form."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scfm.encoder import CellEncoder
from scfm.errors import GeneMatchError, InputError, listing
from scfm.reading import InputWarning
from scfm.testing.compare import (
    csr,
    embedded,
    fail,
    quiet,
    refused,
    rows_of,
    same,
    temporary_folder,
    untidy,
    with_empty,
    with_x,
)
from scfm.testing.kit import check, check_of_cells_alone

if TYPE_CHECKING:
    from anndata import AnnData


@check
def no_cells(encoder: CellEncoder, data: AnnData) -> None:
    """No cells give (0, dim)."""
    found = embedded(encoder, data[:0])
    if found.shape != (0, encoder.dim) or found.dtype != np.float32:
        fail(f"0 cells give {found.shape} {found.dtype} instead of (0, {encoder.dim}) float32")


@check
def one_cell(encoder: CellEncoder, data: AnnData) -> None:
    """One cell gives (1, dim), finite."""
    found = embedded(encoder, data[:1])
    if found.shape != (1, encoder.dim) or not np.isfinite(found).all():
        fail(f"one cell gives {found.shape}, {np.isfinite(found).mean():.0%} finite")


@check
def empty_cells(encoder: CellEncoder, data: AnnData) -> None:
    """A cell without any count has a row of NaN and an `InputWarning`, or an `InputError` on request; the others are as without it."""
    holed, full = with_empty(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = embedded(encoder, holed)
    if not any(issubclass(w.category, InputWarning) for w in caught):
        fail("an empty cell gives no InputWarning")
    if not np.isnan(found[~full]).all():
        fail("the row of an empty cell is not NaN")
    if not np.isfinite(found[full]).all():
        fail(f"an empty cell makes others NaN: cells {rows_of(~np.isfinite(found) & full[:, None])}")
    if not encoder.card.input.sees_other_cells:
        same(found[full], embedded(encoder, data)[full], "the other cells")
    refused(InputError, "empty_cells='error'", lambda: embedded(encoder, holed, empty_cells="error"))


@check
def empty_cells_embedded(encoder: CellEncoder, data: AnnData) -> None:
    """With empty_cells="embed", and in `encode`, an empty cell passes through the network and leaves the others alone."""
    holed, full = with_empty(data)
    found = embedded(encoder, holed, empty_cells="embed")
    if not np.isfinite(found[full]).all():
        fail(f"an empty cell makes others NaN: cells {rows_of(~np.isfinite(found) & full[:, None])}")
    if not encoder.card.input.sees_other_cells:
        same(found[full], embedded(encoder, data)[full], "the other cells")
    seen = np.sort(np.concatenate([cells for cells, _, _ in encoder.encode(holed, progress=False)]))
    if not np.array_equal(seen, np.arange(data.n_obs)):
        fail(f"encode gives the cells {listing(seen.tolist())} of {data.n_obs}")


@check
def matrix_formats(encoder: CellEncoder, data: AnnData) -> None:
    """Dense, CSR, CSC, untidy CSR, sparse arrays, `.h5ad`, backed and `.zarr` give the same bits."""
    import anndata

    expected, x = embedded(encoder, data), csr(data)
    forms = {
        "dense": x.toarray(),
        "dense, by columns": np.asfortranarray(x.toarray()),
        "CSC": x.tocsc(),
        "csr_array": sparse.csr_array(x),
        "csc_array": sparse.csc_array(x),
        "unsorted CSR with explicit zeros": untidy(x),
    }
    for name, form in forms.items():
        same(embedded(encoder, with_x(data, form)), expected, name, exact=True)
    with temporary_folder() as folder:
        with quiet():
            with_x(data, x).write_h5ad(folder / "x.h5ad")
            with_x(data, x).write_zarr(folder / "x.zarr")
        same(embedded(encoder, folder / "x.h5ad"), expected, ".h5ad", exact=True)
        same(embedded(encoder, folder / "x.zarr"), expected, ".zarr", exact=True)
        backed = anndata.read_h5ad(folder / "x.h5ad", backed="r")
        try:
            same(embedded(encoder, backed), expected, "backed", exact=True)
        finally:
            backed.file.close()


@check_of_cells_alone
def several_data_sets(encoder: CellEncoder, data: AnnData) -> None:
    """A list of two halves, in memory or on disk, equals the whole."""
    expected, half = embedded(encoder, data), data.n_obs // 2
    with temporary_folder() as folder, quiet():
        path = folder / "second.h5ad"
        data[half:].copy().write_h5ad(path)
        same(embedded(encoder, [data[:half], path]), expected, "a list of two halves")


@check
def number_types(encoder: CellEncoder, data: AnnData) -> None:
    """Integers and float64 that hold the same values as float32 give the same bits."""
    expected, x = embedded(encoder, data), csr(data)
    whole = bool((x.data == np.floor(x.data)).all())
    for dtype in ("float64", *(("int32", "int64", "uint16") if whole else ())):
        same(embedded(encoder, with_x(data, x.astype(dtype))), expected, dtype, exact=True)


@check
def layers_and_columns(encoder: CellEncoder, data: AnnData) -> None:
    """`layer=` and `gene_column=` read what they name, and unknown ones are refused."""
    expected = embedded(encoder, data)
    other = with_x(data, sparse.csr_matrix(data.shape, dtype=np.float32))
    other.layers["filled"] = csr(data)
    same(embedded(encoder, other, layer="filled"), expected, "layer='filled'", exact=True)
    other.var["names"] = other.var_names.to_numpy()
    other.var_names = [f"feature {i}" for i in range(other.n_vars)]
    same(embedded(encoder, other, layer="filled", gene_column="names"), expected, "gene_column='names'", exact=True)
    refused(InputError, "an unknown layer", lambda: embedded(encoder, data, layer="no such layer"))
    refused(InputError, "an unknown gene_column", lambda: embedded(encoder, data, gene_column="no such column"))
    refused(GeneMatchError, "features that are all unknown", lambda: embedded(encoder, other, layer="filled"))


@check
def wrong_values(encoder: CellEncoder, data: AnnData) -> None:
    """NaN is always refused, and so are values in another unit than the card's."""
    x = csr(data).astype(np.float64)

    def changed(value: float) -> AnnData:
        data_of = x.data.copy()
        data_of[-1] = value
        return with_x(data, sparse.csr_matrix((data_of, x.indices, x.indptr), shape=x.shape))

    refused(InputError, "NaN", lambda: embedded(encoder, changed(np.nan)))
    refused(InputError, "infinity", lambda: embedded(encoder, changed(np.inf)))
    if encoder.card.input.values != "any":
        refused(InputError, "a negative value", lambda: embedded(encoder, changed(-1.0)))
    if encoder.card.input.values == "counts":
        refused(InputError, "a fraction among counts", lambda: embedded(encoder, changed(1.5)))
