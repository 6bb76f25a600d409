"""How alike are two embeddings of the same cells?"""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError

__all__ = ["linear_cka", "overlap_by_chance", "procrustes_similarity"]


def linear_cka(first: np.ndarray, second: np.ndarray, *, debiased: bool = True) -> float:
    """Centred kernel alignment with linear kernels (Kornblith et al. 2019, arXiv:1905.00414): 1 is equal up to rotation and scale.

        CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)),  on centred X, Y with rows x_i, y_i

    Biased: HSIC = norm2(X'Y), where norm2 is the sum of squares; it nears 1 for any two embeddings of more dimensions than cells.
    Debiased (Song et al. 2012, JMLR 13:1393), near 0 for unrelated ones and at times below:

        HSIC = norm2(X'Y) - n / (n - 2) sum_i norm2(x_i) norm2(y_i) + norm2(X) norm2(Y) / ((n - 1)(n - 2))

    Parameters
    ----------
    first, second
        (n_cells, dim) and (n_cells, other_dim); row i of both is the same cell.
    debiased
        Which of the two.
    """
    x, y = _paired(first, second)
    n = len(x)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        value = float(((a.T @ b) ** 2).sum())
        if not debiased:
            return value
        p, q = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b)
        return value - n / (n - 2) * float(p @ q) + float(p.sum() * q.sum()) / ((n - 1) * (n - 2))

    own = hsic(x, x) * hsic(y, y)
    return hsic(x, y) / float(np.sqrt(own)) if own > 0 else np.nan


def procrustes_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Share of one embedding that the best rotation and scaling of the other gives; symmetric, from 0 to 1.

        (sum of the singular values of X'Y)^2,  X, Y centred and of Frobenius norm 1 (Gower 1975, doi:10.1007/BF02291478)

    1 - `scipy.spatial.procrustes`'s disparity; the narrower embedding is filled with zeros.

    Parameters
    ----------
    first, second
        As for `linear_cka`.
    """
    x, y = _paired(first, second)
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    if norms == 0:
        return np.nan
    return float(np.linalg.svd(x.T @ y / norms, compute_uv=False).sum() ** 2)


def overlap_by_chance(n: int, k: int) -> float:
    """Expected Jaccard similarity of two random sets of k among n - 1 other cells: the mean of c / (2 k - c), c hypergeometric."""
    from scipy.stats import hypergeom

    common = np.arange(k + 1)
    return float((hypergeom(n - 1, k, k).pmf(common) * common / (2 * k - common)).sum())


def _paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 4:
        raise InputError(
            f"embeddings have shapes {x.shape} and {y.shape}; the same four cells or more are needed.",
            "Embed the same cells with both encoders.",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("an embedding has cells that are not finite.", "Leave these cells out of both.")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return x / (np.abs(x).max() or 1.0), y / (np.abs(y).max() or 1.0)  # no overflow; neither number depends on scale
