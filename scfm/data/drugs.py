"""A drug screen that was generated, not measured: for tests and examples of code. It says nothing about any drug."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["drug_demo"]

FAMILIES = {
    "hydroxamate": {
        "vorinostat": "O=C(CCCCCCC(=O)Nc1ccccc1)NO",
        "belinostat": "O=C(C=Cc1cccc(S(=O)(=O)Nc2ccccc2)c1)NO",
        "panobinostat": "Cc1[nH]c2ccccc2c1CCNCc1ccc(C=CC(=O)NO)cc1",
    },
    "steroid": {
        "prednisolone": "CC12CC(O)C3C(CCC4=CC(=O)C=CC34C)C1CCC2(O)C(=O)CO",
        "hydrocortisone": "CC12CC(O)C3C(CCC4=CC(=O)CCC34C)C1CCC2(O)C(=O)CO",
        "dexamethasone": "CC1CC2C3CCC4=CC(=O)C=CC4(C)C3(F)C(O)CC2(C)C1(O)C(=O)CO",
    },
    "arylpropionate": {
        "ibuprofen": "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
        "naproxen": "COc1ccc2cc(C(C)C(=O)O)ccc2c1",
        "flurbiprofen": "CC(C(=O)O)c1ccc(-c2ccccc2)c(F)c1",
    },
    "sulfonamide": {
        "sulfadiazine": "Nc1ccc(S(=O)(=O)Nc2ncccn2)cc1",
        "sulfapyridine": "Nc1ccc(S(=O)(=O)Nc2ccccn2)cc1",
        "sulfathiazole": "Nc1ccc(S(=O)(=O)Nc2nccs2)cc1",
    },
}
"""Drugs of a similar structure; those of a family were given similar effects."""
DOSES = (100.0, 1000.0)
LINES = ("B", "CD14+ Mono", "NK")
"""Cell types of `pbmc_demo` whose mean expression the cell lines start from."""


def drug_demo(*, genes: int = 120, cells: int = 10, seed: int = 0) -> AnnData:
    """A generated drug screen in the layout of sci-Plex; see `scfm.perturbation.drugs`.

    Three cell lines, whose untreated expression is the mean of a cell type of `pbmc_demo`; twelve drugs of four families at two doses.
    The log expression of a treated cell is that of its line, plus an effect of the drug's family (weaker at the lower dose and different
    in size between lines), plus a small one of the drug. Counts are Poisson.

    Parameters
    ----------
    genes
        The most expressed ones.
    cells
        Of each line, drug and dose; of untreated lines four times as many.
    seed
        Of the draws.
    """
    import anndata
    import pandas as pd
    from scipy import sparse

    from scfm.data import pbmc_demo

    rng = np.random.default_rng(seed)
    demo = pbmc_demo()
    top = np.sort(np.argsort(-np.asarray(demo.X.sum(axis=0)).ravel(), kind="stable")[:genes])
    effects = {family: rng.normal(0, 0.8, genes) * (rng.random(genes) < 0.3) for family in FAMILIES}
    own = {name: rng.normal(0, 0.1, genes) for drugs in FAMILIES.values() for name in drugs}
    counts, rows = [], []
    for line in LINES:
        mean = np.asarray(demo[demo.obs["cell_type"] == line].X[:, top].mean(axis=0)).ravel() + 0.05
        strength = rng.uniform(0.7, 1.3)

        def draw(change: np.ndarray, count: int, mean: np.ndarray = mean) -> np.ndarray:
            depth = rng.lognormal(0, 0.2, (count, 1))
            return rng.poisson(3 * depth * mean * np.exp(change))

        counts.append(draw(np.zeros(genes), 4 * cells))
        rows += [(line, "control", "", np.nan)] * (4 * cells)
        for family, drugs in FAMILIES.items():
            for name, smiles in drugs.items():
                for dose, share in zip(DOSES, (0.5, 1.0), strict=True):
                    counts.append(draw(share * (strength * effects[family] + own[name]), cells))
                    rows += [(line, name, smiles, dose)] * cells
    obs = pd.DataFrame(
        rows, columns=["cell_line", "drug", "smiles", "dose"], index=[f"cell{i}" for i in range(len(rows))]
    )
    var = pd.DataFrame(index=demo.var_names[top])
    return anndata.AnnData(sparse.csr_matrix(np.concatenate(counts).astype(np.float32)), obs=obs, var=var)
