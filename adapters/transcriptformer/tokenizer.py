"""Tokens of TranscriptFormer: expressed genes in the order of the columns, each seen as the one that follows.

A cell is ``[START], t0, t1, ...``; the state at a position predicts the gene that comes next (field "targets") and its count
("target_counts"). Tokens of what `obs` says of the cell (the assay) stand before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Tokenizer, Tokens
from scfm.tokenizers.base import first_columns, known_entries, ragged_positions

UNKNOWN = "unknown"


@dataclass(frozen=True)
class CausalTokenizer(Tokenizer):
    """Expressed genes in the order of the columns, one position late.

    Parameters
    ----------
    vocabulary
        With the special tokens "pad" and "start", and one for each of `aux_columns` ("aux 0", ...).
    context
        Most tokens of a cell, those from `obs` included. Of cells with more genes, those of the last columns are cut.
    clip
        Larger counts are set to this.
    aux_columns
        Columns of `obs` that the tokens before the genes are read from; None: unknown for every cell, which hides the token.
    aux_names
        What the model knows of each column, in the order of its table; anything else is "unknown", which hides the token.
    fill
        Fill every cell with visible ``[PAD]`` tokens up to `context`, as the original does by mistake for species it was not trained on.
    """

    vocabulary: Vocabulary
    context: int = 2048
    equal_features: ClassVar[Literal["first"]] = "first"
    clip: float = 30.0
    aux_columns: tuple[str | None, ...] = ()
    aux_names: tuple[tuple[str, ...], ...] = ()
    fill: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "aux_names", tuple(tuple(names) for names in self.aux_names))
        if len(self.aux_columns) != len(self.aux_names):
            raise InputError(
                f"aux_columns={self.aux_columns!r} names {len(self.aux_columns)} columns; the model reads {len(self.aux_names)}.",
                "Pass None for those your obs does not have.",
            )
        if self.context <= len(self.aux_names):
            raise InputError(f"context={self.context} leaves no room for genes.")

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The columns of `obs` that are set."""
        return tuple(column for column in self.aux_columns if column is not None)

    @property
    def obs_values(self) -> Mapping[str, tuple[str, ...]]:
        """Names the model knows in each column; anything else is "unknown"."""
        pairs = zip(self.aux_columns, self.aux_names, strict=True)
        return {column: tuple(n for n in names if n != UNKNOWN) for column, names in pairs if column is not None}

    @property
    def obs_fix(self) -> str:
        """What to type where a column is missing."""
        known = [[name for name in names if name != UNKNOWN][:4] for names in self.aux_names]
        return (
            f"fill it with what the model knows ({'; '.join(', '.join(names) for names in known)}, ...), name other columns with "
            "with_options(aux_columns=(...,)), or pass None there to leave it unknown"
        )

    def settings(self) -> dict[str, object]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        own = asdict(self) | {
            "aux_columns": list(self.aux_columns),
            "aux_names": [list(names) for names in self.aux_names],
        }
        return {name: value for name, value in own.items() if name != "vocabulary"}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block.

        Fields "ids" int32 and "counts" float32 of what a position reads, "targets" int32 and "target_counts" float32 of what it predicts
        (``[PAD]`` and 0 where nothing); per cell "aux" (n_cells, n_aux) int64.
        """
        ids, values, offsets = known_entries(first_columns(block))
        n, n_aux = len(block), len(self.aux_names)
        room = self.context - n_aux
        expressed = np.diff(offsets)
        read = np.minimum(expressed, room - 1)  # genes that some position has seen
        predicted = np.minimum(expressed, room)
        lengths = np.full(n, self.context) if self.fill else n_aux + 1 + read
        place = np.concatenate([[0], np.cumsum(lengths)])
        pad = self.vocabulary.id("pad")
        counts = np.minimum(values, self.clip).astype(np.float32)
        fields = {
            "ids": np.full(place[-1], pad, dtype=np.int32),
            "counts": np.zeros(place[-1], dtype=np.float32),
            "targets": np.full(place[-1], pad, dtype=np.int32),
            "target_counts": np.zeros(place[-1], dtype=np.float32),
        }
        first = place[:-1] + n_aux  # [START]
        for i in range(n_aux):
            fields["ids"][place[:-1] + i] = self.vocabulary.id(f"aux {i}")
            fields["counts"][place[:-1] + i] = 1
        fields["ids"][first] = self.vocabulary.id("start")
        fields["counts"][first] = 1
        for names, begin, length in (
            (("ids", "counts"), first + 1, read),
            (("targets", "target_counts"), first, predicted),
        ):
            here, there = ragged_positions(begin, length), ragged_positions(offsets[:-1], length)
            fields[names[0]][here], fields[names[1]][here] = ids[there], counts[there]
        return Tokens(
            fields=fields,
            offsets=place,
            expressed=expressed,
            padding={"ids": pad, "targets": pad},
            cells={"aux": self._aux(block.obs, n)} if n_aux else {},
        )

    def _aux(self, obs: pd.DataFrame, n_cells: int) -> np.ndarray:
        """Ids of what `obs` says of each cell (n_cells, n_aux) int64."""
        columns = []
        for column, names in zip(self.aux_columns, self.aux_names, strict=True):
            unknown = names.index(UNKNOWN)
            if column is None:
                columns.append(np.full(n_cells, unknown))
            else:
                columns.append(_codes(obs[column], names, unknown))
        return np.stack(columns, axis=1)


def _codes(values: pd.Series, names: Sequence[str], unknown: int) -> np.ndarray:
    known = {name: i for i, name in enumerate(names)}
    return values.astype(str).map(known).fillna(unknown).to_numpy(dtype=np.int64)
