"""Genomic regions: peaks and candidate cis-regulatory elements (cCREs), their build, their overlaps. The ATAC twin of `scfm.genes`.

Intervals are half-open and 0-based, as in BED: [start, end). Two regions overlap if they share at least one base; book-ended ones do not.
The join is ours: two binary searches on sorted coordinates, in numpy (benchmarks/atac.py compares it with bioframe).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm._lazy import optional
from scfm.errors import GeneMatchError, InputError, SpeciesError, listing
from scfm.genes import MIN_SHARE, Alignment, GeneReport, Vocabulary, feature_names

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BUILDS",
    "Build",
    "RegionIndex",
    "Regions",
    "align_regions",
    "build_in",
    "lift_over",
    "overlap_matrix",
    "overlaps",
    "possible_builds",
    "require_build",
    "with_prefix",
]

_NAME = r"^(?P<chrom>.+?)[:\-_](?P<start>[\d,]+)[\-_](?P<end>[\d,]+)$"
_CHROMOSOME = 1 << 40  # room for one chromosome's coordinates in a joint axis


@dataclass(frozen=True)
class Build:
    """A genome assembly: lengths of its main chromosomes in base pairs (UCSC chrom.sizes)."""

    name: str
    species: str
    lengths: Mapping[str, int]


def _lengths(text: str) -> dict[str, int]:
    return {f"chr{name}": int(size) for name, size in (item.split(":") for item in text.split())}


BUILDS = {
    build.name: build
    for build in (
        Build(
            "hg38",
            "human",
            _lengths(
                "1:248956422 2:242193529 3:198295559 4:190214555 5:181538259 6:170805979 7:159345973 8:145138636 9:138394717 "
                "10:133797422 11:135086622 12:133275309 13:114364328 14:107043718 15:101991189 16:90338345 17:83257441 "
                "18:80373285 19:58617616 20:64444167 21:46709983 22:50818468 X:156040895 Y:57227415"
            ),
        ),
        Build(
            "hg19",
            "human",
            _lengths(
                "1:249250621 2:243199373 3:198022430 4:191154276 5:180915260 6:171115067 7:159138663 8:146364022 9:141213431 "
                "10:135534747 11:135006516 12:133851895 13:115169878 14:107349540 15:102531392 16:90354753 17:81195210 "
                "18:78077248 19:59128983 20:63025520 21:48129895 22:51304566 X:155270560 Y:59373566"
            ),
        ),
        Build(
            "mm10",
            "mouse",
            _lengths(
                "1:195471971 2:182113224 3:160039680 4:156508116 5:151834684 6:149736546 7:145441459 8:129401213 9:124595110 "
                "10:130694993 11:122082543 12:120129022 13:120421639 14:124902244 15:104043685 16:98207768 17:94987271 "
                "18:90702639 19:61431566 X:171031299 Y:91744698"
            ),
        ),
    )
}


_ASSEMBLIES = {
    "hg38": r"GRCh38|hg38",
    "hg19": r"GRCh37|hg19|b37",
    "mm10": r"GRCm38|mm10",
    "mm39": r"GRCm39|mm39",
}


def build_in(text: str) -> str | None:
    """The build that a text names, e.g. "hg38" for ``refdata-cellranger-arc-GRCh38-2020-A``; None where it names none, or several."""
    found = [name for name, pattern in _ASSEMBLIES.items() if re.search(pattern, text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def with_prefix(contig: str) -> str:
    """A contig's name as UCSC spells it: with "chr", but for unplaced scaffolds."""
    return contig if contig.startswith(("chr", "GL", "KI", "JH")) else f"chr{contig}"


