"""Data as an encoder sees them: opened, checked, aligned and tokenized, block by block; and a report of how they fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scfm.cells import (
    BLOCK_ROWS,
    Block,
    Data,
    Source,
    Values,
    check_values,
    close_all,
    describe_values,
    open_sources,
    sample_rows,
    sampled_cells,
)
from scfm.encoder import CellEncoder
from scfm.genes import Alignment, GeneReport, align
from scfm.groups import cell_groups
from scfm.regions import align_regions
from scfm.tokenizers.base import Tokens

__all__ = ["InputReport", "InputWarning", "Reading", "TokenBlock", "check", "read", "tokenized"]


class InputWarning(UserWarning):
    """The result stands, but some cells or features deserve a look."""


@dataclass(frozen=True)
class Part:
    """One source and how its features align."""

    source: Source
    alignment: Alignment
    start: int
    """Position of its first cell in the whole data."""
    groups: list[np.ndarray] | None = None
    """Rows that are computed together, where cells see each other."""


@dataclass(frozen=True)
class Reading:
    """Data opened, aligned and sampled: everything that can be refused before work starts has been."""

    parts: list[Part]
    values: Values
    obs_columns: tuple[str, ...]

    @property
    def n_cells(self) -> int:
        """Cells of all parts."""
        return sum(part.source.shape[0] for part in self.parts)

    @cached_property
    def blocks(self) -> list[tuple[Part, slice | np.ndarray]]:
        """Each block's part and its rows there: consecutive cells in order or, where cells see each other, the groups."""
        return [
            (part, rows)
            for part in self.parts
            for rows in (part.source.ranges(BLOCK_ROWS) if part.groups is None else part.groups)
        ]

    @cached_property
    def positions(self) -> list[slice | np.ndarray]:
        """Where the cells of each block are in the whole data."""
        return [
            slice(part.start + rows.start, part.start + rows.stop) if isinstance(rows, slice) else part.start + rows
            for part, rows in self.blocks
        ]

    def close(self) -> None:
        """Close the files."""
        close_all([part.source for part in self.parts])


def read(
    encoder: CellEncoder,
    data: Data,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Values | None = None,
) -> Reading:
    """Open data for an encoder: align the features once per data set, and look at a sample of the values."""
    sources = open_sources(data, layer)
    try:
        return _aligned(encoder, sources, gene_column, map_genes, values or encoder.card.input.values)
    except BaseException:
        close_all(sources)
        raise


def _aligned(
    encoder: CellEncoder, sources: list[Source], gene_column: str | None, map_genes: bool, expected: Values
) -> Reading:
    parts, start = [], 0
    for source in sources:
        sample = sample_rows(source)
        check_values(sample, expected, source, sampled_cells(source), encoder.name)
        totals = np.asarray(sample.sum(axis=0), dtype=np.float64).reshape(-1) if sample.nnz else None
        alignment = (align_regions if encoder.vocabulary.ids == "region" else align)(
            source.var,
            encoder.vocabulary,
            model=encoder.name,
            gene_column=gene_column,
            map_genes=map_genes,
            totals=totals,
        )
        parts.append(Part(source, alignment, start, _groups(encoder, source)))
        start += source.shape[0]
    columns = encoder.tokenizer.obs_columns
    for part in parts:
        part.source.require_obs(columns, f"{encoder.name} reads it; {encoder.tokenizer.obs_fix}.")
    return Reading(parts, expected, columns)


def _groups(encoder: CellEncoder, source: Source) -> list[np.ndarray] | None:
    """Rows that are computed together; a column that the card calls usable (`input.obs`) may be absent, then all are."""
    tokenizer = encoder.tokenizer
    if not tokenizer.grouped:
        return None
    key = tokenizer.group_key
    if key is not None and key not in source.obs.columns:
        if key not in encoder.card.input.obs:
            source.require_obs(
                [key], "Name the groups of cells with with_options(group_key=...), or None for one group."
            )
        key = None
    return cell_groups(source.obs, key, tokenizer.group_size)


@dataclass(frozen=True)
class TokenBlock:
    """Tokens of some cells: consecutive ones, or a group."""

    number: int
    """Of the block, from 0 (`Reading.blocks`)."""
    cells: np.ndarray
    """Positions of the cells in the data (n,) int64."""
    tokens: Tokens
    block: Block | None = None
    """What the tokens were made of, where it was asked for."""


