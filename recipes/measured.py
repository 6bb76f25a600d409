"""What the recipes give on real data, beside plain baselines: tables and pictures in recipes/results.

python -m scfm.recipes.measured --shared ../shared                 # all
python -m scfm.recipes.measured --shared ../shared annotation      # one of them

Sizes are chosen for a laptop: what is compared is the recipe with its baselines on the same cells, not with the best there is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scfm.plans import train
from scfm.recipes import results_pictures as pictures

RESULTS = Path(__file__).parent / "results"
Work = Callable[[Path, Path], dict[str, Any]]


# Cell types


def _annotation(recipe: str, shared: Path, folder: Path, settings: Mapping[str, Any], **picture: str) -> dict[str, Any]:
    """Each chemistry once held out: the recipe, the frozen probe and PCA with logistic regression on the others."""
    import scfm

    cells = ad.read_h5ad(shared / "data/pbmc_3tech/pbmc_3tech.h5ad")
    cells.obs_names_make_unique()
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    found: dict[str, np.ndarray] = {}
    history: list[dict[str, Any]] = []
    for batch in sorted(set(cells.obs["batch"])):
        test = (cells.obs["batch"] == batch).to_numpy()
        train_file = folder / f"{batch}.h5ad"
        cells[~test].write_h5ad(train_file)
        for name, own in (("recipe", {}), ("frozen, linear head", {"method": "head", "train.learning_rate": 1e-2})):
            out = folder / f"{name[:6]}-{batch}"
            train(recipe, {"data.train": str(train_file), "out": str(out), **settings, **own}, progress=False)
            tuned = scfm.load(out, device="cpu")
            assert isinstance(tuned, scfm.FineTuned)
            labels = tuned.predict(cells[test], map_genes=settings.get("data.map_genes", False), progress=False)[
                "label"
            ]
            found.setdefault(name, np.empty(len(cells), dtype=object))[test] = labels.astype(str).to_numpy()
            if name == "recipe":
                history += [{"run": f"without {batch}", **epoch} for epoch in tuned.history]
        baseline = found.setdefault("PCA, logistic regression", np.empty(len(cells), dtype=object))
        baseline[test] = _pca_labels(cells[~test], cells[test])
    batches = cells.obs["batch"].astype(str).to_numpy()
    rows = [{"what": name, **_label_scores(truth, labels, batches)} for name, labels in found.items()]
    pictures.annotation(RESULTS / f"{picture['name']}.png", history, truth, found["recipe"])
    return {
        "data": "pbmc_3tech: 1,200 blood cells x 1,767 genes, three 10x chemistries; each is held out once, trained on are the other two "
        "(4 epochs at most, 15 % of their cells choose the best). Intervals: bootstrap over the cells of all three.",
        "rows": rows,
    }


def _pca_labels(training: ad.AnnData, test: ad.AnnData, column: str = "cell_type") -> np.ndarray:
    """log1p CP10k, 30 components of the training cells, logistic regression."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    def values(cells: ad.AnnData) -> np.ndarray:
        counts = cells.X.toarray()
        return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))

    reducer = PCA(30, random_state=0).fit(values(training))
    model = LogisticRegression(max_iter=2000).fit(reducer.transform(values(training)), training.obs[column].astype(str))
    return model.predict(reducer.transform(values(test))).astype(str)


def _label_scores(truth: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, str]:
    """Accuracy and macro F1 with 95 % intervals, and the accuracy of each held-out group."""
    from sklearn.metrics import f1_score

    from scfm.metrics.estimates import bootstrap

    def accuracy(rows: np.ndarray) -> float:
        return float((truth[rows] == labels[rows]).mean())

    def macro(rows: np.ndarray) -> float:
        return float(f1_score(truth[rows], labels[rows], average="macro", zero_division=0.0))

    scores = {}
    for name, statistic in (("accuracy", accuracy), ("macro F1", macro)):
        found = bootstrap(statistic, len(truth), resamples=300)
        scores[name] = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    for group in sorted(set(groups)):
        scores[f"accuracy, {group}"] = f"{accuracy(np.flatnonzero(groups == group)):.3f}"
    return scores


