"""Integration and comparison on real data; speed of the metrics beside scib-metrics.

Writes results/integrate.md, results/compare.md and pictures of the docs.

    .venv/bin/python benchmarks/integration.py --shared ../shared [--scib-python /tmp/scib/v/bin/python] [--only blood speed]

scib-metrics 0.5.10 (jax) lives in an environment of its own; without it the speed table has our side only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData, read_h5ad
from annotate import floor, table  # beside this file

import scfm
from scfm import metrics
from scfm.clustering import kmeans
from scfm.neighbours import neighbours

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
PARTS = RESULTS / "integrate.json"
RESAMPLES = 200
SHOWN = ("bio", "batch", "overall", "transfer macro F1", "k-NN purity macro", "batch leakage linear")
SPEED = (
    "silhouette label",
    "silhouette batch",
    "BRAS",
    "iLISI",
    "cLISI",
    "kBET",
    "graph connectivity",
    "PCR",
    "NMI, ARI k-means",
)


def blood(shared: Path) -> tuple[AnnData, dict[str, Any]]:
    """PBMC by three chemistries."""
    return read_h5ad(shared / "data/pbmc_3tech/pbmc_3tech.h5ad"), dict(batch="batch", labels="cell_type")


def cortex(shared: Path) -> tuple[AnnData, dict[str, Any]]:
    """Mouse cortex, 12 libraries, as human orthologs; libraries are resampled for the intervals."""
    mouse = read_h5ad(shared / "data/mouse_cortex_multiome/rna.h5ad")
    cells = scfm.genes.to_orthologs(mouse, source="mouse", target="human")
    return cells, dict(batch="batch", labels="cell_type", donors="batch", ignore=["Mis"])


def lines(shared: Path) -> tuple[AnnData, dict[str, Any]]:
    """Three cell lines on two platforms, genetic labels, singlets."""
    cells = read_h5ad(shared / "data/cell_lines_3cl/cell_lines_3cl.h5ad")
    return cells[cells.obs["demuxlet"] == "SNG"].copy(), dict(batch="batch", labels="cell_type")


def stimulated(shared: Path) -> tuple[AnnData, dict[str, Any]]:
    """PBMC without and with interferon beta; no labels, so mixing only."""
    return read_h5ad(shared / "data/kang_ifnb_pbmc/kang_2000.h5ad"), dict(batch="condition")


SETS: dict[str, tuple[str, Callable[[Path], tuple[AnnData, dict[str, Any]]]]] = {
    "blood": ("pbmc_3tech: 3 chemistries", blood),
    "cortex": ("mouse_cortex_multiome RNA: 12 libraries, orthologs", cortex),
    "lines": ("cell_lines_3cl: 2 platforms (cell lines flatter)", lines),
    "stimulated": ("kang_ifnb_pbmc: condition as batch, no labels", stimulated),
}


def run(name: str, shared: Path) -> dict[str, Any]:
    """Scores of one set, and for the labelled ones the comparison of the same embeddings."""
    cells, columns = SETS[name][1](shared)
    options = dict(map_genes=True, progress=False)
    for encoder, title in ((scfm.load("mini"), "mini"), (floor(), "random weights")):
        cells.obsm[title] = encoder.embed(cells, **options)
    result = scfm.tasks.integrate(
        ["mini", "random weights"], cells, correct="harmony", resamples=RESAMPLES, options=options, **columns
    )
    print(result, flush=True)

    if name == "blood":
        result.plot(save=IMAGES / "integrate_blood.png")
        result.umap("mini", save=IMAGES / "integrate_umap.png")
    found: dict[str, Any] = {
        "resamples": RESAMPLES,
        "cells": int(result.table["n"].iloc[0]),
        "scores": result.table[
            ["encoder", "metric", "group", "value", "low", "high", "unit", "convention"]
        ].values.tolist(),
        "differences": result.differences.values.tolist(),
        "notes": list(result.notes),
    }
    if "labels" in columns:
        kept = cells[~cells.obs["cell_type"].isin(columns.get("ignore", ()))].copy()
        by = {key: columns[key] for key in ("batch", "labels", "donors") if key in columns}
        pairs = scfm.tasks.compare(
            ["mini", "random weights"], kept, resamples=RESAMPLES, subsamples=50, options=options, **by
        )
        print(pairs, flush=True)
        if name == "blood":
            pairs.plot(save=IMAGES / "compare.png")
        found["pairs"] = pairs.table.values.tolist()
        found["types"] = pairs.types.values.tolist()
    return json.loads(json.dumps(found))  # NaN stays NaN


def case(shared: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """4,000 cells x 50 components, labels and batches, for the clocks."""
    cells, _ = cortex(shared)
    z = scfm.load("pca").embed(cells, progress=False).astype(np.float64)
    return z, cells.obs["cell_type"].astype(str).to_numpy(), cells.obs["batch"].astype(str).to_numpy()


def ours(z: np.ndarray, y: np.ndarray, b: np.ndarray) -> dict[str, list[float]]:
    """CPU seconds and values of our metrics."""
    clock = time.process_time()
    d, i = neighbours(z, k=89)
    spent = {"neighbours": [time.process_time() - clock, float("nan")]}
    calls: dict[str, Callable[[], float]] = {
        "silhouette label": lambda: float(metrics.silhouette_label(z, y)),
        "silhouette batch": lambda: float(metrics.silhouette_batch(z, y, b)),
        "BRAS": lambda: float(metrics.bras(z, y, b)),
        "iLISI": lambda: float(metrics.ilisi(d, b, i)),
        "cLISI": lambda: float(metrics.clisi(d, y, i)),
        "kBET": lambda: float(metrics.kbet(b, i)),
        "graph connectivity": lambda: float(metrics.graph_connectivity(i, y, convention="B")),
        "PCR": lambda: float(metrics.pcr(z, b)),
        "NMI, ARI k-means": lambda: float(metrics.nmi(y, kmeans(z, len(np.unique(y))))),
    }
    for name, call in calls.items():
        clock = time.process_time()
        value = call()
        spent[name] = [time.process_time() - clock, value]
    return spent


THEIRS = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
import scib_metrics as sm
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.neighbors import NearestNeighbors
data = np.load(sys.argv[1])
z, y, b = data["z"], data["y"], data["b"]
def near(k):
    d, i = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(z).kneighbors(z)
    return NeighborsResults(indices=i, distances=d)
n90, n50, n15 = near(90), near(50), near(15)
calls = {
    "silhouette label": lambda: sm.silhouette_label(z, y), "silhouette batch": lambda: sm.silhouette_batch(z, y, b),
    "BRAS": lambda: sm.bras(z, y, b), "iLISI": lambda: sm.ilisi_knn(n90, b), "cLISI": lambda: sm.clisi_knn(n90, y),
    "kBET": lambda: sm.kbet(n50, b)[0], "graph connectivity": lambda: sm.graph_connectivity(n15, y),
    "PCR": lambda: sm.utils.principal_component_regression(z, b, categorical=True),
    "NMI, ARI k-means": lambda: sm.nmi_ari_cluster_labels_kmeans(z, y)["nmi"],
}
spent = {}
for name, call in calls.items():
    times = []
    try:
        for _ in range(2):
            clock = time.process_time()
            value = float(call())
            times.append(time.process_time() - clock)
    except Exception as error:  # shown as "-"
        print(name, repr(error)[:300], file=sys.stderr)
        times, value = [float("nan")] * 2, float("nan")
    spent[name] = [*times, value]
    print(json.dumps(spent), flush=True)
"""


