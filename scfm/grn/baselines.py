"""Scores of edges without a model's attention: correlation, similarity of gene embeddings, regression trees, chance."""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["correlation", "similarity", "tree_importance"]


def correlation(expression: np.ndarray, *, kind: Literal["pearson", "spearman"] = "pearson") -> np.ndarray:
    """Correlation of genes over cells (n_genes, n_genes) float64; NaN for genes that do not vary.

    Parameters
    ----------
    expression
        (n_cells, n_genes) log-normalised.
    kind
        "spearman": of the ranks, ties averaged.
    """
    from scipy.stats import rankdata

    x = rankdata(expression, axis=0) if kind == "spearman" else np.asarray(expression, dtype=np.float64)
    x = x - x.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0))
    constant = norm < 1e-12 * max(norm.max(initial=0.0), 1.0)
    x = x / np.where(constant, np.nan, norm)
    return np.clip(x.T @ x, -1, 1)


def similarity(vectors: np.ndarray) -> np.ndarray:
    """Cosine of gene embeddings (n_genes, dim) -> (n_genes, n_genes) float64."""
    x = np.asarray(vectors, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norm, out=np.full_like(x, np.nan), where=norm > 0)
    return x @ x.T


def tree_importance(expression: np.ndarray, regulators: np.ndarray, *, trees: int = 100, seed: int = 0) -> np.ndarray:
    """GENIE3's scores (Huynh-Thu et al. 2010, doi:10.1371/journal.pone.0012776), with fewer trees.

    Each gene, scaled to unit variance, is predicted from the regulators (itself left out) by a random forest that tries sqrt(regulators) at
    each split; a regulator's score is the decrease of variance at its splits, averaged over trees.

    Parameters
    ----------
    expression
        (n_cells, n_genes) log-normalised.
    regulators
        (n_regulators,) positions among the genes.
    trees
        Trees a gene; the authors use 1,000.
    seed
        Of the forests.

    Returns
    -------
    np.ndarray
        (n_regulators, n_genes) float64; NaN of a gene with itself, and for targets that do not vary.
    """
    from sklearn.ensemble import RandomForestRegressor

    x = np.ascontiguousarray(expression[:, regulators], dtype=np.float32)
    scores = np.full((len(regulators), expression.shape[1]), np.nan)
    for gene in range(expression.shape[1]):
        y = expression[:, gene]
        inputs = np.flatnonzero(regulators != gene)
        if y.std() > 0 and len(inputs):
            forest = RandomForestRegressor(trees, max_features="sqrt", random_state=seed)
            forest.fit(x[:, inputs], (y - y.mean()) / y.std())
            each = [tree.tree_.compute_feature_importances(normalize=False) for tree in forest.estimators_]
            scores[inputs, gene] = np.mean(each, axis=0)
    return scores
