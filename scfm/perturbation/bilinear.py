"""The bilinear ridge baseline of Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6, and the linear additive model.

Effects Y (genes x training perturbations), centred by their row means b, are written as G K P': G embeds the genes that are read, P the
genes that are perturbed. Both may come from the training data or from outside: another screen, or a foundation model's gene embeddings,
which makes the baseline a probe of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scfm.errors import InputError
from scfm.perturbation.conditions import Key, one_hot, sums_of_genes
from scfm.perturbation.pseudobulk import Profiles

__all__ = ["bilinear_response", "linear_additive"]


def bilinear_response(
    train: Profiles,
    keys: Sequence[Key],
    *,
    components: int = 10,
    ridge: float = 0.1,
    genes: np.ndarray | None = None,
    perturbed: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Control + b + G K p, with K = (G'G + l I)^-1 G' Y P (P'P + l I)^-1.

    Parameters
    ----------
    train, keys
        As all baselines. Effects of all contexts are fitted together.
    components
        Principal components of the training profiles that embed the genes, where no embedding is given.
    ridge
        l of both sides.
    genes
        (n_genes, d) embedding of the genes that are read; None: the components.
    perturbed
        Gene -> (d,) embedding of the perturbed genes; None: their rows of G. The embedding of a pair is the sum of its genes'.

    Returns
    -------
    np.ndarray
        (n_keys, n_genes) log profiles. A condition without any embedded gene is predicted as control + b, and training
        conditions without one are left out of the fit.

    Raises
    ------
    InputError
        No training condition has an embedded gene, or `genes` has another length.
    """
    g = _gene_components(train, components) if genes is None else np.asarray(genes, dtype=np.float64)
    if len(g) != len(train.genes) or not np.isfinite(g).all():
        raise InputError(f"genes has {len(g)} rows for {len(train.genes)} genes, or missing values.")
    table = dict(zip(train.genes, g, strict=True)) if perturbed is None else dict(perturbed)
    p = sums_of_genes([condition for _, condition in train.perturbed], table, train.control)
    fitted = np.isfinite(p).all(axis=1)
    if not fitted.any():
        raise InputError(
            "no perturbed gene of the training data has an embedding.", "Pass perturbed= with rows for these genes."
        )
    effects = train.deltas().T  # (genes, perturbations)
    b = effects.mean(axis=1, keepdims=True)
    y, p = (effects - b)[:, fitted], p[fitted]
    left = np.linalg.solve(g.T @ g + ridge * np.eye(g.shape[1]), g.T @ y @ p)
    k = np.linalg.solve(p.T @ p + ridge * np.eye(p.shape[1]), left.T).T
    asked = np.nan_to_num(sums_of_genes([condition for _, condition in keys], table, train.control))
    return train.control_of(keys) + b.T + asked @ k.T @ g.T


def _gene_components(train: Profiles, components: int) -> np.ndarray:
    """Scores of the genes (n_genes, d) on the principal components of the training profiles."""
    values = train.values[train.rows(train.perturbed)].T  # genes are the observations
    u, s, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    d = min(components, int((s > 1e-9 * s[0]).sum()) if len(s) else 0)
    if d == 0:
        raise InputError("the training profiles do not differ between genes.")
    return u[:, :d] * s[:d]


def linear_additive(train: Profiles, keys: Sequence[Key], *, ridge: float = 0.1) -> np.ndarray:
    """Control plus a learnt effect of every perturbed gene, by ridge regression on singles and pairs together (PerturBench).

    A gene that is in no training condition has no effect.
    """
    table = one_hot(train.perturbed, train.control)

    def design(keys: Sequence[Key]) -> np.ndarray:
        return np.nan_to_num(sums_of_genes([condition for _, condition in keys], table, train.control))

    x = design(train.perturbed)
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(len(table)), x.T @ train.deltas())
    return train.control_of(keys) + design(keys) @ weights
