from importlib.resources import files

import numpy as np
import pandas as pd
from scipy import sparse

from scfm.data import pbmc_demo
from scfm.gene_tables import id_kind, species_of


def test_demo_data_are_raw_counts_of_labelled_human_cells():
    cells = pbmc_demo()
    assert cells.shape == (983, 13_363)
    assert sparse.isspmatrix_csr(cells.X)
    assert cells.X.dtype == np.float32
    assert cells.X.has_canonical_format
    assert (cells.X.data >= 1).all()
    assert (cells.X.data % 1 == 0).all()
    assert cells.X.sum(axis=0).min() >= 1
    assert cells.obs_names.is_unique
    assert cells.var_names.is_unique
    assert id_kind(cells.var_names) == "symbol"
    assert species_of(cells.var_names).name == "human"


def test_demo_data_have_cell_types_and_nothing_else():
    cells = pbmc_demo()
    assert list(cells.obs) == ["cell_type"]
    assert isinstance(cells.obs["cell_type"].dtype, pd.CategoricalDtype)
    assert cells.obs["cell_type"].nunique() == len(cells.obs["cell_type"].cat.categories) == 9
    assert "unlabelled" not in set(cells.obs["cell_type"])
    assert not any((cells.var.shape[1], len(cells.uns), len(cells.obsm), len(cells.layers)))


def test_labels_belong_to_the_cells():
    cells = pbmc_demo()
    markers = {"B": "MS4A1", "CD14+ Mono": "LYZ", "NK": "GNLY", "Platelet": "PPBP", "FCGR3A+ Mono": "FCGR3A"}
    depth = np.asarray(cells.X.sum(axis=1)).ravel()
    for cell_type, marker in markers.items():
        rate = cells[:, marker].X.toarray().ravel() / depth
        of_type = (cells.obs["cell_type"] == cell_type).to_numpy()
        assert rate[of_type].mean() > 3 * rate[~of_type].mean(), cell_type


def test_each_call_reads_afresh():
    first = pbmc_demo()
    first.X.data[:] = 0
    del first.obs["cell_type"]
    assert pbmc_demo().X.sum() > 0
    assert "cell_type" in pbmc_demo().obs


def test_shipped_data_are_small_and_each_file_has_its_licence_stated():
    folder = files("scfm.data")
    shipped = {f.name: len(f.read_bytes()) for f in folder.iterdir() if f.name.endswith((".gz", ".h5ad"))}
    assert shipped.pop("pbmc_demo.h5ad") <= 2.2e6
    readme = (folder / "README.md").read_text()
    tables = ["human_genes.tsv.gz", "mouse_genes.tsv.gz", "human_mouse_orthologs.tsv.gz"]
    assert sum(shipped[name] for name in tables) <= 1.5e6
    for name in [*shipped, "pbmc_demo.h5ad"]:
        assert f"`{name}`" in readme