def speed(shared: Path, scib: Path | None) -> dict[str, Any]:
    """CPU seconds of each metric here and there, on the same cells."""
    z, y, b = case(shared)
    file = Path("/tmp/scfm-integration.npz")
    np.savez(file, z=z, y=y, b=b)
    ours(z[:300], y[:300], b[:300])  # imports
    found: dict[str, Any] = {"ours": ours(z, y, b), "theirs": {}}
    if scib is not None:
        done = subprocess.run([scib, "-c", THEIRS, file], check=True, stdout=subprocess.PIPE, text=True)
        found["theirs"] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(value: float, low: float = np.nan, high: float = np.nan) -> str:
    """A number with its interval."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.3f}" if low is None or not np.isfinite(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def page(found: dict[str, Any]) -> str:
    """results/integrate.md."""
    text = f"""# Integration

    .venv/bin/python benchmarks/integration.py --shared ../shared --scib-python <python with scib-metrics 0.5.10>

scfm {version("scfm-sdk")}.

<!-- docs -->

"random weights" has Geneformer's tokens and two small layers with random weights: a floor, not
the model; "random" are random numbers. 95 % intervals; graph connectivity is held fixed in them.

"""
    for name, (title, _) in SETS.items():
        if name not in found:
            continue
        part = found[name]
        scores = {(row[0], row[1]): row for row in part["scores"]}
        encoders = list(dict.fromkeys(row[0] for row in part["scores"]))
        unit = {row[6] for row in part["scores"]} & {"groups", "cells"}
        over = "libraries" if "groups" in unit else "cells"
        text += f"### {title}\n\n{part['cells']:,} cells; intervals over {over}, {part['resamples']} resamples.\n\n"
        rows = [(e, *[shown(*scores[e, m][3:6]) if (e, m) in scores else "-" for m in SHOWN]) for e in encoders]
        text += table(("embedding", *SHOWN), rows)
        members = (*_members("bio"), *_members("batch"))
        rows = [(e, *[shown(scores[e, m][3]) for m in members]) for e in encoders]
        text += "\n" + table(("embedding", *members), rows) + "\n"
        text += "".join(f"- {note}\n" for note in part["notes"]) + "\n"
    if "speed" in found:
        text += "### CPU seconds of the metrics\n\n4,000 cells of the cortex, 50 components, one thread, "
        text += "whatever else runs on the machine. "
        text += "scib-metrics compiles at the first call.\n\n"
        one, other = found["speed"]["ours"], found["speed"]["theirs"]
        rows = [
            (
                name,
                f"{one[name][0]:.2f}",
                *([f"{x:.2f}" for x in other[name][:2]] if other else ["-", "-"]),
                f"{one[name][1]:.6f}",
                f"{other[name][2]:.6f}" if other else "-",
            )
            for name in SPEED
        ]
        text += table(
            ("metric", "scfm", "scib-metrics, first call", "second call", "scfm's value", "scib-metrics' value"), rows
        )
        text += f"\nOur 89 exact neighbours, shared by all: {one['neighbours'][0]:.2f} s.\n"
    return text


def _members(part: str) -> tuple[str, ...]:
    from scfm.metrics.integration import BATCH, BIO

    return BIO if part == "bio" else BATCH


def pairs_page(found: dict[str, Any]) -> str:
    """results/compare.md."""
    text = f"""# Comparison of encoders

    .venv/bin/python benchmarks/integration.py --shared ../shared

