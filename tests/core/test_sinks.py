import itertools
import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.errors import InputError, ResumeError
from scfm.sinks import open_sink

ENDINGS = ("npy", "zarr", "h5ad")
RECORD = {"model": "toy", "seed": 0}


EACH = [slice(i, i + 1) for i in range(10)]
"""Blocks of one cell."""


def opened(out, n=10, dim=3, record=RECORD, resume=True, copied=None, blocks=None):
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    blocks = EACH[:n] if blocks is None else blocks
    return open_sink(out, (n, dim), record, blocks, key="X_toy", obs=obs, copied=copied, resume=resume)


def write(sink, numbers) -> None:
    """Write the rows of cells that are blocks of their own."""
    for number in numbers:
        sink.write(number, rows()[[number]])


def rows(n=10, dim=3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)


def stored(out) -> np.ndarray:
    """What a reader finds in the finished file."""
    if out.suffix == ".npy":
        return np.load(out)
    return np.asarray((ad.read_zarr(out) if out.suffix == ".zarr" else ad.read_h5ad(out)).obsm["X_toy"])


def where(tmp_path, ending):
    return None if ending is None else tmp_path / f"z.{ending}"


@pytest.mark.parametrize("ending", [None, *ENDINGS])
def test_rows_come_back_where_they_were_written(tmp_path, ending):
    blocks = [slice(0, 4), np.array([9, 4, 6]), np.array([5, 7, 8])]
    sink, z = opened(where(tmp_path, ending), blocks=blocks), rows()
    for number in (0, 2, 1):
        sink.write(number, z[blocks[number]])
    np.testing.assert_array_equal(sink.finish(), z)
    if ending is not None:
        np.testing.assert_array_equal(stored(where(tmp_path, ending)), z)


@pytest.mark.parametrize("ending", [None, *ENDINGS])
def test_no_rows(tmp_path, ending):
    found = opened(where(tmp_path, ending), n=0).finish()
    assert found.shape == (0, 3)
    assert found.dtype == np.float32
    if ending is not None:
        assert stored(where(tmp_path, ending)).shape == (0, 3)


@pytest.mark.parametrize("ending", [None, "npy", "zarr"])
def test_rows_not_written_are_nan(tmp_path, ending):
    sink, z = opened(where(tmp_path, ending)), rows()
    write(sink, range(4))
    found = np.asarray(sink.finish())
    np.testing.assert_array_equal(found[:4], z[:4])
    assert np.isnan(found[4:]).all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_second_sink_continues_after_any_cut(tmp_path, ending):
    @settings(max_examples=8, deadline=None)
    @given(cuts=st.sets(st.integers(1, 9)))
    def continued(cuts):
        z, bounds = rows(), [0, *sorted(cuts), 10]
        for step, (begin, end) in enumerate(itertools.pairwise(bounds)):
            sink = opened(where(tmp_path, ending), resume=step > 0)
            assert sink.done == set(range(begin))
            write(sink, range(begin, end))
        np.testing.assert_array_equal(sink.finish(), z)

    continued()


@pytest.mark.parametrize("ending", ENDINGS)
def test_another_record_does_not_continue(tmp_path, ending):
    out = where(tmp_path, ending)
    write(opened(out), range(4))
    with pytest.raises(ResumeError, match="begun by another run"):
        opened(out, record=RECORD | {"seed": 1})
    assert opened(out, record=RECORD | {"seed": 1}, resume=False).done == set()


def test_a_foreign_npy_is_not_overwritten(tmp_path):
    np.save(tmp_path / "z.npy", np.ones(3))
    with pytest.raises(ResumeError, match=r"z\.npy exists.*\n.*resume=False"):
        opened(tmp_path / "z.npy")
    assert np.load(tmp_path / "z.npy").tolist() == [1, 1, 1]
    assert opened(tmp_path / "z.npy", resume=False).done == set()


@pytest.mark.parametrize("journal", ["", "{}\n", "[1]\n", '{"fingerprint": "x"}\n'])
def test_a_broken_journal_is_no_crash(tmp_path, journal):
    write(opened(tmp_path / "z.npy"), range(4))
    (tmp_path / "z.npy.journal").write_text(journal)
    with pytest.raises(ResumeError, match="that scfm can't read"):
        opened(tmp_path / "z.npy")


