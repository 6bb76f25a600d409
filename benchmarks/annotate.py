"""Cell types by `scfm.tasks.annotate` on real data: quality, coverage, unknown types.

    .venv/bin/python benchmarks/annotate.py --shared ../shared [--only chemistries coverage across unknown mouse chromatin]

Writes results/annotate.md, results/annotate.json and docs/images/annotate.png. Encoders: `mini`, `pca` (fitted on the cells
that teach), and a small Geneformer with random weights: its figures are a floor, not the model's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad
from scipy import stats

import scfm
from scfm.annotators import LabelledCells, annotator_of
from scfm.calibrated import Calibrated, Caution, parted
from scfm.checkpoint import Checkpoint
from scfm.reading import InputWarning
from scfm.registry import find
from scfm.tasks.annotation.result import Annotation
from scfm.uncertainty import Conformal, softmax

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "annotate.md"
PARTS = RESULTS.with_suffix(".json")
PICTURE = ROOT / "docs" / "images" / "annotate.png"
TOKENS = 25_426
LEAST = 20  # cells of a type that is left out
SEEDS = 20
ALPHAS = (0.05, 0.1, 0.2)
RESAMPLES = 300


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def annotate(*arguments: Any, **options: Any) -> Annotation:
    """The task, quiet; baselines only where asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        return scfm.tasks.annotate(
            *arguments, **{"progress": False, "baseline": None, "resamples": RESAMPLES, **options}
        )


def floor() -> scfm.CellEncoder:
    """Geneformer's tokens and layers (V1's 25,424 genes), two layers of 64 with random weights."""
    from scfm.adapters.geneformer import Geneformer, dictionaries
    from scfm.adapters.geneformer.network import GeneformerConfig

    with tempfile.TemporaryDirectory() as empty:
        vocabulary = dictionaries.read(Checkpoint(Path(empty)), TOKENS)
    card = find("geneformer/v1-10m")[1]
    assert card is not None
    config = GeneformerConfig(tokens=TOKENS, context=512, dim=64, layers=2, heads=4, hidden=128, head="none")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Geneformer.build(config, vocabulary, card)


def embedded(cells: AnnData, cache: Path) -> dict[str, AnnData]:
    """The cells with the embeddings of every encoder that is not fitted on them."""
    for name, encoder, options in (("mini", scfm.load("mini"), {}), ("random", floor(), {"map_genes": True})):
        file = cache / f"{cells.uns['name']}_{name}.npy"
        if not file.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.save(file, encoder.embed(cells, progress=False, **options))
        cells.obsm[f"X_{name}"] = np.load(file)
    return cells


def read(shared: Path, cache: Path, name: str) -> AnnData:
    """A set of the shared data, with embeddings; cells without a label and classes under five cells left out."""
    cells = read_h5ad(shared / "data" / name)
    labels = cells.obs["cell_type"].astype(str)
    counts = labels.value_counts()
    kept = ~labels.isin(["unlabelled", *counts.index[counts < 5]])
    cells = cells[kept].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.uns["name"] = Path(name).stem
    return embedded(cells, cache)


def way(name: str) -> dict[str, Any]:
    """How `annotate` gets an encoder's vectors."""
    if name == "pca":
        return {"encoder": scfm.load("pca")}
    return {"encoder": scfm.load("mini") if name == "mini" else None, "use_rep": f"X_{name}"}


SHOWN = {"mini": "mini", "pca": "pca", "random": "random weights (floor)"}


def interval(result: Annotation, metric: str, encoder: str, method: str) -> str:
    """Value with interval."""
    s = result.scores
    assert s is not None
    row = s[(s.metric == metric) & (s.stratum == "all") & (s.encoder == encoder) & (s.method == method)].iloc[0]
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"