@dataclass(frozen=True)
class Regions:
    """Regions in the order of a vocabulary or a matrix's columns.

    Parameters
    ----------
    chrom
        (n,) str, with the prefix "chr".
    start, end
        (n,) int64 base pairs, half-open.
    """

    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def names(self) -> np.ndarray:
        """``chrom:start-end`` of each region (n,) object."""
        return np.array(
            [f"{c}:{s}-{e}" for c, s, e in zip(self.chrom, self.start, self.end, strict=True)], dtype=object
        )

    @cached_property
    def contigs(self) -> list[str]:
        """Names of the chromosomes, sorted."""
        return sorted(self.furthest)

    @cached_property
    def furthest(self) -> dict[str, int]:
        """Chromosome -> end of its last region."""
        import pandas as pd

        codes, names = pd.factorize(self.chrom)  # np.unique would sort all regions by name
        ends = np.zeros(len(names), dtype=np.int64)
        np.maximum.at(ends, codes, self.end)
        return dict(zip(names.tolist(), ends.tolist(), strict=True))

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Regions:
        """From `chr1:100-200`, `chr1-100-200`, `chr1_100_200`, `1:100-200` or `chr1:1,000-2,000`.

        Raises
        ------
        InputError
            A name is not a region; the first ones are listed.
        """
        listed = np.array(list(names), dtype=object)
        found, rows = cls.among(listed)
        if bad := len(listed) - len(rows):
            others = np.delete(listed, rows).tolist()
            raise InputError(
                f"{bad:,} of {len(listed):,} features are not regions: {listing(others, 3)}.",
                "Name them chrom:start-end (0-based, half-open), or pass a var column that holds such names.",
            )
        return found

    @classmethod
    def among(cls, names: np.ndarray) -> tuple[Regions, np.ndarray]:
        """The regions among names of any kind, and which of the names they are (n_regions,) int64."""
        import pandas as pd

        parts = pd.Series(names, dtype=object).astype(str).str.extract(_NAME)
        rows = np.flatnonzero(parts["chrom"].notna())
        parts = parts.iloc[rows]
        numbers = [parts[name].str.replace(",", "").astype(np.int64).to_numpy() for name in ("start", "end")]
        return cls._checked(parts["chrom"], *numbers), rows

    @classmethod
    def read_bed(cls, path: str | PathLike[str]) -> Regions:
        """The first three columns of a BED file, plain or gzipped; comment, `track` and `browser` lines are skipped."""
        import pandas as pd

        path = Path(path)
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
                skipped = 0
                for line in file:
                    if not line.startswith(("#", "track", "browser")):
                        break
                    skipped += 1
            columns = ["chrom", "start", "end"]
            kinds: Any = {"chrom": str, "start": np.int64, "end": np.int64}
            table = pd.read_csv(
                path, sep="\t", header=None, usecols=[0, 1, 2], names=columns, dtype=kinds, skiprows=skipped
            )
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is not a readable BED file: {error}") from error
        return cls._checked(table["chrom"], table["start"].to_numpy(), table["end"].to_numpy())

    @classmethod
    def _checked(cls, chrom: pd.Series, start: np.ndarray, end: np.ndarray) -> Regions:
        if bad := int((end <= start).sum()):
            at = int(np.flatnonzero(end <= start)[0])
            raise InputError(
                f"{bad:,} regions end at or before their start, first {chrom.iloc[at]}:{start[at]}-{end[at]}."
            )
        names = chrom.astype("category")
        prefixed = [with_prefix(name) for name in names.cat.categories]
        return cls(np.array(prefixed, dtype=object)[names.cat.codes.to_numpy()], start, end)

    def take(self, rows: np.ndarray) -> Regions:
        """Some of the regions."""
        return Regions(self.chrom[rows], self.start[rows], self.end[rows])


def possible_builds(regions: Regions) -> list[str]:
    """Builds on whose chromosomes all regions fit: what lengths alone can tell; hg19 and hg38 often both fit.

    Unplaced contigs are not looked at.
    """
    fitting = []
    furthest = {name: end for name, end in regions.furthest.items() if re.fullmatch(r"chr(\d+|[XY])", name)}
    for build in BUILDS.values():
        if all(end <= build.lengths.get(name, 0) for name, end in furthest.items()):
            fitting.append(build.name)
    return fitting


def require_build(
    regions: Regions,
    needed: str,
    *,
    stated: str | None,
    model: str,
    what: str = "regions",
    reads: str = "reads",
    fix: str | None = None,
) -> None:
    """Refuse regions of another genome build.

    Parameters
    ----------
    needed
        Build that `model` reads.
    stated
        Build that the user or the file names; None looks at the lengths of the chromosomes alone.
    what, reads, fix
        Words of the message: what the regions are, what `model` does with its build, and what it advises.

    Raises
    ------
    InputError
        `stated` is another build, or the lengths of the chromosomes rule `needed` out.
    SpeciesError
        Only builds of another species fit.
    """
    fix = fix or (
        f"Lift over first: scfm.regions.lift_over(regions, 'hg19ToHg38.over.chain.gz'), or call peaks on {needed}; "
        "nothing is lifted silently."
    )
    if stated is not None and stated != needed:
        raise InputError(f"the {what} are stated to be {stated}; {model} {reads} {needed}.", fix)
    possible = possible_builds(regions)
    if needed in possible:
        return
    species = {BUILDS[name].species for name in possible}
    if species and BUILDS[needed].species not in species:
        raise SpeciesError(
            f"the {what} fit {listing(possible)} only; {model} {reads} {needed} ({BUILDS[needed].species})."
        )
    if possible:
        raise InputError(
            f"the {what} fit {listing(possible)} and reach beyond the chromosomes of {needed}; {model} {reads} {needed}.",
            fix,
        )
    raise InputError(
        f"the {what} reach beyond the chromosomes of {listing(BUILDS)}; {model} {reads} {needed}.",
        "Check the coordinates.",
    )


