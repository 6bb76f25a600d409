"""Tasks on chromatin: imputation, knock-out and links, on EpiAgent's small fixture and the plain `lsi`."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from typer.testing import CliRunner

import scfm
from scfm.accessibility import region_counts
from scfm.cli import app
from scfm.errors import CapabilityError, InputError
from scfm.regions import Regions
from scfm.tasks import impute, knockout_regions, link_regions
from scfm.tasks.accessibility_imputation import _pairs
from scfm.tasks.region_gene_links import _significance
from scfm.tasks.region_knockout import _stand_ins

FIXTURE = Path(__file__).parents[1] / "parity" / "epiagent" / "checkpoint"
REGIONS = Regions.read_bed(FIXTURE / "cCRE.bed")
RNG = np.random.default_rng(0)
RATES = np.random.default_rng(1).beta(0.5, 2.0, len(REGIONS))


@pytest.fixture
def encoder():
    found = scfm.load(FIXTURE, weights="pretrained_EpiAgent.pth", heads=4, device="cpu")
    return found.with_options(context=40)


def cells(n: int = 60, rates: np.ndarray = RATES) -> AnnData:
    """Cells that are open in each region with its rate (n_regions,) or (n, n_regions)."""
    opened = (np.random.default_rng(2).random((n, len(REGIONS))) < rates).astype(np.float32)
    opened[0] = 0  # an empty cell
    return AnnData(
        sparse.csr_matrix(opened),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=REGIONS.names),
    )


def score(result, method: str, metric: str = "AUROC") -> float:
    return result.table.set_index(["metric", "method"]).loc[(metric, method), "value"]


def test_region_counts_are_in_the_order_of_the_vocabulary(encoder):
    data = cells()
    shuffled = data[:, np.random.default_rng(0).permutation(data.n_vars)].copy()
    np.testing.assert_array_equal(region_counts(encoder, shuffled).matrix.toarray(), data.X.toarray())
    counts = region_counts(encoder, data)
    assert counts.columns([REGIONS.names[3]]).tolist() == [3]
    with pytest.raises(InputError, match="none of 'chr9:1-2' overlaps"):
        counts.columns(["chr9:1-2"])
    with pytest.raises(CapabilityError, match="reads genes"):
        region_counts(scfm.load("mini", device="cpu"), data)


def test_imputation_scores_what_the_decoder_says(encoder):
    data = cells()
    with torch.no_grad():  # a decoder that says the same of every cell
        encoder.network.signal.weight.zero_()
        encoder.network.signal.bias.copy_(torch.from_numpy(np.log(RATES)))
    good = impute(encoder, data, progress=False)
    assert score(good, "decoder") > 0.7
    assert abs(score(good, "decoder") - score(good, "region mean")) < 0.05  # both know the rates only
    assert score(good, "decoder", "AUPRC") > score(good, "random", "AUPRC") + 0.1
    assert abs(score(good, "random") - 0.5) < 0.1
    with torch.no_grad():
        encoder.network.signal.bias.neg_()
    bad = impute(encoder, data, progress=False)
    assert score(bad, "decoder") == pytest.approx(1 - score(good, "decoder"), abs=1e-9)
    assert score(bad, "region mean") == score(good, "region mean")
    assert json.loads(good.to_json())["provenance"]["task"] == "impute"


def test_smoothing_over_neighbours_beats_the_mean_where_cells_differ(encoder):
    two = np.where(np.arange(60)[:, None] % 2, RATES, RATES[::-1])
    neighbours = scfm.load("lsi", device="cpu", components=2)
    result = impute(encoder, cells(60, two), progress=False, k=15, neighbours=neighbours)
    assert score(result, "k-NN smoothing") > score(result, "region mean") + 0.05


def test_imputed_values_are_the_decoders(encoder):
    data = cells()
    chosen = REGIONS.names[[5, 9]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = impute(encoder, data, regions=list(chosen), progress=False)
    logits = encoder.output(data, "accessibility")[:, [5, 9]]
    np.testing.assert_allclose(result.imputed, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert result.regions.tolist() == chosen.tolist()
    top = impute(encoder, data, top=7, progress=False).regions
    assert set(top) == set(REGIONS.names[np.argsort(-data.X.toarray().sum(axis=0), kind="stable")[:7]])


def test_hidden_regions_stand_against_regions_without_a_count():
    matrix = sparse.csr_matrix((RNG.random((20, 40)) < 0.3).astype(np.float32))
    row = np.repeat(np.arange(20), np.diff(matrix.indptr))
    hide = RNG.random(len(row)) < 0.3
    cell, column, truth = _pairs(matrix, row, hide, np.arange(0, 40, 2), 3, RNG)
    assert set(zip(cell[truth], column[truth], strict=True)) == set(zip(row[hide], matrix.indices[hide], strict=True))
    assert not matrix.toarray()[cell[~truth], column[~truth]].any()
    assert (column[~truth] % 2 == 0).all()
    assert len(set(zip(cell, column, strict=True))) == len(cell)


def test_what_cannot_be_imputed_is_refused(encoder):
    with pytest.raises(CapabilityError, match="impute needs accessibility"):
        impute(scfm.load("lsi", device="cpu"), cells())
    for options in ({"hidden": 0.0}, {"hidden": 1.0}, {"closed": 0}, {"k": 60}):
        with pytest.raises(InputError):
            impute(encoder, cells(), **options)


def test_a_knock_out_moves_cells_as_embedding_them_without_the_region_does(encoder):
    data = cells(25)
    result = knockout_regions(
        encoder, data, {"pair": REGIONS.names[[4, 7]], "one": [REGIONS.names[4]]}, null=3, progress=False
    )
    for i, columns in enumerate(([4, 7], [4])):
        without = data.copy()
        dense = without.X.toarray()
        dense[:, columns] = 0
        without.X = sparse.csr_matrix(dense)
        a, b = (encoder.embed(x, empty_cells="embed").astype(float) for x in (data, without))
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(result.shift[:, i], 1 - cosine, atol=1e-6)
        open_ = data.X.toarray()[:, columns].any(axis=1)
        assert (result.shift[~open_, i] == 0).all()
        assert result.table["cells_open"][i] == open_.sum()
        assert result.table["shift"][i] == pytest.approx(result.shift[:, i].mean(), rel=1e-5)
        null = result.null[i]
        assert result.table["p"][i] == (1 + (null >= result.table["shift"][i]).sum()) / 4
    assert (result.table["q"] >= result.table["p"]).all()


def test_a_region_that_matters_stands_out_and_one_that_does_not_does_not(encoder):
    counts = region_counts(encoder, cells()).opened
    loud, quiet = np.argsort(-counts)[[10, 12]]
    with torch.no_grad():
        encoder.network.regions.weight[4 + loud] *= 40
        encoder.network.regions.weight[4 + quiet] = encoder.network.regions.weight[4:].mean(dim=0)
    wide = encoder.with_options(context=38)
    result = knockout_regions(wide, cells(), list(REGIONS.names[[loud, quiet]]), null=39, pool=60, progress=False)
    p = dict(zip(result.table["set"], result.table["p"], strict=True))
    assert p[REGIONS.names[loud]] == 1 / 40
    assert p[REGIONS.names[quiet]] > 0.1


def test_random_sets_are_as_many_regions_as_often_open():
    opened = RNG.integers(0, 300, 2000)
    columns = RNG.choice(np.flatnonzero(opened), 30, replace=False)
    for _ in range(20):
        drawn = _stand_ins(opened, columns, 40, RNG)
        assert len(set(drawn)) == 30
        assert not set(drawn) & set(columns)
        assert np.abs(opened[drawn] - opened[columns]).max() <= 10
        assert (opened[drawn] > 0).all()
    with pytest.raises(InputError, match="fewer than"):
        _stand_ins(np.ones(5, int), np.arange(3), 40, RNG)


def test_the_plain_baseline_can_be_knocked_out_too_and_bad_sets_are_refused(encoder):
    data = cells(40)
    lsi = scfm.load("lsi", device="cpu", components=5).fit(data)
    assert knockout_regions(lsi, data, [REGIONS.names[4]], null=5, cells=20, progress=False).shift.shape == (20, 1)
    closed = data.copy()
    closed.X = sparse.csr_matrix(closed.X.toarray() * (np.arange(data.n_vars) != 4))
    with pytest.raises(InputError, match="open in none of the 40 cells"):
        knockout_regions(encoder, closed, [REGIONS.names[4]])
    with pytest.raises(InputError, match="no regions to knock out"):
        knockout_regions(encoder, data, [])


def gtf(path: Path, at: list[int]) -> Path:
    """A gene that begins in the middle of each of these regions."""
    lines = []
    for number, i in enumerate(at):
        start = (REGIONS.start[i] + REGIONS.end[i]) // 2 + 1
        lines.append(
            f'{REGIONS.chrom[i]}\t.\tgene\t{start}\t{start + 400}\t.\t+\t.\tgene_id "E{number}"; gene_name "G{number}";\n'
        )
    path.write_text("".join(lines))
    return path


def test_links_have_the_attention_of_the_encoder_and_the_correlation_of_the_data(encoder, tmp_path):
    data = cells(50)
    result = link_regions(
        encoder, data, gtf(tmp_path / "g.gtf", [5, 60]), min_cells=3, upstream=0, null=200, progress=False
    )
    assert set(result.table["gene"]) <= {"G0", "G1"}
    maps = encoder.attention(data, reduce="none")
    opened = data.X.toarray() > 0
    place = {name: i for i, name in enumerate(REGIONS.names)}
    assert (result.table["attention"].isna() == (result.table["cells"] < 3)).all()
    for row in result.table[result.table["attention"].notna()].head(5).itertuples():
        found = []
        for cell in maps:
            names = cell.genes.tolist()
            if row.promoter in names and row.region in names:
                i, j = names.index(row.promoter), names.index(row.region)
                mean = cell.weights.mean(axis=(0, 1))
                found.append((mean[i, j] + mean[j, i]) / 2 * len(names))
        assert row.cells == len(found)
        assert row.attention == pytest.approx(np.mean(found), rel=1e-4)
        pair = opened[:, [place[row.promoter], place[row.region]]].astype(float)
        assert row.coaccessibility == pytest.approx(np.corrcoef(pair.T)[0, 1], abs=1e-6)
        assert abs(place[row.promoter] - place[row.region]) > 0
    assert ((result.table["distance"] <= 250_000) & (result.null["distance"].max() <= 250_000)).all()
    assert result.table["attention_p"].dropna().between(1 / 201, 1).all()


def test_p_is_among_null_pairs_as_far_apart():
    null = pd.DataFrame({"distance": [500] * 4 + [50_000] * 3, "s": [1.0, 2, 3, 4, 10, 20, np.nan]})
    table = pd.DataFrame({"distance": [100, 100, 40_000, 500_000], "s": [3.0, np.nan, 15, 1]})
    p, q = _significance(table, null, "s")
    np.testing.assert_allclose(p, [3 / 5, np.nan, 2 / 3, np.nan])
    np.testing.assert_allclose(q, [2 / 3, np.nan, 2 / 3, np.nan])


def test_links_say_what_they_need(encoder, tmp_path):
    with pytest.raises(InputError, match=r"coordinates of genes(.|\n)*gtf="):
        link_regions(encoder, cells())
    path = gtf(tmp_path / "g.gtf", [5])
    with pytest.raises(InputError, match=r"'TP53' is not in g\.gtf"):
        link_regions(encoder, cells(), path, genes=["TP53"])
    with pytest.raises(InputError, match="no promoter of 1 genes is open in 1000 cells"):
        link_regions(encoder, cells(), path, min_cells=1000)
    with pytest.raises(CapabilityError, match="link_regions needs attention"):
        link_regions(scfm.load("lsi", device="cpu"), cells(), path)
    with pytest.raises(CapabilityError, match="reads genes"):
        link_regions(scfm.load("mini", device="cpu"), cells(), path)


@pytest.mark.parametrize("task", ["impute", "knockout_regions", "link_regions"])
def test_commands_write_tables_pictures_and_json(encoder, tmp_path, task):
    saved = encoder.save(tmp_path / "model")
    cells(60).write_h5ad(tmp_path / "cells.h5ad")
    options = {
        "impute": ["--top", "20"],
        "knockout_regions": [
            "--region",
            REGIONS.names[4],
            "--region",
            f"set={REGIONS.names[5]},{REGIONS.names[9]}",
            "--null",
            "4",
        ],
        "link_regions": ["--gtf", str(gtf(tmp_path / "g.gtf", [5, 60])), "--min-cells", "3"],
    }[task]
    files = [tmp_path / "r.json", tmp_path / "r.png"]
    arguments = [
        task,
        str(saved),
        str(tmp_path / "cells.h5ad"),
        *options,
        "--out",
        str(files[0]),
        "--plot",
        str(files[1]),
    ]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "cells" in done.output or "pairs" in done.output
    assert json.loads(files[0].read_text())["table"]["data"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
