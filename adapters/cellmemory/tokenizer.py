"""Genes of a reference with binned values, in the reference's order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, ordered_entries, ragged_positions
from scfm.tokenizers.hashing import cell_hash, mix32, token_hash
from scfm.tokenizers.quantiles import bin_ranges

__all__ = ["ReferenceTokenizer"]


@dataclass(frozen=True)
class ReferenceTokenizer(Tokenizer):
    """Genes with the bin of their value: fields "ids" and "bins".

    Parameters
    ----------
    vocabulary
        A stand-in for id 0, then the genes of the reference; in fast mode also "pad".
    mode
        "fast": expressed genes. "full": all genes of the reference, bin 0 where not expressed or not measured.
    bins
        Bins 1 .. bins of expressed genes (the authors' `max_bin`).
    binning
        "scale": by the quantiles of the cell's own values. "norm": the value rounded up, at most `bins`.
    context
        Most genes of a cell in fast mode; of longer cells a subset is drawn, from the cell's own content and the seed.
    pad_to
        In fast mode: padding as ordinary tokens behind every cell up to this many, which the original writes to the memory, counts and
        reads: it pads all cells to the longest of the data set. None: no padding.
    """

    vocabulary: Vocabulary
    mode: Literal["fast", "full"] = "fast"
    bins: int = 50
    binning: Literal["scale", "norm"] = "scale"
    context: int = 10_000
    pad_to: int | None = None
    equal_features: ClassVar[Literal["first"]] = "first"
    _gene_hash: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, known in (("mode", ("fast", "full")), ("binning", ("scale", "norm"))):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name}={value!r} is not known.", f"Pass {known[0]!r} or {known[1]!r}.")
        object.__setattr__(self, "_gene_hash", token_hash(len(self.vocabulary)))

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether a subset of the genes of long cells is drawn."""
        return self.mode == "fast" and len(self.vocabulary.genes) > self.context

    @property
    def hiding(self) -> Hiding:
        """The bin, as that of genes that are not expressed."""
        return Hiding("bins", 0)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {name: value for name, value in asdict(self).items() if name not in ("vocabulary", "_gene_hash")}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "bins" int64."""
        ids, values, offsets = ordered_entries(block)  # the reference's order, whatever that of the columns
        values = values.astype(np.float32, copy=False)
        expressed = np.diff(offsets)
        cell = np.repeat(np.arange(len(expressed)), expressed)
        bins = self._binned(values, offsets)
        if self.mode == "full":
            dense = np.zeros((len(expressed), len(self.vocabulary)), dtype=np.int64)
            dense[cell, ids] = bins
            genes = self.vocabulary.genes.astype(np.int32)
            width = len(genes)
            ids, bins = np.tile(genes, len(dense)), dense[:, genes].reshape(-1)
            return Tokens({"ids": ids, "bins": bins}, np.arange(len(dense) + 1, dtype=np.int64) * width, expressed)
        if (expressed > self.context).any():
            keep = self._subset(ids, values, offsets, seed)
            ids, bins = ids[keep], bins[keep]
            offsets = np.concatenate([[0], np.cumsum(np.minimum(expressed, self.context))])
        padding = {"ids": self.vocabulary.id("pad"), "bins": 0}
        tokens = Tokens({"ids": ids, "bins": bins}, offsets, expressed, padding)
        return tokens if self.pad_to is None else tokens.lengthened(self.pad_to)

    def _binned(self, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if self.binning == "norm":
            return np.minimum(np.ceil(values), self.bins).astype(np.int64)
        return bin_ranges(values, offsets, self.bins + 1)[0].astype(np.int64)

    def _subset(self, ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
        """Entries kept (n_entries,) bool: those with the lowest draws of each cell."""
        lengths = np.diff(offsets)
        genes = self._gene_hash[ids]
        draws = mix32(genes ^ np.repeat(cell_hash(genes, values, offsets, seed), lengths))
        order = np.lexsort((draws, np.repeat(np.arange(len(lengths)), lengths)))
        keep = np.ones(len(ids), dtype=bool)
        late = ragged_positions(offsets[:-1] + self.context, np.maximum(lengths - self.context, 0))
        keep[order[late]] = False
        return keep
