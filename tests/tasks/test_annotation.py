"""annotate: labels with calibrated probabilities and sets that keep their level, the same call for every method and encoder."""

import json
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import scfm
from scfm.annotators import KNN, FineTune, Probe, Prototype, Text
from scfm.calibrated import parted
from scfm.data import pbmc_demo
from scfm.errors import CapabilityError, InputError
from scfm.ontology import cell_ontology
from scfm.reading import InputWarning

PARITY = Path(__file__).parents[1] / "parity"
TYPES = ("B cell", "T cell", "monocyte", "platelet")


def made(n=600, seed=0, shift=0.0, types=TYPES, donors=6, spread=1.0):
    """Cells of four types in ten dimensions, from some donors; counts that say the same."""
    rng = np.random.default_rng([seed, 7])
    centres = np.random.default_rng(99).normal(size=(len(TYPES), 10)) * 1.6
    label = rng.choice(len(types), n)
    z = centres[[TYPES.index(types[i]) for i in label]] + rng.normal(size=(n, 10)) * spread + shift
    genes = np.random.default_rng(5).normal(size=(10, 30)) * 0.3
    counts = rng.poisson(np.exp(z @ genes * 0.5)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([types[i] for i in label]),
            "donor": [f"{seed}d{i}" for i in rng.integers(0, donors, n)],
            "batch": [f"b{i}" for i in rng.integers(0, 2, n)],
        },
        index=[f"c{seed}_{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(30)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var, obsm={"X_z": z.astype(np.float32)})


def annotate(reference, query=None, encoder=None, **options):
    options = {"use_rep": "X_z", "baseline": None, "resamples": 50, "progress": False, **options}
    return scfm.tasks.annotate(encoder, reference, query, **options)


# Answers


@pytest.mark.parametrize("method", ["knn", "prototype", "probe"])
def test_labels_probabilities_and_sets(method):
    reference, query = made(), made(seed=1)
    before = reference.copy(), query.copy()
    result = annotate(reference, query, method=method)
    table = result.table
    assert table.index.tolist() == query.obs_names.tolist()
    assert (table["label"] == table["truth"]).mean() == result.score("accuracy") > 0.85
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (result.probabilities.idxmax(axis=1) == table["label"]).all()
    inside = [t in s.split("; ") for t, s in zip(table["truth"], table["set"], strict=True)]
    assert np.mean(inside) == result.score("coverage")
    assert table["set_size"].tolist() == [len(s.split("; ")) if s else 0 for s in table["set"]]
    for adata, copy in zip((reference, query), before, strict=True):
        assert list(adata.obs) == list(copy.obs)
        assert list(adata.obsm) == ["X_z"]
        assert (adata.X != copy.X).nnz == 0


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("method", ["knn", "prototype", "probe"])
def test_sets_and_rejection_keep_their_level_on_cells_of_the_same_kind(method, conditional):
    reference, query = made(1500), made(1500, seed=1)
    result = annotate(reference, query, method=method, alpha=0.2, conditional=conditional, reject=0.1)
    # 300 calibration cells and 1,500 new ones: beta-binomial, but for a chance of 1e-6
    m = 300
    for missed, level in (
        (round((1 - result.score("coverage")) * 1500), 0.2),
        (int(result.table["rejected"].sum()), 0.1),
    ):
        kept = int(np.ceil((m + 1) * (1 - level)))
        law = stats.betabinom(1500, m + 1 - kept, kept)
        if conditional and level == 0.2:  # fewer cells a class
            assert missed / 1500 < 0.28
        else:
            assert law.sf(missed - 1) > 1e-6


def test_calibration_makes_probabilities_mean_what_they_say():
    # class means know nothing of the width of a cell's cloud; a temperature can mend it
    reference, query = made(3000, spread=2.5), made(3000, seed=1, spread=2.5)
    raw = annotate(reference, query, method="prototype", calibration=None, alpha=None, reject=None)
    mended = annotate(reference, query, method="prototype")
    assert mended.score("ece") < 0.04 < raw.score("ece")
    assert "nothing was held out" in raw.notes[0]
    assert "set" not in raw.table


def test_votes_are_those_of_scikit_learn_when_nothing_is_held_out():
    from sklearn.neighbors import KNeighborsClassifier

    reference, query = made(), made(seed=1)
    result = annotate(reference, query, method=KNN(k=7, metric="euclidean"), calibration=None)
    vote = KNeighborsClassifier(7).fit(reference.obsm["X_z"], reference.obs["cell_type"].astype(str))
    share = vote.predict_proba(query.obsm["X_z"])
    np.testing.assert_allclose(result.probabilities, (share * 7 + 1 / 4) / 8, atol=1e-6)
    clear = np.sort(share, axis=1)[:, -1] > np.sort(share, axis=1)[:, -2]
    assert (result.table["label"].to_numpy()[clear] == vote.predict(query.obsm["X_z"])[clear]).all()


def test_a_tie_goes_to_the_nearest():
    z = np.array([[0.0], [1.0], [10.0], [11.0]], dtype=np.float32)
    obs = pd.DataFrame({"cell_type": ["b", "a", "a", "b"]}, index=list("wxyz"))
    reference = ad.AnnData(np.ones((4, 1), np.float32), obs=obs, obsm={"X_z": z})
    query = ad.AnnData(
        np.ones((2, 1), np.float32),
        obs=pd.DataFrame(index=["q0", "q1"]),
        obsm={"X_z": np.array([[0.4], [0.6]], dtype=np.float32)},
    )
    result = annotate(reference, query, method=KNN(k=2, metric="euclidean"), calibration=None)
    assert result.table["label"].tolist() == ["b", "a"]
    assert result.scores is None
    with pytest.raises(InputError, match="not known"):
        result.score("accuracy")


def test_shots_use_so_many_cells_of_each_label():
    reference, query = made(), made(seed=1)
    one, all_ = (annotate(reference, query, method=Prototype(shots=s)) for s in (1, None))
    assert one.score("accuracy") < all_.score("accuracy")
    again = annotate(reference, query, method=Prototype(shots=1))
    pd.testing.assert_frame_equal(one.table, again.table)


def test_rescaled_embeddings_give_the_same():
    reference, query = made(), made(seed=1)
    scaled = [a.copy() for a in (reference, query)]
    for adata in scaled:
        adata.obsm["X_z"] = adata.obsm["X_z"] * 8  # exact in binary
    for method in ("knn", "prototype"):
        one, two = annotate(reference, query, method=method), annotate(*scaled, method=method)
        np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
        assert (one.table["rejected"] == two.table["rejected"]).all()


# Unknown types


@pytest.mark.parametrize("novelty", ["knn", "mahalanobis", "softmax", "energy"])
def test_cells_of_a_type_the_reference_lacks_are_told(novelty):
    reference, query = made(1000), made(600, seed=1)
    result = annotate(reference, query, method="prototype", novelty=novelty, hold_out_types=["platelet"])
    assert "platelet" not in set(result.table["label"])
    assert result.score("rejected") < 0.12
    assert result.score("unknown_share") == pytest.approx((query.obs["cell_type"] == "platelet").mean())
    if novelty in ("knn", "mahalanobis"):
        assert result.score("unknown_auroc") > 0.95
        novel = result.table.loc[result.table["truth"] == "platelet", "novel_cluster"]
        assert novel.notna().mean() > 0.5
        assert "types the reference lacks" in result.summary()
    assert result.confusion.loc["platelet"].sum() == (query.obs["cell_type"] == "platelet").sum()


def test_energy_of_votes_is_refused():
    with pytest.raises(InputError, match="log-probabilities"):
        annotate(made(), made(seed=1), novelty="energy")


def test_too_few_calibration_cells_are_said_and_nothing_is_rejected():
    result = annotate(made(60), made(20, seed=1), method=KNN(k=3), alpha=0.01)
    text = result.summary()
    assert "too few for alpha=0.01 (99 are needed): every set holds all labels" in text
    assert "too few to reject at 0.05" in text
    assert (result.table["set_size"] == 4).all()
    assert not result.table["rejected"].any()


# Splits


def test_whole_donors_calibrate():
    reference, query = made(), made(seed=1)
    result = annotate(reference, query, donor="donor")
    assert result.leak == ""
    assert set(result.scores["unit"]) >= {"groups"}
    assert set(result.scores.loc[result.scores["stratum"] == "donor", "of"]) == {*query.obs["donor"], "mean"}
    query.obs.loc[query.obs_names[:5], "donor"] = "0d1"
    with pytest.warns(InputWarning, match="'0d1' on both sides"):
        result = annotate(reference, query, donor="donor")
    assert "LEAK" in result.summary()
    reference.obs["donor"] = "one"
    assert "the reference has one donor only" in annotate(reference, query, donor="donor").summary()


def test_cross_validation_holds_out_whole_groups():
    result = annotate(made(), groups="donor")
    assert (result.table["fold"] == made().obs["donor"]).all()
    assert result.leak == ""
    assert result.score("accuracy") > 0.85
    assert result.provenance["settings"]["folds"] == sorted(set(made().obs["donor"]))
    few = annotate(made(), groups="donor", folds=3)
    assert few.table["fold"].nunique() == 3
    assert (few.table.groupby(made().obs["donor"])["fold"].nunique() == 1).all()


def test_donors_in_several_folds_are_a_leak():
    assert "'0d0', '0d1'" in annotate(made(), groups="batch", donor="donor").leak
    assert annotate(made(), groups="donor", donor="donor").leak == ""


def test_a_random_split_is_allowed_by_name_and_said_to_leak():
    with pytest.raises(InputError, match="no groups= to hold out"):
        annotate(made())
    result = annotate(made(), split="random_cells")
    assert "split at random" in result.leak
    assert "LEAK" in result.summary()
    counts = pd.crosstab(result.table["fold"], result.table["truth"])
    assert (counts.max() - counts.min() <= 1).all()


def test_a_label_of_one_donor_cannot_be_given_when_that_donor_is_held_out():
    cells = made()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.loc[cells.obs["donor"] == "0d0", "cell_type"] = "only here"
    result = annotate(cells, groups="donor")
    assert not (result.table["label"][cells.obs["donor"] == "0d0"] == "only here").any()
    assert result.score("coverage", stratum="class", of="only here") == 0


# Ontology


def test_an_unsure_cell_gets_the_common_ancestor_of_its_set():
    reference, query = made(spread=2.0), made(seed=1, spread=2.0)
    result = annotate(reference, query, method="prototype", ontology=True, alpha=0.05)
    table = result.table
    two = table[table["set"] == "B cell; T cell"]
    assert len(two)
    assert set(two["ancestor_name"]) == {"lymphocyte"}
    alone = table[table["set"] == "platelet"]
    assert set(alone["ancestor"]) == {"CL:0000233"}
    assert result.harmonised["how"].tolist() == ["label"] * 4
    cl = cell_ontology()
    steps = [cl.distance(t, cl.harmonise([n]).terms[n]) for t, n in zip(table["term"], table["truth"], strict=True)]
    assert result.score("ontology_distance") == pytest.approx(np.mean(steps))
    assert max(steps) >= 3  # B cell for T cell


def test_labels_without_a_term_are_told_and_can_be_given():
    reference, query = made(), made(seed=1)
    for adata in (reference, query):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("monocyte", "Mono")
    with pytest.warns(InputWarning, match="without a Cell Ontology term: 'Mono'"):
        result = annotate(reference, query, ontology=True)
    assert result.table.loc[result.table["set"] == "Mono", "ancestor"].isna().all()
    result = annotate(reference, query, ontology=True, terms={"Mono": "CL:0000576"})
    assert set(result.table.loc[result.table["label"] == "Mono", "term"]) == {"CL:0000576"}
    ids = dict(zip(result.harmonised.index, result.harmonised["term"], strict=True))
    reference.obs["id"] = reference.obs["cell_type"].map(ids)
    result = annotate(reference, query, ontology=True, terms="id")
    assert set(result.harmonised["how"]) == {"given"}
    with pytest.raises(InputError, match="without an ontology"):
        annotate(reference, query, terms="id")


# Encoders


def test_baselines_run_on_the_same_splits():
    reference, query = made(), made(seed=1)
    result = annotate(reference, query, baseline="pca")
    # 30 genes give no 50 components
    assert any("baseline pca + knn could not run" in note for note in result.notes)
    whole = result.scores[(result.scores["stratum"] == "all") & (result.scores["metric"] == "accuracy")]
    assert whole[["encoder", "method"]].to_numpy().tolist() == [["X_z", "knn"], ["logCPM", "probe"]]
    difference = result.scores[result.scores["stratum"] == "difference"].set_index("metric").loc["accuracy"]
    assert difference["value"] == pytest.approx(whole["value"].iloc[0] - whole["value"].iloc[1])
    assert difference["of"] == "logCPM + probe"


def test_an_encoder_that_is_fitted_is_fitted_on_the_reference():
    cells = pbmc_demo()[:, ::20].copy()
    reference, query = cells[:600].copy(), cells[600:].copy()
    result = annotate(reference, query, scfm.load("pca", components=20), use_rep=None, baseline="pca")
    assert result.score("accuracy") > 0.4
    assert result.provenance["encoders"][0]["origin"]["cells"] == "420"
    classes = np.unique(reference.obs["cell_type"].astype(str), return_inverse=True)[1]
    teach = parted(classes, 0.3, seed=0).teach
    encoder = scfm.load("pca", components=20).fit(reference[teach].copy())
    reference.obsm["X_z"], query.obsm["X_z"] = encoder.embed(reference), encoder.embed(query)
    again = annotate(reference, query)
    assert (again.table["label"] == result.table["label"]).all()


def test_cells_without_a_known_gene_get_no_label_and_count_as_wrong():
    reference, query = made(), made(40, seed=1)
    query.obsm["X_z"][3] = np.nan
    reference.obsm["X_z"][5] = np.nan
    result = annotate(reference, query)
    row = result.table.iloc[3]
    assert row["label"] is None
    assert np.isnan(row["probability"])
    assert (row["set"], row["rejected"], row["novel_cluster"]) == ("", False, None)
    assert not (result.table["label"] == result.table["truth"]).iloc[3]
    assert result.score("accuracy") == (result.table["label"] == result.table["truth"]).mean()
    assert "1 query cells express no gene" in result.summary()
    assert "1 reference cells express no gene" in result.summary()
    assert result.confusion["no label"].sum() == 1


@pytest.fixture(scope="module")
def langcell():
    folder = PARITY / "langcell"
    adata = ad.read_h5ad(folder / "input.h5ad")
    adata.var_names = adata.var["ensembl_id"].astype(str)
    return scfm.load(folder / "checkpoint"), adata[adata.obs["cell_type"] != "out_of_vocab"].copy()


def test_text_needs_no_labelled_cells(langcell):
    encoder, cells = langcell
    names = ["b cell", "monocyte", "t cell"]
    result = annotate(None, cells, encoder, use_rep=None, method="text", labels=names)
    texts = encoder.embed_text([f"cell type: {name}. " for name in names])
    z = encoder.embed(cells)
    cosine = z @ texts.T / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(texts, axis=1)
    assert result.table["label"].tolist() == [names[i] for i in cosine.argmax(axis=1)]
    assert "not calibrated" in result.summary()
    assert "set" not in result.table
    described = annotate(
        None, cells, encoder, use_rep=None, labels=names, method=Text(descriptions={"b cell": "cell type: t cell. "})
    )
    np.testing.assert_allclose(described.probabilities["b cell"], described.probabilities["t cell"], rtol=1e-5)
    with pytest.raises(InputError, match="descriptions of 'x'"):
        annotate(None, cells, encoder, use_rep=None, labels=names, method=Text(descriptions={"x": "y"}))
    with pytest.raises(InputError, match="does not say where"):
        annotate(None, cells, encoder, use_rep=None, labels=names, method=Text(prompt="a cell"))


def test_text_is_calibrated_where_there_are_labelled_cells(langcell):
    encoder, cells = langcell
    many = ad.concat([cells] * 8, index_unique="-")
    many.obs["cell_type"] = (["b cell", "t cell"] * many.n_obs)[: many.n_obs]
    half = many.n_obs // 2
    result = annotate(
        many[:half].copy(), many[half:].copy(), encoder, use_rep=None, method="text", novelty="softmax", alpha=0.4
    )
    assert "set" in result.table
    assert list(result.probabilities) == ["b cell", "t cell"]


def test_chromatin_is_labelled_by_the_same_call():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 120)
    open_ = rng.random((120, 200)) < np.where(np.arange(200)[None] % 2 == kind[:, None], 0.4, 0.1)
    names = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(1, 201)]
    obs = pd.DataFrame({"cell_type": np.array(["x", "y"])[kind]}, index=[f"c{i}" for i in range(120)])
    cells = ad.AnnData(sparse.csr_matrix(open_.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))
    result = annotate(
        cells[:80].copy(),
        cells[80:].copy(),
        scfm.load("lsi", components=5),
        use_rep=None,
        baseline="lsi",
        method="probe",
    )
    assert result.score("accuracy") > 0.9
    made = result.scores[["encoder", "method"]].drop_duplicates().to_numpy().tolist()
    assert made == [["lsi", "probe"], ["lsi", "knn"], ["logCPM", "probe"]]


