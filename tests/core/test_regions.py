import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfm.errors import InputError, SpeciesError
from scfm.regions import BUILDS, Regions, lift_over, overlap_matrix, overlaps, possible_builds, require_build


def regions(rows: list[tuple[str, int, int]]) -> Regions:
    chrom, start, end = zip(*rows, strict=True) if rows else ((), (), ())
    return Regions(np.array(chrom, dtype=object), np.array(start, dtype=np.int64), np.array(end, dtype=np.int64))


@pytest.mark.parametrize("name", ["chr1:100-200", "chr1-100-200", "chr1_100_200", "1:100-200", "chr1:100_200"])
def test_usual_spellings_mean_the_same_region(name):
    assert list(Regions.from_names([name]).names) == ["chr1:100-200"]


def test_thousands_separators_and_contigs_with_underscores_are_read():
    found = Regions.from_names(["chr2:1,000-2,000,000", "chr1_KI270706v1_random:5-9", "GL000194.1:1-2"])
    assert list(found.names) == ["chr2:1000-2000000", "chr1_KI270706v1_random:5-9", "GL000194.1:1-2"]


def test_what_is_no_region_is_listed():
    with pytest.raises(InputError, match=r"2 of 3 features are not regions: 'TP53', 'ENSG00000141510'"):
        Regions.from_names(["chr1:1-2", "TP53", "ENSG00000141510"])
    with pytest.raises(InputError, match=r"end at or before their start, first chr1:5-5"):
        Regions.from_names(["chr1:1-2", "chr1:5-5"])


def test_bed_is_read_plain_and_gzipped_with_headers(tmp_path: Path):
    text = "# made by hand\ntrack name=x\nchr1\t1\t5\tname\t0\nchrX\t7\t9\tother\t0\n"
    (tmp_path / "a.bed").write_text(text)
    (tmp_path / "a.bed.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.bed", "a.bed.gz"):
        assert list(Regions.read_bed(tmp_path / name).names) == ["chr1:1-5", "chrX:7-9"]
    (tmp_path / "cut.bed.gz").write_bytes(gzip.compress(text.encode() * 1000)[:60])
    with pytest.raises(InputError, match="not a readable BED"):
        Regions.read_bed(tmp_path / "cut.bed.gz")


REGION = st.tuples(st.sampled_from(["chr1", "chr2", "chr3"]), st.integers(0, 60), st.integers(1, 25)).map(
    lambda r: (r[0], r[1], r[1] + r[2])
)


@given(st.lists(REGION, max_size=25), st.lists(REGION, max_size=25))
def test_overlaps_are_those_of_comparing_all_pairs(query, reference):
    expected = {
        (i, j)
        for i, (c, s, e) in enumerate(query)
        for j, (d, t, f) in enumerate(reference)
        if c == d and s < f and t < e
    }
    row, column = overlaps(regions(query), regions(reference))
    found = list(zip(row.tolist(), column.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_book_ended_regions_do_not_overlap():
    peaks, reference = regions([("chr1", 0, 10), ("chr1", 9, 10)]), regions([("chr1", 10, 20), ("chr1", 0, 1)])
    np.testing.assert_array_equal(overlap_matrix(peaks, reference).toarray(), [[0, 1], [0, 0]])


def test_builds_are_told_by_the_lengths_of_chromosomes():
    beyond_hg38 = BUILDS["hg38"].lengths["chr17"] - 10  # past the end of hg19's chr17
    assert possible_builds(regions([("chr17", beyond_hg38, beyond_hg38 + 5), ("chr20", 1, 2)])) == ["hg38"]
    assert possible_builds(regions([("chr1", 100, 200)])) == ["hg38", "hg19", "mm10"]
    assert possible_builds(regions([("chr22", 100, 200)])) == ["hg38", "hg19"]


def test_another_build_is_refused_never_lifted():
    hg19_only = regions([("chr1", BUILDS["hg19"].lengths["chr1"] - 10, BUILDS["hg19"].lengths["chr1"])])
    with pytest.raises(InputError, match=r"fit 'hg19' and reach beyond(.|\n)*lift_over"):
        require_build(hg19_only, "hg38", stated=None, model="m")
    with pytest.raises(InputError, match="stated to be hg19"):
        require_build(regions([("chr1", 1, 2)]), "hg38", stated="hg19", model="m")
    mouse_only = regions([("chr3", 1, BUILDS["mm10"].lengths["chr3"]), ("chr18", 1, BUILDS["mm10"].lengths["chr18"])])
    with pytest.raises(SpeciesError, match="fit 'mm10' only"):
        require_build(mouse_only, "hg38", stated=None, model="m")
    require_build(regions([("chr1", 1, 2)]), "hg38", stated="hg38", model="m")


def test_lift_over_moves_what_a_chain_maps(tmp_path: Path):
    pytest.importorskip("pyliftover")
    # one block of 1,000 bases: chr1:1000-2000 -> chr1:5000-6000
    chain = "chain 1000 chr1 10000 + 1000 2000 chr1 20000 + 5000 6000 1\n1000\n\n"
    (tmp_path / "a.over.chain").write_text(chain)
    lifted, rows = lift_over(regions([("chr1", 1100, 1200), ("chr1", 3000, 3100)]), tmp_path / "a.over.chain")
    assert list(lifted.names) == ["chr1:5100-5200"]
    assert rows.tolist() == [0]
    with pytest.raises(InputError, match="there is no chain file"):
        lift_over(lifted, tmp_path / "nowhere.chain")