def _joint(chrom: np.ndarray, codes: Mapping[str, int]) -> np.ndarray:
    """Offset of each region's chromosome on one axis; -1 for chromosomes that are not there."""
    import pandas as pd

    names = pd.Series(chrom, dtype="category")
    of_category = np.array([codes.get(name, -1) for name in names.cat.categories], dtype=np.int64)
    found = of_category[names.cat.codes.to_numpy()]
    return np.where(found < 0, -1, found * _CHROMOSOME)


class RegionIndex:
    """Reference regions prepared for many overlap queries.

    Parameters
    ----------
    reference
        In any order; they may overlap each other.
    """

    def __init__(self, reference: Regions) -> None:
        self._codes = {name: i for i, name in enumerate(reference.contigs)}
        offset = _joint(reference.chrom, self._codes)
        start, end = offset + reference.start, offset + reference.end
        self._order = np.lexsort((end, start))
        self._start, self._end = start[self._order], end[self._order]
        self._furthest = np.maximum.accumulate(self._end) if len(self._end) else self._end
        self._nested = bool((self._furthest != self._end).any())

    def query(self, chrom: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All pairs (query, reference) that share at least one base, two (n_pairs,) int64 arrays, by query then by coordinate."""
        return self.query_at(_joint(chrom, self._codes), start, end)

    def offsets(self, contigs: Iterable[str]) -> np.ndarray:
        """Where contigs begin on the joint axis of the reference (n,) int64; -1 for those on which it has nothing."""
        return np.array([self._codes[name] * _CHROMOSOME if name in self._codes else -1 for name in contigs], np.int64)

    def query_at(self, offset: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `query`, with the `offsets` of the chromosomes."""
        known = np.flatnonzero(offset >= 0)
        begin, finish = offset[known] + start[known], offset[known] + end[known]
        first = np.searchsorted(self._furthest, begin, side="right")  # earlier ones all end at or before `begin`
        last = np.searchsorted(self._start, finish, side="left")  # later ones start at or after `finish`
        counts = np.maximum(last - first, 0)
        row = np.repeat(np.arange(len(known)), counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        if self._nested:
            real = self._end[place] > begin[row]
            row, place = row[real], place[real]
        return known[row], self._order[place]


def overlaps(query: Regions, reference: Regions) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of regions that share at least one base.

    Returns
    -------
    query, reference
        Row numbers, two (n_pairs,) int64 arrays.
    """
    return RegionIndex(reference).query(query.chrom, query.start, query.end)


def overlap_matrix(peaks: Regions, reference: Regions) -> sparse.csr_matrix:
    """1 where a peak overlaps a reference region (n_peaks, n_reference) float32 CSR.

    ``cells x peaks @ overlap_matrix`` is the cell-by-reference matrix: the counts of all peaks that overlap a region by at least one base.
    """
    row, column = overlaps(peaks, reference)
    ones = np.ones(len(row), dtype=np.float32)
    return sparse.csr_matrix((ones, (row, column)), shape=(len(peaks), len(reference)))


def align_regions(
    var: pd.DataFrame,
    vocabulary: Vocabulary,
    *,
    model: str,
    gene_column: str | None = None,
    map_genes: bool = False,
    totals: np.ndarray | None = None,
) -> Alignment:
    """Match the peaks of a data set to a model's regions: by name, or by overlap when asked for.

    Parameters
    ----------
    var, vocabulary, model, gene_column, totals
        As for `scfm.genes.align`.
    map_genes
        Count a peak in every region that it overlaps by at least one base (the counts of all peaks that overlap a region are summed).
        The peaks must be of the vocabulary's genome build.

    Returns
    -------
    Alignment

    Raises
    ------
    InputError
        The features are no regions, or of another build.
    GeneMatchError
        Less than half of the counts are in peaks that the model knows.
    """
    names = feature_names(var, gene_column)
    peaks, rows = Regions.among(names)  # a multiome also has genes; they are unknown features
    spelled = names.copy()
    spelled[rows] = peaks.names
    tokens = vocabulary.lookup(spelled)
    known, projection = tokens >= 0, None
    stated = _stated_build(var, rows)
    if vocabulary.build is not None and (map_genes or stated is not None):
        require_build(peaks, vocabulary.build, stated=stated, model=model)
    if map_genes:
        tokens = vocabulary.genes
        overlapping = overlap_matrix(peaks, Regions.from_names([vocabulary.tokens[i] for i in tokens])).tocoo()
        entries = (overlapping.data, (rows[overlapping.row], overlapping.col))
        projection = sparse.csr_matrix(entries, shape=(len(names), len(tokens)))
        known = np.diff(projection.indptr) > 0
    of_peaks = rows if len(rows) else np.arange(len(names))  # the genes of a multiome are not missed
    share = None
    if totals is not None and (total := float(totals[of_peaks].sum())) > 0:
        share = float(totals[known].sum()) / total
    report = GeneReport(
        column=gene_column or "index",
        features=len(of_peaks),
        matched=int(known.sum()),
        duplicates=0 if map_genes else int(known.sum()) - len(np.unique(tokens[known])),
        mapped=map_genes,
        counts_matched=share,
        unmatched=tuple(str(name) for name in names[of_peaks][~known[of_peaks]][:5]),
    )
    if not report.matched or (report.matched / len(of_peaks) if share is None else share) < MIN_SHARE:
        how = "overlap" if map_genes else "are"
        if map_genes:
            where = f"the genome build {vocabulary.build}" if vocabulary.build else "the genome build the same"
            fix = f"Is {where}? If so, call peaks on more regions, or start from fragments (scfm.fragments.count_fragments)."
        else:
            where = f"{vocabulary.build} regions" if vocabulary.build else "regions"
            fix = f"Pass map_genes=True to count these peaks in the {where} they overlap, or start from fragments."
        raise GeneMatchError(f"{report.matched:,} of {report.features:,} peaks {how} regions of {model}.", fix)
    return Alignment(tokens, names, report, projection)


def _stated_build(var: pd.DataFrame, rows: np.ndarray) -> str | None:
    """The build in `var["genome"]`, where Cell Ranger writes its reference; None where there is none, or it says nothing known."""
    if "genome" not in var.columns:
        return None
    return build_in(" ".join(sorted(set(var["genome"].iloc[rows].astype(str)))))


def lift_over(regions: Regions, chain: str | PathLike[str]) -> tuple[Regions, np.ndarray]:
    """Move regions to another build with a UCSC chain file that you name.

    Both ends must map to one chromosome and strand, with a length within a factor of two; others are left out.

    Parameters
    ----------
    regions
        In the build the chain starts from.
    chain
        For example ``hg19ToHg38.over.chain.gz`` from UCSC.

    Returns
    -------
    lifted, rows
        The regions that moved, and which of the input they are (n_lifted,) int64.

    Raises
    ------
    MissingExtraError
        pyliftover is not installed.
    """
    pyliftover = optional("pyliftover", extra="atac", purpose="lifting regions over")
    if not Path(chain).is_file():
        raise InputError(
            f"there is no chain file {chain}.",
            "Download it from UCSC, e.g. hg19ToHg38.over.chain.gz, and name its path.",
        )
    lift = pyliftover.LiftOver(str(chain)).convert_coordinate
    kept, moved = [], []
    for row, (chrom, start, end) in enumerate(
        zip(regions.chrom, regions.start.tolist(), regions.end.tolist(), strict=True)
    ):
        left, right = lift(chrom, start), lift(chrom, end - 1)
        if not left or not right:
            continue
        (chrom_a, a, strand_a, _), (chrom_b, b, strand_b, _) = left[0], right[0]
        low, high = min(a, b), max(a, b) + 1
        if chrom_a == chrom_b and strand_a == strand_b and 0.5 <= (high - low) / (end - start) <= 2:
            kept.append(row)
            moved.append((chrom_a, low, high))
    chroms, starts, ends = zip(*moved, strict=True) if moved else ((), (), ())
    lifted = Regions(np.array(chroms, dtype=object), np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))
    return lifted, np.array(kept, dtype=np.int64)