def quality(cells: AnnData, title: str, **split: Any) -> tuple[list[tuple[Any, ...]], Annotation]:
    """Every encoder by neighbours and probe, and regression on all genes, over the same splits."""
    rows, kept = [], None
    for name in ("mini", "pca", "random"):
        for method in ("knn", "probe"):
            first = name == "mini" and method == "knn"
            result = annotate(reference=cells, method=method, baseline="pca" if first else None, **way(name), **split)
            assert result.scores is not None
            own = str(result.scores["encoder"].iloc[0])
            rows.append((title, f"{SHOWN[name]} + {method}", *figures(result, own, method)))
            if first:
                kept = result
    assert kept is not None
    rows.append((title, "logCPM + probe", *figures(kept, "logCPM", "probe")))
    return rows, kept


def figures(result: Annotation, encoder: str, method: str) -> tuple[str, ...]:
    """Cells of one row."""
    names = ("accuracy", "macro_f1", "auroc", "ece", "coverage", "set_size")
    return tuple(interval(result, metric, encoder, method) for metric in names)


def chemistries(shared: Path, cache: Path) -> dict[str, Any]:
    """Leave one chemistry out, and random splits where a set has one donor."""
    three = read(shared, cache, "pbmc_3tech/pbmc_3tech.h5ad")
    rows, result = quality(three, "pbmc_3tech, one chemistry out", groups="batch")
    draw(result)
    for file, title in (
        ("pbmc3k/pbmc3k_1000.h5ad", "pbmc3k, random halves (leaks)"),
        ("pdac_a/pdac_a_indrop.h5ad", "pdac_a, random halves (leaks)"),
    ):
        rows += quality(read(shared, cache, file), title, split="random_cells", folds=2)[0]
    assert result.scores is not None
    s = result.scores
    batches = s[(s.stratum == "batch") & (s.of != "mean") & s.metric.isin(["accuracy", "macro_f1", "coverage"])]
    wide = batches.pivot_table(index=["of", "encoder", "method"], columns="metric", values="value", sort=False)
    by = [
        (of, f"{e} + {m}", *(f"{v:.3f}" for v in row)) for (of, e, m), row in zip(wide.index, wide.values, strict=True)
    ]
    return {"rows": rows, "batches": by, "columns": list(wide.columns)}