def test_text_is_refused_by_encoders_that_read_none():
    with pytest.raises(CapabilityError, match="langcell"):
        annotate(None, pbmc_demo(), scfm.load("mini"), use_rep=None, method="text", labels=["a", "b"])


def test_a_fine_tuned_head_is_calibrated_like_the_others():
    cells = pbmc_demo()
    cells = cells[cells.obs["cell_type"].isin(["B", "NK", "CD14+ Mono"])][:90].copy()
    reference, query = cells[:70].copy(), cells[70:].copy()
    method = FineTune("head", {"epochs": 2, "learning_rate": 0.05})
    result = annotate(
        reference, query, scfm.load("mini").with_options(context=48), use_rep=None, method=method, reject=0.2
    )
    assert result.score("accuracy") > 0.7
    assert "set" in result.table
    assert result.provenance["settings"]["method"]["method"] == "head"
    with pytest.raises(InputError, match="trains an encoder"):
        annotate(made(), made(seed=1), method="finetune")


# Errors


def test_what_cannot_be_is_refused_before_work():
    reference, query = made(), made(seed=1)
    cases = [
        (dict(labels="celltype"), "no column 'celltype'"),
        (dict(method="svm"), "method='svm' is not known"),
        (dict(alpha=1.5), "alpha=1.5 is no share"),
        (dict(reject=0), "reject=0 is no share"),
        (dict(novelty="distance"), "novelty='distance'"),
        (dict(sets="raps"), "score='raps'"),
        (dict(use_rep="X_pca"), "no 'X_pca'"),
        (dict(use_rep=None), "neither an encoder nor embeddings"),
        (dict(hold_out_types=["T"]), "which are no labels"),
        (dict(groups="donor"), "but a query is given"),
        (dict(donor="patient"), "no column 'patient'"),
        (dict(batch="lane"), "no column 'lane'"),
        (dict(truth="donor"), "no label of the query is among those"),
        (dict(clusters="louvain", reject=0.3), "method='louvain'"),
        (dict(method=KNN(k=1000)), "k=1000"),
        (dict(method=KNN(weights="gauss")), "weights='gauss'"),
        (dict(method=Prototype(shots=0)), "shots=0"),
        (dict(labels=["a", "b"]), "labels= are names"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            annotate(reference, query, **options)
    with pytest.raises(InputError, match="the query is a str; cells in memory"):
        annotate(reference, "query.h5ad")
    with pytest.raises(InputError, match="the same cells"):
        annotate(reference, reference)
    with pytest.raises(InputError, match="without a reference"):
        annotate(None, query)
    with pytest.raises(InputError, match="neither query cells"):
        annotate(None, None, method=_Told(), labels=["a", "b"])
    reference.obs["number"] = 0.5
    with pytest.raises(InputError, match="holds measurements"):
        annotate(reference, query, labels="number")
    reference.obs["cell_type"] = "one"
    with pytest.raises(InputError, match="1 label, 'one'; at least two"):
        annotate(reference, query)


class _Told(Probe):
    """A method that needs no labelled cells."""

    learns = False


def test_missing_labels_are_left_out_and_said():
    reference, query = made(), made(seed=1)
    reference.obs.loc[reference.obs_names[:10], "cell_type"] = None
    query.obs.loc[query.obs_names[:10], "cell_type"] = None
    result = annotate(reference, query)
    assert "10 reference cells without obs['cell_type']" in result.summary()
    row = result.scores[(result.scores["metric"] == "accuracy") & (result.scores["stratum"] == "all")].iloc[0]
    assert row["cells"] == query.n_obs - 10


# Results


def test_results_are_reproducible_and_written(tmp_path):
    reference, query = made(), made(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (annotate(reference, query, method=Probe(C=0.1), seed=3, batch="batch") for _ in range(2))
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(one.scores, two.scores)
    stored = json.loads(one.to_json(tmp_path / "result.json"))
    assert stored["kind"] == "Annotation"
    assert stored["provenance"]["settings"]["method"] == {
        "name": "probe",
        "C": 0.1,
        "standardise": True,
        "balanced": False,
    }
    for kind in (None, "confusion", "scores", "reliability", "coverage_risk", "labels"):
        one.plot(save=tmp_path / "plot.png", kind=kind)
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="kind='pie'"):
        one.plot(kind="pie")
    with pytest.raises(InputError, match="no score 'kappa'"):
        one.score("kappa")
    plain = annotate(reference, ad.AnnData(query.X, obs=query.obs[[]], obsm=dict(query.obsm)))
    plain.plot(save=tmp_path / "plain.png")
    with pytest.raises(InputError, match="truth="):
        plain.plot(kind="confusion")
