"""Cells of a TileDB-SOMA experiment, CELLxGENE Census among them, read block by block like a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm._lazy import optional
from scfm.cells import Source
from scfm.errors import InputError, listing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SomaQuery", "SomaSource"]

CELL_NAMES = ("obs_id", "cell_id", "barcode")
GENE_NAMES = ("var_id", "feature_id", "gene_id")
"""Columns that name cells and genes, the first that is there; else the joinid does."""


@dataclass(frozen=True)
class SomaQuery:
    """Which cells of a SOMA experiment; takes the place of a path wherever data are read.

    Parameters
    ----------
    experiment
        URI of the experiment, or an open ``tiledbsoma.Experiment``, e.g.
        ``cellxgene_census.open_soma()["census_data"]["homo_sapiens"]``.
    measurement
        Name of the measurement, e.g. "RNA".
    matrix
        Name of the X matrix; None is the only one, or "raw", or "data".
    obs_filter, var_filter
        SOMA value filters, e.g. ``"tissue_general == 'lung' and is_primary_data == True"``.
    """

    experiment: Any
    measurement: str = "RNA"
    matrix: str | None = None
    obs_filter: str | None = None
    var_filter: str | None = None

    def open_source(self, layer: str | None = None) -> SomaSource:
        """The source; `layer` names another X matrix."""
        return SomaSource(self, layer)


class SomaSource(Source):
    """Cells of a `SomaQuery`. `obs` and `var` are in memory, the matrix is read as needed."""

    def __init__(self, query: SomaQuery, layer: str | None = None) -> None:
        soma = optional("tiledbsoma", extra="soma", purpose="reading a SOMA experiment")
        self.query, self.layer, self._adata, self._close = query, layer, None, None
        self._experiment = query.experiment
        if isinstance(query.experiment, str):
            try:
                self._experiment = self._close = soma.Experiment.open(query.experiment)
            except (soma.DoesNotExistError, soma.SOMAError) as error:
                raise InputError(f"{query.experiment} is no SOMA experiment: {error}") from error
        self.label = str(getattr(self._experiment, "uri", query.experiment))
        if query.measurement not in self._experiment.ms:
            self.close()
            raise InputError(
                f"{self.label} has no measurement {query.measurement!r}.",
                f"Pass measurement=; it has {listing(self._experiment.ms)}.",
            )
        self._measurement = self._experiment.ms[query.measurement]

    def through(self, layer: str | None) -> SomaSource:
        """The same cells seen through another X matrix; a file that this source opened is opened again."""
        return SomaSource(self.query, layer)

    @property
    def name(self) -> str:
        """How messages call the matrix."""
        return f"{self.label}/ms/{self.query.measurement}/X/{self._key}"

    @cached_property
    def layers(self) -> list[str]:
        """Names of the X matrices."""
        return sorted(self._measurement.X)

    @property
    def has_raw(self) -> bool:
        """A SOMA experiment has no `raw`, but may have a matrix of this name."""
        return False

    @property
    def _key(self) -> str:
        if self.layer is not None:
            return self.layer
        if self.query.matrix is not None:
            return self.query.matrix
        return next((key for key in ("raw", "data") if key in self.layers), self.layers[0] if self.layers else "")

    @cached_property
    def obs(self) -> pd.DataFrame:
        """`obs` of the cells that the filter lets through."""
        return self._frame_of(self._experiment.obs, self.query.obs_filter, CELL_NAMES)

    @cached_property
    def var(self) -> pd.DataFrame:
        """`var` of the genes that the filter lets through."""
        return self._frame_of(self._measurement.var, self.query.var_filter, GENE_NAMES)

    def _frame_of(self, table: Any, value_filter: str | None, names: tuple[str, ...]) -> pd.DataFrame:
        import pandas as pd

        soma = optional("tiledbsoma", extra="soma", purpose="reading a SOMA experiment")
        try:
            found = table.read(value_filter=value_filter).concat().to_pandas()
        except soma.SOMAError as error:
            raise InputError(f"the filter {value_filter!r} can't be read: {error}", "Correct the filter.") from error
        index = next((found[name] for name in names if name in found), found["soma_joinid"])
        return found.set_index(pd.Index(index.astype(str), dtype=object))

    @cached_property
    def _joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Join ids of cells and genes, and the genes' order by id."""
        cells, genes = (frame["soma_joinid"].to_numpy(dtype=np.int64) for frame in (self.obs, self.var))
        return cells, genes, np.argsort(genes)

    @cached_property
    def _matrix(self) -> Any:
        if self._key not in self.layers:
            raise InputError(
                f"{self.label} has no X matrix {self._key!r} in {self.query.measurement!r}.",
                f"Pass layer= or matrix=; it has {listing(self.layers) or 'none'}.",
            )
        return self._measurement.X[self._key]

    def take(self, rows: slice | np.ndarray) -> sparse.csr_matrix:
        """Some rows (n, n_features) as CSR with sorted indices and no explicit zeros, float32 (float64 stays)."""
        cells, genes, order = self._joined
        wanted = cells[rows]
        table = self._matrix.read((np.sort(wanted), np.sort(genes))).tables().concat()
        cell, gene = (table.column(f"soma_dim_{axis}").to_numpy() for axis in (0, 1))
        data = table.column("soma_data").to_numpy()
        by_id = np.argsort(wanted)
        row = by_id[np.searchsorted(wanted, cell, sorter=by_id)]
        column = order[np.searchsorted(genes, gene, sorter=order)]
        kind = np.float64 if data.dtype == np.float64 else np.float32
        matrix = sparse.csr_matrix((data.astype(kind), (row, column)), shape=(len(wanted), len(genes)))
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix
