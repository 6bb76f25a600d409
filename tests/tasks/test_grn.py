"""Networks from the task: the table, nulls and baselines, exports, the picture, the command, and every refusal."""

import json
from itertools import combinations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity
from typer.testing import CliRunner

import scfm
from scfm.cli import app
from scfm.data import pbmc_demo
from scfm.errors import CapabilityError, InputError, SpeciesError
from scfm.grn.baselines import correlation, similarity, tree_importance
from scfm.grn.genes import choose_genes, log_normalised, read_edges, regulators_among, transcription_factors
from scfm.grn.nulls import gene_shuffle_p, label_shuffle_p, label_shuffles

GENES = [
    "SPI1",
    "CEBPB",
    "CEBPD",
    "TCF7",
    "LEF1",
    "LYZ",
    "CST3",
    "AIF1",
    "S100A9",
    "S100A8",
    "CD3D",
    "CD3E",
    "IL7R",
    "LDHB",
    "NKG7",
]
TRUTH = pd.DataFrame(
    [("SPI1", "LYZ"), ("SPI1", "AIF1"), ("CEBPB", "S100A9"), ("CEBPD", "S100A8"), ("TCF7", "CD3E"), ("LEF1", "IL7R")],
    columns=["tf", "target"],
).assign(confidence=list("AAABCD"))


@pytest.fixture(scope="module")
def cells():
    return pbmc_demo()[:90].copy()


@pytest.fixture(scope="module")
def encoder():
    return scfm.load("mini", device="cpu").with_options(context=200)


@pytest.fixture(scope="module")
def result(encoder, cells):
    methods = ["attention", "attention_qk", "gene_embedding", "pearson", "spearman", "trees", "random"]
    return scfm.tasks.grn(
        encoder,
        cells,
        genes=GENES,
        methods=methods,
        direction="both",
        truth=TRUTH,
        trees=10,
        min_cells=5,
        progress=False,
    )


# The lists


def test_transcription_factors_of_both_species():
    human, mouse = transcription_factors("human"), transcription_factors("mouse")
    assert {"SPI1", "TP53", "GATA1", "STAT1", "TCF7"} <= set(human)
    assert {"Spi1", "Trp53", "Gata1", "Stat1", "Tcf7"} <= set(mouse)
    assert not {"GAPDH", "LYZ", "ACTB"} & set(human)
    assert len(human) > 1000
    assert len(mouse) > 900


def test_lists_of_regulators(tmp_path):
    names = np.array(["SPI1", "LYZ", "CD3E", "CEBPB", *pbmc_demo().var_names[:200]], object)
    assert regulators_among(names, None)[:4].tolist() == [True, False, False, True]
    file = tmp_path / "tfs.txt"
    file.write_text("LYZ\n\nCD3E\tcomment\n")
    assert regulators_among(names, file)[:4].tolist() == [False, True, True, False]
    with pytest.raises(SpeciesError, match="the transcription factors are of mouse, the genes of human"):
        regulators_among(names, transcription_factors("mouse"))
    with pytest.raises(InputError, match="none of 1 transcription factors"):
        regulators_among(names, ["nothing"])
    with pytest.raises(InputError, match="is no file"):
        regulators_among(names, "nowhere.txt")
    with pytest.raises(SpeciesError, match="no known species"):
        regulators_among(np.array(["x1", "x2"], object), None)


def test_variable_genes_are_found_among_others():
    rng = np.random.default_rng(0)
    rates = rng.uniform(1, 20, 200)
    counts = rng.poisson(rates, (300, 200)).astype(np.float32)
    counts[:150, :10] *= 3  # a second type
    from scipy import sparse

    expression = log_normalised(sparse.csr_matrix(counts), counts=True)
    names = np.array([f"g{i}" for i in range(200)], object)
    tfs = np.zeros(200, bool)
    tfs[50] = True
    chosen = choose_genes(expression, names, tfs, np.ones(200, bool), genes=10, min_cells=5)
    assert set(chosen) == {*range(10), 50}
    with pytest.raises(InputError, match="1 of genes= are not in the data"):
        choose_genes(expression, names, tfs, np.ones(200, bool), genes=["g1", "lost"], min_cells=5)
    with pytest.raises(InputError, match="no transcription factor is among the chosen genes"):
        choose_genes(expression, names, tfs, np.ones(200, bool), genes=["g1"], min_cells=5)