scfm {version("scfm-sdk")}.

<!-- docs -->

"random weights" is a floor: Geneformer's tokens and two small layers with random weights.
"chance": cells of one side, or labels, exchanged at random.

"""
    for name, (title, _) in SETS.items():
        if "pairs" not in found.get(name, {}):
            continue
        text += f"### {title}\n\n"
        rows = [(row[0], row[1], row[2], shown(*row[3:6]), row[6], shown(row[7])) for row in found[name]["pairs"]]
        text += table(("metric", "embedding", "other", "value (95 %)", "interval over", "chance"), rows) + "\n"
        kinds = [row for row in found[name]["types"] if row[2] != "CKA" and row[3] == "mini" and row[4] in ("pca", "")]
        by: dict[str, dict[str, float]] = {}
        for label, cells, metric, _, _, value in kinds:
            by.setdefault(f"{label} ({cells})", {})[metric] = value
        rows = [(label, shown(v.get("neighbours shared")), shown(v.get("transfer recall"))) for label, v in by.items()]  # type: ignore[arg-type]
        text += (
            "mini within types:\n\n"
            + table(("label (cells)", "neighbours shared with pca", "transfer recall"), rows)
            + "\n"
        )
    return text


def main() -> None:
    """Run the parts asked for, keep the others, write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--scib-python", type=Path, default=None)
    parser.add_argument("--only", nargs="*", choices=[*SETS, "speed"], default=[*SETS, "speed"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = json.loads(PARTS.read_text()) if PARTS.exists() else {}
    for name in arguments.only:
        found[name] = speed(arguments.shared, arguments.scib_python) if name == "speed" else run(name, arguments.shared)
        PARTS.write_text(json.dumps(found, indent=1))
        print(name, "done", flush=True)
    (RESULTS / "integrate.md").write_text(page(found))
    (RESULTS / "compare.md").write_text(pairs_page(found))


if __name__ == "__main__":
    main()
