import gzip
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scfm.fragments
from scfm import fragment_files
from scfm.errors import InputError, SpeciesError
from scfm.fragment_files import FragmentFile
from scfm.fragments import count_fragments
from scfm.regions import BUILDS, Regions

REGIONS = Regions.from_names(["chr1:100-200", "chr1:150-300", "chr2:10-20"])
LINES = [
    ("chr1", 90, 120, "B-1", 2),
    ("chr1", 160, 170, "A-1", 1),
    ("chr2", 20, 30, "A-1", 5),
    ("chrUn", 1, 9, "C-1", 1),
]


def write(path: Path, lines=LINES, fields: int = 5, header: str = "# id=1\n") -> Path:
    text = header + "".join("\t".join(map(str, line[:fields])) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["f.tsv", "f.tsv.gz"])
def test_counts_are_reads_and_a_fragment_counts_in_every_region_it_touches(tmp_path, name):
    cells = count_fragments(write(tmp_path / name), REGIONS)
    assert list(cells.obs_names) == ["A-1", "B-1"]  # book-ended and off-contig fragments count nowhere
    np.testing.assert_array_equal(cells.X.toarray(), [[1, 1, 0], [2, 0, 0]])
    assert cells.X.dtype == np.float32
    assert list(cells.obs["fragments"]) == [2, 1]


