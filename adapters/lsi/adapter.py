"""Latent semantic indexing (Deerwester et al. 1990; of single cells, Cusanovich et al. 2015, doi:10.1126/science.aab1601).

    x = ln(1 + 10000 * (count / counts of the cell) / share of cells in which the peak is open)

(Stuart et al. 2019, doi:10.1016/j.cell.2019.05.031, method 1 of Signac's RunTFIDF) and the right singular vectors of that matrix, not
centred. It is factorised where it lies: block subspace iteration (Halko et al. 2011, doi:10.1137/090771806, algorithm 4.4) needs products
with blocks of rows only, so that memory is that of `components` + 50 vectors over the peaks, whatever the number of cells. A Gram matrix
over 10^5 peaks would not fit, and svds or TruncatedSVD hold all cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import sparse

from scfm.cards import ModelCard
from scfm.errors import InputError
from scfm.fitted import FittedEncoder, LinearMap, Reference, largest_positive
from scfm.genes import Vocabulary
from scfm.regions import Regions
from scfm.tokenizers import ContinuousTokenizer
from scfm.tokenizers.regions import tfidf

_OVERSAMPLING = 50
_MOST_PASSES = 30
_TOLERANCE = 1e-4  # relative change of the weakest singular value


@dataclass(frozen=True)
class LSIConfig:
    """Settings of the fit."""

    components: int = 50
    drop_first: bool = True  # the first singular vector follows sequencing depth
    seed: int = 0  # of the first guess; the result depends on it within the tolerance
    genes: int = 0  # peaks open in at least one cell; 0: not fitted


class LSI(FittedEncoder):
    """TF-IDF and truncated SVD of peaks, of any peak set.

    Load options
    ------------
    components
        How many are given; 50 by default.
    drop_first
        Leave out the first singular vector, which follows sequencing depth, and give the `components` behind it (True by default).
        `origin` of the fitted encoder states its correlation with log10 depth in the reference.
    seed
        Of the random start of the iteration.
    """

    Config = LSIConfig
    load_options = frozenset({"components", "drop_first", "seed"})

    @classmethod
    def build(cls, config: LSIConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh loadings."""
        return cls(
            config=config,
            network=LinearMap(config.genes, config.components),
            tokenizer=ContinuousTokenizer(vocabulary, target_sum=1e4, total="known", scale="document_frequency"),
            card=card,
        )

    def fitted_on(self, reference: Reference) -> Self:
        """Document frequencies in one pass, singular vectors in a few more."""
        c = self.config
        skipped = int(c.drop_first)
        reference.require(c.components + skipped)
        opened = np.zeros(len(reference.features))
        for block, _ in reference.blocks():
            opened += block.getnnz(axis=0)
        peaks = np.flatnonzero(opened)
        if len(peaks) < c.components + skipped:
            raise InputError(
                f"{len(peaks)} features are open in any cell; {c.components + skipped} components are asked for.",
                f"Pass scfm.load({self.name!r}, components=<fewer>).",
            )
        frequency = opened[peaks] / reference.cells
        space = _Subspace(reference, peaks, frequency)
        vectors = largest_positive(space.vectors(c.components + skipped, c.seed))
        names = tuple(reference.features[peaks])
        regions, rows = Regions.among(np.array(names, dtype=object))
        located = len(rows) == len(names)  # spelled in one way, so that another spelling of the same peaks is found
        vocabulary = Vocabulary(
            tuple(regions.names) if located else names,
            ids="region" if located else "symbol",
            species=("any",),
            columns={"document_frequency": frequency},
        )
        fitted = self.build(replace(c, genes=len(peaks)), vocabulary, self.card)
        fitted.network.set(vectors[:, skipped:])
        kept = "dropped" if c.drop_first else "kept"
        depth = space.depth_correlation(vectors[:, 0])
        fitted.origin = {"first_component": f"{kept}; its correlation with log10 depth is {depth:.3f}"}
        return fitted


@dataclass(frozen=True)
class _Subspace:
    """Leading right singular vectors of the TF-IDF matrix A, by products A'(A Q) that are summed over blocks of cells."""

    reference: Reference
    peaks: np.ndarray
    frequency: np.ndarray

    def blocks(self) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        """Blocks of A, and the counts of their cells."""
        for block, _ in self.reference.blocks(self.peaks):
            yield tfidf(block, self.frequency), np.asarray(block.sum(axis=1)).reshape(-1)

    def vectors(self, count: int, seed: int) -> np.ndarray:
        """(n_peaks, count), the strongest first."""
        width = min(count + _OVERSAMPLING, len(self.peaks))
        basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(self.peaks), width)))[0]
        weakest = 0.0
        for _ in range(_MOST_PASSES):
            product, gram = np.zeros_like(basis), np.zeros((width, width))
            for block, _ in self.blocks():
                scores = block @ basis  # (n, width)
                product += block.T @ scores
                gram += scores.T @ scores
            squared, rotation = np.linalg.eigh(gram)  # Rayleigh-Ritz: A'A within the basis
            found = basis @ rotation[:, ::-1][:, :count]
            value = float(squared[::-1][count - 1]) ** 0.5 if squared[::-1][count - 1] > 0 else 0.0
            if abs(value - weakest) <= _TOLERANCE * value:
                break
            weakest = value
            basis = np.linalg.qr(product @ rotation[:, ::-1])[0]
        return found

    def depth_correlation(self, vector: np.ndarray) -> float:
        """Pearson correlation of a component's scores with log10 of the counts of the cells; cells without any are left out."""
        scores, depth = [], []
        for block, totals in self.blocks():
            full = totals > 0
            scores.append((block @ vector)[full])
            depth.append(np.log10(totals[full]))
        both = np.concatenate(scores), np.concatenate(depth)
        return float(np.corrcoef(*both)[0, 1]) if min(part.std() for part in both) > 0 else float("nan")