def test_known_edges_are_read_in_any_common_form(tmp_path):
    TRUTH.to_csv(tmp_path / "edges.tsv.gz", sep="\t", index=False)
    TRUTH.rename(columns={"tf": "Source", "target": "Target"}).to_csv(tmp_path / "edges.csv", index=False)
    for source in (TRUTH, tmp_path / "edges.tsv.gz", tmp_path / "edges.csv"):
        assert (
            read_edges(source)[["source", "target"]].to_numpy().tolist() == TRUTH[["tf", "target"]].to_numpy().tolist()
        )
    assert len(read_edges(TRUTH, confidence=["A"])) == 3
    for table, options, message in (
        (TRUTH[["tf"]], {}, "source and target are needed"),
        (TRUTH[["tf", "target"]], {"confidence": ["A"]}, "no column 'confidence'"),
        (TRUTH, {"confidence": ["E"]}, "no edge of confidence 'E'"),
        (tmp_path / "none.csv", {}, "there is no file"),
    ):
        with pytest.raises(InputError, match=message):
            read_edges(table, **options)


# Baselines and nulls


def test_correlation_and_similarity_are_those_of_scipy_and_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.poisson(1.0, (50, 6)).astype(float)
    np.testing.assert_allclose(correlation(x), np.corrcoef(x.T), atol=1e-12)
    np.testing.assert_allclose(correlation(x, kind="spearman"), stats.spearmanr(x).statistic, atol=1e-12)
    x[:, 2] = 1
    assert np.isnan(correlation(x)[2]).all()
    np.testing.assert_allclose(similarity(x), cosine_similarity(x), atol=1e-12)


def test_trees_find_the_planted_regulator_and_explain_at_most_all_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    x[:, 4] = x[:, 1] ** 2 + 0.1 * rng.normal(size=200)  # no correlation
    scores = tree_importance(x, np.array([0, 1, 2]), trees=30)
    assert np.nanargmax(scores[:, 4]) == 1
    assert np.isnan(scores[[0, 1, 2], [0, 1, 2]]).all()
    assert np.nansum(scores, axis=0).max() < 1.1  # of the variance, which is 1; bootstrap samples of cells vary
    assert scores[:, 4].sum() > 0.8


def test_p_of_shuffled_genes_is_uniform_and_removes_what_expression_explains():
    rng = np.random.default_rng(0)
    means = rng.gamma(1.0, size=200)
    scores = np.outer(means, means) + rng.random((200, 200)) * 1e-9  # nothing but expression
    np.fill_diagonal(scores, np.nan)
    p = gene_shuffle_p(scores, np.arange(200), means, bins=10)
    assert np.isnan(np.diag(p)).all()
    assert stats.kstest(p[np.isfinite(p)], "uniform").statistic < 0.02
    by_hand = scores[:, np.argsort(means)][np.argsort(means)][:20, 180:]
    order = np.argsort(means)
    best = np.unravel_index(np.nanargmax(by_hand), by_hand.shape)
    assert p[order[best[0]], order[180 + best[1]]] == pytest.approx(1 / 400)


def test_p_of_shuffled_labels_is_uniform_without_a_difference_and_small_with_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 500))
    x[:, 0] *= 5  # edges may vary differently
    perturbed = np.arange(60) < 30
    shuffled = label_shuffles(perturbed, 100, seed=0)
    assert (shuffled.sum(axis=1) == 30).all()

    def difference(chosen):
        return x[chosen].mean(axis=0) - x[~chosen].mean(axis=0)

    p = label_shuffle_p(difference(perturbed), np.stack([difference(chosen) for chosen in shuffled]))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    x[:30, :5] += 3 * x.std(axis=0)[:5]
    p = label_shuffle_p(difference(perturbed), np.stack([difference(chosen) for chosen in shuffled]))
    assert p[:5].max() < 1e-3  # below 1 / permutations
    with pytest.raises(InputError, match="at least 20"):
        label_shuffles(perturbed, 5, seed=0)


# The task


def test_the_table_has_every_pair_once(result):
    table = result.table
    assert list(table) == ["regulator", "target", "method", "direction", "group", "score", "sign", "rank", "p", "q"]
    assert set(result.regulators) == {"SPI1", "CEBPB", "CEBPD", "TCF7", "LEF1"}
    assert set(result.genes) == set(GENES)
    assert not (table["regulator"] == table["target"]).any()
    for (method, direction), edges in table.groupby(["method", "direction"], observed=True):
        assert len(edges) <= 5 * 14, (method, direction)
        assert not edges.duplicated(["regulator", "target"]).any()
        assert edges["score"].is_monotonic_decreasing
        assert edges["p"].between(0, 1).all()
        assert (edges["q"] >= edges["p"] - 1e-12).all()
    assert result.edges("spearman").iloc[0]["rank"] == 1
    assert {"key", "query"} == set(table.loc[table["method"] == "attention_qk", "direction"])
    assert set(table.loc[table["method"] == "pearson", "sign"]) == {-1, 1}


