import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scfm.fragments
from scfm.errors import InputError
from scfm.fragments import count_fragments
from scfm.regions import Regions

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 tab"),
        ("chr1 1 2 A\n", "has 1 tab"),
        ("chr1\tx\t2\tA\n", "no fragment"),
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
@given(st.lists(FRAGMENT, min_size=1, max_size=40), st.integers(1, 7))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_counts_equal_a_loop_over_all_pairs_whatever_the_chunks(tmp_path, monkeypatch, fragments, chunk):
    monkeypatch.setattr(scfm.fragments, "_CHUNK", chunk)
    monkeypatch.setattr(scfm.fragments, "_MERGE_AT", 2 * chunk)
    cells = count_fragments(write(tmp_path / "f.tsv", fragments), REGIONS, barcodes=["A", "B", "C"])
    expected = np.zeros((3, 3))
    for chrom, start, end, barcode, count in fragments:
        for j in range(3):
            if chrom == REGIONS.chrom[j] and start < REGIONS.end[j] and end > REGIONS.start[j]:
                expected["ABC".index(barcode), j] += count
    np.testing.assert_array_equal(cells.X.toarray(), expected)