def test_without_a_count_column_and_on_demand_each_fragment_is_one(tmp_path):
    four = count_fragments(write(tmp_path / "f.tsv", fields=4), REGIONS)
    five = count_fragments(write(tmp_path / "g.tsv"), REGIONS, count="fragments")
    np.testing.assert_array_equal(four.X.toarray(), [[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(five.X.toarray(), four.X.toarray())


def test_listed_barcodes_are_the_rows_in_their_order(tmp_path):
    cells = count_fragments(write(tmp_path / "f.tsv"), REGIONS, barcodes=["Z-1", "B-1"])
    assert list(cells.obs_names) == ["Z-1", "B-1"]
    np.testing.assert_array_equal(cells.X.toarray(), [[0, 0, 0], [2, 0, 0]])
    assert cells.uns["fragments"]["missing_barcodes"] == 1


def test_barcodes_that_are_not_there_show_both_spellings(tmp_path):
    with pytest.raises(InputError, match=r"listed 'A', 'B', there 'A-1', 'B-1'"):
        count_fragments(write(tmp_path / "f.tsv"), REGIONS, barcodes=["A", "B"])
    with pytest.raises(InputError, match="repeats 1"):
        count_fragments(write(tmp_path / "f.tsv"), REGIONS, barcodes=["A-1", "A-1"])


def test_quality_is_reported(tmp_path):
    lines = [LINES[1], LINES[0], LINES[0], *LINES[2:]]
    report = count_fragments(write(tmp_path / "f.tsv", lines), REGIONS).uns["fragments"]
    assert report["fragments"] == 5
    assert report["in_regions"] == 3
    assert report["repeated"] == 1
    assert not report["sorted"]
    assert report["unknown_contigs"] == ["chrUn"]


def test_few_fragments_in_regions_suggest_another_build(tmp_path):
    lines = [("chr1", 1000 + i, 1010 + i, "A", 1) for i in range(40)] + [("chr1", 160, 170, "A", 1)]
    with pytest.warns(UserWarning, match="is the genome build the same"):
        count_fragments(write(tmp_path / "f.tsv", lines), REGIONS)


def test_a_truncated_file_gives_an_error_and_no_counts(tmp_path):
    whole = write(tmp_path / "f.tsv.gz", LINES * 5000).read_bytes()
    (tmp_path / "cut.tsv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        count_fragments(tmp_path / "cut.tsv.gz", REGIONS)


def test_cells_with_few_regions_are_left_out_and_counted(tmp_path):
    cells = count_fragments(write(tmp_path / "f.tsv"), REGIONS, min_regions=2)
    assert list(cells.obs_names) == ["A-1"]
    report = cells.uns["fragments"]
    assert (report["cells"], report["few_regions"], report["regions_per_cell"]) == (1, 1, 2.0)
    assert cells.obs["in_regions"].tolist() == [1]
    assert cells.obs["fraction_in_regions"].tolist() == [0.5]


def test_a_whitelist_may_be_a_file(tmp_path):
    (tmp_path / "barcodes.tsv.gz").write_bytes(gzip.compress(b"B-1\nA-1\n"))
    cells = count_fragments(write(tmp_path / "f.tsv"), REGIONS, barcodes=tmp_path / "barcodes.tsv.gz")
    assert list(cells.obs_names) == ["B-1", "A-1"]
    with pytest.raises(InputError, match="there is no file"):
        count_fragments(write(tmp_path / "f.tsv"), REGIONS, barcodes="nowhere.tsv")


def test_contigs_may_lack_their_prefix_and_lines_may_end_as_on_windows(tmp_path):
    (tmp_path / "f.tsv").write_bytes(b"# made\r\n1\t90\t120\tB-1\t2\r\n\r\n# again\r\n1\t160\t170\tA-1\t1\r\n")
    cells = count_fragments(tmp_path / "f.tsv", REGIONS)
    np.testing.assert_array_equal(cells.X.toarray(), [[1, 1, 0], [2, 0, 0]])


def test_empty_lines_and_comments_in_the_middle_are_skipped(tmp_path, monkeypatch):
    rows = ["\t".join(map(str, line)) for line in LINES]
    for text in ("\n\n".join(rows), "\n#x\n".join(rows), "\n" + "\n\n\n#\n".join(rows) + "\n\n"):
        (tmp_path / "f.tsv").write_text(text)
        for piece in (7, 30, 10_000):
            monkeypatch.setattr(fragment_files, "_PIECE", piece)
            assert count_fragments(tmp_path / "f.tsv", REGIONS).uns["fragments"]["fragments"] == 4


END = BUILDS["hg38"].lengths["chr17"]  # beyond hg19's chr17; mm10 has no chr20
HG38 = Regions.from_names([f"chr17:{END - 500}-{END - 100}", "chr20:1-2"])


def test_fragments_of_another_build_are_refused_never_lifted(tmp_path):
    beyond = BUILDS["hg19"].lengths["chr1"] - 50
    path = write(tmp_path / "f.tsv", [("chr1", beyond, beyond + 40, "A", 1)])
    with pytest.raises(
        InputError, match=r"fit 'hg19' and reach beyond the chromosomes of hg38(.|\n)*nothing is lifted"
    ):
        count_fragments(path, HG38)
    with pytest.raises(InputError, match="fit 'hg19' and reach beyond"):
        count_fragments(path, REGIONS, build="hg38")  # regions that fit all builds, so that it must be said
    mouse = BUILDS["mm10"].lengths["chr18"] - 50
    path = write(tmp_path / "m.tsv", [("chr3", 159_000_000, 160_000_000, "A", 1), ("chr18", mouse, mouse + 9, "A", 1)])
    with pytest.raises(SpeciesError, match="fit 'mm10' only"):
        count_fragments(path, HG38)
    with pytest.raises(InputError, match="build='hg37' is not known"):
        count_fragments(path, REGIONS, build="hg37")


def test_the_reference_named_in_the_header_is_believed(tmp_path):
    header = "# id=x\n# reference_path=/opt/refdata-cellranger-arc-{}-2020-A\n"
    path = write(tmp_path / "f.tsv", header=header.format("mm10"))
    with pytest.raises(InputError, match=r"header of .*f\.tsv states mm10; the regions are hg38"):
        count_fragments(path, HG38)
    path = write(tmp_path / "g.tsv", header=header.format("GRCh38"))
    assert count_fragments(path, REGIONS).uns["fragments"]["build"] == "hg38"


def test_names_with_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(fragment_files, "_FACTOR", np.uint64(1))
    names = ["AAAAAAAABAAAAAAA", "BAAAAAAAAAAAAAAA"]  # their two words have the same sum
    lines = [("chr1", 100 + i, 120 + i, names[i % 2] if i else "C", 1) for i in range(9)]
    file = FragmentFile(write(tmp_path / "f.tsv", lines))
    assert [file.barcodes[i] for part in file for i in part.barcode] == [line[3] for line in lines]
    for piece in (40, 10_000):  # met in different pieces, and in one
        monkeypatch.setattr(fragment_files, "_PIECE", piece)
        cells = count_fragments(tmp_path / "f.tsv", REGIONS)
        assert cells.obs["fragments"].to_dict() == {names[0]: 4, names[1]: 4, "C": 1}


@given(st.lists(st.text("0123456789-+ x.", max_size=18), min_size=1, max_size=20))
def test_numbers_are_read_as_python_reads_them(texts):
    raw = bytes(16) + "\t".join(texts).encode() + b"\t" + bytes(16)
    ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == 9)
    begins = np.concatenate([[16], ends[:-1] + 1])
    words = np.ndarray((len(raw) - 7,), "<u8", buffer=raw, strides=(1,))
    value, good = fragment_files._numbers(words, begins, ends)
    for text, number, fine in zip(texts, value, good, strict=True):
        assert fine == (text.isdigit() and len(text) <= 16)
        assert not fine or number == int(text)


def bgzipped(text: bytes) -> bytes:
    """One block and the end-of-file block (SAM specification, 4.1)."""
    press = zlib.compressobj(wbits=-15)
    body = press.compress(text) + press.flush()
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H2sHH", 6, b"BC", 2, len(body) + 25)
    return head + body + struct.pack("<II", zlib.crc32(text), len(text))


def test_a_bgzipped_file_cut_between_two_blocks_is_refused(tmp_path):
    text = "".join("\t".join(map(str, line)) + "\n" for line in LINES).encode()
    whole = bgzipped(text) + bgzipped(text)
    (tmp_path / "whole.tsv.gz").write_bytes(whole + bgzipped(b""))
    assert count_fragments(tmp_path / "whole.tsv.gz", REGIONS).uns["fragments"]["fragments"] == 8
    for cut in (whole, whole[: len(whole) // 2], whole + bgzipped(b"")[:9]):
        (tmp_path / "cut.tsv.gz").write_bytes(cut)
        with pytest.raises(InputError, match="truncated"):
            count_fragments(tmp_path / "cut.tsv.gz", REGIONS)
    damaged = bytearray(whole + bgzipped(b""))
    damaged[30] ^= 0xFF
    (tmp_path / "cut.tsv.gz").write_bytes(damaged)
    with pytest.raises(InputError, match="truncated or damaged"):
        count_fragments(tmp_path / "cut.tsv.gz", REGIONS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 tab"),
        ("chr1 1 2 A\n", "has 1 tab"),
        ("chr1\tx\t2\tA\n", "no fragment, near line 1: .* its start is no whole number"),
        ("chr1\t1\t2\tA\nchr1\t1\t2\tA\t1\n", "near line 2: .* it has 5 fields, the first line 4"),
        ("chr1\t1\t2\tA\nchr1\t1\t2\n", "near line 2: .* it has 3 fields"),
        ("chr1\t1\t2\t\n", "barcode is empty"),
        ("chr1\t1\t2\tA\t1.5\n", "its count is no whole number"),
        ("chr1\t-5\t2\tA\n", "its start is no whole number"),
        ("chr1\t1\t123456789012345678\tA\n", "its end is no whole number"),
        ("chr1\t5\t5\tA\n", "end at or before"),
    ],
)
def test_what_is_no_fragment_file_is_refused(tmp_path, text, words):
    (tmp_path / "f.tsv").write_text(text)
    with pytest.raises(InputError, match=words):
        count_fragments(tmp_path / "f.tsv", REGIONS)


FRAGMENT = st.tuples(
    st.sampled_from(["chr1", "chr2"]),
    st.integers(0, 320),
    st.integers(1, 60),
    st.sampled_from("ABC"),
    st.integers(1, 4),
).map(lambda f: (f[0], f[1], f[1] + f[2], f[3], f[4]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(FRAGMENT, min_size=1, max_size=40), st.integers(1, 90))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_counts_equal_a_loop_over_all_pairs_whatever_the_chunks(tmp_path, monkeypatch, fragments, chunk):
    monkeypatch.setattr(fragment_files, "_PIECE", chunk)
    monkeypatch.setattr(scfm.fragments, "_GATHER", chunk // 8)
    cells = count_fragments(write(tmp_path / "f.tsv", fragments), REGIONS, barcodes=["A", "B", "C"])
    expected = np.zeros((3, 3))
    for chrom, start, end, barcode, count in fragments:
        for j in range(3):
            if chrom == REGIONS.chrom[j] and start < REGIONS.end[j] and end > REGIONS.start[j]:
                expected["ABC".index(barcode), j] += count
    np.testing.assert_array_equal(cells.X.toarray(), expected)
    assert cells.X.has_sorted_indices
    assert cells.obs["fragments"].tolist() == [sum(f[3] == name for f in fragments) for name in "ABC"]
    # duplicates: equal position and barcode within a run of equal positions
    positions = itertools.groupby(fragments, key=lambda f: f[:3])
    runs = [[f[3] for f in run] for _, run in positions]
    assert cells.uns["fragments"]["repeated"] == sum(len(run) - len(set(run)) for run in runs)
    rising = all(a[1] <= b[1] for a, b in itertools.pairwise(fragments) if a[0] == b[0])
    pieces = [contig for contig, _ in itertools.groupby(f[0] for f in fragments)]
    assert cells.uns["fragments"]["sorted"] == (rising and len(pieces) == len(set(pieces)))