def tokenized(
    encoder: CellEncoder,
    reading: Reading,
    seed: int,
    *,
    done: Collection[int] = (),
    numbers: Iterable[int] | None = None,
    keep: bool = False,
) -> Iterator[TokenBlock]:
    """Tokens of all cells, block by block; values are checked as they pass.

    Parameters
    ----------
    done
        Numbers of blocks that are not needed.
    numbers
        Numbers of the blocks, ascending; None is all of them.
    keep
        Each comes with the values it was made of.
    """
    tokenize = encoder.tokenizer.stream(seed)
    for number in range(len(reading.blocks)) if numbers is None else numbers:
        if number in done and not encoder.tokenizer.sequential:
            continue
        part, rows = reading.blocks[number]
        matrix = part.source.take(rows)
        check_values(matrix, reading.values, part.source, rows, encoder.name)
        obs = part.source.obs[list(reading.obs_columns)].iloc[rows]
        block = Block(part.alignment.columns(matrix), part.alignment, obs)
        tokens = tokenize(block)
        if number not in done:
            cells = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            yield TokenBlock(number, part.start + cells, tokens, block if keep else None)


_EQUAL_FEATURES = {
    "first": "the first counts",
    "sum": "their values are added",
    "each": "each has a token of its own",
}


@dataclass(frozen=True)
class InputReport:
    """How data fit an encoder. Every refusal of `embed` is raised by `check` too; this is what is left to say."""

    model: str
    source: str
    matrix: str
    cells: int
    cells_read: int
    found: str
    """What the values are: "counts", "lognorm", ..."""
    genes: GeneReport
    empty_cells: int
    """Cells read that express no gene the model knows."""
    tokens: tuple[int, int, int]
    """Fewest, median and most tokens of a cell."""
    truncated: float
    """Share of the cells read with more genes than the model takes."""
    repeated_cells: int
    """Names in obs_names that occur before."""
    warnings: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    """Cells of each group that is computed together, where cells see each other."""

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.cells:,} cells, {self.matrix} holds {self.found}",
            f"genes: {self.genes}",
            f"tokens a cell: {self.tokens[1]:,} (median), {self.tokens[0]:,} to {self.tokens[2]:,}"
            + (f"; {self.truncated:.1%} of cells are truncated" if self.truncated else ""),
        ]
        if self.groups:
            sizes = f"{min(self.groups):,} to {max(self.groups):,} cells"
            lines.append(f"cells see each other within groups: {len(self.groups):,} of {sizes}")
        if self.cells_read < self.cells:
            lines.append(f"values and tokens from {self.cells_read:,} cells, evenly spaced")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings), f"fits {self.model}."])


def check(
    encoder: CellEncoder,
    data: Data,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Values | None = None,
) -> InputReport:
    """Report how data fit an encoder, without embedding.

    Parameters
    ----------
    encoder
        From `scfm.load`.
    data, layer, gene_column, map_genes, values
        As for `CellEncoder.embed`. Of a list, the first data set is reported; all are checked.

    Returns
    -------
    InputReport
        `print` it, or read its fields.

    Raises
    ------
    InputError, GeneMatchError, SpeciesError
        What `embed` would raise.
    """
    reading = read(encoder, data, layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)
    try:
        part = reading.parts[0]
        sample = sample_rows(part.source)
        columns = list(reading.obs_columns)
        obs = part.source.obs[columns].iloc[sampled_cells(part.source)]
        tokens = encoder.tokenizer.tokenize(Block(part.alignment.columns(sample), part.alignment, obs))
    finally:
        reading.close()
    lengths = tokens.lengths if len(tokens) else np.zeros(1, np.int64)
    truncated = float((tokens.expressed > lengths).mean()) if len(tokens) else 0.0
    empty = int((tokens.expressed == 0).sum())
    names = Counter(part.source.obs.index)
    repeated = part.source.shape[0] - len(names)
    notes = []
    if empty:
        notes.append(f"{empty:,} cells express no gene that {encoder.name} knows; embed gives NaN rows for them")
    if repeated:
        notes.append(f"{repeated:,} obs_names are repeated; call adata.obs_names_make_unique()")
    if part.alignment.report.duplicates:
        notes.append(
            f"{part.alignment.report.duplicates:,} features share a token with another; "
            + _EQUAL_FEATURES[encoder.tokenizer.equal_features]
        )
    return InputReport(
        model=encoder.name,
        source=part.source.label,
        matrix=part.source.name,
        cells=part.source.shape[0],
        cells_read=sample.shape[0],
        found=describe_values(sample),
        genes=part.alignment.report,
        empty_cells=empty,
        tokens=(int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
        truncated=truncated,
        repeated_cells=repeated,
        warnings=tuple(notes),
        groups=tuple(map(len, part.groups or ())),
    )
