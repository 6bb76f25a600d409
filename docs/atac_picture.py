"""The pictures of docs/atac.md, of bone marrow cells: LSI as UMAP, imputation, and knock-out of each type's own peaks.

python docs/atac_picture.py --shared ../shared
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

import scfm

HERE = Path(__file__).parent
COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2"]


def umaps(data: AnnData) -> None:
    """Write images/atac_lsi.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn without TensorFlow, and on fixed seeds
        from umap import UMAP
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    kinds = data.obs["cell_type"].astype(str).to_numpy()
    axes = figure.subplots(1, 2)
    for panel, name in zip(axes, ("lsi", "pca"), strict=True):
        embedding = scfm.load(name, device="cpu").embed(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x, y = UMAP(metric="cosine", random_state=0, min_dist=0.3).fit_transform(embedding).T
        for label, colour in zip(np.unique(kinds), COLOURS, strict=True):
            panel.scatter(x[kinds == label], y[kinds == label], s=7, color=colour, linewidths=0, label=label)
        panel.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        panel.set_title(name, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, markerscale=2.5, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(HERE / "images" / "atac_lsi.png", dpi=110)


def imputation(data: AnnData) -> None:
    """Write images/atac_imputation.png; the decoder is untrained."""
    sys.path.insert(0, str(HERE.parent / "benchmarks"))
    from atac_encoders import random_epiagent

    result = scfm.tasks.impute(random_epiagent(data, 0), data, top=10, progress=False)
    print(result)
    ax = result.plot()
    ax.set_yticks(ax.get_yticks(), ["decoder, random weights", "k-NN smoothing", "region mean", "random"])
    ax.get_figure().savefig(HERE / "images" / "atac_imputation.png", dpi=110)


def knockout(data: AnnData) -> None:
    """Write images/atac_knockout.png."""
    encoder = scfm.load("lsi", device="cpu").fit(data)
    opened = data.X.toarray() > 0
    kinds = data.obs["cell_type"].astype(str).to_numpy()
    tables = []
    for kind in np.unique(kinds):
        specific = opened[kinds == kind].mean(axis=0) - opened[kinds != kind].mean(axis=0)
        peaks = list(data.var_names[np.argsort(-specific)[:30]])
        own = data[kinds == kind].copy()
        tables.append(scfm.tasks.knockout_regions(encoder, own, {kind: peaks}, progress=False))
        print(tables[-1])
    whole = replace(
        tables[0],
        table=pd.concat([one.table for one in tables], ignore_index=True),
        null=np.concatenate([one.null for one in tables]),
    )
    whole.plot(save=HERE / "images" / "atac_knockout.png")


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    data = read_h5ad(parser.parse_args().shared / "data/hematopoiesis_scatac/hematopoiesis_scatac.h5ad")
    umaps(data)
    imputation(data)
    knockout(data)


if __name__ == "__main__":
    main()
