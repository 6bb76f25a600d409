"""Fragment files -> cells by regions, in memory that grows with the result and not with the file.

What is counted is EpiAgent's preprocessing (Chen et al. 2025, doi:10.1038/s41592-025-02822-z): every (fragment, region) pair that shares
at least one base adds the fragment's count column (reads), or 1 where there is none; a fragment that touches two regions counts in both.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scfm.errors import InputError, listing
from scfm.files import is_gzip
from scfm.regions import RegionIndex, Regions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["FragmentReport", "count_fragments"]

_CHUNK = 1_000_000  # lines read together
_MERGE_AT = 8_000_000  # entries gathered before equal ones are summed


@dataclass(frozen=True)
class FragmentReport:
    """Quality of a fragment file against a set of regions."""

    file: str
    fragments: int
    """Lines with a fragment."""
    in_regions: int
    """Fragments that overlap at least one region."""
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
    """Lines equal to the line before in position and barcode: duplicates that a fragment file should have merged."""
    sorted: bool
    """Whether positions ascend within each contig (needed by other tools, not here)."""

    @property
    def fraction_in_regions(self) -> float:
        """Share of the fragments that overlap a region (FRiP)."""
        return self.in_regions / self.fragments if self.fragments else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.file}: {self.fragments:,} fragments of {self.barcodes:,} barcodes; {self.fraction_in_regions:.1%} in regions",
        ]
        if self.missing_barcodes:
            lines.append(f"{self.missing_barcodes:,} listed barcodes have no fragment")
        if self.fragments_on_unknown_contigs:
            lines.append(
                f"{self.fragments_on_unknown_contigs:,} fragments on contigs without regions: {listing(self.unknown_contigs)}"
            )
        if self.repeated:
            lines.append(f"warning: {self.repeated:,} lines repeat the fragment before")
        if not self.sorted:
            lines.append("the file is not sorted by position (no matter here)")
        return "\n".join(lines)


def count_fragments(
    path: str | PathLike[str],
    regions: Regions,
    *,
    barcodes: Sequence[str] | None = None,
    count: Literal["reads", "fragments"] = "reads",
    min_regions: int = 0,
) -> AnnData:
    """Count the fragments of each cell in each region.

    Parameters
    ----------
    path
        `.tsv` or `.bed`, plain or gzipped (bgzip too; no tabix index is needed): contig, start, end, barcode and, optionally, the
        reads that support the fragment. Sorted or not; `#` lines are skipped.
    regions
        For example a model's cCREs, in the order of the columns wanted.
    barcodes
        Cells to keep, in the order of the rows wanted; those without fragments become empty rows. None keeps every barcode with
        at least one overlap, sorted.
    count
        "reads": the fifth column, as in the original; "fragments": 1 each.
    min_regions
        Leave out cells with fewer open regions.

    Returns
    -------
    AnnData
        (n_cells, n_regions) float32 CSR; `obs` has `fragments` and `regions`; `uns["fragments"]` the `FragmentReport` as a dict.

    Raises
    ------
    InputError
        The file is truncated, a line is no fragment, or no listed barcode is in the file.
    """
    if count not in ("reads", "fragments"):
        raise InputError(f"count={count!r} is not known.", "Pass 'reads' or 'fragments'.")
    path = Path(path)
    tally = _Tally(regions, barcodes)
    for chunk in _chunks(path):
        tally.add(chunk, count)
    return tally.result(path, min_regions)


class _Tally:
    """Sums of (cell, region) pairs over chunks of a file."""

    def __init__(self, regions: Regions, barcodes: Sequence[str] | None) -> None:
        self.regions, self.index = regions, RegionIndex(regions)
        self.contigs = set(regions.contigs)
        self.listed = barcodes is not None
        self.rows: dict[str, int] = {str(name): i for i, name in enumerate(barcodes or ())}
        if barcodes is not None and len(self.rows) != len(barcodes):
            raise InputError(f"barcodes= repeats {len(barcodes) - len(self.rows)} of its {len(barcodes)} names.")
        self.seen: set[str] = set()
        self.keys: list[np.ndarray] = []
        self.sums: list[np.ndarray] = []
        self.gathered = 0
        self.per_cell: dict[int, int] = {}
        self.fragments = self.whitelisted = self.in_regions = self.off_contig = self.repeated = 0
        self.unknown: set[str] = set()
        self.sorted, self._last = True, (None, -1)

    def add(self, chunk: pd.DataFrame, count: str) -> None:
        chrom, barcode = chunk["chrom"].astype("category"), chunk["barcode"].astype("category")
        start, end = chunk["start"].to_numpy(), chunk["end"].to_numpy()
        self._quality(chrom, barcode, start, end)
        self.seen.update(barcode.cat.categories)
        if not self.listed:
            for name in barcode.cat.categories:
                self.rows.setdefault(name, len(self.rows))
        row = np.array([self.rows.get(name, -1) for name in barcode.cat.categories], dtype=np.int64)[barcode.cat.codes]
        kept = np.flatnonzero(row >= 0)
        self.whitelisted += len(kept)
        for cell, n in zip(*np.unique(row[kept], return_counts=True), strict=True):
            self.per_cell[int(cell)] = self.per_cell.get(int(cell), 0) + int(n)
        fragment, region = self.index.query(chrom.to_numpy(dtype=object)[kept], start[kept], end[kept])
        self.in_regions += int(np.count_nonzero(np.diff(fragment, prepend=-1)))  # in order
        weight = (
            chunk["count"].to_numpy()[kept][fragment]
            if count == "reads" and "count" in chunk
            else np.ones(len(fragment))
        )
        self.keys.append(row[kept][fragment] * len(self.regions) + region)
        self.sums.append(weight.astype(np.float64))
        self.gathered += len(fragment)
        if self.gathered > _MERGE_AT:
            self._merge()

    def _merge(self) -> None:
        keys, where = np.unique(np.concatenate(self.keys), return_inverse=True)
        self.keys, self.sums = [keys], [np.bincount(where, weights=np.concatenate(self.sums), minlength=len(keys))]
        self.gathered = 0

    def _quality(self, chrom: pd.Series, barcode: pd.Series, start: np.ndarray, end: np.ndarray) -> None:
        self.fragments += len(start)
        known = np.array([name in self.contigs for name in chrom.cat.categories])
        self.unknown |= set(chrom.cat.categories[~known])
        self.off_contig += int((~known[chrom.cat.codes.to_numpy()]).sum())
        codes, cells = chrom.cat.codes.to_numpy(), barcode.cat.codes.to_numpy()
        same = codes[1:] == codes[:-1]
        self.sorted &= bool((~same | (start[1:] >= start[:-1])).all())
        self.sorted &= self._last[0] != chrom.iloc[0] or self._last[1] <= start[0]
        self._last = (chrom.iloc[-1], int(start[-1]))
        self.repeated += int(
            (same & (start[1:] == start[:-1]) & (end[1:] == end[:-1]) & (cells[1:] == cells[:-1])).sum()
        )

    def result(self, path: Path, min_regions: int) -> AnnData:
        import pandas as pd
        from anndata import AnnData

        if self.listed and self.rows and not self.whitelisted:
            raise InputError(
                f"none of the {len(self.rows):,} barcodes is in {path}; listed {listing(self.rows, 2)}, "
                f"there {listing(sorted(self.seen), 2)}.",
                "Give barcodes as the file spells them, e.g. with or without the suffix '-1'.",
            )
        if self.keys:
            self._merge()
        key, total = (self.keys[0], self.sums[0]) if self.keys else (np.zeros(0, np.int64), np.zeros(0))
        width = len(self.regions)
        entries = (total.astype(np.float32), (key // width, key % width))
        matrix = sparse.csr_matrix(entries, shape=(len(self.rows), width))
        names = np.array(list(self.rows), dtype=object)
        open_regions = np.diff(matrix.indptr)
        order = np.arange(len(names)) if self.listed else np.argsort(names.astype(str), kind="stable")
        order = order[open_regions[order] >= (min_regions if self.listed else max(min_regions, 1))]
        report = FragmentReport(
            file=path.name,
            fragments=self.fragments,
            in_regions=self.in_regions,
            unknown_contigs=tuple(sorted(self.unknown)),
            fragments_on_unknown_contigs=self.off_contig,
            barcodes=len(self.seen),
            whitelisted=self.whitelisted,
            missing_barcodes=len(set(self.rows) - self.seen),
            repeated=self.repeated,
            sorted=self.sorted,
        )
        if self.fragments and report.fraction_in_regions < 0.05:
            warnings.warn(f"{report}\nFew fragments are in regions: is the genome build the same?", stacklevel=3)
        columns = {"fragments": [self.per_cell.get(int(i), 0) for i in order], "regions": open_regions[order]}
        obs = pd.DataFrame(columns, index=pd.Index(names[order], dtype=object))
        var = pd.DataFrame(index=pd.Index(self.regions.names, dtype=object))
        from scfm.provenance import plain

        return AnnData(matrix[order], obs=obs, var=var, uns={"fragments": plain(report)})


def _chunks(path: Path) -> Iterator[Any]:
    """Parsed chunks of a fragment file, with a column `count` where the file has a fifth column."""
    import pandas as pd

    columns = _columns(path)
    kinds: Any = {"chrom": str, "start": np.int64, "end": np.int64, "barcode": str, "count": np.float64}
    try:
        reader = pd.read_csv(
            path,
            sep="\t",
            header=None,
            comment="#",
            names=columns,
            usecols=range(len(columns)),
            dtype={name: kinds[name] for name in columns},
            chunksize=_CHUNK,
            keep_default_na=False,
            compression="gzip" if is_gzip(path) else None,
        )
        with reader:
            for chunk in reader:
                if bad := int((chunk["end"] <= chunk["start"]).sum()):
                    raise InputError(
                        f"{bad:,} lines of {path} end at or before their start.",
                        "Is it a fragment file? Columns: contig, start, end, barcode.",
                    )
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is truncated or damaged: {error}", "Copy or download it again; `gzip -t` checks it."
        ) from error
    except (ValueError, pd.errors.ParserError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} has a line that is no fragment: {error}", "Columns: contig, start, end, barcode[, count], by tabs."
        ) from error


def _columns(path: Path) -> list[str]:
    """Column names, by the number of fields of the first fragment."""
    with (gzip.open if is_gzip(path) else open)(path, "rt") as file:
        try:
            first = next((line for line in file if line.strip() and not line.startswith("#")), "")
        except (EOFError, zlib.error) as error:
            raise InputError(f"{path} is truncated or damaged: {error}", "Copy or download it again.") from error
    fields = first.rstrip("\n").split("\t")
    if len(fields) < 4:
        raise InputError(
            f"{path} has {len(fields) if first else 0} tab-separated fields in its first line; a fragment has four or five.",
            "Columns: contig, start, end, barcode[, count], by tabs.",
        )
    return ["chrom", "start", "end", "barcode"] + (["count"] if len(fields) > 4 else [])
