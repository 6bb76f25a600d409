"""Makes norman_slice.h5ad of ../shared/data/perturb_norman_mcfaline: python make_norman_slice.py perturb_500genes.h5ad norman_slice.h5ad"""

import sys

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

CELLS, CONTROLS, GENES = 8, 32, 200

cells = ad.read_h5ad(sys.argv[1])
cells = cells[cells.obs["dataset"].astype(str) == "norman19"]
rng = np.random.default_rng(0)
rows = []
for condition in sorted(set(cells.obs["condition"].astype(str))):
    own = np.flatnonzero(cells.obs["condition"].astype(str) == condition)
    rows += rng.choice(own, CONTROLS if condition == "control" else CELLS, replace=False).tolist()
cells = cells[sorted(rows)]
perturbed = {gene for condition in cells.obs["condition"].astype(str) for gene in condition.split("+")}
most = np.asarray(cells.X.sum(axis=0)).ravel() + 1e9 * cells.var_names.isin(perturbed)
cells = cells[:, np.sort(np.argsort(-most)[:GENES])]
ad.AnnData(
    sparse.csr_matrix(cells.X, dtype=np.float32),
    obs=pd.DataFrame({"condition": cells.obs["condition"].astype(str).to_numpy()}, index=cells.obs_names),
    var=pd.DataFrame(index=cells.var_names),
).write_h5ad(sys.argv[2], compression="gzip")