def draw(result: Annotation) -> None:
    """The picture of the docs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for ax, kind in zip(axes.flat, ("confusion", "scores", "reliability", "coverage_risk"), strict=True):
        result.plot(ax=ax, kind=kind)  # type: ignore[arg-type]
        if kind != "confusion":
            ax.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=80)


def coverage(shared: Path, cache: Path) -> dict[str, Any]:
    """Sets and rejection on exchangeable cells: random halves, many times."""
    rows = []
    for file in ("pbmc_3tech/pbmc_3tech.h5ad", "pdac_a/pdac_a_indrop.h5ad", "pbmc3k/pbmc3k_1000.h5ad"):
        cells = read(shared, cache, file)
        for name, method in (("mini", "knn"), ("mini", "probe"), ("random", "prototype")):
            held = [halves(cells, f"X_{name}", method, seed) for seed in range(SEEDS)]
            for alpha in ALPHAS:
                counts = [draw[alpha] for draw in held]
                rows.append((Path(file).parent.name, f"{SHOWN[name]} + {method}", alpha, *covered(counts, alpha)))
    return {"rows": rows}


def halves(cells: AnnData, key: str, method: str, seed: int) -> dict[float, tuple[int, int, int, int]]:
    """For each level: cells missed by their set, rejected, in the query; and calibration cells. One fit for all levels."""
    order = np.random.default_rng([seed, 5]).permutation(cells.n_obs)
    here, there = (np.sort(part) for part in np.array_split(order, 2))
    names, numbers = np.unique(cells.obs["cell_type"].to_numpy()[here].astype(str), return_inverse=True)
    parts = parted(numbers, Caution().calibration, seed=seed)
    reference = LabelledCells(cells.obsm[key][here], numbers)
    made = Calibrated.fit(annotator_of(method), reference, list(names), parts=parts, seed=seed)
    number = {name: i for i, name in enumerate(made.classes)}
    truth = np.array([number.get(name, -1) for name in cells.obs["cell_type"].to_numpy()[there]])
    query = LabelledCells(cells.obsm[key][there], truth).select(np.flatnonzero(truth >= 0))
    judge = reference.select(parts.thresholds)
    assert made.known is not None
    p = softmax(made.fitted.logits(judge), made.temperature)
    answers = made.answer(query)
    assert answers.p_known is not None
    found = {}
    for alpha in ALPHAS:
        sets = Conformal.fit(p, judge.labels, alpha=alpha).sets(answers.probabilities)
        missed = int((~sets[np.arange(len(query)), query.labels]).sum())
        found[alpha] = (missed, int((answers.p_known <= alpha).sum()), len(query), len(judge))
    return found


def covered(held: list[tuple[int, int, int, int]], alpha: float) -> tuple[str, ...]:
    """Mean share missed and rejected over the draws, and how many draws are beyond what chance allows for a valid method."""
    missed, rejected, n, m = np.array(held).T
    beyond = []
    for wrong in (missed, rejected):
        kept = np.minimum(np.ceil(np.round((m + 1) * (1 - alpha), 9)), m)
        p = stats.betabinom(n, m + 1 - kept, kept).sf(wrong - 1)
        beyond.append(int((p < 0.05).sum()))
    share = 1 - missed / n
    return (
        f"{share.mean():.3f} ({share.min():.3f} to {share.max():.3f})",
        f"{beyond[0]} of {len(held)}",
        f"{(rejected / n).mean():.3f}",
        f"{beyond[1]} of {len(held)}",
    )


def unknown(shared: Path, cache: Path) -> dict[str, Any]:
    """Leave one type out of the reference: AUROC of each novelty score, and what is rejected at 5 %."""
    rows = []
    for file in ("pbmc_3tech/pbmc_3tech.h5ad", "pbmc3k/pbmc3k_1000.h5ad", "pdac_a/pdac_a_indrop.h5ad"):
        cells = read(shared, cache, file)
        counts = cells.obs["cell_type"].value_counts()
        types = sorted(counts.index[counts >= LEAST])
        order = np.random.default_rng(0).permutation(cells.n_obs)
        reference, query = (cells[np.sort(part)].copy() for part in np.array_split(order, 2))
        fitted = scfm.load("pca").fit(reference)
        for side in (reference, query):
            side.obsm["X_pca"] = fitted.embed(side, progress=False)
        for name in ("mini", "pca", "random"):
            for novelty in ("knn", "mahalanobis", "softmax", "energy"):
                found = [left_out(reference, query, name, novelty, kind) for kind in types]
                auroc, rejected, false = np.array(found).T
                ends = f"{auroc.mean():.3f} ({auroc.min():.3f} to {auroc.max():.3f})"
                worst = types[int(auroc.argmin())]
                rows.append(
                    (
                        Path(file).parent.name,
                        SHOWN[name],
                        novelty,
                        len(types),
                        ends,
                        worst,
                        f"{rejected.mean():.2f}",
                        f"{false.mean():.3f}",
                    )
                )
    return {"rows": rows}


def left_out(reference: AnnData, query: AnnData, name: str, novelty: str, kind: str) -> tuple[float, float, float]:
    """AUROC, share of the type that is rejected, share of the others."""
    found = annotate(
        None,
        reference,
        query,
        use_rep=f"X_{name}",
        method="prototype",
        novelty=novelty,
        hold_out_types=[kind],
        resamples=1,
    )
    return found.score("unknown_auroc"), found.score("unknown_rejected"), found.score("rejected")


SAME = {
    "Naive CD4 T": "T_CD4",
    "Memory CD4 T": "T_CD4",
    "CD8 T": "T_CD8",
    "CD14+ Mono": "Mono_CD14",
    "FCGR3A+ Mono": "Mono_CD16",
    "Platelet": "Platelet",
}


def across(shared: Path, cache: Path) -> dict[str, Any]:
    """pbmc3k labels another study's cells: where exchangeability breaks."""
    three = read_h5ad(shared / "data/pbmc_3tech/pbmc_3tech.h5ad")
    one = read_h5ad(shared / "data/pbmc3k/pbmc3k_1000.h5ad")
    one = one[one.obs["cell_type"] != "unlabelled"].copy()
    one.obs["cell_type"] = one.obs["cell_type"].astype(str).replace(SAME)
    shared_genes = one.var_names.intersection(three.var_names)
    one, three = one[:, shared_genes].copy(), three[:, shared_genes].copy()
    one.uns["name"], three.uns["name"] = "pbmc3k_shared", "pbmc_3tech_shared"
    reference, query = embedded(one, cache), embedded(three, cache)
    rows = []
    for name in ("mini", "pca", "random"):
        for method in ("knn", "probe"):
            result = annotate(reference=reference, query=query, method=method, batch="batch", **way(name))
            s = result.scores
            assert s is not None
            own = str(s["encoder"].iloc[0])
            parts = [
                f"{result.score('coverage', stratum='batch', of=b):.3f}"
                for b in ("threepv1", "threepfresh", "fivePrime")
            ]
            rows.append(
                (f"{SHOWN[name]} + {method}", interval(result, "accuracy", own, method), interval(result, "coverage", own, method),
                 *parts, f"{result.score('rejected'):.3f}", f"{result.score('unknown_auroc'):.3f}")
            )  # fmt: skip
    return {"rows": rows, "genes": len(shared_genes)}


