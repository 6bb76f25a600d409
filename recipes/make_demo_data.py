"""Makes scfm/data/pbmc_demo.h5ad from 1,000 labelled cells of 10x Genomics' pbmc3k.

python -m scfm.recipes.make_demo_data pbmc3k_1000.h5ad scfm/data/pbmc_demo.h5ad
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scfm.errors import InputError


def demo_data(cells: ad.AnnData) -> ad.AnnData:
    """Keep labelled cells, genes with at least one count in them, raw counts and `obs["cell_type"]`; nothing else."""
    counts = sparse.csr_matrix(cells.X, dtype=np.float32)
    if (counts.data < 0).any() or (counts.data % 1 != 0).any():
        raise InputError("X holds values that are not counts; the demo data are raw counts.")
    labelled = (cells.obs["cell_type"] != "unlabelled").to_numpy()
    counts = counts[labelled]
    seen = np.asarray(counts.sum(axis=0)).ravel() > 0
    counts = counts[:, seen]
    counts.eliminate_zeros()
    counts.sort_indices()
    return ad.AnnData(
        X=counts,
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(cells.obs["cell_type"][labelled].astype(str))}, index=cells.obs_names[labelled]
        ),
        var=pd.DataFrame(index=cells.var_names[seen]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="pbmc3k_1000.h5ad: raw counts, obs['cell_type']")
    parser.add_argument("target", type=Path, help="the file to write")
    arguments = parser.parse_args()
    demo_data(ad.read_h5ad(arguments.source)).write_h5ad(arguments.target, compression="gzip", compression_opts=9)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
