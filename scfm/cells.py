"""Sources of cells: AnnData in memory or backed, .h5ad, .zarr, or several of them, read as blocks of CSR rows in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from scipy import sparse

from scfm.errors import InputError, listing

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scfm.genes import Alignment
    from scfm.soma import SomaQuery

__all__ = [
    "BLOCK_ROWS",
    "Block",
    "Data",
    "Source",
    "Values",
    "check_values",
    "close_all",
    "describe_values",
    "open_sources",
    "sample_rows",
    "sampled_cells",
    "value_range",
]

Values: TypeAlias = Literal["counts", "lognorm", "any"]
OneData: TypeAlias = "AnnData | str | PathLike[str] | SomaQuery"
Data: TypeAlias = "OneData | Sequence[OneData]"

BLOCK_ROWS = 512
"""Cells read, tokenized and written together."""

_LOGNORM_LIMIT = 30.0
"""log1p values above this would be counts beyond 1e13: not log-normalised."""


@dataclass(frozen=True)
class Block:
    """Some cells of one source.

    Parameters
    ----------
    matrix
        (n_cells, n_features) CSR, indices sorted, no explicit zeros, float32 or float64.
    alignment
        Which column is which token.
    obs
        The cells' rows of `obs`, with the columns that were asked for.
    origin
        (n_cells, n_features) the cells before they were perturbed in silico: what a random tokenization draws by, so that a cell and its
        perturbed copies get the same draws. None: `matrix`.
    """

    matrix: sparse.csr_matrix
    alignment: Alignment
    obs: pd.DataFrame
    origin: sparse.csr_matrix | None = None

    def __len__(self) -> int:
        return self.matrix.shape[0]


class Source:
    """One AnnData, in memory or on disk, seen through one of its matrices.

    Parameters
    ----------
    data
        AnnData, or path of an `.h5ad` file or `.zarr` folder (read as needed, never whole).
    layer
        Matrix to read: None for `X`, "raw" for `adata.raw`, else a key of `layers`.
    """

    def __init__(self, data: AnnData | str | PathLike[str], layer: str | None = None) -> None:
        self.layer = layer
        self._close: Any = None
        if isinstance(data, str | PathLike):
            self.label = str(data)
            self._group = self._open(Path(data))
            self._adata = None
        else:
            from anndata import AnnData

            if not isinstance(data, AnnData):
                raise InputError(
                    f"data is a {type(data).__name__}; an AnnData, a path of .h5ad or .zarr, or a list of them is needed.",
                    "Wrap a matrix with anndata.AnnData(X, var=pd.DataFrame(index=gene_names)).",
                )
            self.label = "adata"
            self._adata = data
            self._group = None

    def _open(self, path: Path) -> Any:
        if not path.exists():
            raise InputError(f"there is no file {path}.", "Give the path of an .h5ad file or a .zarr folder.")
        if path.suffix == ".h5ad":
            import h5py

            try:
                self._close = h5py.File(path, "r")
            except OSError as error:
                raise InputError(f"{path} is not a readable HDF5 file: {error}", "Was it copied completely?") from error
            return self._close
        if path.suffix == ".zarr":
            import zarr

            return zarr.open_group(path, mode="r")
        fix = "Convert it with anndata, e.g. anndata.io.read_mtx(...).write_h5ad(...)."
        if path.name.endswith((".tsv", ".tsv.gz", ".bed", ".bed.gz")):
            fix = "If it holds fragments, count them first: adata = scfm.fragments.count_fragments(path, encoder)."
        if path.suffix == ".h5mu":
            fix = "Pass one modality: mudata.read_h5mu(path)['atac']; or all of them: scfm.embed_multi({'rna': ..., 'atac': ...}, path)."
        raise InputError(f"{path} is neither .h5ad nor .zarr.", fix)

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self._close is not None:
            self._close.close()

    def through(self, layer: str | None) -> Source:
        """The same data seen through another of its matrices."""
        return Source(self.label if self._adata is None else self._adata, layer)

    # What there is

    @property
    def name(self) -> str:
        """How messages call the matrix, e.g. ``adata.layers['counts']``."""
        return (
            f"{self.label}.X"
            if self.layer is None
            else (f"{self.label}.raw.X" if self._is_raw else f"{self.label}.layers[{self.layer!r}]")
        )

    @cached_property
    def layers(self) -> list[str]:
        """Keys of `layers`."""
        if self._adata is not None:
            return [str(key) for key in self._adata.layers]
        return sorted(self._group["layers"].keys()) if "layers" in self._group else []

    @property
    def has_raw(self) -> bool:
        """Whether `.raw` is there."""
        return self._adata.raw is not None if self._adata is not None else "raw" in self._group

    @property
    def _is_raw(self) -> bool:
        return self.layer == "raw" and "raw" not in self.layers

    @cached_property
    def obs(self) -> pd.DataFrame:
        """`obs` of the AnnData."""
        return self._adata.obs if self._adata is not None else self._frame("obs")

    def require_obs(self, columns: Iterable[str], fix: str) -> None:
        """Refuse data whose `obs` lacks one of these columns."""
        if missing := [column for column in columns if column not in self.obs.columns]:
            have = listing(map(str, self.obs.columns))
            raise InputError(f"obs of {self.label} has no column {listing(missing)} (columns: {have}).", fix)

    @cached_property
    def var(self) -> pd.DataFrame:
        """`var` that belongs to the matrix (that of `.raw` when the layer is "raw")."""
        if self._adata is not None:
            return self._adata.raw.var if self._is_raw else self._adata.var
        return self._frame("raw/var" if self._is_raw else "var")

    def _frame(self, key: str) -> pd.DataFrame:
        from anndata.io import read_elem

        return read_elem(self._group[key])

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(n_cells, n_features)."""
        return len(self.obs), len(self.var)

    # The matrix

    @cached_property
    def _matrix(self) -> Any:
        """The matrix as it is stored; CSC is turned once, in memory, since its rows can't be sliced."""
        if self.layer is not None and self.layer not in self.layers and not (self._is_raw and self.has_raw):
            have = [*self.layers, *(["raw"] if self.has_raw else [])]
            raise InputError(
                f"layer={self.layer!r} is not in {self.label} (layers: {listing(have) or 'none'}).",
                "Leave layer out to read X.",
            )
        if self._adata is not None:
            holder = self._adata.raw if self._is_raw else self._adata
            matrix = holder.X if self.layer is None or self._is_raw else holder.layers[self.layer]
        else:
            from anndata.io import sparse_dataset

            key = "X" if self.layer is None else ("raw/X" if self._is_raw else f"layers/{self.layer}")
            if key not in self._group:
                raise InputError(
                    f"{self.label} has no {key}.", f"Pass layer=; it has {listing(self.layers) or 'none'}."
                )
            element = self._group[key]
            matrix = sparse_dataset(element) if "indptr" in getattr(element, "keys", list)() else element
        if matrix is None:
            raise InputError(f"{self.name} is empty.", f"Pass layer=; there are {listing(self.layers) or 'none'}.")
        if getattr(matrix, "format", "csr") == "csc":
            matrix = (matrix if sparse.issparse(matrix) else matrix.to_memory()).tocsr()
        return matrix

    def take(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """Some rows (n, n_features) as CSR with sorted indices and no explicit zeros, float32 (float64 stays). A copy."""
        if isinstance(rows, np.ndarray) and (np.diff(rows) < 0).any():  # HDF5 reads rows in ascending order only
            order = np.argsort(rows)
            return self.take(rows[order])[np.argsort(order)]
        part = self._matrix[rows]
        if part.dtype == np.float16:  # which scipy has no sparse matrices of
            part = part.astype(np.float32)
        matrix = sparse.csr_matrix(part.to_memory() if hasattr(part, "to_memory") else part)
        if matrix.dtype != np.float64:
            wide = matrix.dtype.kind in "iu" and matrix.nnz > 0 and int(matrix.data.max()) >= 2**24
            matrix = matrix.astype(np.float64 if wide else np.float32)
        if matrix is self._matrix or np.shares_memory(matrix.data, getattr(self._matrix, "data", matrix.data[:0])):
            matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix

    def ranges(self, rows: int = BLOCK_ROWS) -> Iterator[slice]:
        """Consecutive row ranges."""
        for start in range(0, self.shape[0], rows):
            yield slice(start, min(start + rows, self.shape[0]))


def open_sources(data: Data, layer: str | None = None) -> list[Source]:
    """One source for each AnnData, path or SOMA query in `data`, in order; a path with ``*`` stands for all that match, by name."""
    if isinstance(data, list | tuple) and not data:
        raise InputError("the list of data sets is empty.", "Give at least one AnnData or path.")
    items = [found for item in (data if isinstance(data, list | tuple) else [data]) for found in _matching(item)]
    sources: list[Source] = []
    try:
        for item in items:
            if hasattr(item, "open_source"):
                sources.append(item.open_source(layer))
            else:
                sources.append(Source(item, layer))
    except BaseException:
        close_all(sources)
        raise
    return sources


def _matching(item: Any) -> list[Any]:
    """A path with wildcards as the paths that match; anything else as it is."""
    text = str(item) if isinstance(item, str | PathLike) else ""
    if not set("*?[") & set(text) or Path(text).exists():
        return [item]
    if found := sorted(glob(text, recursive=True)):
        return list(found)
    raise InputError(f"no file matches {text}.", "Give the path of an .h5ad file or a .zarr folder.")


def close_all(sources: Sequence[Source]) -> None:
    """Close the files of some sources."""
    for source in sources:
        source.close()


def _sampled_ranges(source: Source) -> list[slice]:
    """Up to four evenly spaced blocks."""
    ranges = list(source.ranges())
    return [ranges[i] for i in sorted({round(i) for i in np.linspace(0, len(ranges) - 1, 4)})] if ranges else []


def sample_rows(source: Source) -> sparse.csr_matrix:
    """Up to four evenly spaced blocks of rows, enough to see what the values are; `sampled_cells` tells which."""
    parts = [source.take(rows) for rows in _sampled_ranges(source)]
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, source.shape[1]), dtype=np.float32)


