import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scfm
from scfm.errors import InputError
from scfm.fusion import concatenated, weighted_neighbours
from scfm.metrics import recall_at_k

mudata = pytest.importorskip("mudata")


def paired(n: int = 120) -> dict[str, AnnData]:
    rng = np.random.default_rng(0)
    hidden = rng.gamma(1.0, 1.0, (n, 5))
    found = {}
    for name, features in (("rna", 60), ("atac", 150)):
        counts = rng.poisson(hidden @ rng.gamma(0.5, 1.0, (5, features))).astype(np.float32) + (
            rng.random((n, features)) < 0.05
        )
        names = [f"{name} {i}" for i in range(features)]
        found[name] = AnnData(
            counts, var=pd.DataFrame(index=names), obs=pd.DataFrame(index=[f"cell {i}" for i in range(n)])
        )
    return found


@pytest.fixture(scope="module")
def encoders() -> dict[str, scfm.CellEncoder]:
    data = paired()
    return {
        "rna": scfm.load("pca", device="cpu", components=6, top_genes=40).fit(data["rna"]),
        "atac": scfm.load("lsi", device="cpu", components=5).fit(data["atac"]),
    }


def muon(data: dict[str, AnnData]) -> "mudata.MuData":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of coming defaults
        return mudata.MuData(data)


def test_every_form_of_the_data_gives_the_same(encoders, tmp_path: Path):
    data = paired()
    whole = muon(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.write(tmp_path / "cells.h5mu")
    expected = scfm.embed_multi(encoders, data)
    for form in (whole, tmp_path / "cells.h5mu", str(tmp_path / "cells.h5mu")):
        found = scfm.embed_multi(encoders, form)
        np.testing.assert_array_equal(found.cells, data["rna"].obs_names)
        for name, z in expected.modalities.items():
            np.testing.assert_array_equal(found.modalities[name], z)
        for name, z in expected.fused.items():
            np.testing.assert_array_equal(found.fused[name], z)


def test_result_holds_the_encoders_embeddings_and_what_joins_them(encoders):
    data = paired()
    found = scfm.embed_multi(encoders, data, components=3, k=7)
    assert isinstance(found, scfm.MultiEmbedding)
    for name, encoder in encoders.items():
        np.testing.assert_array_equal(found.modalities[name], encoder.embed(data[name]))
    np.testing.assert_array_equal(found.fused["concat"], concatenated(found.modalities))
    np.testing.assert_allclose(found.fused["cca"], (found.variates["rna"] + found.variates["atac"]) / 2)
    assert found.fused["cca"].shape == (120, 3)
    assert found.wnn is not None
    np.testing.assert_array_equal(found.wnn.neighbours, weighted_neighbours(found.modalities, k=7).neighbours)
    assert recall_at_k(found.variates["rna"], found.variates["atac"], k=10) > 3 * 10 / 120
    alone = scfm.embed_multi(encoders, data, fusion=())
    assert (alone.fused, alone.variates, alone.cca, alone.wnn) == ({}, {}, None, None)


def test_options_reach_the_encoder_of_their_modality(encoders):
    data = paired()
    data["rna"].layers["counts"] = data["rna"].X.copy()
    data["rna"].X = data["rna"].X / 3
    found = scfm.embed_multi(encoders, data, options={"rna": {"layer": "counts"}}, fusion=())
    np.testing.assert_array_equal(found.modalities["rna"], encoders["rna"].embed(paired()["rna"]))
    with pytest.raises(InputError, match="names 'protein'; there are encoders for 'rna', 'atac'"):
        scfm.embed_multi(encoders, data, options={"protein": {}})


def test_cells_that_differ_are_refused_saying_how(encoders):
    data = paired()
    with pytest.raises(InputError, match=r"'rna' has 120 cells and 'atac' 100: 20 only in 'rna' \('cell 100', "):
        scfm.embed_multi(encoders, {"rna": data["rna"], "atac": data["atac"][:100].copy()})
    turned = data["atac"][::-1].copy()
    with pytest.raises(
        InputError, match=r"same cells in another order, first at row 0: 'cell 0' and 'cell 119'(.|\n)*Order them"
    ):
        scfm.embed_multi(encoders, {"rna": data["rna"], "atac": turned})
    with pytest.raises(InputError, match="120 cells and 'atac' 100"):
        scfm.embed_multi(encoders, muon({"rna": data["rna"], "atac": data["atac"][:100].copy()}))


def test_what_cannot_be_read_or_joined_is_refused(encoders, tmp_path: Path):
    data = paired()
    with pytest.raises(InputError, match=r"data has no modality 'atac' \(modalities: 'rna', 'peaks'\)"):
        scfm.embed_multi(encoders, {"rna": data["rna"], "peaks": data["atac"]})
    with pytest.raises(InputError, match="AnnData has no modality 'rna', 'atac'"):
        scfm.embed_multi(encoders, data["rna"])
    with pytest.raises(InputError, match=r"none\.h5mu does not exist"):
        scfm.embed_multi(encoders, tmp_path / "none.h5mu")
    (tmp_path / "a.h5mu").write_text("no")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        scfm.embed_multi(encoders, tmp_path / "a.h5mu")
    with pytest.raises(InputError, match="fusion 'mean' is not known"):
        scfm.embed_multi(encoders, data, fusion=["mean"])
    with pytest.raises(InputError, match="1 encoders leave nothing to join"):
        scfm.embed_multi({"rna": encoders["rna"]}, data)
    with pytest.raises(InputError, match="CCA joins two modalities, not 3"):
        scfm.embed_multi({**encoders, "other": encoders["rna"]}, data)
    data["atac"].X[3] = 0
    with pytest.warns(scfm.InputWarning), pytest.raises(InputError, match="1 cells have NaN embeddings in 'atac'"):
        scfm.embed_multi(encoders, data)


def test_data_are_not_changed(encoders):
    data = paired()
    scfm.embed_multi(encoders, data)
    for name, adata in paired().items():
        np.testing.assert_array_equal(data[name].X, adata.X)
        assert not data[name].obsm
