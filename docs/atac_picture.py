"""The picture of docs/atac.md: LSI of bone marrow cells, as UMAP, coloured by cell type.

python docs/atac_picture.py --shared ../shared
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from anndata import read_h5ad

import scfm

HERE = Path(__file__).parent
COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2"]


def main() -> None:
    """Write images/atac_lsi.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn without TensorFlow, and on fixed seeds
        from umap import UMAP
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    data = read_h5ad(parser.parse_args().shared / "data/hematopoiesis_scatac/hematopoiesis_scatac.h5ad")
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


if __name__ == "__main__":
    main()
