"""What is done to a cell before an encoder sees it: to its values, or to its ranked list of genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import sparse

from scfm.cells import Block
from scfm.encoder import CellEncoder
from scfm.tokenizers.base import Tokenizer, Tokens
from scfm.tokenizers.ranks import RankTokenizer

__all__ = [
    "CHANGE",
    "FACTORS",
    "KINDS",
    "ORIGINAL",
    "Change",
    "ChangedTokenizer",
    "Kind",
    "Level",
    "changed_ranks",
    "changed_values",
    "level_of",
]

Kind = Literal["knock-out", "knock-down", "over-express", "activate"]
Level = Literal["values", "ranks"]
KINDS: tuple[Kind, ...] = ("knock-out", "knock-down", "over-express", "activate")
FACTORS: Mapping[str, float] = {"knock-out": 0.0, "knock-down": 0.5, "over-express": 2.0, "activate": 1.0}
"""What values are multiplied by if nothing is said."""
CHANGE = "scfm in silico change"
"""Column of obs that tells the tokenizer what to do to a row: the position of its change, or `ORIGINAL`."""
ORIGINAL = -1


@dataclass(frozen=True)
class Change:
    """A perturbation of one gene or several at once.

    Parameters
    ----------
    genes
        Token ids.
    kind
        "knock-out": 0. "knock-down", "over-express": values times `factor`. "activate": `factor` times the cell's highest value,
        also in cells that lack the gene; the front of a ranked list.
    factor
        Unused for "knock-out".
    """

    genes: tuple[int, ...]
    kind: Kind = "knock-out"
    factor: float = 1.0

    @property
    def needs_expression(self) -> bool:
        """Whether only cells that express all of the genes are changed."""
        return self.kind != "activate"


def level_of(encoder: CellEncoder, kind: Kind) -> Level:
    """Where a change is made: in the ranked list, where the tokenizer has one and the kind is of it, else in the values."""
    tokenizer = encoder.tokenizer
    listed = isinstance(tokenizer, RankTokenizer) and tokenizer.least == 1
    return "ranks" if listed and kind in ("knock-out", "activate") else "values"


@dataclass(frozen=True)
class ChangedTokenizer(Tokenizer):
    """Another tokenizer, before or behind which a row's change is made."""

    inner: Tokenizer
    changes: tuple[Change, ...]
    level: Level

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def vocabulary(self) -> Any:  # type: ignore[override]
        return self.inner.vocabulary

    @property
    def context(self) -> int:  # type: ignore[override]
        return self.inner.context

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.inner.sequential

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()

    def stream(self, seed: int = 0) -> Any:
        tokenize = self.inner.stream(seed)

        def changed(block: Block) -> Tokens:
            rows = block.obs[CHANGE].to_numpy()
            if self.level == "values":
                matrix = changed_values(block.matrix, block.alignment.tokens, rows, self.changes)
                return tokenize(replace(block, matrix=matrix, origin=block.matrix))
            assert isinstance(self.inner, RankTokenizer)
            frame = (self.inner.before(block).shape[1], self.inner.after(block).shape[1])
            pad = self.vocabulary.id("pad")
            return changed_ranks(tokenize(block), rows, self.changes, frame, self.context, pad)

        return changed

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        made: Tokens = self.stream(seed)(block)
        return made


def changed_values(
    matrix: sparse.csr_matrix, tokens: np.ndarray, rows: np.ndarray, changes: Sequence[Change]
) -> sparse.csr_matrix:
    """Values with each row's change.

    Parameters
    ----------
    matrix
        (n_rows, n_features) CSR.
    tokens
        (n_features,) token id of every column.
    rows
        (n_rows,) position of the row's change, -1 for none.
    changes
        What may be done.
    """
    at, columns, by = [], [], []
    highest = matrix.max(axis=1).toarray().reshape(-1) if matrix.nnz else np.zeros(matrix.shape[0])
    for number in np.unique(rows[rows >= 0]):
        change = changes[number]
        mine = np.flatnonzero(rows == number)
        for gene in change.genes:
            here = np.flatnonzero(tokens == gene)
            if change.kind == "activate":
                here = here[:1]
            old = matrix[mine][:, here].toarray().astype(np.float64)
            if change.kind == "activate":
                new = np.maximum(old, change.factor * highest[mine, None])
            else:
                new = old * (0.0 if change.kind == "knock-out" else change.factor)
            at.append(np.repeat(mine, len(here)))
            columns.append(np.tile(here, len(mine)))
            by.append((new - old).reshape(-1))
    if not at:
        return matrix
    difference = sparse.csr_matrix(
        (np.concatenate(by), (np.concatenate(at), np.concatenate(columns))), shape=matrix.shape
    )
    made = sparse.csr_matrix(matrix + difference.astype(matrix.dtype))
    made.eliminate_zeros()
    made.sort_indices()
    return made


def changed_ranks(
    tokens: Tokens, rows: np.ndarray, changes: Sequence[Change], frame: tuple[int, int], context: int, pad: int
) -> Tokens:
    """Ranked lists with each row's genes deleted, or moved to the front in the order given.

    Parameters
    ----------
    tokens
        With the field "ids".
    rows, changes
        As for `changed_values`; kinds "knock-out" and "activate".
    frame
        Numbers of special tokens before and behind the genes, which stay where they are.
    context
        Most tokens of a row; genes at the end are cut.
    pad
        Id of the one token of a row that has none left.
    """
    ids, lengths = tokens.fields["ids"], tokens.lengths
    row = np.repeat(np.arange(len(rows)), lengths)
    place = np.arange(len(ids)) - np.repeat(tokens.offsets[:-1], lengths)
    rank = (
        np.ones(len(ids), dtype=np.int64) * 2
    )  # of genes; 0 special tokens before, 1 genes moved to the front, 3 those behind
    rank[place < frame[0]] = 0
    rank[place >= np.repeat(lengths, lengths) - frame[1]] = 3
    kept = np.ones(len(ids), dtype=bool)
    added: list[tuple[int, int, int]] = []  # row, place, id
    for at in np.flatnonzero(rows >= 0):
        change = changes[rows[at]]
        cell = slice(tokens.offsets[at], tokens.offsets[at + 1])
        kept[cell] &= ~(np.isin(ids[cell], change.genes) & (rank[cell] == 2))
        if change.kind == "activate":
            added += [(int(at), j, gene) for j, gene in enumerate(change.genes)]
    more = np.array(added, dtype=np.int64).reshape(-1, 3)
    row = np.concatenate([row[kept], more[:, 0]])
    place = np.concatenate([place[kept], more[:, 1]])
    rank = np.concatenate([rank[kept], np.ones(len(more), np.int64)])
    value = np.concatenate([ids[kept], more[:, 2].astype(ids.dtype)])
    order = np.lexsort((place, rank, row))
    row, rank, value = row[order], rank[order], value[order]
    count = np.bincount(row, minlength=len(rows))
    inside = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    fits = (inside < context - frame[1]) | (rank == 3)
    row, value = row[fits], value[fits]
    count = np.bincount(row, minlength=len(rows))
    if len(bare := np.flatnonzero(count == 0)):
        value, count[bare] = np.insert(value, np.searchsorted(row, bare), pad), 1
    return Tokens(
        fields={"ids": value},
        offsets=np.concatenate([[0], np.cumsum(count)]),
        expressed=tokens.expressed,
        padding=tokens.padding,
        cells=tokens.cells,
    )