def test_scores_are_those_of_their_parts(result, encoder, cells):
    expression = log_normalised(cells.X.tocsr().astype(np.float32), counts=True)[
        :, cells.var_names.get_indexer(result.genes)
    ]
    r = correlation(expression.toarray())
    names = list(result.genes)
    matrix = result.matrix("pearson")
    for regulator in result.regulators:
        row = matrix.loc[regulator].drop(regulator)
        np.testing.assert_allclose(
            row, np.abs(r[names.index(regulator)])[[names.index(t) for t in row.index]], atol=1e-6
        )
    vectors = encoder.gene_embeddings(["SPI1", "LYZ"]).to_numpy()
    assert result.matrix("gene_embedding").loc["SPI1", "LYZ"] == pytest.approx(
        cosine_similarity(vectors)[0, 1], abs=1e-6
    )


def test_the_regulator_is_the_key_unless_the_query_is_asked_for(encoder, cells):
    encoder, few = encoder.with_options(context=1024), cells[:12]
    attention = encoder.attention(few, progress=False)  # rows are queries
    genes = ["SPI1", "LYZ", "CST3", "CD3D", "LDHB"]
    found = scfm.tasks.grn(
        encoder, few, genes=genes, methods=["attention"], direction="both", min_cells=1, progress=False
    )
    assert found.matrix(direction="key").loc["SPI1", "LYZ"] == pytest.approx(attention.loc["LYZ", "SPI1"], abs=1e-6)
    assert found.matrix(direction="query").loc["SPI1", "LYZ"] == pytest.approx(attention.loc["SPI1", "LYZ"], abs=1e-6)


def test_agreement_has_intervals_for_every_method(result):
    found = result.agreement
    assert set(found["metric"]) == {"auroc", "auprc", "auprc_ratio", "epr", "odds_ratio", "tf_auroc"}
    assert found["true"].unique().tolist() == [6]
    assert len(found) == 6 * 9  # 7 methods, two of them in both directions
    again = result.compare(TRUTH)
    pd.testing.assert_frame_equal(again[found.columns], found)
    assert result.compare(TRUTH, confidence=["A"])["true"].unique().tolist() == [3]
    text = result.summary()
    assert "5 transcription factors x 15 genes" in text
    assert "attention (regulator as key)" in text
    assert "6 known" in text


def test_the_same_seed_gives_the_same_table_and_the_data_are_not_changed(encoder, cells):
    before = cells.copy()
    options = dict(genes=GENES, methods=["attention", "random"], min_cells=5, progress=False)
    once, again = (scfm.tasks.grn(encoder, cells, **options) for _ in range(2))
    pd.testing.assert_frame_equal(once.table.drop(columns=["p", "q"]), again.table.drop(columns=["p", "q"]), rtol=1e-6)
    assert (cells.X != before.X).nnz == 0
    assert list(cells.obs) == list(before.obs)
    assert not cells.uns


def test_each_group_has_its_own_network(encoder):
    cells = pbmc_demo()[:200].copy()
    cells.obs["lineage"] = np.where(cells.obs["cell_type"].astype(str).str.contains("Mono"), "myeloid", "other")
    options = dict(genes=GENES, methods=["pearson"], groupby="lineage", min_cells=5, progress=False)
    both = scfm.tasks.grn(encoder, cells, **options)
    assert both.table["group"].unique().tolist() == ["myeloid", "other"]
    assert both.provenance["settings"]["cells"]["myeloid"] == (cells.obs["lineage"] == "myeloid").sum()
    one = scfm.tasks.grn(encoder, cells, **options, groups=["other"])
    assert one.table["group"].unique().tolist() == ["other"]
    pd.testing.assert_series_equal(both.matrix("pearson", "other").loc["TCF7"], one.matrix("pearson").loc["TCF7"])


