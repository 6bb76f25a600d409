"""Do the two views of a cell find each other?"""

from __future__ import annotations

import numpy as np

from scfm.errors import InputError

__all__ = ["foscttm", "median_rank", "pair_ranks", "recall_at_k"]

_TIE = 1e-9  # cosines that differ by less are equal
_ROWS = 1024  # cells compared with the whole gallery at a time


def pair_ranks(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Rank of each cell's partner among all cells of the other view.

        rank_i = 1 + #{j: cos(q_i, g_j) > cos(q_i, g_i)} + #{j != i: cos(q_i, g_j) = cos(q_i, g_i)} / 2

    so that an embedding which tells no cells apart has the rank of chance, (n + 1) / 2.

    Parameters
    ----------
    query, gallery
        (n_cells, dim) embeddings in one space; row i of both is the same cell.

    Returns
    -------
    np.ndarray
        (n_cells,) float64 from 1 (nearest) to n_cells.

    Raises
    ------
    InputError
        The shapes differ, there are no two cells, or an embedding has NaN.
    """
    if query.shape != gallery.shape or len(query) < 2:
        raise InputError(
            f"paired embeddings have shapes {query.shape} and {gallery.shape}; two of one shape and at least two cells are needed.",
            "Give both views the same cells in the same order, in one space, e.g. by CCA.",
        )
    for name, embedding in (("first", query), ("second", gallery)):
        if bad := int(np.isnan(embedding).any(axis=1).sum()):
            raise InputError(f"{bad} cells of the {name} view have NaN embeddings.", "Remove these cells from both.")
    q, g = _unit(query), _unit(gallery)
    ranks = np.empty(len(q))
    for start in range(0, len(q), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(q)))
        cosine = q[rows] @ g.T  # (rows, n_cells)
        partner = cosine[np.arange(len(rows)), rows][:, None]
        closer = (cosine > partner + _TIE).sum(axis=1)
        equal = (np.abs(cosine - partner) <= _TIE).sum(axis=1) - 1
        ranks[rows] = 1 + closer + equal / 2
    return ranks


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; rows of zeros stay."""
    x = np.asarray(x, dtype=np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def recall_at_k(first: np.ndarray, second: np.ndarray, *, k: int = 10, normalised: bool = False) -> float:
    """Share of cells whose partner is among the k nearest of the other view, mean of both directions.

        R = mean_i [rank_i <= k];  chance is k / n;  normalised: (R - k/n) / (1 - k/n)

    (`pair_ranks` gives the ranks of one direction. As in the modality-matching task of Luecken et al. 2021, NeurIPS Datasets and
    Benchmarks.) It depends on n, the size of the gallery: state it beside the number.

    Parameters
    ----------
    first, second
        (n_cells, dim) embeddings in one space; row i of both is the same cell.
    k
        From 1 to n_cells - 1.
    normalised
        Map chance to 0 and perfect retrieval to 1.
    """
    ranks = np.concatenate([pair_ranks(first, second), pair_ranks(second, first)])
    if not 1 <= k < len(first):
        raise InputError(f"k={k} of {len(first)} cells.", "Pass a k from 1 to the number of cells - 1.")
    recall, chance = float((ranks <= k).mean()), k / len(first)
    return (recall - chance) / (1 - chance) if normalised else recall


def median_rank(first: np.ndarray, second: np.ndarray) -> float:
    """Median rank of the partners, mean of both directions; 1 is perfect, (n_cells + 1) / 2 is chance.

    Parameters
    ----------
    first, second
        As for `recall_at_k`.
    """
    return float(np.mean([np.median(pair_ranks(first, second)), np.median(pair_ranks(second, first))]))


def foscttm(first: np.ndarray, second: np.ndarray) -> float:
    """Fraction of samples closer than the true match (Liu et al. 2019, doi:10.4230/LIPIcs.WABI.2019.10), mean of both directions.

        mean_i (rank_i - 1) / (n - 1)

    0 is perfect, 0.5 is chance. Closeness is by cosine; on vectors of length 1 that is the authors' Euclidean distance.

    Parameters
    ----------
    first, second
        As for `recall_at_k`.
    """
    ranks = np.concatenate([pair_ranks(first, second), pair_ranks(second, first)])
    return float((ranks - 1).mean() / (len(first) - 1))