def chromatin(shared: Path, cache: Path) -> dict[str, Any]:
    """Bone marrow by LSI, beside PCA, over two samples."""
    cells = read_h5ad(shared / "data/hematopoiesis_scatac/hematopoiesis_scatac.h5ad")
    rows = []
    for name in ("lsi", "pca"):
        for method in ("knn", "probe"):
            result = annotate(scfm.load(name), cells, method=method, groups="group")
            rows.append((f"{name} + {method}", *figures(result, name, method)))
    return {"rows": rows}


def mouse(shared: Path, cache: Path) -> dict[str, Any]:
    """Mouse cortex over 12 libraries, whole libraries calibrating; mouse brain by MERFISH."""
    cortex = read_h5ad(shared / "data/mouse_cortex_multiome/rna.h5ad")
    cortex = cortex[cortex.obs["cell_type"] != "Mis"].copy()
    merfish = read_h5ad(shared / "data/mouse_brain_merfish/merfish_1000.h5ad")
    rows = []
    for cells, title, options in (
        (cortex, "cortex, libraries in 3 folds", {"groups": "batch", "folds": 3}),
        (
            merfish,
            "MERFISH, random halves (leaks)",
            {"split": "random_cells", "folds": 2, "ontology": True, "terms": TERMS},
        ),
    ):
        cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
        counts = cells.obs["cell_type"].value_counts()
        cells = cells[~cells.obs["cell_type"].isin(counts.index[counts < 5])].copy()
        for method in ("knn", "probe"):
            result = annotate(scfm.load("pca"), cells, method=method, baseline="pca", **options)
            rows.append((title, f"pca + {method}", *figures(result, "pca", method)))
        rows.append((title, "logCPM + probe", *figures(result, "logCPM", "probe")))
    return {"rows": rows}


TERMS = "cell_type_ontology_term_id"
PARTS_OF: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "chemistries": chemistries,
    "coverage": coverage,
    "unknown": unknown,
    "across": across,
    "mouse": mouse,
    "chromatin": chromatin,
}


