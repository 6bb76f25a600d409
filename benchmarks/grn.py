"""Regulatory networks of PBMC against known edges: what attention adds to correlation, trees and chance. Writes results/grn.md.

python benchmarks/grn.py --shared ../shared

Known edges are evaluation data and not part of scfm: TRRUST (CC BY-SA 4.0), DoRothEA A (academic use). Models other than mini have random
weights at a small size: they are a floor, and say nothing about the published ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad

import scfm
from scfm.adapters.geneformer import dictionaries
from scfm.adapters.geneformer.adapter import Geneformer
from scfm.adapters.geneformer.network import GeneformerConfig
from scfm.adapters.scgpt import ScGPT
from scfm.adapters.scgpt.network import ScGPTConfig
from scfm.checkpoint import Checkpoint
from scfm.encoder import CellEncoder
from scfm.genes import Vocabulary
from scfm.grn import read_edges
from scfm.grn.result import GRN
from scfm.metrics import Estimate
from scfm.registry import find

ROOT = Path(__file__).resolve().parents[1]
ATTENTION = ("attention", "attention_rank", "attention_qk")
BASELINES = ("pearson", "spearman", "trees", "random")
TRUTHS: dict[str, tuple[str, list[str] | None]] = {
    "TRRUST": ("trrust_human.tsv.gz", None),
    "DoRothEA A": ("dorothea_human_ABCD.tsv.gz", ["A"]),
}
SETS = {"pbmc3k": "pbmc3k/pbmc3k_1000.h5ad", "kang, IFN-beta": "kang_ifnb_pbmc/kang_2000.h5ad"}
TREES = 20
RESULTS = ROOT / "benchmarks" / "results" / "grn"
SHOWN = ("auroc", "auprc_ratio", "epr", "odds_ratio", "tf_auroc")


def random_scgpt(genes: Sequence[str]) -> CellEncoder:
    """scGPT's architecture at a small size, over these genes."""
    special = {"pad": "<pad>", "cls": "<cls>"}
    vocabulary = Vocabulary((*special.values(), *genes), ids="symbol", special=special)
    torch.manual_seed(0)
    config = ScGPTConfig(genes=len(vocabulary), dim=64, heads=4, hidden=64, layers=2)
    return ScGPT.build(config, vocabulary, find("scgpt")[1]).with_options(context=1024)


def random_geneformer(genes: Sequence[str]) -> CellEncoder:
    """Geneformer's architecture at a small size, over its own genes."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = dictionaries.read(Checkpoint(Path(folder)), next(iter(dictionaries.SHIPPED)))
    torch.manual_seed(0)
    config = GeneformerConfig(
        tokens=len(vocabulary), context=1024, dim=64, layers=2, heads=4, hidden=64, head="none",
        cls=vocabulary.special.get("cls") and vocabulary.id("cls"), eos=vocabulary.special.get("eos") and vocabulary.id("eos"),
    )  # fmt: skip
    return Geneformer.build(config, vocabulary, find("geneformer")[1])


def networks(name: str, cells: AnnData, genes: int) -> dict[str, GRN]:
    """Every encoder's network of these cells; baselines come with mini's, all over the genes of mini's network."""
    mini = scfm.load("mini", device="cpu")
    options: dict[str, Any] = dict(direction="both", trees=TREES, progress=False)
    with_baselines = scfm.tasks.grn(
        mini, cells, genes=genes, methods=[*ATTENTION, "gene_embedding", *BASELINES], **options
    )
    print(name, with_baselines.summary(), sep="\n", flush=True)
    found = {"mini": with_baselines}
    makers: dict[str, tuple[Callable[[Sequence[str]], CellEncoder], dict[str, Any]]] = {
        "scgpt, random weights": (random_scgpt, {}),
        "geneformer, random weights": (random_geneformer, {"map_genes": True}),
    }
    for label, (make, reading) in makers.items():
        encoder = make(list(cells.var_names))
        known = list(with_baselines.genes)
        if reading:
            symbols = set(scfm.genes.to_ensembl(known)) & set(encoder.vocabulary.tokens)
            known = [gene for gene, name in zip(known, scfm.genes.to_ensembl(known), strict=True) if name in symbols]
        methods = [*ATTENTION, "gene_embedding"] if label.startswith("scgpt") else ["attention", "attention_qk"]
        found[label] = scfm.tasks.grn(encoder, cells, genes=known, methods=methods, min_cells=1, **options, **reading)
    return found


