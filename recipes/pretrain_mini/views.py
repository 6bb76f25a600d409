"""Random views of cells: halves of their counts, thinned and without some genes."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scfm.recipes.pretrain_mini.config import ViewConfig

__all__ = ["split", "thin", "with_counts"]


def split(cells: sparse.csr_matrix, rng: np.random.Generator) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Two independent halves of the counts (count splitting, Neufeld et al. 2022, doi:10.1093/biostatistics/kxac047)."""
    first = rng.binomial(cells.data.astype(np.int64), 0.5)
    return with_counts(cells, first), with_counts(cells, cells.data - first)


def thin(half: sparse.csr_matrix, config: ViewConfig, rng: np.random.Generator) -> sparse.csr_matrix:
    """A half after thinning to a random depth and dropping random genes."""
    lengths = np.diff(half.indptr)
    total = np.maximum(np.asarray(half.sum(axis=1)).ravel(), 1)
    kept = np.exp(rng.uniform(np.log(np.minimum(config.min_depth / total, 1)), 0))  # share of the counts
    thinned = rng.binomial(half.data.astype(np.int64), np.repeat(kept, lengths))
    share = rng.uniform(config.min_genes, 1, len(lengths))
    thinned[rng.random(len(thinned)) > np.repeat(share, lengths)] = 0
    return with_counts(half, thinned)


def with_counts(like: sparse.csr_matrix, counts: np.ndarray) -> sparse.csr_matrix:
    """The same cells and genes with other counts, of which zeros are left out."""
    other = sparse.csr_matrix((counts.astype(np.float32), like.indices, like.indptr), shape=like.shape, copy=True)
    other.eliminate_zeros()
    return other
