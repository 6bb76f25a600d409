"""Encoders without released weights, which are fitted on cells: reading the reference in passes, and a linear map as their network."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from scfm.cells import Data, Source, Values, check_values, close_all, open_sources
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder, Encoded, Network, Request
from scfm.errors import InputError
from scfm.genes import Vocabulary, feature_names
from scfm.tokenizers import Batch

__all__ = ["FittedEncoder", "LinearMap", "Reference", "largest_positive"]


@dataclass(frozen=True)
class Reference:
    """Cells to fit on, read block by block as often as needed.

    Parameters
    ----------
    sources
        One for each data set.
    features
        Names that all data sets share, in the order of the first (n_features,) object; of equal names the first counts.
    columns
        Of each source, where these features are (n_features,) int64.
    values
        What the matrices must hold.
    model
        Name for messages.
    """

    sources: list[Source]
    features: np.ndarray
    columns: list[np.ndarray]
    values: Values
    model: str

    @classmethod
    def of(cls, sources: list[Source], gene_column: str | None, values: Values, model: str) -> Reference:
        """The reference made of some sources."""
        at: list[dict[str, int]] = []
        for source in sources:
            names = feature_names(source.var, gene_column).tolist()
            at.append({name: i for i, name in reversed(list(enumerate(names)))})
        shared = set(at[0]).intersection(*at[1:])
        features = sorted(shared, key=at[0].__getitem__)
        columns = [np.array([own[name] for name in features], dtype=np.int64) for own in at]
        return cls(sources, np.array(features, dtype=object), columns, values, model)

    @property
    def cells(self) -> int:
        """How many there are."""
        return sum(source.shape[0] for source in self.sources)

    def blocks(self, features: np.ndarray | None = None) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        """Values of some of the features (n, n_chosen) float64 CSR, and the total of each cell over all features of its data (n,)."""
        for source, own in zip(self.sources, self.columns, strict=True):
            chosen = own if features is None else own[features]
            for rows in source.ranges():
                matrix = source.take(rows)
                check_values(matrix, self.values, source, rows, self.model)
                totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1)
                yield matrix[:, chosen].astype(np.float64), totals

    def require(self, components: int) -> None:
        """Refuse too few cells or features for so many components."""
        if min(self.cells, len(self.features)) < components:
            raise InputError(
                f"{self.cells} cells with {len(self.features)} features do not determine {components} components.",
                f"Pass scfm.load({self.model!r}, components=<fewer>).",
            )


class LinearMap(Network):
    """x . loadings - offset, from sparse values x."""

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        self.dim = components
        self.loadings = nn.Embedding(max(features, 1), components)
        self.offset = nn.Parameter(torch.zeros(components))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """Scores (b, components)."""
        values = batch["values"] if batch.pad is None else batch["values"].masked_fill(batch.pad, 0)
        weighted = self.loadings(batch["ids"]) * values.unsqueeze(-1)  # (b, t, components)
        return Encoded(cells=weighted.sum(dim=1) - self.offset, tokens=weighted if request.wants("tokens") else None)

    def set(self, loadings: np.ndarray, offset: np.ndarray | None = None) -> None:
        """Take loadings (n_features, components) and, where the features are centred, mean . loadings (components,)."""
        with torch.no_grad():
            self.loadings.weight.copy_(torch.from_numpy(loadings))
            if offset is not None:
                self.offset.copy_(torch.from_numpy(offset))


class FittedEncoder(CellEncoder):
    """An encoder that `fit` makes from cells; without, `embed` fits it on the data that it embeds.

    Its `Config` has a field `genes`, the number of features chosen; 0 is not fitted.
    """

    network: LinearMap
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS})
    gene_kinds = ("loadings",)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """An unfitted encoder."""
        assert checkpoint.card is not None
        nothing = Vocabulary((), ids="symbol", species=("any",))
        return cls.build(cls.Config(**checkpoint.options), nothing, checkpoint.card)

    @property
    def fitted(self) -> bool:
        """Whether the loadings are set."""
        return self.config.genes > 0

    def gene_vectors(self, kind: str) -> Tensor:
        """Loadings of the features (n_features, components)."""
        return self.network.loadings.weight

    def embed(self, data: Data, **options: Any) -> np.ndarray:
        """Embed cells; an encoder that is not fitted is fitted on `data` first. Arguments as for `CellEncoder.embed`.

        What is fitted on the data knows their features by their own names: `map_genes` then has nothing to do.
        """
        if self.fitted:
            return super().embed(data, **options)
        options.pop("map_genes", None)
        reading = {name: options[name] for name in ("layer", "gene_column", "values") if name in options}
        return self.fit(data, **reading).embed(data, **options)

    def fit(
        self, reference: Data, *, layer: str | None = None, gene_column: str | None = None, values: Values | None = None
    ) -> Self:
        """A new encoder fitted on reference cells.

        Parameters
        ----------
        reference, layer, gene_column, values
            As for `embed`. Of several data sets, the features they share are used.

        Returns
        -------
        FittedEncoder
            Of the same class. Components come in the order of falling variance; the sign of each makes its largest loading positive.

        Raises
        ------
        InputError
            There are fewer cells or features than components.
        """
        sources = open_sources(reference, layer)
        try:
            cells = Reference.of(sources, gene_column, values or self.card.input.values, self.name)
            fitted = self.fitted_on(cells)
            fitted.origin = {
                "source": "fitted on " + ", ".join(os.path.basename(source.label) for source in sources),
                "cells": str(cells.cells),
                **fitted.origin,
            }
            return fitted.to(self.device)
        finally:
            close_all(sources)

    @abstractmethod
    def fitted_on(self, reference: Reference) -> Self:
        """A new encoder with vocabulary and loadings from these cells; what it puts in `origin` is kept."""


def largest_positive(loadings: np.ndarray) -> np.ndarray:
    """The same components (n_features, n_components), each with the sign that makes its largest loading positive."""
    return loadings * np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(loadings.shape[1])])