def test_a_foreign_zarr_is_not_overwritten(tmp_path):
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "notes.txt").write_text("mine")
    (tmp_path / "file.zarr").write_text("mine")
    ad.AnnData(obs=pd.DataFrame(index=["a"])).write_zarr(tmp_path / "data.zarr")
    for name in ("folder", "file", "data"):
        with pytest.raises(ResumeError, match=rf"{name}\.zarr exists"):
            opened(tmp_path / f"{name}.zarr")
    assert (tmp_path / "folder.zarr" / "notes.txt").exists()


def test_zarr_and_h5ad_name_the_cells_and_tell_their_provenance(tmp_path):
    for ending, read in (("zarr", ad.read_zarr), ("h5ad", ad.read_h5ad)):
        sink = opened(where(tmp_path, ending))
        write(sink, range(10))
        sink.finish()
        found = read(where(tmp_path, ending))
        assert list(found.obs_names) == [f"cell{i}" for i in range(10)]
        assert json.loads(found.uns["scfm"]["X_toy"]) == RECORD


def test_h5ad_keeps_the_input_and_appears_whole(tmp_path):
    data = ad.AnnData(np.ones((10, 2), np.float32), obs=pd.DataFrame(index=[f"cell{i}" for i in range(10)]))
    data.obsm["X_toy"] = np.zeros((10, 1))
    data.uns["scfm"] = {"X_other": "{}"}
    data.write_h5ad(tmp_path / "in.h5ad")
    before = (tmp_path / "in.h5ad").read_bytes()
    sink = opened(tmp_path / "z.h5ad", copied=tmp_path / "in.h5ad")
    write(sink, range(10))
    assert not (tmp_path / "z.h5ad").exists()
    sink.finish()
    found = ad.read_h5ad(tmp_path / "z.h5ad")
    np.testing.assert_array_equal(found.obsm["X_toy"], rows())
    np.testing.assert_array_equal(found.X, data.X)
    assert set(found.uns["scfm"]) == {"X_other", "X_toy"}
    assert (tmp_path / "in.h5ad").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "z.h5ad"]


def test_h5ad_over_the_input_is_refused(tmp_path):
    ad.AnnData(np.ones((10, 2), np.float32)).write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(InputError, match="is the input itself"):
        opened(tmp_path / "in.h5ad", copied=tmp_path / "in.h5ad")


def test_wrong_paths_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends neither in \.npy"):
        opened(tmp_path / "z.csv")
    with pytest.raises(InputError, match=r"the folder .*nowhere.* does not exist.*\n.*mkdir -p"):
        opened(tmp_path / "nowhere" / "z.npy")


# The journal


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_journal_cut_anywhere_continues(tmp_path, ending):
    """A process may die while it appends a line: what was noted before stands, half a line does not count."""
    out = where(tmp_path, ending)
    write(opened(out), range(6))
    journal = next(tmp_path.glob("*.journal"))
    text = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(text) if byte == 10]
    for cut in sorted({len(text) - 1, ends[-2] + 1, ends[-3], ends[0] + 3, ends[0]}, reverse=True):
        journal.write_bytes(text[:cut])
        sink = opened(out)
        assert sink.done == set(range(sum(end <= cut for end in ends) - 1))
    write(sink, range(10))
    np.testing.assert_array_equal(sink.finish(), rows())


@pytest.mark.parametrize("ending", ["npy", "zarr"])
def test_blocks_that_are_not_what_was_noted_are_done_again(tmp_path, ending):
    out = where(tmp_path, ending)
    sink = opened(out)
    write(sink, range(10))
    sink._put(slice(3, 4), np.zeros((1, 3), np.float32))  # a disk that lies, or somebody's hand
    assert opened(out).done == set(range(10)) - {3}


@pytest.mark.parametrize("ending", ["npy", "zarr"])
def test_an_output_that_is_gone_is_begun_anew(tmp_path, ending):
    out = where(tmp_path, ending)
    write(opened(out), range(4))
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    sink = opened(out)
    assert sink.done == set()
    assert np.isnan(sink.finish()).all()


def test_a_finished_h5ad_is_not_computed_again_and_not_overwritten_by_another_run(tmp_path):
    sink = opened(tmp_path / "z.h5ad")
    write(sink, range(10))
    sink.finish()
    again = opened(tmp_path / "z.h5ad")
    assert again.done == set(range(10))
    np.testing.assert_array_equal(again.finish(), rows())
    with pytest.raises(ResumeError, match=r"another run.*\(seed\)"):
        opened(tmp_path / "z.h5ad", record=RECORD | {"seed": 1})
    ad.AnnData(np.ones((10, 2), np.float32)).write_h5ad(tmp_path / "foreign.h5ad")
    with pytest.raises(ResumeError, match="no obsm"):
        opened(tmp_path / "foreign.h5ad")
