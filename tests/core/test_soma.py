"""A SOMA experiment on disk gives what the AnnData it was made from gives."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scfm
from scfm.cells import open_sources
from scfm.data import pbmc_demo
from scfm.errors import InputError

soma = pytest.importorskip("tiledbsoma")


@pytest.fixture(scope="module")
def cells() -> AnnData:
    data = pbmc_demo()[:700].copy()
    data.obs["half"] = ["first" if i < 350 else "second" for i in range(data.n_obs)]
    data.obs["half"] = data.obs["half"].astype(str)
    return data


@pytest.fixture(scope="module")
def uri(cells, tmp_path_factory) -> str:
    import tiledbsoma.io

    path = tmp_path_factory.mktemp("soma") / "experiment"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tiledbsoma about itself
        tiledbsoma.io.from_anndata(str(path), cells, measurement_name="RNA")
    return str(path)


@pytest.mark.parametrize("rows", [slice(3, 9), np.array([5, 2, 690, 5]), slice(0, 0)])
def test_rows_are_those_of_the_anndata(cells, uri, rows):
    (source,) = open_sources(scfm.SomaQuery(uri))
    assert source.shape == cells.shape
    assert list(source.obs.index) == list(cells.obs_names)
    assert list(source.var.index) == list(cells.var_names)
    if isinstance(rows, np.ndarray):
        rows = np.unique(rows)[::-1]
    np.testing.assert_array_equal(source.take(rows).toarray(), cells.X[rows].toarray())
    source.close()


def test_embedding_is_that_of_the_anndata(cells, uri):
    encoder = scfm.load("mini", device="cpu").with_options(context=32)
    whole = encoder.embed(cells)
    np.testing.assert_array_equal(encoder.embed(scfm.SomaQuery(uri)), whole)
    second = scfm.SomaQuery(uri, obs_filter="half == 'second'")
    np.testing.assert_allclose(encoder.embed([second, cells[:10]]), np.vstack([whole[350:], whole[:10]]), atol=1e-6)


def test_an_open_experiment_is_read_and_left_open(cells, uri):
    with soma.Experiment.open(uri) as experiment:
        for _ in range(2):
            (source,) = open_sources(scfm.SomaQuery(experiment, var_filter="var_id in ['CD3E', 'LYZ']"))
            assert source.shape == (700, 2)
            source.close()
        assert not experiment.closed


def test_wrong_names_are_refused_with_those_there_are(uri):
    with pytest.raises(InputError, match=r"no measurement 'ATAC'.*\n.*'RNA'"):
        open_sources(scfm.SomaQuery(uri, measurement="ATAC"))
    with pytest.raises(InputError, match=r"no X matrix 'counts'.*\n.*'data'"):
        open_sources(scfm.SomaQuery(uri, matrix="counts"))[0].take(slice(0, 2))
    with pytest.raises(InputError, match="is no SOMA experiment"):
        open_sources(scfm.SomaQuery(uri + "-not"))
    with pytest.raises(InputError, match=r"filter .*can't be read"):
        _ = open_sources(scfm.SomaQuery(uri, obs_filter="nobody == 1"))[0].obs


def test_a_pattern_is_all_files_that_match(tmp_path):
    for name in ("b", "a"):
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(3)])
        ad.AnnData(np.ones((3, 2), np.float32), obs=obs).write_h5ad(tmp_path / f"{name}.h5ad")
    sources = open_sources(str(tmp_path / "*.h5ad"))
    assert [str(source.obs.index[0]) for source in sources] == ["a0", "b0"]
    for source in sources:
        source.close()
    with pytest.raises(InputError, match="no file matches"):
        open_sources(tmp_path / "*.zarr")


def test_sharded_zarr_is_read_block_by_block(tmp_path, cells):
    """zarr 3 with shards, as anndata 0.13 writes by default."""
    import zarr
    from anndata.io import write_elem

    group = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=3)
    with ad.settings.override(auto_shard_zarr_v3=False):
        write_elem(group, "/", AnnData(obs=cells.obs, var=cells.var))
        write_elem(group, "X", cells.X.tocsr())
    for name in ("data", "indices"):
        values = group[f"X/{name}"][:]
        attributes = dict(group[f"X/{name}"].attrs)
        del group[f"X/{name}"]
        made = group["X"].create_array(name, shape=values.shape, dtype=values.dtype, chunks=(1000,), shards=(8000,))
        made[:] = values
        made.attrs.update(attributes)
    (source,) = open_sources(tmp_path / "cells.zarr")
    np.testing.assert_array_equal(source.take(slice(100, 160)).toarray(), cells.X[100:160].toarray())
