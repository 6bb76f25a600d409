"""A real local Ray cluster of two workers: the same embedding, also when one of them is killed in the middle."""

import os
import signal

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm import distributed
from scfm.data import pbmc_demo
from scfm.encoder import Request
from scfm.engine import Run
from scfm.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray and pyarrow warn of themselves


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray")
    found.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    yield found
    found.shutdown()


@pytest.fixture
def encoder() -> scfm.CellEncoder:
    return scfm.load("mini", device="cpu").with_options(context=16)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(scfm.cells, "BLOCK_ROWS", 512)
    pbmc_demo().write_h5ad(tmp_path / "cells.h5ad")
    return [tmp_path / "cells.h5ad"] * 4  # 8 blocks


def test_a_worker_killed_in_the_middle_changes_nothing(ray, encoder, data, tmp_path, monkeypatch):
    whole = encoder.embed(data)
    killed: list[int] = []
    write = scfm.sinks.ZarrSink.write

    def kills(self, block, rows):
        write(self, block, rows)
        if not killed:
            import psutil

            own = psutil.Process().children(recursive=True)
            workers = [process.pid for process in own if "MapWorker" in " ".join(process.cmdline())]
            assert len(workers) == 2
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    monkeypatch.setattr(scfm.sinks.ZarrSink, "write", kills)
    found = distributed.embed_on_ray(
        encoder, data, Run(Request(), empty_cells="nan"), out=tmp_path / "z.zarr", workers=2, task_blocks=1
    )
    assert killed
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "z.zarr").obsm["X_mini"], whole)
    assert (tmp_path / "z.zarr.journal").read_text().count('"block"') == 8


def test_a_run_that_was_begun_here_is_continued_there(ray, encoder, data, tmp_path, monkeypatch):
    """One journal: what one machine began, a cluster ends, and the other way round."""
    whole = encoder.embed(data)
    write = scfm.sinks.NpySink.write

    def stops(self, block, rows):
        write(self, block, rows)
        if block == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(scfm.sinks.NpySink, "write", stops)
    with pytest.raises(RuntimeError, match="power cut"):
        encoder.embed(data, out=tmp_path / "z.npy")
    monkeypatch.setattr(scfm.sinks.NpySink, "write", write)
    run = Run(Request(), empty_cells="nan")
    np.testing.assert_array_equal(
        distributed.embed_on_ray(encoder, data, run, out=tmp_path / "z.npy", workers=2), whole
    )
    monkeypatch.setattr(distributed, "_results", None)  # nothing is left to do
    np.testing.assert_array_equal(distributed.embed_on_ray(encoder, data, run, out=tmp_path / "z.npy"), whole)


def test_a_refusal_in_a_worker_is_told_as_on_one_machine(ray, encoder, tmp_path):
    wrong = pbmc_demo()
    wrong.X = wrong.X.copy()
    wrong.X.data[wrong.X.indptr[520]] = 0.5  # in a block that the first look does not reach
    many = ad.concat([pbmc_demo()] * 5 + [wrong] + [pbmc_demo()] * 5, index_unique="-")
    many.write_h5ad(tmp_path / "wrong.h5ad")
    with pytest.raises(InputError, match="non-integer values"):
        distributed.embed_on_ray(encoder, tmp_path / "wrong.h5ad", Run(Request()), out=tmp_path / "z.npy", workers=1)


def test_what_the_cluster_has_no_room_for_is_refused(ray, encoder, data, tmp_path):
    with pytest.raises(InputError, match="has 2 CPUs"):
        distributed.embed_on_ray(encoder, data, Run(Request()), out=tmp_path / "z.npy", gpus_per_worker=1)
