"""The training cells: one count matrix per group of cells, in the columns of a common vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

from scfm.errors import InputError
from scfm.genes import Vocabulary, id_kind, to_symbols
from scfm.recipes.pretrain_mini.config import CorpusConfig, SetConfig

__all__ = ["Group", "assemble"]

PAD, CLS = "<pad>", "<cls>"


@dataclass(frozen=True)
class Group:
    """Cells that were measured together.

    Parameters
    ----------
    name
        For the log.
    counts
        (n_cells, n_tokens) CSR float32, columns = token ids.
    panel
        (n_panel,) token ids of the genes this data set measures, ascending.
    share
        Probability that a batch is drawn from this group.
    components
        Dimensions of the gene table that start from this group.
    """

    name: str
    counts: sparse.csr_matrix
    panel: np.ndarray
    share: float
    components: int = 0


def assemble(config: CorpusConfig, data: Path) -> tuple[list[Group], Vocabulary]:
    """Read the training sets, and make a vocabulary of the genes seen in at least `min_cells` of their cells.

    Parameters
    ----------
    config
        Which sets.
    data
        Folder their paths are below.
    """
    parts = [(of, name, adata) for of in config.sets for name, adata in _groups(of, data)]
    seen: dict[str, int] = {}
    for _, _, adata in parts:
        for gene, cells in zip(adata.var_names, adata.X.getnnz(axis=0), strict=True):
            seen[gene] = seen.get(gene, 0) + int(cells)
    genes = sorted(gene for gene, cells in seen.items() if cells >= config.min_cells)
    vocabulary = Vocabulary((PAD, CLS, *genes), ids="symbol", species=("human",), special={"pad": PAD, "cls": CLS})
    groups = [_group(of, name, adata, vocabulary) for of, name, adata in parts]
    total = sum(group.share for group in groups)
    return [replace(group, share=group.share / total) for group in groups], vocabulary


def _groups(of: SetConfig, data: Path) -> Iterator[tuple[str, ad.AnnData]]:
    """The kept cells of a set, one AnnData a group, with unique gene symbols as var_names."""
    adata = ad.read_h5ad(data / of.path)
    for column, value in of.keep.items():
        adata = adata[adata.obs[column].astype(str) == value]
    if of.leave_out is not None:
        held_out = ad.read_h5ad(data / of.leave_out, backed="r").obs_names
        adata = adata[~adata.obs_names.isin(held_out)]
    if not adata.n_obs:
        raise InputError(f"{of.path}: no cell is left after keep and leave_out.")
    names = adata.var_names.to_numpy(dtype=object)
    if id_kind(names) == "ensembl":
        names = to_symbols(names)
    first = ~np.array([name is None for name in names]) & ~_repeated(names)
    adata = adata[:, first].copy()
    adata.var_names = names[first].astype(str)
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    name = Path(of.path).stem
    if of.groups is None:
        adata.uns = {"groups": 1}
        yield name, adata
        return
    column = adata.obs[of.groups].astype(str)
    adata.uns = {"groups": column.nunique()}
    for group in sorted(column.unique()):
        yield f"{name}:{group}", adata[column == group].copy()


def _repeated(names: np.ndarray) -> np.ndarray:
    """Which names occur before (n,) bool."""
    return ~np.isin(np.arange(len(names)), np.unique(names.astype(str), return_index=True)[1])


def _group(of: SetConfig, name: str, adata: ad.AnnData, vocabulary: Vocabulary) -> Group:
    tokens = vocabulary.lookup(adata.var_names)
    known = np.flatnonzero(tokens >= 0)
    matrix = adata.X[:, known].tocoo()
    counts = sparse.csr_matrix(
        (matrix.data, (matrix.row, tokens[known][matrix.col])), shape=(adata.n_obs, len(vocabulary)), dtype=np.float32
    )
    counts = counts[counts.getnnz(axis=1) > 1]  # two views need two counts
    counts.sort_indices()
    siblings = adata.uns["groups"]
    return Group(name, counts, np.sort(tokens[known]), of.share / siblings, of.components // siblings)
