"""Cells by a model's regions, in memory: what tasks on chromatin count, hide and knock out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm.cells import Block, Data, check_values
from scfm.encoder import CellEncoder
from scfm.errors import CapabilityError, InputError, listing
from scfm.reading import read
from scfm.regions import RegionIndex, Regions
from scfm.tokenizers.base import known_entries
from scfm.tokenizers.ranks import summed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["RegionCounts", "region_counts"]


@dataclass(frozen=True)
class RegionCounts:
    """Counts of cells in the regions of an encoder.

    Parameters
    ----------
    matrix
        (n_cells, n_regions) float32 CSR.
    tokens
        (n_regions,) token id of each column.
    names
        (n_regions,) ``chrom:start-end``.
    cells
        (n_cells,) names.
    """

    matrix: sparse.csr_matrix
    tokens: np.ndarray
    names: np.ndarray
    cells: np.ndarray

    @cached_property
    def regions(self) -> Regions:
        """Where the columns are."""
        return Regions.from_names(self.names)

    @cached_property
    def opened(self) -> np.ndarray:
        """In how many cells each region is open (n_regions,) int64."""
        return np.bincount(self.matrix.indices, minlength=len(self.names))

    def take(self, rows: np.ndarray) -> RegionCounts:
        """Some of the cells."""
        return RegionCounts(self.matrix[rows], self.tokens, self.names, self.cells[rows])

    def adata(self, matrix: sparse.csr_matrix | None = None) -> AnnData:
        """The counts, or other ones of these regions, as data that the encoder reads without mapping."""
        import pandas as pd
        from anndata import AnnData

        matrix = self.matrix if matrix is None else matrix
        cells = self.cells if matrix is self.matrix else np.arange(matrix.shape[0])
        index = pd.Index(cells.astype(str), dtype=object)
        return AnnData(
            matrix, obs=pd.DataFrame(index=index), var=pd.DataFrame(index=pd.Index(self.names, dtype=object))
        )

    def columns(self, names: Iterable[str]) -> np.ndarray:
        """The columns that these regions share at least one base with, ascending (n,) int64.

        Raises
        ------
        InputError
            A name is no region, or none overlaps.
        """
        wanted = Regions.from_names(names)
        found = np.unique(self.index.query(wanted.chrom, wanted.start, wanted.end)[1])
        if not len(found):
            raise InputError(
                f"none of {listing(wanted.names, 3)} overlaps a region of the encoder.",
                "Is the genome build the same? Regions are chrom:start-end.",
            )
        return found

    @cached_property
    def index(self) -> RegionIndex:
        """For overlaps with the columns."""
        return RegionIndex(self.regions)


def region_counts(encoder: CellEncoder, data: Data, **reading: Any) -> RegionCounts:
    """Count cells in the regions of an encoder's vocabulary.

    Parameters
    ----------
    encoder
        One whose vocabulary is of regions.
    data
        As for `CellEncoder.embed`.
    reading
        layer, gene_column, map_genes, values.

    Raises
    ------
    CapabilityError
        The encoder reads genes.
    InputError
        The data are not what it reads.
    """
    vocabulary = encoder.vocabulary
    if vocabulary.ids != "region":
        raise CapabilityError(f"{encoder.name} reads genes, not genomic regions.", "Load an encoder of chromatin.")
    tokens = vocabulary.genes
    place = np.full(len(vocabulary), -1, dtype=np.int64)
    place[tokens] = np.arange(len(tokens))
    rows, cells = [], []
    with closing(read(encoder, data, **reading)) as opened:
        for part, block_rows in opened.blocks:
            matrix = part.source.take(block_rows)
            check_values(matrix, opened.values, part.source, block_rows, encoder.name)
            obs = part.source.obs.iloc[block_rows]
            ids, values, offsets = known_entries(Block(part.alignment.columns(matrix), part.alignment, obs))
            if part.alignment.report.duplicates:
                ids, values, offsets = summed(ids, values, offsets, len(vocabulary))
            counts = sparse.csr_matrix((values.astype(np.float32), place[ids], offsets), shape=(len(obs), len(tokens)))
            counts.sort_indices()
            rows.append(counts)
            cells.append(obs.index.to_numpy(dtype=object))
    names: Sequence[str] = [vocabulary.tokens[i] for i in tokens]
    empty = sparse.csr_matrix((0, len(tokens)), dtype=np.float32)
    return RegionCounts(
        sparse.vstack(rows, format="csr") if rows else empty,
        tokens,
        np.array(names, dtype=object),
        np.concatenate(cells) if cells else np.zeros(0, object),
    )