def sampled_cells(source: Source) -> np.ndarray:
    """Positions of the rows of `sample_rows` (n,) int64."""
    rows = [np.arange(rows.start, rows.stop) for rows in _sampled_ranges(source)]
    return np.concatenate(rows) if rows else np.zeros(0, np.int64)


def value_range(data: Data, layer: str | None = None) -> tuple[float, float]:
    """Smallest positive and largest value of a matrix (of all, in a list), read block by block; NaN where nothing is positive."""
    low, high = np.inf, -np.inf
    sources = open_sources(data, layer)
    try:
        for source in sources:
            for rows in source.ranges():
                values = source.take(rows).data
                positive = values[values > 0]
                low, high = min(low, positive.min(initial=np.inf)), max(high, positive.max(initial=-np.inf))
    finally:
        close_all(sources)
    return (float(low), float(high)) if low <= high else (np.nan, np.nan)


def describe_values(matrix: sparse.csr_matrix) -> str:
    """What a matrix seems to hold: "counts", "lognorm", "negative" (scaled), "not finite", "normalised" or "empty"."""
    data = matrix.data
    if data.size == 0:
        return "empty"
    if not np.isfinite(data).all():
        return "not finite"
    if data.min() < 0:
        return "negative"
    if (data == np.floor(data)).all():
        return "counts"
    return "lognorm" if data.max() < _LOGNORM_LIMIT else "normalised"


_WORDS = {
    "not finite": "NaN or infinite values",
    "negative": "negative values",
    "lognorm": "non-integer values",
    "normalised": "non-integer values",
    "counts": "integer counts",
}
_WANTED = {"counts": "raw counts", "lognorm": "log1p of counts per 10,000"}


def check_values(
    matrix: sparse.csr_matrix, expected: Values, source: Source, rows: slice | np.ndarray, model: str
) -> None:
    """Refuse a matrix that does not hold the expected values.

    Raises
    ------
    InputError
        Naming the first offending value with its cell and gene, what the model reads, and the argument that fixes it.
    """
    found = describe_values(matrix)
    if found in ("empty", expected) or (expected == "any" and found != "not finite"):
        return
    data = matrix.data
    bad = {
        "not finite": ~np.isfinite(data),
        "negative": data < 0,
        "counts": np.ones(data.shape, bool),
    }.get(found, data != np.floor(data))
    position = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(matrix.indptr, position, side="right")) - 1
    cell = source.obs.index[rows][row]
    gene = source.var.index[matrix.indices[position]]
    raise InputError(
        f"{source.name} holds {_WORDS[found]} (first: {data[position]:.4g} in cell {str(cell)!r}, gene {str(gene)!r}); "
        f"{model} reads {_WANTED.get(expected, 'finite values')}.",
        _value_fix(source, expected, found),
    )


def _value_fix(source: Source, expected: Values, found: str) -> str:
    candidates = [None, *source.layers, *(["raw"] if source.has_raw else [])]
    for layer in candidates:
        if layer == source.layer:
            continue
        other = source.through(layer)
        try:
            if describe_values(other.take(slice(0, min(BLOCK_ROWS, other.shape[0])))) == expected:
                where = "adata.X" if layer is None else ("adata.raw" if layer == "raw" else "adata.layers")
                return f"Pass layer={layer!r} ({_WANTED[expected]} found in {where})."
        finally:
            other.close()
    if found == "not finite":
        return "Remove or fill these values; no model reads them."
    if expected == "counts":
        return "Put raw counts in a layer and pass layer=<name>, or values='any' if you mean to feed these values as they are."
    return "Normalise first: sc.pp.normalize_total(adata, target_sum=1e4); sc.pp.log1p(adata); or pass values='any'."
