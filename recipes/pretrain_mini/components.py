"""A start for the gene table: principal components of every group of cells, so that training begins where a linear model ends."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from scfm.recipes.pretrain_mini.corpus import Group

__all__ = ["components", "features", "start_from_components"]


def start_from_components(table: nn.Embedding, groups: list[Group], random_share: float) -> None:
    """Fill a gene table: a range of its dimensions for each group, the rest keeps its random values.

    Every dimension gets the same variance over the cells on average, a random one `random_share` of it; the standard deviation of the
    whole table stays as it is.
    """
    values = table.weight.detach().numpy().copy()  # (n_tokens, dim)
    spread, at = values.std(), 0
    variances = [(features(group.counts) @ values).var(axis=0).mean() for group in groups]
    values *= np.sqrt(random_share / np.mean(variances))
    for group in groups:
        columns = slice(at, at + group.components)
        values[:, columns] = 0
        values[group.panel, columns] = components(group)
        at += group.components
    with torch.no_grad():
        table.weight.copy_(torch.from_numpy(values * (spread / values.std())))


def components(group: Group) -> np.ndarray:
    """Loadings of a group's principal components (n_panel, components), scaled to a mean variance of 1 over its cells."""
    x = features(group.counts)[:, group.panel].toarray()
    x = x - x.mean(axis=0)  # (n_cells, n_panel)
    n = x.shape[1]
    covariance = LinearOperator((n, n), matvec=lambda v: x.T @ (x @ v), dtype=x.dtype)
    _, loadings = eigsh(covariance, k=group.components, which="LA", v0=np.ones(n, dtype=x.dtype))
    return loadings / np.sqrt((x @ loadings).var(axis=0).mean())


def features(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """What the mean over a cell's tokens, <cls> included, weighs each gene with: log1p(count) / tokens."""
    weights = counts.log1p()
    return sparse.csr_matrix(sparse.diags(1 / (counts.getnnz(axis=1) + 1.0)) @ weights)