def page(found: dict[str, Any]) -> str:
    """The results as text."""
    scores = ("accuracy", "macro F1", "AUROC", "ECE", "coverage of 90 % sets", "labels in a set")
    text = f"""# Cell types

    .venv/bin/python benchmarks/annotate.py --shared ../shared

scfm {version("scfm-sdk")}.

<!-- docs -->

By `benchmarks/annotate.py` on `../shared/data`. "Random weights" has Geneformer's tokens and two small layers with random
weights: a floor, not the model. Intervals are 95 %, over cells where no five donors are known, and then say nothing of other
donors. Random folds and halves have cells of one donor on both sides. Labels of the blood sets come from clustering the same
RNA. mini was trained on pbmc3k's cells, without labels.

"""
    if "chemistries" in found:
        part = found["chemistries"]
        text += "### Labels\n\n" + table(("data", "method", *scores), part["rows"])
        text += "\nEach chemistry of pbmc_3tech:\n\n" + table(("query", "method", *part["columns"]), part["batches"])
    if "mouse" in found:
        text += "\nMouse, where mini is refused (PCA in the place of the model):\n\n"
        text += table(("data", "method", *scores), found["mouse"]["rows"])
    if "chromatin" in found:
        text += "\nBone marrow scATAC (600 cells, 6 types), each of two samples in turn the query of the other:\n\n"
        text += table(("method", *scores), found["chromatin"]["rows"])
    if "coverage" in found:
        text += f"""
### Coverage on exchangeable cells

Random halves, {SEEDS} times each: one half is the reference (30 % of it held out for calibration), the other the query;
`reject` is set to alpha too. "Beyond chance": draws in which more cells were missed (or rejected) than in 95 % of the draws
of a method that is exactly valid, by the beta-binomial law of so many calibration and query cells; one in {SEEDS} is
expected, or fewer.

"""
        header = ("data", "method", "alpha", "coverage, mean (range)", "beyond chance", "rejected", "beyond chance")
        rows = found["coverage"]["rows"]
        text += table(header, rows)
        beyond = [sum(int(str(row[i]).split()[0]) for row in rows) for i in (4, 6)]
        text += (
            f"\nIn all, more cells than chance allows were missed in {beyond[0]} and rejected in {beyond[1]} of {SEEDS * len(rows)} draws; "
            f"5 % are {SEEDS * len(rows) // 20}. The draws share cells and are not independent.\n"
        )
    if "across" in found:
        text += f"""
### Another study: the promise breaks

Reference pbmc3k (3' v1, one donor), query pbmc_3tech, {found["across"]["genes"]} shared genes, naive and memory CD4 T cells
together. Asked for: coverage 0.900, at most 0.050 rejected. Query and calibration cells are not exchangeable, and the
thresholds know nothing of other chemistries. Unknown are HSC and MK (10 cells).

"""
        header = ("method", "accuracy", "coverage", "3' v1", "3' v2", "5'", "rejected of known types", "unknown AUROC")
        text += table(header, found["across"]["rows"])
    if "unknown" in found:
        text += f"""
### Unknown types: leave one type out

Random halves; each type of {LEAST} cells or more is taken out of the reference in turn. AUROC of telling its cells from the
others, mean over the types (least to most); share of the type's cells that is rejected at 5 %, and of the others. Labels by
class means. PCA was fitted on the whole reference half, the left-out type included.

"""
        header = ("data", "encoder", "novelty", "types", "AUROC", "hardest type", "rejected", "rejected of known")
        text += table(header, found["unknown"]["rows"])
    return text


def main() -> None:
    """Run the parts asked for, keep the others, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/scfm-annotate"), help="embeddings between runs")
    parser.add_argument("--only", nargs="*", choices=list(PARTS_OF), default=list(PARTS_OF))
    arguments = parser.parse_args()
    arguments.cache.mkdir(exist_ok=True)
    pd.set_option("future.no_silent_downcasting", True)
    found = json.loads(PARTS.read_text()) if PARTS.exists() else {}
    for name in arguments.only:
        found[name] = PARTS_OF[name](arguments.shared, arguments.cache)
        PARTS.write_text(json.dumps(found, indent=1))
        RESULTS.write_text(page(found))
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