def test_differences_between_conditions(encoder, cells):
    cells = cells.copy()
    cells.obs["condition"] = np.where(np.arange(90) % 2, "stim", "ctrl")
    regulated = cells.copy()
    x = regulated.X.tolil()
    level = np.random.default_rng(0).integers(0, 6, 45)
    for column in regulated.var_names.get_indexer(["TCF7", "LYZ"]):  # in stimulated cells both rise and fall together
        x[1::2, column] = level.reshape(-1, 1)
    regulated.X = x.tocsr()
    options = dict(
        genes=GENES, methods=["pearson", "attention"], contrast=("condition", "stim", "ctrl"), permutations=40, min_cells=5, progress=False
    )  # fmt: skip
    found = scfm.tasks.grn(encoder, regulated, **options)
    edge = (
        found.edges("pearson")
        .astype({"regulator": str, "target": str})
        .set_index(["regulator", "target"])
        .loc[("TCF7", "LYZ")]
    )
    assert edge["sign"] == 1
    assert edge["rank"] <= 3
    assert edge["q"] < 0.05
    nothing = scfm.tasks.grn(encoder, cells, **options)
    for method in ("pearson", "attention"):
        assert (nothing.edges(method)["p"] < 0.05).mean() < 0.2
    with pytest.raises(InputError, match="no difference between conditions"):
        scfm.tasks.grn(encoder, cells, **{**options, "methods": ["trees"]})
    with pytest.raises(InputError, match=r"contrast: 'treated' is not in obs\['condition'\]"):
        scfm.tasks.grn(encoder, cells, **{**options, "contrast": ("condition", "treated", "ctrl")})


def test_exports_can_be_read_back(result, tmp_path):
    result.to_graphml(tmp_path / "net.graphml", "spearman", top=20)
    graph = nx.read_graphml(tmp_path / "net.graphml")
    assert graph.number_of_edges() == 20
    assert graph.nodes["SPI1"]["tf"] is True
    best = result.edges("spearman").iloc[0]
    assert graph.edges[best["regulator"], best["target"]]["score"] == pytest.approx(best["score"])
    result.to_csv(tmp_path / "net.csv")
    assert len(pd.read_csv(tmp_path / "net.csv")) == len(result.table)
    stored = json.loads(result.to_json())
    assert stored["provenance"]["settings"]["bins"] == 10
    assert len(stored["table"]["data"]) == len(result.table)
    with pytest.raises(InputError, match="method='nothing' is not in the result"):
        result.edges("nothing")


@pytest.mark.parametrize("method", ["spearman", "random"])
def test_no_two_labels_of_the_picture_overlap(result, method, tmp_path):
    axes = result.plot(method, top=30, save=tmp_path / "net.png")
    assert (tmp_path / "net.png").stat().st_size > 10_000
    axes.figure.draw_without_rendering()
    texts = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in texts} == set(result.to_networkx(method, top=30))
    boxes = [text.get_window_extent() for text in texts]
    assert not [
        (a.get_text(), b.get_text())
        for (a, x), (b, y) in combinations(list(zip(texts, boxes, strict=True)), 2)
        if x.overlaps(y)
    ]
    dark = [text.get_text() for text in texts if text.get_fontweight() == "bold"]
    assert set(dark) <= set(result.regulators)


def test_what_can_not_be_done_is_refused(encoder, cells):
    def refused(error, message, data=cells, **options):
        with pytest.raises(error, match=message):
            scfm.tasks.grn(encoder, data, **{"genes": GENES, "min_cells": 5, "progress": False, **options})

    refused(InputError, "too few cells in all", data=cells[:3])
    refused(InputError, r"too few cells in (.|\n)*Pass groups=\[", groupby="cell_type", min_cells=20)
    refused(InputError, "groupby='nothing' is not in adata.obs", groupby="nothing")
    refused(InputError, r"groups='nothing' are not in obs\['cell_type'\]", groupby="cell_type", groups=["nothing"])
    refused(InputError, "methods='genie' is not known", methods=["genie"])
    refused(InputError, "direction='up' is not known", direction="up")
    refused(SpeciesError, "of mouse, the genes of human", tfs=transcription_factors("mouse"))
    refused(InputError, "share 0 regulators", truth=TRUTH.assign(tf="Spi1"))
    with pytest.raises(CapabilityError, match="pca has no attention"):
        scfm.tasks.grn(scfm.load("pca"), cells, methods=["attention"])


def test_the_command(tmp_path, cells):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    TRUTH.to_csv(tmp_path / "truth.tsv", sep="\t", index=False)
    (tmp_path / "tfs.txt").write_text("SPI1\nCEBPB\nTCF7\n")
    files = {name: tmp_path / name for name in ("net.csv", "net.graphml", "net.png")}
    arguments = [
        "grn", "mini", str(tmp_path / "cells.h5ad"), "--tfs", str(tmp_path / "tfs.txt"), "--genes", "200", "--method", "spearman",
        "--truth", str(tmp_path / "truth.tsv"), "--device", "cpu", "-O", "context=100", "--out", str(files["net.csv"]),
        "--graphml", str(files["net.graphml"]), "--plot", str(files["net.png"]), "--top", "50",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "3 transcription factors" in done.output
    assert len(pd.read_csv(files["net.csv"])) == 50
    assert all(path.stat().st_size > 100 for path in files.values())
