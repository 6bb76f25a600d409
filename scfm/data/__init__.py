"""Data shipped with scfm: gene tables, orthologs and a small real dataset; README.md has their origin and licences."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["pbmc_demo", "shared_table"]


def shared_table(name: str) -> Path:
    """A table that several models read, by its file name; README.md says what each one is."""
    return Path(__file__).parent / name


def pbmc_demo() -> AnnData:
    """Human blood cells with labels, to try things on without a download.

    983 peripheral blood mononuclear cells of a healthy donor (10x Genomics "pbmc3k", Chromium 3' v1, CC BY 4.0).

    Returns
    -------
    AnnData
        983 cells x 13,363 genes, read afresh at each call. `X` holds raw UMI counts (float32 CSR), `var_names` gene
        symbols of the Ensembl 82 era, `obs["cell_type"]` nine cell types (categorical). The labels come from
        clustering the same counts, so high agreement with them is no evidence of biology.
    """
    from anndata import read_h5ad

    with as_file(files(__name__) / "pbmc_demo.h5ad") as path:
        return read_h5ad(path)
