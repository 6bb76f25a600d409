"""Genes as vectors: of encoders, and of expression itself; neighbours, programmes, and how well sets of genes stand apart."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scfm.errors import GeneMatchError, InputError
from scfm.genes import gene_ids

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.encoder import CellEncoder

__all__ = [
    "centred_components",
    "encoder_space",
    "expression_spaces",
    "gene_programmes",
    "read_gene_sets",
    "set_separability",
]

COMPONENTS = 50


def encoder_space(
    encoder: CellEncoder, names: Sequence[str], *, kind: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """An encoder's embeddings of genes.

    Parameters
    ----------
    encoder
        One with gene embeddings.
    names
        (n_genes,) symbols or Ensembl ids.
    kind
        As for `CellEncoder.gene_embeddings`.

    Returns
    -------
    vectors
        (n_genes, dim) float64; rows of unknown genes are NaN.
    known
        (n_genes,) bool.
    """
    ids = gene_ids(encoder.vocabulary, names)
    known = ids >= 0
    if not known.any():
        raise GeneMatchError(f"{encoder.name} knows none of the {len(names)} genes.", "Is it of the same species?")
    found = encoder.gene_embeddings([encoder.vocabulary.tokens[i] for i in ids[known]], kind=kind).to_numpy(np.float64)
    vectors = np.full((len(names), found.shape[1]), np.nan)
    vectors[known] = found
    return vectors, known


def expression_spaces(adata: AnnData, names: Sequence[str], layer: str | None = None) -> dict[str, np.ndarray]:
    """What expression alone says of genes: the baselines of gene embeddings.

    Parameters
    ----------
    adata
        Counts; scaled to 10,000 a cell and logged here.
    names
        Genes among `var_names`.
    layer
        Key of `layers`; None reads `X`.

    Returns
    -------
    dict
        "correlation": (n_genes, n_cells) standardised profiles, whose cosine is Pearson's r. "PCA loadings": (n_genes, 50) their
        loadings on the first components, times the singular values.
    """
    matrix = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer]).astype(np.float64)
    total = np.asarray(matrix.sum(axis=1)).reshape(-1)
    scaled = sparse.diags(1e4 / np.maximum(total, 1)) @ matrix
    scaled = sparse.csr_matrix(scaled)[:, adata.var_names.get_indexer(list(names))]
    scaled.data = np.log1p(scaled.data)
    profiles = scaled.toarray().T  # (n_genes, n_cells)
    profiles -= profiles.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(profiles, axis=1, keepdims=True)
    profiles = np.divide(profiles, spread, out=np.zeros_like(profiles), where=spread > 0)
    return {"correlation": profiles, "PCA loadings": _components(profiles)}


def _components(x: np.ndarray) -> np.ndarray:
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    d = min(COMPONENTS, int((s > 1e-9 * s.max(initial=0)).sum()))
    kept: np.ndarray = u[:, :d] * s[:d]
    return kept


def centred_components(x: np.ndarray) -> np.ndarray:
    """The first 50 principal components of the genes, so that probes of wide and narrow embeddings have as many numbers to use."""
    return _components(x - x.mean(axis=0))


def gene_programmes(x: np.ndarray, *, k: int = 15, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Leiden communities (n_genes,) of the graph of nearest genes by cosine, the mean gene taken away; 0 is the largest."""
    from scfm.clustering import fuzzy_graph, leiden
    from scfm.neighbours import neighbours

    if len(x) <= k:
        raise InputError(f"{len(x)} genes are too few for {k} neighbours.", "Pass fewer neighbours, or more genes.")
    return leiden(fuzzy_graph(*neighbours(x - x.mean(axis=0), k=k, metric="cosine")), resolution=resolution, seed=seed)


def set_separability(
    x: np.ndarray,
    members: np.ndarray,
    expression: np.ndarray | None,
    *,
    draws: int = 20,
    folds: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """How well a logistic probe tells a set's genes from others of similar expression, and random sets likewise.

    Each time as many other genes as the set has are drawn, of similar mean expression where it is known; a logistic regression on the
    standardised vectors is fitted on all folds but one, and scored by the AUROC of the genes left out. For the null, the set itself is
    replaced by such genes.

    Parameters
    ----------
    x
        (n_genes, d) vectors.
    members
        (n_genes,) bool.
    expression
        (n_genes,) means; None: others are drawn at random.
    draws, folds, seed
        Times others are drawn; folds of the cross-validation; of both.

    Returns
    -------
    real, null
        (draws,) AUROC each.
    """
    rng = np.random.default_rng(seed)
    inside = np.flatnonzero(members)
    real, null = [], []
    for _ in range(draws):
        others = _mates(inside, expression, len(members), rng, inside)
        real.append(_probe(x, inside, others, folds, rng))
        stand_in = _mates(inside, expression, len(members), rng, inside)
        null.append(
            _probe(x, stand_in, _mates(stand_in, expression, len(members), rng, [*stand_in, *inside]), folds, rng)
        )
    return np.array(real), np.array(null)


def _mates(
    genes: np.ndarray, expression: np.ndarray | None, n: int, rng: np.random.Generator, but: Sequence[int] | np.ndarray
) -> np.ndarray:
    """As many distinct genes, none of `but`, each of similar expression to one of these."""
    free = np.ones(n, dtype=bool)
    free[but] = False
    if free.sum() < len(genes):
        raise InputError(
            f"{int(free.sum())} other genes are too few to match {len(genes)}.", "Leave out the largest sets."
        )
    if expression is None:
        return rng.choice(np.flatnonzero(free), len(genes), replace=False)
    chosen = []
    for gene in rng.permutation(genes):
        left = np.flatnonzero(free)
        near = left[np.argsort(np.abs(expression[left] - expression[gene]), kind="stable")[:20]]
        chosen.append(rng.choice(near))
        free[chosen[-1]] = False
    return np.array(chosen)


def _probe(x: np.ndarray, inside: np.ndarray, outside: np.ndarray, folds: int, rng: np.random.Generator) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from scfm.metrics.classification import auroc

    rows = np.concatenate([inside, outside])
    y = np.arange(len(rows)) < len(inside)
    cut = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return auroc(y, cross_val_predict(model, x[rows], y, cv=cut, method="decision_function"))


def read_gene_sets(path: str | PathLike[str]) -> dict[str, list[str]]:
    """Gene sets of a .gmt file (a line a set: name, description, genes, separated by tabs).

    Raises
    ------
    InputError
        A line has no genes, or there is no line.
    """
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, *genes = line.rstrip("\n").split("\t")
        if not [gene for gene in genes if gene]:
            raise InputError(
                f"line {number} of {path} has no genes.", "Lines are: name, description, genes; with tabs between."
            )
        sets[name] = [gene for gene in genes if gene]
    if not sets:
        raise InputError(f"{path} has no gene sets.")
    return sets
