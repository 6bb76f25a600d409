"""Scores of all regulator-target pairs in one group of cells, by any method, with p from the null that suits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import InputError, listing
from scfm.grn.baselines import correlation, similarity, tree_importance
from scfm.grn.nulls import gene_shuffle_p, label_shuffle_p, label_shuffles
from scfm.grn.readout import RECIPES, Labels, read_out

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.encoder import CellEncoder

__all__ = ["CORRELATIONS", "METHODS", "Genes", "Scored", "score_difference", "score_edges"]

CORRELATIONS = ("pearson", "spearman")
METHODS = (*RECIPES, "gene_embedding", *CORRELATIONS, "trees", "random")
DIRECTIONS = ("key", "query")


@dataclass(frozen=True)
class Genes:
    """The chosen genes.

    Parameters
    ----------
    names
        (n,) symbols, all different.
    tokens
        (n,) int64 ids in the encoder's vocabulary, all different.
    regulators
        (n_regulators,) int64 positions of the transcription factors.
    """

    names: np.ndarray
    tokens: np.ndarray
    regulators: np.ndarray


@dataclass(frozen=True)
class Scored:
    """One method's scores.

    Parameters
    ----------
    method, direction
        Direction "key": attention with the regulator as key, "query": as query; "": the method has none.
    scores
        (n_regulators, n_genes) float64, larger is stronger; NaN where there is none, and for a gene with itself.
    sign
        (n_regulators, n_genes) int8: -1 or 1 where the score has a sign, else 0.
    p
        (n_regulators, n_genes) float64.
    """

    method: str
    direction: str
    scores: np.ndarray
    sign: np.ndarray
    p: np.ndarray


def score_edges(
    encoder: CellEncoder,
    adata: AnnData,
    expression: np.ndarray,
    genes: Genes,
    method: str,
    *,
    reading: dict[str, Any],
    layers: Sequence[int] | None,
    trees: int,
    bins: int,
    progress: bool | None,
    seed: int,
) -> Iterator[Scored]:
    """Scores of one group of cells; p by shuffling genes of similar mean expression (`scfm.grn.nulls.gene_shuffle_p`).

    Parameters
    ----------
    adata
        The group's cells.
    expression
        (n_cells, n_genes) log-normalised, of the chosen genes.
    reading
        Arguments of `scfm.reading.read`.
    """
    from scfm.reading import read

    n, rows = len(genes.names), np.arange(len(genes.names))
    means = expression.mean(axis=0)
    sign = np.zeros((n, n), np.int8)
    if method in RECIPES:
        labels = Labels(np.zeros(adata.n_obs, np.int64))
        opened = read(encoder, adata, **reading)
        relation = read_out(
            encoder, opened, method, genes.tokens, labels, layers=layers, progress=progress, seed=seed
        ).relations[0]
        directed = {"key": relation.T, "query": relation}
    elif method in CORRELATIONS:
        r = correlation(expression, kind=method)  # type: ignore[arg-type]
        directed, sign = {"": np.abs(r)}, np.nan_to_num(np.sign(r)).astype(np.int8)
    elif method == "gene_embedding":
        tokens = [encoder.vocabulary.tokens[i] for i in genes.tokens]
        directed = {"": similarity(encoder.gene_embeddings(tokens).to_numpy())}
    elif method == "trees":
        rows = genes.regulators
        directed = {"": tree_importance(expression, rows, trees=trees, seed=seed)}
    else:
        directed = {"": np.random.default_rng(seed).random((n, n))}
    regulators = slice(None) if len(rows) < n else genes.regulators
    for direction, values in directed.items():
        scores = values.astype(np.float64)
        scores[np.arange(len(rows)), rows] = np.nan  # a gene with itself
        p = gene_shuffle_p(scores, rows, means, bins=bins)
        yield Scored(method, direction, scores[regulators], sign[genes.regulators], p[regulators])


def score_difference(
    encoder: CellEncoder,
    adata: AnnData,
    expression: np.ndarray,
    genes: Genes,
    method: str,
    *,
    perturbed: np.ndarray,
    permutations: int,
    reading: dict[str, Any],
    layers: Sequence[int] | None,
    progress: bool | None,
    seed: int,
) -> Iterator[Scored]:
    """Size of the difference perturbed - control, its sign, and p by shuffling the cells' labels.

    Parameters
    ----------
    adata, expression
        The cells of both conditions.
    perturbed
        (n_cells,) bool.
    permutations
        Shuffles of the labels.
    """
    from scfm.reading import read

    shuffled = label_shuffles(perturbed, permutations, seed)
    if method in RECIPES:
        labels = Labels(perturbed.astype(np.int64), shuffled, genes.regulators)
        opened = read(encoder, adata, **reading)
        found = read_out(encoder, opened, method, genes.tokens, labels, layers=layers, progress=progress, seed=seed)
        change = found.relations[1] - found.relations[0]
        observed = {"key": change.T[genes.regulators], "query": change[genes.regulators]}
        null = dict(zip(DIRECTIONS, (found.shuffled[:, 0], found.shuffled[:, 1]), strict=True))
    elif method in CORRELATIONS:

        def difference(chosen: np.ndarray) -> np.ndarray:
            kind: Any = method
            both = (correlation(expression[cells], kind=kind)[genes.regulators] for cells in (chosen, ~chosen))
            return next(both) - next(both)

        observed = {"": difference(perturbed)}
        null = {"": np.stack([difference(chosen).astype(np.float32) for chosen in shuffled])}
    else:
        raise InputError(
            f"method {method!r} has no difference between conditions.",
            f"Pass methods among {listing((*RECIPES, *CORRELATIONS))}.",
        )
    own = (np.arange(len(genes.regulators)), genes.regulators)
    for direction, change in observed.items():
        change[own] = np.nan
        p = label_shuffle_p(change, null[direction])
        yield Scored(method, direction, np.abs(change), np.nan_to_num(np.sign(change)).astype(np.int8), p)
