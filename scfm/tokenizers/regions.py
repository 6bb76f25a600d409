"""Ranked regions: open regions of a cell from the most to the least specific, by TF-IDF (EpiAgent, Chen et al. 2025).

    v = ln(1 + 10000 * (x / sum of the cell) / document frequency of the region)

Within a cell the order depends on x / df alone. The authors sort with an unstable algorithm; here equal values come in genome order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from scfm.cells import Block
from scfm.errors import InputError
from scfm.tokenizers.base import Tokens, batch_labels
from scfm.tokenizers.ranks import RankTokenizer

if TYPE_CHECKING:
    from scfm.tokenizers.base import _Stream

__all__ = ["RegionTokenizer", "tfidf"]


@dataclass(frozen=True)
class RegionTokenizer(RankTokenizer):
    """Open regions, most specific first, between ``[CLS]`` and ``[SEP]``.

    Parameters
    ----------
    scale
        Column of the vocabulary with the document frequency: the share of a corpus' cells in which a region is open.
    truncation
        Of cells with more open regions than fit: the "first" (most specific) ones, or "upstream": a random subset in rank order, drawn
        from numpy's legacy stream as the original does with `is_random=True`.
    batch_key
        Column of `obs` with the batch of each cell, for networks with batch labels.
    batches
        Names of the batches in the order of the network's labels.
    frequency_of
        What the document frequency was counted in, for provenance: the "checkpoint" brought it, or a description of data.
    """

    context: int = 8192
    prefix: tuple[str, ...] = ("cls",)
    suffix: tuple[str, ...] = ("sep",)
    scale: str | None = "document_frequency"
    truncation: Literal["first", "upstream"] = "first"
    batch_key: str | None = None
    batches: tuple[str, ...] = ()
    frequency_of: str = "checkpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncation not in ("first", "upstream"):
            raise InputError(f"truncation={self.truncation!r} is not known.", "Pass 'first' or 'upstream'.")

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        """Whether blocks must come in order."""
        return self.truncation == "upstream"

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The batch key, where one is set."""
        return () if self.batch_key is None else (self.batch_key,)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: field "ids" int32.

        Raises
        ------
        InputError
            The document frequency is not known.
        """
        if self.scale is not None and not np.isfinite(self.vocabulary.columns[self.scale]).any():
            raise InputError(
                "the document frequency of the regions is not known: the encoder was loaded with document_frequency='data'.",
                "Count it first: encoder = scfm.document_frequency.counted_in(encoder, adata).",
            )
        return replace(super().tokenize(block, seed), cells=batch_labels(block, self.batch_key, self.batches))

    def stream(self, seed: int = 0) -> _Stream:
        """A function block -> Tokens; with `truncation="upstream"` it continues the original's numpy stream from block to block."""
        if self.truncation == "first":
            return super().stream(seed)
        draws = np.random.RandomState(seed)
        whole = replace(self, truncation="first", context=len(self.vocabulary) + len(self.prefix) + len(self.suffix))
        return lambda block: self.sampled(whole.tokenize(block), draws)

    def sampled(self, tokens: Tokens, draws: np.random.RandomState) -> Tokens:
        """The original's subset of long cells: one `choice` a cell, in the order of the cells."""
        front, back = len(self.prefix), len(self.suffix)
        room = self.context - front - back
        kept = []
        for begin, length in zip(tokens.offsets[:-1].tolist(), tokens.lengths.tolist(), strict=True):
            inside = length - front - back
            places = np.arange(length)
            if inside > room:
                chosen = front + np.sort(draws.choice(inside, room, replace=False))
                places = np.concatenate([places[:front], chosen, places[length - back :]])
            kept.append(begin + places)
        lengths = np.array([len(places) for places in kept], dtype=np.int64)
        ids = tokens.fields["ids"][np.concatenate(kept)] if kept else tokens.fields["ids"]
        return replace(tokens, fields={"ids": ids}, offsets=np.concatenate([[0], np.cumsum(lengths)]))


def tfidf(matrix: sparse.csr_matrix, document_frequency: np.ndarray) -> sparse.csr_matrix:
    """ln(1 + 10000 * (x / row sum) / df) of the stored values, float64.

    Parameters
    ----------
    matrix
        (n_cells, n_regions) counts.
    document_frequency
        (n_regions,) in (0, 1].
    """
    values = sparse.csr_matrix(matrix, dtype=np.float64, copy=True)
    sums = np.asarray(values.sum(axis=1)).reshape(-1)
    scale = np.divide(1e4, sums, out=np.zeros_like(sums), where=sums > 0)
    values.data *= np.repeat(scale, np.diff(values.indptr))
    values.data = np.log1p(values.data / document_frequency[values.indices])
    return values