def table(found: dict[str, GRN], folder: Path, truth: str) -> pd.DataFrame:
    """Rows of one data set and one list of known edges: all methods and encoders over the same candidates."""
    file, confidence = TRUTHS[truth]
    common = set.intersection(*(set(result.genes) for result in found.values()))
    known = read_edges(folder / file, confidence=confidence)
    known = known[known["source"].isin(common) & known["target"].isin(common)]
    parts = []
    for encoder, result in found.items():
        compared = result.compare(known, resamples=200)
        parts.append(compared.assign(encoder=["" if method in BASELINES else encoder for method in compared["method"]]))
    rows = pd.concat(parts, ignore_index=True).drop(columns="group")
    if len(rows[["candidates", "true"]].drop_duplicates()) != 1:
        raise SystemExit("the methods have different candidates")
    return rows


def markdown(rows: pd.DataFrame) -> str:
    """A row a method, the best AUROC first."""
    keys = ["encoder", "method", "direction"]
    text = rows.assign(text=[str(Estimate(row.value, row.low, row.high)) for row in rows.itertuples()])
    wide = text.pivot(index=keys, columns="metric", values="text")
    auroc = rows[rows["metric"] == "auroc"].set_index(keys)["value"]
    wide = wide.loc[auroc.sort_values(ascending=False).index, list(SHOWN)].reset_index()
    heads = [
        "encoder",
        "method",
        "regulator is the",
        "AUROC",
        "AUPRC / prevalence",
        "EPR",
        "odds ratio",
        "AUROC, median TF",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in wide.itertuples(index=False))])


def picture(rows: pd.DataFrame, path: Path) -> None:
    """AUROC of every method, a panel for each data set and list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from scfm.plotting import CATEGORIES

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    kept = rows[(rows["metric"] == "auroc") & (rows["direction"] != "query")]
    panels = list(kept.groupby(["set", "truth"], sort=False))
    for panel, ((name, truth), part) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=False):
        part = part.sort_values("value", ascending=False)
        labels = [f"{row.encoder}: {row.method}".removeprefix(": ") for row in part.itertuples()]
        value, at = part["value"].to_numpy(), np.arange(len(part))[::-1]
        spread = np.stack([value - part["low"], part["high"] - value])
        panel.errorbar(value, at, xerr=spread, fmt="o", color=CATEGORIES[0], ecolor="#333333", capsize=3, markersize=5)
        panel.set_yticks(at, labels, fontsize=8)
        panel.axvline(0.5, color="#333333", linestyle="--", linewidth=1)
        panel.set(xlabel="AUROC", xlim=(0.3, 0.75))
        panel.set_title(f"{name}, {truth}", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def write(rows: pd.DataFrame) -> None:
    """results/grn.md and the picture, from the rows of all sets."""
    text = []
    for (name, truth), part in rows.groupby(["set", "truth"], sort=False):
        first = part.iloc[0]
        text += [
            f"## {name}, {truth}",
            f"`--only {name!r} --cells {first['cells']}`: {first['candidates']:,} candidate pairs of {first['regulators']} factors, "
            f"{first['true']:,} known (prevalence {first['prevalence']:.4f}).",
            markdown(part),
        ]
    head = [
        "# Regulatory networks against known edges",
        "`python benchmarks/grn.py --shared ../shared`. Genes: the transcription factors that ship with scfm and are in 10 "
        "cells, and the most variable others; the same candidates for all methods. Brackets: 95 % bootstrap over transcription "
        "factors. Chance is AUROC 0.5, and 1 for the ratios. mini is trained (on pbmc3k too, without any label or edge); scgpt "
        "and geneformer have random weights at a small size: a floor, which says nothing about the published models. "
        f"Trees: {TREES} a gene.",
    ]
    (RESULTS.with_suffix(".md")).write_text("\n\n".join([*head, *text]) + "\n", encoding="utf-8")
    picture(rows, ROOT / "docs" / "images" / "grn.png")


def main() -> None:
    """Run some sets, and write all that were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parents[1] / "shared")
    parser.add_argument("--cells", type=int, default=120)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--only", choices=SETS)
    arguments = parser.parse_args()
    data = arguments.shared / "data"
    for name in [arguments.only] if arguments.only else SETS:
        adata = read_h5ad(data / SETS[name])
        if "condition" in adata.obs:
            adata = adata[adata.obs["condition"] == "IFN-beta"]
        chosen = np.sort(np.random.default_rng(0).choice(adata.n_obs, arguments.cells, replace=False))
        found = networks(name, adata[chosen].copy(), arguments.genes)
        new = [table(found, data / "tf_targets", truth).assign(truth=truth) for truth in TRUTHS]
        rows = pd.concat(new).assign(set=name, cells=arguments.cells)
        if (stored := RESULTS.with_suffix(".csv")).exists():
            earlier = pd.read_csv(stored, keep_default_na=False)
            rows = pd.concat([earlier[earlier["set"] != name], rows], ignore_index=True)
        rows.to_csv(stored, index=False)
        write(rows)


if __name__ == "__main__":
    main()
