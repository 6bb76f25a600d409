"""scFoundation's input: log-normalised values of the expressed genes in the order of its list, then the read depths T and S.

With x the values of the listed genes and N their sum, both over one cell,

    counts    v = ln(1 + 1e4 x / N)    S = log10 N
    lognorm   v = x                    S = log10 N
    bulk      v = ln(1 + s x)          S = T = log10 of the sum of v
    bulk_log  v = x                    S = T = N

and T, the depth that is asked for, is a constant ("t4": 4), a multiple of the cell's ("f2": log10 2N) or an offset ("a1": log10 N + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import Hiding, append, by_value, ordered_entries, row_sums


@dataclass(frozen=True)
class DepthTokenizer(Tokenizer):
    """Expressed genes with log-normalised values, then the tokens T and S.

    Parameters
    ----------
    vocabulary
        Genes, then the special tokens "target" (T), "source" (S) and "pad".
    depth
        The depth asked for, in the authors' notation `tgthighres`: "t4", "f2", "a1", ...
    reads
        What the matrix holds: "counts", "lognorm" (the authors' `pre_normalized T`), "bulk" or "bulk_log".
    total_key
        Column of `obs` with each cell's total count, used as N with "lognorm" (the authors' `pre_normalized A`).
    target_sum
        With "bulk": each sample is scaled to this total before the logarithm. The authors take the median of the totals of all
        samples of a file; None scales nothing, which is their result for a file of one sample.
    context
        Not limited by default.
    """

    vocabulary: Vocabulary
    depth: str = "t4"
    reads: Literal["counts", "lognorm", "bulk", "bulk_log"] = "counts"
    total_key: str | None = None
    target_sum: float | None = None
    context: int = 1_000_000
    equal_features: ClassVar[Literal["first"]] = "first"

    def __post_init__(self) -> None:
        if self.reads not in ("counts", "lognorm", "bulk", "bulk_log"):
            raise InputError(f"reads={self.reads!r} is not known.", "Pass 'counts', 'lognorm', 'bulk' or 'bulk_log'.")
        try:
            number = float(self.depth[1:])
        except ValueError:
            number = -1
        if self.depth[:1] not in ("t", "f", "a") or number < 0:
            raise InputError(
                f"depth={self.depth!r} is not known.",
                "Pass 't4' (T = 4), 'f2' (twice the cell's depth) or 'a1' (ten times), with any number.",
            )
        if self.total_key is not None and self.reads != "lognorm":
            raise InputError(
                f"total_key={self.total_key!r} is used with reads='lognorm' only.", "Leave one of them out."
            )

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The column with total counts, where one is set."""
        return () if self.total_key is None else (self.total_key,)

    @property
    def hiding(self) -> Hiding:
        """The gene is taken out: the encoder never sees hidden genes."""
        return Hiding("values", None)

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        return {
            "depth": self.depth,
            "reads": self.reads,
            "total_key": self.total_key,
            "target_sum": self.target_sum,
            "context": self.context,
        }

    def priority(self, tokens: Tokens) -> np.ndarray:
        """Higher values matter more."""
        return by_value(tokens, self.vocabulary)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" int32 and "values" float32, T and S last."""
        ids, x, offsets = ordered_entries(block)
        expressed = np.diff(offsets)
        x = x.astype(np.float64)
        totals = row_sums(x, offsets)
        if self.total_key is not None:
            totals = block.obs[self.total_key].to_numpy(dtype=np.float64)
        values = self._values(x, totals, expressed)
        if self.reads.startswith("bulk"):
            source = row_sums(values, offsets)
            source = np.maximum(_log10(source) if self.reads == "bulk" else source, 0)
            depths = np.stack([source, source], axis=1)
        else:
            depths = np.maximum(np.stack([self._target(totals), _log10(totals)], axis=1), 0)
        special = [self.vocabulary.id("target"), self.vocabulary.id("source")]
        return Tokens(
            fields={
                "ids": append(ids, offsets, np.tile(np.array(special, np.int32), (len(block), 1))),
                "values": append(values.astype(np.float32), offsets, depths.astype(np.float32)),
            },
            offsets=offsets + 2 * np.arange(len(offsets)),
            expressed=expressed,
            padding={"ids": self.vocabulary.id("pad"), "values": 0.0},
        )

    def _values(self, x: np.ndarray, totals: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        if self.reads in ("lognorm", "bulk_log"):
            return x
        target = 1e4 if self.reads == "counts" else self.target_sum
        if target is not None:
            scale = np.divide(target, totals, out=np.ones_like(totals), where=totals > 0)
            x = x * np.repeat(scale, lengths)
        return np.log1p(x)

    def _target(self, totals: np.ndarray) -> np.ndarray:
        number = float(self.depth[1:])
        if self.depth[0] == "t":
            return np.full(len(totals), number)
        return _log10(totals * number) if self.depth[0] == "f" else _log10(totals) + number


def _log10(totals: np.ndarray) -> np.ndarray:
    """log10, but 0 for 0: such cells have no depth to state."""
    return np.log10(totals, out=np.zeros_like(totals), where=totals > 0)
