"""Fragment files -> cells by regions, in memory that grows with the result and not with the file.

What is counted is EpiAgent's preprocessing (Chen et al. 2025, doi:10.1038/s41592-025-02822-z): every (fragment, region) pair that shares
at least one base adds the fragment's count column (reads), or 1 where there is none; a fragment that touches two regions counts in both.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from scfm.errors import InputError, listing
from scfm.files import is_gzip
from scfm.fragment_files import FragmentFile, Fragments
from scfm.regions import BUILDS, RegionIndex, Regions, build_in, possible_builds, require_build, with_prefix

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.encoder import CellEncoder

__all__ = ["FragmentReport", "count_fragments"]

FEW = 0.05
"""Below this share of fragments in regions, a warning asks whether the genome build is the same."""
_GATHER = 2_000_000  # pairs gathered before they become a matrix


@dataclass(frozen=True)
class FragmentReport:
    """Quality of a fragment file against a set of regions."""

    file: str
    fragments: int
    """Lines with a fragment."""
    in_regions: int
    """Fragments of counted barcodes that overlap at least one region."""
    unknown_contigs: tuple[str, ...]
    """Contigs of the file on which there is no region."""
    fragments_on_unknown_contigs: int
    barcodes: int
    """Barcodes in the file."""
    whitelisted: int
    """Fragments of listed barcodes; all where no list was given."""
    missing_barcodes: int
    """Listed barcodes without any fragment."""
    repeated: int
    """Fragments that repeat the position and barcode of another among their neighbours: duplicates that should have been merged."""
    sorted: bool
    """Whether positions ascend within each contig, and contigs are in one piece. Only then are all duplicates neighbours."""
    cells: int
    """Rows of the matrix."""
    few_regions: int
    """Cells left out: those with fewer open regions than `min_regions`."""
    min_regions: int
    regions_per_cell: float
    """Median of the rows."""
    build: str | None = None
    """Genome build that the header of the file states."""

    @property
    def fraction_in_regions(self) -> float:
        """Share of the (listed) fragments that overlap a region (FRiP)."""
        return self.in_regions / self.whitelisted if self.whitelisted else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.file}: {self.fragments:,} fragments of {self.barcodes:,} barcodes; {self.fraction_in_regions:.1%}"
            f"{' of those of listed barcodes' if self.whitelisted < self.fragments else ''} in regions",
            f"{self.cells:,} cells, {self.regions_per_cell:,.0f} open regions a cell (median)",
        ]
        if self.few_regions:
            lines.append(f"{self.few_regions:,} cells with fewer than {self.min_regions:,} open regions are left out")
        if self.missing_barcodes:
            lines.append(f"{self.missing_barcodes:,} listed barcodes have no fragment")
        if self.fragments_on_unknown_contigs:
            lines.append(
                f"{self.fragments_on_unknown_contigs:,} fragments on contigs without regions: {listing(self.unknown_contigs)}"
            )
        if self.repeated:
            lines.append(
                f"warning: {self.repeated:,} fragments ({self.repeated / self.fragments:.1%}) repeat another's position and barcode: "
                "duplicates were not merged"
            )
        if not self.sorted:
            lines.append(
                "the file is not sorted by position (no matter for the counts; duplicates far apart are not seen)"
            )
        return "\n".join(lines)


def count_fragments(
    path: str | PathLike[str],
    regions: Regions | CellEncoder,
    *,
    barcodes: Sequence[str] | str | PathLike[str] | None = None,
    count: Literal["reads", "fragments"] = "reads",
    min_regions: int = 0,
    build: str | None = None,
) -> AnnData:
    """Count the fragments of each cell in each region.

    Parameters
    ----------
    path
        `.tsv` or `.bed`, plain or gzipped (bgzip too; no tabix index is needed): contig, start, end, barcode and, optionally, the
        reads that support the fragment. Sorted or not; `#` lines are skipped.
    regions
        The columns wanted, in order; or an encoder, whose regions (and genome build) are taken.
    barcodes
        Cells to keep, in the order of the rows wanted, or the path of a file with one a line (plain or gzipped, such as Cell
        Ranger's `barcodes.tsv.gz`); those without fragments become empty rows. None keeps every barcode with at least one overlap,
        sorted.
    count
        "reads": the fifth column, as in the original; "fragments": 1 each.
    min_regions
        Leave out cells with fewer open regions; the report says how many.
    build
        Genome build of the regions, e.g. "hg38"; None takes the one that their coordinates leave, if there is one only.

    Returns
    -------
    AnnData
        (n_cells, n_regions) float32 CSR; `obs` has `fragments`, `in_regions` (fragments that overlap a region), `fraction_in_regions`
        and `regions` (open ones); `uns["fragments"]` the `FragmentReport` as a dict.

    Raises
    ------
    InputError
        The file is truncated, a line is no fragment, the fragments are of another genome build (by the file's header, or because they
        reach beyond the chromosomes), or no listed barcode is in the file.
    SpeciesError
        The fragments fit builds of another species only.
    """
    if count not in ("reads", "fragments"):
        raise InputError(f"count={count!r} is not known.", "Pass 'reads' or 'fragments'.")
    if build is not None and build not in BUILDS:
        raise InputError(f"build={build!r} is not known.", f"Known are {listing(BUILDS)}.")
    if not isinstance(regions, Regions):
        build = build or regions.vocabulary.build
        regions = _regions_of(regions)
    listed = _listed(barcodes)
    file = FragmentFile(Path(path))
    tally = _Tally(file, regions, listed)
    checked = False
    for part in file:
        if not checked:
            _require_stated(file, regions, build)
            checked = True
        tally.add(part, count)
    _require_fitting(file, tally.furthest, regions, build)
    return tally.result(min_regions)


def _regions_of(encoder: CellEncoder) -> Regions:
    vocabulary = encoder.vocabulary
    if vocabulary.ids != "region" or not len(vocabulary.genes):
        what = (
            "has no regions before it is fitted"
            if vocabulary.ids == "symbol" and not len(vocabulary)
            else "reads genes"
        )
        raise InputError(f"{encoder.name} {what}.", "Pass Regions, e.g. scfm.regions.Regions.read_bed('peaks.bed').")
    return Regions.from_names([vocabulary.tokens[i] for i in vocabulary.genes])


def _listed(barcodes: Sequence[str] | str | PathLike[str] | None) -> list[str] | None:
    """The names of a whitelist."""
    if barcodes is None:
        return None
    if isinstance(barcodes, str | PathLike):
        path = Path(barcodes)
        if not path.is_file():
            raise InputError(f"there is no file {path}.", "barcodes= is a list of names, or a file with one a line.")
        with (gzip.open if is_gzip(path) else open)(path, "rt") as file:
            names = [line.split("\t")[0].strip() for line in file if line.strip()]
    else:
        names = [str(name) for name in barcodes]
    if repeats := len(names) - len(set(names)):
        raise InputError(f"barcodes= repeats {repeats} of its {len(names)} names.")
    return names


def _require_stated(file: FragmentFile, regions: Regions, build: str | None) -> None:
    """Refuse a file whose header names a build that the regions are not of."""
    stated = build_in("\n".join(file.header))
    possible = [build] if build is not None else possible_builds(regions)
    if stated is not None and possible and stated not in possible:
        raise InputError(
            f"the header of {file.path} states {stated}; the regions are {' or '.join(possible)}.", _build_fix(possible)
        )


def _build_fix(possible: Sequence[str]) -> str:
    return f"Align the reads to {' or '.join(possible)}, or lift the regions or fragments over yourself; nothing is lifted silently."


def _require_fitting(file: FragmentFile, furthest: np.ndarray, regions: Regions, build: str | None) -> None:
    """Refuse fragments that reach beyond the chromosomes of the regions' build."""
    ends = np.maximum(furthest[: len(file.contigs)], 1)
    names = np.array([with_prefix(name) for name in file.contigs], dtype=object)
    last = Regions(names, ends - 1, ends)
    possible = [build] if build is not None else possible_builds(regions)
    if len(possible) == 1:
        words = {"model": "the regions", "reads": "are of", "what": f"fragments of {file.path}"}
        require_build(last, possible[0], stated=None, fix=_build_fix(possible), **words)
    elif possible and (fitting := possible_builds(last)) and not set(fitting) & set(possible):
        raise InputError(
            f"the fragments of {file.path} fit {listing(fitting)}, the regions {listing(possible)}.",
            _build_fix(possible),
        )


class _Tally:
    """Sums of (cell, region) pairs over the pieces of a file."""

    def __init__(self, file: FragmentFile, regions: Regions, listed: list[str] | None) -> None:
        self.file, self.regions, self.listed = file, regions, listed
        self.index, self.contigs = RegionIndex(regions), set(regions.contigs)
        self.rows = {} if listed is None else {name: i for i, name in enumerate(listed)}
        self.row_of = np.zeros(0, dtype=np.int64)  # of each barcode of the file; -1 where it is not listed
        self.offset = np.zeros(0, dtype=np.int64)  # of each contig of the file, on the axis of the index
        self.furthest = np.zeros(0, dtype=np.int64)  # end of each contig's fragments
        self.per_cell = np.zeros((2, 0), dtype=np.int64)  # fragments, and those in regions, of each row
        self.gathered: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.pairs = 0
        self.matrices: list[sparse.csr_matrix] = []  # each at least twice as large as the next
        self.fragments = self.off_contig = self.repeated = 0
        self.sorted, self._last, self._done = True, (-1, -1), set[int]()
        self._tail = np.full((4, 1), -1)  # the last fragments with one position

    def add(self, part: Fragments, count: str) -> None:
        self._meet()
        self._quality(part)
        row, offset = self.row_of[part.barcode], self.offset[part.contig]
        self.off_contig += int((offset < 0).sum())
        start, end, reads = part.start, part.end, part.count
        if self.listed is not None:
            kept = np.flatnonzero(row >= 0)
            row, offset, start, end = row[kept], offset[kept], start[kept], end[kept]
            reads = None if reads is None else reads[kept]
        fragment, region = self.index.query_at(offset, start, end)
        hit = fragment[np.flatnonzero(np.diff(fragment, prepend=-1))]  # fragments are in order
        n_rows = self.per_cell.shape[1]
        self.per_cell[0] += np.bincount(row, minlength=n_rows)
        self.per_cell[1] += np.bincount(row[hit], minlength=n_rows)
        ones = count == "fragments" or reads is None
        weight = np.ones(len(fragment), np.float32) if ones else reads[fragment].astype(np.float32)  # type: ignore[index]
        self.gathered.append((weight, row[fragment], region))
        self.pairs += len(fragment)
        if self.pairs >= _GATHER:
            self._gather()

    def _meet(self) -> None:
        """Give contigs and barcodes that the last piece brought their place."""
        if new := self.file.contigs[len(self.offset) :]:
            self.offset = np.append(self.offset, self.index.offsets(map(with_prefix, new)))
            self.furthest = np.append(self.furthest, np.zeros(len(new), np.int64))
        new = self.file.barcodes[len(self.row_of) :]
        if self.listed is None:
            self.row_of = np.arange(len(self.file.barcodes))
        else:
            self.row_of = np.append(self.row_of, np.array([self.rows.get(name, -1) for name in new], np.int64))
        rows = len(self.row_of) if self.listed is None else len(self.listed)
        self.per_cell = np.pad(self.per_cell, ((0, 0), (0, rows - self.per_cell.shape[1])))

    def _gather(self) -> None:
        """Sum what was gathered, and matrices of like size with each other: each pair is added a few times only."""
        weight, row, region = (np.concatenate(parts) for parts in zip(*self.gathered, strict=True))
        shape = (self.per_cell.shape[1], len(self.regions))
        self.matrices.append(sparse.csr_matrix((weight, (row, region)), shape=shape))
        self.gathered, self.pairs = [], 0
        while len(self.matrices) > 1 and self.matrices[-2].nnz < 2 * self.matrices[-1].nnz:
            self._join()

    def _join(self) -> None:
        one, other = self.matrices.pop(), self.matrices.pop()
        one.resize(shape := (self.per_cell.shape[1], len(self.regions)))
        other.resize(shape)
        self.matrices.append(one + other)

    def _quality(self, part: Fragments) -> None:
        contig, start = part.contig, part.start
        self.fragments += len(part)
        changes = np.flatnonzero(np.diff(contig, prepend=-1))
        np.maximum.at(self.furthest, contig[changes], np.maximum.reduceat(part.end, changes))
        ascending = bool(((start[1:] >= start[:-1]) | (contig[1:] != contig[:-1])).all())
        if contig[0] == self._last[0]:
            ascending &= self._last[1] <= int(start[0])
        met = contig[changes].tolist()
        met = met[1:] if met[0] == self._last[0] else met
        self.sorted &= ascending and len(set(met)) == len(met) and self._done.isdisjoint(met)
        self._done.update(met)
        self._last = (int(contig[-1]), int(start[-1]))
        self.repeated += self._repeats(part)

    def _repeats(self, part: Fragments) -> int:
        """Fragments that repeat position and barcode of another in a run of equal positions, which may begin in the part before."""
        columns = np.stack([part.contig, part.start, part.end, part.barcode])
        tail = self._tail[:, : self._tail.shape[1] if (self._tail[:3, -1:] == columns[:3, :1]).all() else 0]
        columns = np.concatenate([tail, columns], axis=1)
        equal = (columns[:3, 1:] == columns[:3, :-1]).all(axis=0)
        runs = np.flatnonzero(~equal)
        self._tail = columns[:, runs[-1] + 1 if len(runs) else 0 :]
        return _extra(columns, equal) - _extra(tail, np.ones(max(tail.shape[1] - 1, 0), dtype=bool))

    def result(self, min_regions: int) -> AnnData:
        import pandas as pd
        from anndata import AnnData

        from scfm.provenance import plain

        file, seen = self.file, self.file.barcodes
        counted = int(self.per_cell[0].sum())
        if self.listed and not counted:
            raise InputError(
                f"none of the {len(self.listed):,} barcodes is in {file.path}; listed {listing(self.listed, 2)}, "
                f"there {listing(sorted(seen), 2)}.",
                "Give barcodes as the file spells them, e.g. with or without the suffix '-1'.",
            )
        if self.gathered:
            self._gather()
        while len(self.matrices) > 1:
            self._join()
        names = np.array(seen if self.listed is None else self.listed, dtype=object)
        shape = (len(names), len(self.regions))
        matrix = self.matrices[0] if self.matrices else sparse.csr_matrix(shape, dtype=np.float32)
        matrix.resize(shape)
        opened = np.diff(matrix.indptr)
        order = np.argsort(names.astype(str), kind="stable") if self.listed is None else np.arange(len(names))
        order = order if self.listed is not None else order[opened[order] > 0]
        kept = order[opened[order] >= min_regions]
        total, inside = self.per_cell[:, kept]
        report = FragmentReport(
            file=file.path.name,
            fragments=self.fragments,
            in_regions=int(self.per_cell[1].sum()),
            unknown_contigs=tuple(sorted(n for n, at in zip(file.contigs, self.offset, strict=True) if at < 0)),
            fragments_on_unknown_contigs=self.off_contig,
            barcodes=len(seen),
            whitelisted=counted,
            missing_barcodes=0 if self.listed is None else len(set(self.listed) - set(seen)),
            repeated=self.repeated,
            sorted=self.sorted,
            cells=len(kept),
            few_regions=len(order) - len(kept),
            min_regions=min_regions,
            regions_per_cell=float(np.median(opened[kept])) if len(kept) else 0.0,
            build=build_in("\n".join(file.header)),
        )
        if counted and report.fraction_in_regions < FEW:
            warnings.warn(f"{report}\nFew fragments are in regions: is the genome build the same?", stacklevel=3)
        columns = {
            "fragments": total,
            "in_regions": inside,
            "fraction_in_regions": inside / np.maximum(total, 1),
            "regions": opened[kept],
        }
        obs = pd.DataFrame(columns, index=pd.Index(names[kept], dtype=object))
        var = pd.DataFrame(index=pd.Index(self.regions.names, dtype=object))
        return AnnData(matrix[kept], obs=obs, var=var, uns={"fragments": plain(report)})


def _extra(columns: np.ndarray, equal: np.ndarray) -> int:
    """Of fragments in runs of equal positions (those `equal` to the one before), how many repeat a barcode of their run."""
    if not equal.any():
        return 0
    run = np.cumsum(np.concatenate([[True], ~equal]))
    member = np.concatenate([[False], equal]) | np.concatenate([equal, [False]])
    pairs = np.stack([run[member], columns[3, member]], axis=1)
    return len(pairs) - len(np.unique(pairs, axis=0))
