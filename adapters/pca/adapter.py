"""PCA (Pearson 1901) on highly variable genes, fitted in one pass over the data in constant memory.

Genes are ranked by normalised dispersion (Satija et al. 2015, doi:10.1038/nbt.3192, as in scanpy's flavor "seurat"); components are the
eigenvectors of their covariance matrix, which is accumulated block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import sparse

from scfm.cards import ModelCard
from scfm.fitted import FittedEncoder, LinearMap, Reference, largest_positive
from scfm.genes import Vocabulary
from scfm.tokenizers import ContinuousTokenizer

_TARGET_SUM = 1e4
_DISPERSION_BINS = 20


@dataclass(frozen=True)
class PCAConfig:
    """Settings of the fit."""

    components: int = 50
    top_genes: int = 2000
    genes: int = 0  # how many were chosen; 0: not fitted


class PCA(FittedEncoder):
    """Principal components of log-normalised highly variable genes.

    Load options
    ------------
    components, top_genes
        How many; 50 and 2,000 by default.
    """

    Config = PCAConfig
    load_options = frozenset({"components", "top_genes"})

    @classmethod
    def build(cls, config: PCAConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh loadings."""
        return cls(
            config=config,
            network=LinearMap(config.genes, config.components),
            tokenizer=ContinuousTokenizer(vocabulary, target_sum=_TARGET_SUM),
            card=card,
        )

    def fitted_on(self, reference: Reference) -> Self:
        """Eigenvectors of the covariance of the most dispersed genes, in two passes."""
        cells, n = reference.cells, len(reference.features)
        reference.require(self.config.components)
        total, squares = np.zeros(n), np.zeros(n)
        for block in _scaled(reference):
            total += np.asarray(block.sum(axis=0)).reshape(-1)
            squares += np.asarray(block.multiply(block).sum(axis=0)).reshape(-1)
        variance = (squares / cells - (total / cells) ** 2) * cells / (cells - 1)
        top = top_dispersed(total / cells, variance, self.config.top_genes)
        k = min(self.config.components, len(top))
        mean, gram = np.zeros(len(top)), np.zeros((len(top), len(top)))
        for block in _scaled(reference, top):
            logged = block.log1p()
            mean += np.asarray(logged.sum(axis=0)).reshape(-1) / cells
            gram += (logged.T @ logged).toarray()
        covariance = gram / cells - np.outer(mean, mean)
        loadings = largest_positive(np.linalg.eigh(covariance)[1][:, ::-1][:, :k])
        vocabulary = Vocabulary(tuple(reference.features[top]), ids="symbol", species=("any",))
        fitted = self.build(replace(self.config, components=k, genes=len(top)), vocabulary, self.card)
        fitted.network.set(loadings, mean @ loadings)
        return fitted


def _scaled(reference: Reference, genes: np.ndarray | None = None) -> Iterator[sparse.csr_matrix]:
    """Counts per 10,000 of some genes, block by block."""
    for block, totals in reference.blocks(genes):
        scale = np.divide(_TARGET_SUM, totals, out=np.ones_like(totals), where=totals > 0)
        yield sparse.diags(scale) @ block


def top_dispersed(mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    """Genes with the largest normalised dispersion.

    dispersion = log(variance / mean) of counts per 10,000, standardised among genes of similar log1p(mean): 20 bins of equal width;
    a bin with one gene takes its mean as its deviation (Satija et al. 2015).

    Parameters
    ----------
    mean, variance
        (n_genes,) of counts per 10,000, variance with n - 1.
    count
        How many genes at most.

    Returns
    -------
    np.ndarray
        Positions of the genes, ascending; genes never expressed are left out.
    """
    import pandas as pd

    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(np.where((mean > 0) & (variance > 0), variance / mean, np.nan))
    frame = pd.DataFrame({"mean": np.log1p(mean), "dispersion": dispersion})
    groups = frame.groupby(pd.cut(frame["mean"], bins=_DISPERSION_BINS), observed=True)["dispersion"]
    centre, spread = groups.transform("mean"), groups.transform("std")
    alone = spread.isna()
    spread, centre = spread.where(~alone, centre), centre.where(~alone, 0.0)
    score = ((frame["dispersion"] - centre) / spread).to_numpy()
    usable = np.flatnonzero(np.isfinite(score))
    return np.sort(usable[np.argsort(-score[usable], kind="stable")[:count]])
