"""The demo: real PBMCs, the shipped model, labels carried to held-out cells; a table, a picture and a page.

scfm demo                       # or: python -m scfm.recipes.demo
"""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm._lazy import require
from scfm.metrics import Estimate, bootstrap_mean, knn_labels

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["DemoResult", "run"]

MODEL, BASELINE = "mini", "pca"
SEED = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and wrote."""

    model: str
    cells: int
    query_cells: int
    accuracy: Estimate
    baseline_accuracy: Estimate
    seconds: float
    """Wall-clock seconds that the model took to embed all cells."""
    folder: str

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.cells:,} PBMCs embedded with {self.model} in {self.seconds:.1f} s.",
                f"Cell types carried to the other {self.query_cells:,} by 15 nearest neighbours; accuracy [95 % interval]:",
                f"  {self.model:<8} {self.accuracy}",
                f"  {BASELINE:<8} {self.baseline_accuracy}   (50 components of 2,000 genes, fitted on the labelled half)",
                f"Written to {self.folder}/: demo.h5ad, umap.png, index.html",
            )
        )


def run(folder: Path, *, model: str = MODEL) -> DemoResult:
    """Embed, annotate and draw the shipped PBMCs.

    Parameters
    ----------
    folder
        Written to: `demo.h5ad`, `umap.png` and `index.html`; made if absent.
    model
        Any model that reads counts of human gene symbols.

    Raises
    ------
    MissingExtraError
        matplotlib or umap-learn are not installed.
    """
    import scfm
    from scfm.data import pbmc_demo
    from scfm.plotting import umap_coordinates

    require("matplotlib", extra="analysis", purpose="the picture")
    require("umap", extra="analysis", purpose="the picture")
    cells = pbmc_demo()
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    query = _half(labels)
    encoder = scfm.load(model)
    begin = time.perf_counter()
    embedding = encoder.embed(cells, key_added=f"X_{model}")
    seconds = time.perf_counter() - begin
    unfitted: Any = scfm.load(BASELINE)
    baseline = unfitted.fit(cells[~query]).embed(cells)
    correct = {}
    for name, z in ((model, embedding), (BASELINE, baseline)):
        predicted = knn_labels(z[~query], labels[~query], z[query])
        correct[name] = predicted == labels[query]
        if name == model:
            cells.obs["predicted"] = ""
            cells.obs.loc[query, "predicted"] = predicted
    cells.obs["part"] = np.where(query, "query", "reference")
    cells.obsm["X_umap"] = umap_coordinates(embedding, metric="cosine", seed=SEED)
    folder.mkdir(parents=True, exist_ok=True)
    result = DemoResult(
        model=model,
        cells=cells.n_obs,
        query_cells=int(query.sum()),
        accuracy=bootstrap_mean(correct[model]),
        baseline_accuracy=bootstrap_mean(correct[BASELINE]),
        seconds=seconds,
        folder=str(folder),
    )
    picture = _picture(cells, result)
    (folder / "umap.png").write_bytes(picture)
    (folder / "index.html").write_text(
        _page(cells, result, correct, labels[query], picture, scfm.load(model).card), encoding="utf-8"
    )
    cells.write_h5ad(folder / "demo.h5ad")
    return result


def _half(labels: np.ndarray) -> np.ndarray:
    """Half of the cells of every type, at random (n_cells,) bool."""
    rng = np.random.default_rng(SEED)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: len(members) // 2]] = True
    return chosen


def _picture(cells: AnnData, result: DemoResult) -> bytes:
    """Two panels: the authors' cell types, and where the transferred label is wrong."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    x, y = cells.obsm["X_umap"].T
    types = sorted(cells.obs["cell_type"].unique())
    colours = [
        "#4e79a7",
        "#f28e2b",
        "#59a14f",
        "#e15759",
        "#b07aa1",
        "#76b7b2",
        "#edc948",
        "#9c755f",
        "#ff9da7",
        "#555555",
    ]
    for label, colour in zip(types, colours, strict=False):
        own = (cells.obs["cell_type"] == label).to_numpy()
        left.scatter(x[own], y[own], s=9, color=colour, linewidths=0, label=f"{label} ({own.sum()})")
    left.set_title("Cell types", loc="left")
    left.legend(frameon=False, markerscale=2.5, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    query = (cells.obs["part"] == "query").to_numpy()
    wrong = query & (cells.obs["predicted"] != cells.obs["cell_type"]).to_numpy()
    for own, colour, label, size in (
        (~query, "#d5d5d5", "reference (labelled)", 7),
        (query & ~wrong, "#4e79a7", "query, label right", 9),
        (wrong, "#e15759", f"query, label wrong ({wrong.sum()})", 16),
    ):
        right.scatter(x[own], y[own], s=size, color=colour, linewidths=0, label=label)
    right.set_title(f"Transferred labels: accuracy {result.accuracy}", loc="left")
    right.legend(frameon=False, markerscale=2, fontsize=9)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()


def _page(
    cells: AnnData, result: DemoResult, correct: dict[str, np.ndarray], truth: np.ndarray, picture: bytes, card: object
) -> str:
    from jinja2 import Environment

    rows = [
        {
            "label": label,
            "cells": int((truth == label).sum()),
            **{name: float(c[truth == label].mean()) for name, c in correct.items()},
        }
        for label in np.unique(truth)
    ]
    template = files("scfm.recipes").joinpath("demo.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            result=result,
            baseline=BASELINE,
            shipped=MODEL,
            rows=rows,
            genes=cells.n_vars,
            card=card,
            picture=base64.b64encode(picture).decode(),
            provenance=cells.uns["scfm"][f"X_{result.model}"],
        )
    )


def main() -> None:
    """Run the demo into ./demo."""
    print(run(Path("demo")))


if __name__ == "__main__":
    main()
