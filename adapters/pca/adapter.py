"""PCA (Pearson 1901) on highly variable genes, fitted in one pass over the data in constant memory.

Genes are ranked by normalised dispersion (Satija et al. 2015, doi:10.1038/nbt.3192, as in scanpy's flavor "seurat"); components are the
eigenvectors of their covariance matrix, which is accumulated block by block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from scfm.cards import ModelCard
from scfm.cells import Data, Source, Values, check_values, open_sources
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder, Encoded, Network, Request
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Batch, ContinuousTokenizer

_TARGET_SUM = 1e4
_DISPERSION_BINS = 20


@dataclass(frozen=True)
class PCAConfig:
    """Settings of the fit."""

    components: int = 50
    top_genes: int = 2000
    genes: int = 0  # how many were chosen; 0: not fitted


class PCANetwork(Network):
    """(x - mean) . loadings, from sparse values."""

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.dim = config.components
        self.loadings = nn.Embedding(max(config.genes, 1), config.components)
        self.offset = nn.Parameter(torch.zeros(config.components))  # mean . loadings

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """Scores (b, components)."""
        values = batch["values"] if batch.pad is None else batch["values"].masked_fill(batch.pad, 0)
        weighted = self.loadings(batch["ids"]) * values.unsqueeze(-1)  # (b, t, components)
        return Encoded(cells=weighted.sum(dim=1) - self.offset, tokens=weighted if request.wants("tokens") else None)


class PCA(CellEncoder):
    """Principal components of log-normalised highly variable genes.

    Load options
    ------------
    components, top_genes
        How many; 50 and 2,000 by default.
    """

    network: PCANetwork
    Config = PCAConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS})
    gene_kinds = ("loadings",)
    load_options = frozenset({"components", "top_genes"})

    @classmethod
    def build(cls, config: PCAConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh loadings."""
        return cls(
            config=config,
            network=PCANetwork(config),
            tokenizer=ContinuousTokenizer(vocabulary, target_sum=_TARGET_SUM),
            card=card,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """An unfitted encoder."""
        assert checkpoint.card is not None
        return cls.build(
            PCAConfig(**checkpoint.options), Vocabulary((), ids="symbol", species=("any",)), checkpoint.card
        )

    @property
    def fitted(self) -> bool:
        """Whether the components are set."""
        return self.config.genes > 0

    def gene_vectors(self, kind: str) -> Tensor:
        """Loadings of the genes (n_genes, components)."""
        return self.network.loadings.weight

    def embed(self, data: Data, **options: Any) -> np.ndarray:
        """Embed cells; an encoder that is not fitted is fitted on `data` first. Arguments as for `CellEncoder.embed`."""
        if self.fitted:
            return super().embed(data, **options)
        reading = {name: options[name] for name in ("layer", "gene_column", "values") if name in options}
        return self.fit(data, **reading).embed(data, **options)

    def fit(
        self, reference: Data, *, layer: str | None = None, gene_column: str | None = None, values: Values | None = None
    ) -> Self:
        """A new encoder fitted on reference cells.

        Parameters
        ----------
        reference, layer, gene_column, values
            As for `embed`. Of several data sets, the genes they share are used.

        Returns
        -------
        PCA
            Components in order of falling variance; the sign of each makes its largest loading positive.

        Raises
        ------
        InputError
            There are fewer cells or genes than components.
        """
        sources = open_sources(reference, layer)
        try:
            return self._fit(sources, gene_column, values or self.card.input.values)
        finally:
            for source in sources:
                source.close()

    def _fit(self, sources: list[Source], gene_column: str | None, values: Values) -> Self:
        names = [_names(source, gene_column) for source in sources]
        common = (
            sorted(set(names[0]).intersection(*names[1:]), key=list(names[0]).index)
            if len(names) > 1
            else list(dict.fromkeys(names[0]))
        )
        columns = [{name: i for i, name in reversed(list(enumerate(own)))} for own in names]
        chosen = [np.array([column[name] for name in common]) for column in columns]
        cells = sum(source.shape[0] for source in sources)
        k = self.config.components
        if min(cells, len(common)) < k:
            raise InputError(
                f"{cells} cells with {len(common)} genes do not determine {k} components.",
                "Pass scfm.load('pca', components=<fewer>).",
            )
        total, squares = np.zeros(len(common)), np.zeros(len(common))
        for block in self._blocks(sources, chosen, values, log1p=False):
            total += np.asarray(block.sum(axis=0)).reshape(-1)
            squares += np.asarray(block.multiply(block).sum(axis=0)).reshape(-1)
        top = top_dispersed(
            total / cells, (squares / cells - (total / cells) ** 2) * cells / (cells - 1), self.config.top_genes
        )
        k = min(k, len(top))
        mean, gram = np.zeros(len(top)), np.zeros((len(top), len(top)))
        for block in self._blocks(sources, [columns[top] for columns in chosen], values, log1p=True):
            mean += np.asarray(block.sum(axis=0)).reshape(-1) / cells
            gram += (block.T @ block).toarray()
        covariance = gram / cells - np.outer(mean, mean)
        loadings = np.linalg.eigh(covariance)[1][:, ::-1][:, :k]
        loadings = loadings * np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(k)])
        vocabulary = Vocabulary(tuple(common[i] for i in top), ids="symbol", species=("any",))
        fitted = self.build(replace(self.config, components=k, genes=len(top)), vocabulary, self.card)
        with torch.no_grad():
            fitted.network.loadings.weight.copy_(torch.from_numpy(loadings))
            fitted.network.offset.copy_(torch.from_numpy(mean @ loadings))
        fitted.origin = {
            "source": "fitted on " + ", ".join(os.path.basename(source.label) for source in sources),
            "cells": str(cells),
        }
        return fitted.to(self.device)

    def _blocks(
        self, sources: list[Source], columns: list[np.ndarray], values: Values, *, log1p: bool
    ) -> Iterator[sparse.csr_matrix]:
        """Counts per 10,000 of some columns, block by block."""
        for source, own in zip(sources, columns, strict=True):
            for rows in source.ranges():
                matrix = source.take(rows)
                check_values(matrix, values, source, rows, self.name)
                totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1)
                scale = np.divide(_TARGET_SUM, totals, out=np.ones_like(totals), where=totals > 0)
                scaled = sparse.diags(scale) @ matrix[:, own].astype(np.float64)
                yield scaled.log1p() if log1p else scaled


def _names(source: Source, gene_column: str | None) -> np.ndarray:
    if gene_column in (None, "index"):
        return source.var.index.astype(str).to_numpy(dtype=object)
    if gene_column not in source.var.columns:
        raise InputError(
            f"gene_column={gene_column!r} is not in adata.var.", "Leave gene_column out to read var_names."
        )
    return source.var[gene_column].astype(str).to_numpy(dtype=object)


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
