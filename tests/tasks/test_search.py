"""query and its index: the exact neighbours nearly always, on disk, with what is known of the cells; another encoder is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scfm
from scfm import index as module
from scfm.cli import app
from scfm.data import pbmc_demo
from scfm.errors import InputError, ScfmError
from scfm.index import CellIndex
from scfm.neighbours import neighbours


@pytest.fixture(scope="module")
def parts():
    adata = pbmc_demo()[::8].copy()  # 123 cells
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs.loc[adata.obs_names[3], "cell_type"] = None
    query = adata[:20].copy()
    del query.obs["depth"]
    return adata[20:].copy(), query


@pytest.fixture(scope="module")
def encoder():
    return scfm.load("mini")


@pytest.fixture(scope="module")
def index(tmp_path_factory, parts, encoder):
    path = tmp_path_factory.mktemp("index") / "pbmc.index"
    return CellIndex.build(path, encoder, parts[0], shard=40)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_index_finds_exact_neighbours_over_its_shards(metric, index, parts, encoder, tmp_path):
    if metric == "euclidean":
        index = CellIndex.build(tmp_path / "i", encoder, parts[0], metric=metric, shard=40)
    assert len(index.record["shards"]) == 3
    reference, query = (encoder.embed(part) for part in parts)
    distances, rows = index.search(query, 12)
    expected = neighbours(reference, query, 12, metric=metric)
    assert np.mean(rows == expected[1]) > 0.97
    same = rows == expected[1]
    assert np.allclose(distances[same], expected[0][same], atol=2e-6, rtol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert index.record["recall"]["recall"] > 0.97
    assert index.record["recall"]["cells"] == 103


def test_the_folder_holds_no_second_copy_and_opens_again(index, parts):
    names = {path.name for path in index.path.iterdir()}
    assert not {name for name in names if "embedding" in name}
    assert not index.path.with_name(index.path.name + ".part").exists()
    again = CellIndex.open(str(index.path))
    assert len(again) == parts[0].n_obs
    assert again.columns == tuple(parts[0].obs.columns)
    assert again.record["provenance"]["model"] == "mini"
    assert "CellIndex(" in repr(again)


def test_what_is_known_of_cells_comes_back(index, parts):
    rows = np.array([5, 0, 5, 100])
    obs = index.obs(rows)
    expected = parts[0].obs.iloc[rows]
    assert obs.index.tolist() == expected.index.tolist()
    assert obs["cell_type"].tolist() == expected["cell_type"].astype(object).tolist()
    assert obs["depth"].tolist() == expected["depth"].tolist()
    assert index.obs(rows, ["depth"]).columns.tolist() == ["depth"]
    assert index.shares("cell_type") == pytest.approx(parts[0].obs["cell_type"].value_counts(normalize=True).to_dict())
    assert index.shares("depth") == {}
    with pytest.raises(InputError, match="no column 'nothing'"):
        index.obs(rows, ["nothing"])


def test_query_by_index_and_directly_agree(index, parts, encoder, tmp_path):
    by_index = scfm.tasks.query(index.path, parts[1], encoder=encoder, k=8, resamples=50)
    direct = scfm.tasks.query(parts[0], parts[1], encoder=encoder, k=8, resamples=50)
    assert np.mean(by_index.table["row"] == direct.table["row"]) > 0.97
    assert list(by_index.table.columns[:5]) == ["cell", "rank", "similar", "row", "distance"]
    assert by_index.table["cell"].tolist() == np.repeat(parts[1].obs_names, 8).tolist()
    assert (by_index.table["similar"] == parts[0].obs_names[by_index.table["row"]]).all()
    wide = by_index.composition.set_index("value")
    assert wide["share"].sum() == pytest.approx(1, abs=0.01)
    assert (wide["low"] <= wide["share"]).all()
    shown = direct.composition.set_index("value").loc[wide.index]
    assert shown["reference"].tolist() == pytest.approx(wide["reference"].tolist())
    truth = np.repeat(parts[1].obs["cell_type"].astype(str).to_numpy(), 8)
    chance = np.mean([index.shares("cell_type").get(name, 0) for name in truth])
    assert (by_index.table["cell_type"].astype(str).to_numpy() == truth).mean() > 2 * chance
    text = by_index.summary()
    assert "of exact neighbours" in text
    assert "in the reference" in text
    by_index.plot(save=tmp_path / "q.png")
    assert (tmp_path / "q.png").exists()
    assert json.loads(by_index.to_json())["provenance"]["settings"]["index"] == str(index.path)


def test_another_encoder_is_refused(index, parts, encoder):
    other = encoder.with_options(context=64)
    with pytest.raises(InputError, match="they differ in 'tokenizer'"):
        scfm.tasks.query(index, parts[1], encoder=other)
    with pytest.raises(InputError, match="they differ in 'pooling'"):
        scfm.tasks.query(index, parts[1], encoder=encoder, options={"pooling": "cls"})
    fitted = scfm.load("pca", components=5).fit(parts[0])
    with pytest.raises(InputError, match="made by 'mini', the vectors are of 'pca'"):
        index.check(fitted)
    with pytest.raises(InputError, match="pca is not fitted"):
        scfm.tasks.query(parts[0], parts[1], encoder=scfm.load("pca"))
    index.check(scfm.load("mini"))


def test_weights_decide(index, encoder):
    import copy

    import torch

    other = copy.deepcopy(encoder)
    with torch.no_grad():
        next(other.network.parameters())[0] += 1e-3
    with pytest.raises(InputError, match="they differ in 'weights'"):
        index.check(other)


def test_an_interrupted_build_continues(parts, encoder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_obs", stop)
    with pytest.raises(KeyboardInterrupt):
        CellIndex.build(tmp_path / "i", encoder, parts[1])
    monkeypatch.undo()
    assert not (tmp_path / "i").exists()
    done = (tmp_path / "i.part" / "embedding.npy").stat().st_mtime_ns
    seen = []
    real = module.hnsw_index
    monkeypatch.setattr(
        module,
        "hnsw_index",
        lambda *a, **k: seen.append((tmp_path / "i.part" / "embedding.npy").stat().st_mtime_ns) or real(*a, **k),
    )
    assert len(CellIndex.build(tmp_path / "i", encoder, parts[1])) == 20
    assert seen[1] == done  # not embedded again


@pytest.mark.filterwarnings("ignore:1 of 20 cells have no expressed gene")
def test_cells_without_an_embedding_are_never_found(parts, encoder, tmp_path):
    reference = parts[1].copy()
    reference.X.data[reference.X.indptr[7] : reference.X.indptr[8]] = 0
    reference.X.eliminate_zeros()
    index = CellIndex.build(tmp_path / "i", encoder, reference, columns=["cell_type"])
    assert index.record["without_embedding"] == 1
    assert 7 not in index.search(encoder.embed(parts[0][:20]), 19)[1]
    with pytest.raises(InputError, match="k=20 of 19 indexed cells"):
        index.search(np.ones((1, encoder.dim)), 20)


def test_bad_input_is_refused(index, parts, encoder, tmp_path):
    with pytest.raises(InputError, match="exists"):
        CellIndex.build(index.path, encoder, parts[0])
    with pytest.raises(InputError, match="no column 'nothing'"):
        CellIndex.build(tmp_path / "i", encoder, parts[0], columns=["nothing"])
    with pytest.raises(InputError, match="is no index of cells"):
        CellIndex.open(tmp_path)
    with pytest.raises(InputError, match="vectors have 3 dimensions"):
        index.search(np.ones((1, 3)))
    with pytest.raises(InputError, match="compares by cosine"):
        scfm.tasks.query(index, parts[1], encoder=encoder, metric="euclidean")
    with pytest.raises(InputError, match="has no column 'nothing'"):
        scfm.tasks.query(parts[0], parts[1], encoder=encoder, columns=["nothing"])


def test_from_the_shell(parts, tmp_path):
    for name, part in zip(("reference", "query"), parts, strict=True):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    run, folder = CliRunner(), str(tmp_path / "pbmc.index")
    built = run.invoke(app, ["query", folder, "--build", str(tmp_path / "reference.h5ad"), "--model", "mini"])
    assert built.exit_code == 0, built.output
    assert "103 cells by mini" in built.output
    call = ["query", folder, str(tmp_path / "query.h5ad"), "-k", "5", "--column", "cell_type"]
    done = run.invoke(app, [*call, "--out", str(tmp_path / "r.csv")])
    assert done.exit_code == 0, done.output
    assert "20 cells, 5 neighbours each among 103" in done.output
    table = pd.read_csv(tmp_path / "r.csv")
    assert len(table) == 100
    assert "cell_type" in table
    assert "name query cells" in run.invoke(app, ["query", folder]).output
    assert "--model NAME" in run.invoke(app, ["query", folder, "--build", "x.h5ad"]).output
    assert isinstance(run.invoke(app, [*call, "--model", "pca"]).exception, ScfmError)


def test_files_of_several_data_sets(parts, encoder, tmp_path):
    first, second = parts[0][:30].copy(), parts[0][30:50].copy()
    del second.obs["depth"]
    index = CellIndex.build(tmp_path / "i", encoder, [first, second])
    assert len(index) == 50
    assert index.columns == ("cell_type",) or "depth" not in index.columns
    assert index.obs(np.array([0, 49])).index.tolist() == [first.obs_names[0], second.obs_names[-1]]