MINI = {"model.device": "cpu", "data.valid": 0.15, "train.epochs": 4}


def annotation_lora_mini(shared: Path, folder: Path) -> dict[str, Any]:
    return _annotation("annotation_lora_mini", shared, folder, MINI, name="annotation_lora_mini")


# Chromatin


def annotation_atac(shared: Path, folder: Path) -> dict[str, Any]:
    """A small EpiAgent over the data's own peaks, from random weights; one sample held out."""
    import scfm
    from scfm.adapters.epiagent.adapter import EpiAgent, _vocabulary
    from scfm.adapters.epiagent.network import FIRST_REGION, EpiAgentConfig
    from scfm.regions import Regions
    from scfm.registry import find

    cells = ad.read_h5ad(shared / "data/hematopoiesis_scatac/hematopoiesis_scatac.h5ad")
    test = (cells.obs["group"] == "BMMC_D5T1").to_numpy()
    regions = Regions.from_names(cells.var_names)
    frequency = np.asarray((cells[~test].X > 0).mean(axis=0)).ravel().clip(min=1 / len(cells))
    sizes = EpiAgentConfig(
        FIRST_REGION + len(regions), len(regions), dim=64, heads=4, hidden=128, layers=2, context=512
    )
    card = find("epiagent")[1]
    assert card is not None
    EpiAgent.build(sizes, _vocabulary(regions, frequency, []), card).save(folder / "small")
    cells[~test].write_h5ad(folder / "train.h5ad")
    settings = {"model.name": str(folder / "small"), "model.fresh": True, "method": "full", "model.device": "cpu"}
    more = {"data.train": str(folder / "train.h5ad"), "data.valid": 0.15, "train.epochs": 30, "train.patience": None}
    train(
        "annotation_atac",
        {**settings, **more, "out": str(folder / "tuned"), "train.learning_rate": 2e-3},
        progress=False,
    )
    tuned = scfm.load(folder / "tuned", device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    truth = cells.obs["cell_type"].astype(str).to_numpy()[test]
    own = tuned.predict(cells[test], progress=False)["label"].astype(str).to_numpy()
    lsi = _lsi_labels(cells[~test], cells[test])
    groups = np.full(len(truth), "BMMC_D5T1")
    pictures.annotation(RESULTS / "annotation_atac.png", [{"run": "training", **e} for e in tuned.history], truth, own)
    return {
        "data": "hematopoiesis_scatac: bone marrow, 600 cells x 5,000 peaks; sample BMMC_D5T1 (108 cells) is held out, "
        "15 % of the other choose the epoch.",
        "rows": [
            {"what": "recipe", **_label_scores(truth, own, groups)},
            {"what": "LSI, logistic regression", **_label_scores(truth, lsi, groups)},
        ],
        "note": "**Not the published model**, whose weights and regions could not be had on the machine that measured: a network of its "
        "architecture, 2 layers of width 64 over these 5,000 peaks, trained whole from random weights on the cells of one sample.",
    }


def _lsi_labels(training: ad.AnnData, test: ad.AnnData) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    import scfm

    lsi = scfm.load("lsi", device="cpu", components=20).fit(training)  # type: ignore[attr-defined]
    model = LogisticRegression(max_iter=2000).fit(
        lsi.embed(training, progress=False), training.obs["cell_type"].astype(str)
    )
    return model.predict(lsi.embed(test, progress=False)).astype(str)


# Integration


def integration(shared: Path, folder: Path) -> dict[str, Any]:
    """Three chemistries: scIB-like scores of the recipe's embedding, of the frozen model's and of PCA."""
    import scfm
    from scfm.metrics.integration import integration_scores

    cells = ad.read_h5ad(shared / "data/pbmc_3tech/pbmc_3tech.h5ad")
    cells.obs_names_make_unique()
    cells.write_h5ad(folder / "cells.h5ad")
    run = {"data.train": str(folder / "cells.h5ad"), "out": str(folder / "out"), "model.device": "cpu"}
    train("integration", {**run, "train.epochs": 4}, progress=False)
    tuned = scfm.load(folder / "out", device="cpu")
    assert isinstance(tuned, scfm.FineTuned)
    embeddings = {
        "recipe": tuned.embed(cells, progress=False),
        "frozen mini": scfm.load("mini", device="cpu").embed(cells, progress=False),
        "PCA": _pca(cells),
    }
    batch, labels = (cells.obs[name].astype(str).to_numpy() for name in ("batch", "cell_type"))
    rows = []
    for name, z in embeddings.items():
        entries = integration_scores(z, batch, labels, clusters="kmeans", leakage=False).entries
        rows.append(
            {"what": name, **{key: f"{e.score.value:.3f}" for key, e in entries.items() if np.isfinite(e.score.value)}}
        )
    pictures.integration(RESULTS / "integration.png", embeddings, batch, labels)
    return {
        "data": "pbmc_3tech: 1,200 blood cells x 1,767 genes, three 10x chemistries as batches; 4 epochs. "
        "Labels were not seen in training.",
        "rows": rows,
    }


def _pca(cells: ad.AnnData) -> np.ndarray:
    from sklearn.decomposition import PCA

    counts = cells.X.toarray()
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    return PCA(30, random_state=0).fit_transform(values)


# Responses


def perturbation_gears(shared: Path, folder: Path) -> dict[str, Any]:
    """Norman's K562 cells."""
    cells = ad.read_h5ad(shared / "data/perturb_norman_mcfaline/perturb_500genes.h5ad")
    cells = cells[cells.obs["dataset"].astype(str) == "norman19"]
    ad.AnnData(cells.X, obs=cells.obs[["condition"]].astype(str), var=cells.var[[]]).write_h5ad(folder / "norman.h5ad")
    settings = {"data.train": str(folder / "norman.h5ad"), "screen.control": "control", "unknown_genes": "leave out"}
    found = _response("perturbation_gears", folder, {**settings, "model.device": "cpu"})
    return {
        "data": "Norman et al. 2019: K562, CRISPRa of 15 pairs and 17 single genes, 3,375 cells x 500 genes; GEARS's simulation "
        "split, seed 1. "
        "Conditions with genes that mini does not know are left out.",
        **found,
    }


def drug_response(shared: Path, folder: Path) -> dict[str, Any]:
    """The generated screen: no measured screen of several drugs was at hand."""
    from scfm.data.drugs import drug_demo

    drug_demo().write_h5ad(folder / "screen.h5ad")
    held = {"kind": "unseen_drugs", "drugs": ["dexamethasone", "naproxen", "belinostat"], "valid": 0.1, "seed": 0}
    found = _response(
        "drug_response",
        folder,
        {"data.train": str(folder / "screen.h5ad"), "split": held, "model.device": "cpu"},
    )
    return {
        "data": "`scfm.data.drugs.drug_demo()`: 12 drugs, 2 doses, 3 cell lines; three drugs are held out.",
        "note": "**A generated screen**, in which drugs of similar structure were given similar effects: no measured screen of "
        "several drugs could be had on the machine that measured. The figures "
        "show that structure is used where it helps, and nothing about drugs.",
        **found,
    }


def _response(recipe: str, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    done = train(recipe, {**settings, "out": str(folder / "out")}, progress=False)
    table = pd.read_csv(folder / "out" / "scores_mean.csv", index_col="predictor")
    columns = ["mse", "r2_delta", "pearson_delta", "mse_top20", "r2_delta_top20", "pearson_delta_top20"]
    rows = [
        {
            "what": "recipe" if name == done["model"] else name,
            **{c: f"{row[c]:.3f}" if np.isfinite(row[c]) else "" for c in columns},
        }
        for name, row in table.iterrows()
    ]
    history = json.loads((folder / "out" / "metrics.json").read_text())["epochs"]
    pictures.response(RESULTS / f"{recipe}.png", history, pd.read_csv(folder / "out" / "scores.csv"), done["model"])
    return {"rows": rows}


# Pre-training


def pretrain_masked(shared: Path, folder: Path) -> dict[str, Any]:
    """From random weights on blood; label transfer to other blood, beside untrained weights and PCA."""
    import scfm

    source = ad.read_h5ad(shared / "data/pbmc3k/pbmc3k_2638_hvg2000.h5ad")
    source = source[::2].copy()
    source.obs = source.obs[[]]
    source.write_h5ad(folder / "cells.h5ad")
    run = {
        "data.train": str(folder / "cells.h5ad"),
        "out": str(folder / "out"),
        "model.device": "cpu",
        "model.tokenizer.context": 256,
    }
    train("pretrain_masked", {**run, "train.epochs": 5}, progress=False)
    cells = ad.read_h5ad(shared / "data/pbmc_3tech/pbmc_3tech.h5ad")
    truth, batch = (cells.obs[name].astype(str).to_numpy() for name in ("cell_type", "batch"))
    first = {**run, "out": str(folder / "none"), "train.epochs": 1}
    from scfm.plans import read

    untrained = read("pretrain_masked", first).encoder()  # type: ignore[attr-defined]
    embeddings = {
        "recipe": scfm.load(folder / "out", device="cpu").embed(cells, progress=False),
        "untrained": untrained.embed(cells, progress=False),
        "PCA": _pca(cells),
    }
    rows = [{"what": name, **_transfer(z, truth, batch)} for name, z in embeddings.items()]
    history = json.loads((folder / "out" / "metrics.json").read_text())["epochs"]
    pictures.losses(RESULTS / "pretrain_masked.png", [{"run": "training", **epoch} for epoch in history])
    last = history[-1]
    return {
        "data": "Pre-trained on half of pbmc3k, 1,319 blood cells x 2,000 genes, 5 epochs, no labels. Judged on pbmc_3tech: "
        "labels carried to each chemistry from the other two by 15 nearest neighbours of the frozen embedding.",
        "rows": rows,
        "note": f"Held-out masked genes of pbmc3k: Pearson {last['valid_pearson']:.3f} between predicted and measured, after 5 epochs. "
        "PCA was fitted on the cells it is judged on.",
    }


def _transfer(z: np.ndarray, truth: np.ndarray, batch: np.ndarray) -> dict[str, str]:
    from sklearn.neighbors import KNeighborsClassifier

    found = np.empty(len(truth), dtype=object)
    for own in sorted(set(batch)):
        test = batch == own
        found[test] = KNeighborsClassifier(15).fit(z[~test], truth[~test]).predict(z[test])
    return _label_scores(truth, found.astype(str), batch)


WORK: dict[str, Work] = {
    work.__name__: work
    for work in (
        annotation_lora_mini,
        annotation_atac,
        integration,
        perturbation_gears,
        drug_response,
        pretrain_masked,
    )
}


def main() -> None:
    import warnings

    import torch

    parser = argparse.ArgumentParser(prog="python -m scfm.recipes.measured", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *WORK], default=[])
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS, capture_output=True, text=True).stdout
    for name in arguments.names or WORK:
        with tempfile.TemporaryDirectory(prefix="scfm-measured-") as folder:
            found = WORK[name](arguments.shared, Path(folder))
        found = {
            "command": f"python -m scfm.recipes.measured --shared ../shared {name}",
            "commit": commit.strip(),
            **found,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, pd.DataFrame(found["rows"]).to_string(index=False), sep="\n", flush=True)


if __name__ == "__main__":
    main()
