"""Expressed genes with their values as they are, in the order of the columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import GeneMatchError, InputError, listing
from scfm.genes import Alignment
from scfm.tokenizers import ContinuousTokenizer, Tokens

__all__ = ["PatchTokenizer"]


@dataclass(frozen=True)
class PatchTokenizer(ContinuousTokenizer):
    """Genes with their values, neither scaled nor transformed.

    Parameters
    ----------
    clip
        Largest value; None for no limit. The authors fine-tune with 5.
    whole
        Cut values to whole numbers (the authors' `long`); a small value becomes 0 and stays a token.
    unknown
        "drop" features that are not in the vocabulary; "upstream": give them the next free ids in the order of the columns, whose
        vectors were never trained.
    rows
        Rows of the gene table, which limit the free ids.
    padding
        "masked", or "upstream": cells are padded to the longest of their batch of `group_size` cells with a gene 0 of value 0 that is
        attended to, so that a cell depends on its batch.
    group_size
        Cells in a batch of the original, for `padding="upstream"`; None: all.
    targets
        Genes to predict (output "expression"), in this order; none: each cell's own.
    """

    target_sum: float | None = None
    log1p: bool = False
    clip: float | None = None
    whole: bool = False
    unknown: Literal["drop", "upstream"] = "drop"
    rows: int = 70_000
    padding: Literal["masked", "upstream"] = "masked"
    group_size: int | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("unknown", ("drop", "upstream")), ("padding", ("masked", "upstream"))):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name}={value!r} is not known.", f"Pass {known[0]!r} or {known[1]!r}.")

    @property
    def grouped(self) -> bool:
        """Whether cells see how long the others of their batch are."""
        return self.padding == "upstream"

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        own = ("clip", "whole", "unknown", "rows", "padding", "group_size")
        return {**super().settings(), **{name: getattr(self, name) for name in own}, "targets": list(self.targets)}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" and "values"; with targets, their ids for each cell."""
        if self.unknown == "upstream":
            block = replace(block, alignment=self._extended(block.alignment))
        tokens = super().tokenize(block, seed)
        values = tokens.fields["values"]
        if self.clip is not None:
            values = np.minimum(values, np.float32(self.clip))
        fields = {"ids": tokens.fields["ids"], "values": np.trunc(values) if self.whole else values}
        cells = {"targets": np.tile(self._targets(block.alignment), (len(tokens), 1))} if self.targets else {}
        tokens = replace(tokens, fields=fields, cells=cells)
        return tokens.lengthened(int(tokens.lengths.max(initial=0))) if self.grouped else tokens

    def _extended(self, alignment: Alignment) -> Alignment:
        ids = alignment.tokens.copy()
        free = np.flatnonzero(ids < 0)
        ids[free] = len(self.vocabulary) + np.arange(len(free))
        if len(free) and ids[free[-1]] >= self.rows:
            raise InputError(
                f"{len(free)} features are unknown; the gene table has {self.rows - len(self.vocabulary)} free rows.",
                "Pass unknown='drop'.",
            )
        return replace(alignment, tokens=ids)

    def _targets(self, alignment: Alignment) -> np.ndarray:
        """Ids of the targets (n_targets,) int64: of the vocabulary or, with free ids, of the data."""
        ids = self.vocabulary.lookup(self.targets)
        own = {
            name: token for name, token in zip(alignment.names, alignment.tokens.tolist(), strict=True) if token >= 0
        }
        ids = np.array([own.get(name, -1) if i < 0 else i for name, i in zip(self.targets, ids, strict=True)], np.int64)
        if (ids < 0).any():
            missing = [name for name, i in zip(self.targets, ids, strict=True) if i < 0]
            raise GeneMatchError(f"{len(missing)} of {len(ids)} targets are unknown to the model: {listing(missing)}.")
        return ids
