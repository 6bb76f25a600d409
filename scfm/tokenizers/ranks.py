"""Ranked expression: gene ids from the highest to the lowest value, each value divided by the gene's median over a large corpus.

The rank value encoding of Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9. The order of a cell's genes is all that a network sees;
scaling a cell to any total does not change it. Authors sort with unstable algorithms, so that genes with equal scores come in an order
that differs between machines. Here they come in the order of their token ids: a cell's tokens depend neither on the machine nor on the
order of the columns.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.genes import Vocabulary
from scfm.tokenizers.base import Hiding, Tokenizer, Tokens, known_entries

__all__ = ["RankTokenizer", "framed", "median_column", "ranked", "read_rank_table", "summed"]


@dataclass(frozen=True)
class RankTokenizer(Tokenizer):
    """Expressed genes, highest first.

    Parameters
    ----------
    vocabulary
        With the special tokens named in `prefix` and `suffix`, "pad", and the column named in `scale`.
    context
        Most tokens of a cell, special ones included; the genes ranked last are cut.
    prefix, suffix
        Roles of the special tokens before and behind the genes, e.g. ("cls",).
    scale
        Column of the vocabulary that values are divided by; None ranks the values themselves.
    duplicates
        Features that share a token: "sum" them, or "keep" a token for each.
    keep_values
        Also give the field "values" float32: the values as they were read, 0 at special tokens.
    """

    vocabulary: Vocabulary
    context: int = 2048
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    scale: str | None = "median"
    duplicates: Literal["sum", "keep"] = "sum"
    keep_values: bool = False

    def __post_init__(self) -> None:
        if self.duplicates not in ("sum", "keep"):
            raise InputError(f"duplicates={self.duplicates!r} is not known.", "Pass 'sum' or 'keep'.")
        if self.context <= len(self.prefix) + len(self.suffix):
            raise InputError(f"context={self.context} leaves no room for genes.")

    @property
    def hiding(self) -> Hiding:
        """The gene, as "mask", or as "pad" where the vocabulary has no mask."""
        return Hiding(
            "ids", self.vocabulary.id("mask" if "mask" in self.vocabulary.special else "pad"), len(self.vocabulary)
        )

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        own = asdict(self) | {"prefix": list(self.prefix), "suffix": list(self.suffix)}
        return {name: value for name, value in own.items() if name != "vocabulary"}

    def priority(self, tokens: Tokens) -> np.ndarray:
        """What stands first matters more."""
        place = np.arange(len(tokens.fields["ids"]), dtype=np.float64)
        special = np.isin(tokens.fields["ids"], list(self.vocabulary.special_ids))
        return np.where(special, np.inf, -place)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: field "ids" int32. A cell without known genes and special tokens gets one "pad", so that it has a state."""
        ids, values, offsets = known_entries(block)
        if self.duplicates == "sum" and block.alignment.report.duplicates:
            ids, values, offsets = summed(ids, values, offsets, len(self.vocabulary))
        before, after = self.before(block), self.after(block)
        room = self.context - before.shape[1] - after.shape[1]
        order, kept = self.order(self.scores(block, ids, values, offsets), ids, offsets, room)
        pad = self.vocabulary.id("pad")
        fields = {}
        fields["ids"], place = framed(ids[order], kept, before, after, pad, width=self.least)
        if self.keep_values:
            zero = np.zeros_like
            body = values[order].astype(np.float32)
            fields["values"] = framed(body, kept, zero(before), zero(after), 0, width=self.least)[0]
        return Tokens(fields=fields, offsets=place, expressed=np.diff(offsets), padding={"ids": pad, "values": 0.0})

    @property
    def equal_features(self) -> Literal["sum", "each"]:  # type: ignore[override]
        """What becomes of features that share a token."""
        return "sum" if self.duplicates == "sum" else "each"

    # What a model may do otherwise

    @property
    def least(self) -> int:
        """Least tokens of a cell; shorter ones are filled up with "pad"."""
        return 1

    def scores(self, block: Block, ids: np.ndarray, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """What genes are ranked by (n_entries,) float64, finite."""
        scores = values.astype(np.float64)
        return scores if self.scale is None else scores / self.vocabulary.columns[self.scale][ids]

    def order(
        self, scores: np.ndarray, ids: np.ndarray, offsets: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`ranked`, or another order of equal scores."""
        return ranked(scores, ids, offsets, most)

    def before(self, block: Block) -> np.ndarray:
        """Special tokens in front of the genes (n_cells, n) int32."""
        return self._special(self.prefix, len(block))

    def after(self, block: Block) -> np.ndarray:
        """Special tokens behind the genes (n_cells, n) int32."""
        return self._special(self.suffix, len(block))

    def _special(self, roles: tuple[str, ...], n_cells: int) -> np.ndarray:
        return np.tile(np.array([self.vocabulary.id(role) for role in roles], dtype=np.int32), (n_cells, 1))


def ranked(scores: np.ndarray, ids: np.ndarray, offsets: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Order the entries of every row by score, highest first; equal scores by id.

    Parameters
    ----------
    scores
        (n_entries,) finite.
    ids
        (n_entries,) token ids.
    offsets
        (n_rows + 1,) int64.
    most
        Entries kept of a row.

    Returns
    -------
    order
        (n_kept,) int64 positions in `scores`, rows behind one another.
    offsets
        (n_rows + 1,) int64 of `order`.
    """
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    bits = longest.bit_length()
    keys = _descending(scores)
    keys &= np.uint64((1 << 64) - (1 << bits))
    low, place = np.uint64((1 << bits) - 1), np.arange(longest, dtype=np.uint64)
    order, same = np.empty(len(scores), dtype=np.int64), np.zeros(len(scores), dtype=bool)
    bounds = offsets.tolist()
    for begin, end in itertools.pairwise(bounds):  # row by row: all of it stays in the processor's cache
        row = keys[begin:end]
        row |= place[: end - begin]
        row.sort()  # plain numbers: several times as fast as argsort
        np.less_equal(row[1:] ^ row[:-1], low, out=same[begin + 1 : end])
        np.bitwise_and(row, low, out=row)
        np.add(row.view(np.int64), begin, out=order[begin:end])
    _order_ties(order, same, scores, ids)
    kept = np.minimum(lengths, most)
    starts = np.concatenate([[0], np.cumsum(kept)])
    if starts[-1] < len(order):
        order = np.concatenate([order[at : at + n] for at, n in zip(bounds, kept.tolist(), strict=False)])
    return order, starts


def _descending(scores: np.ndarray) -> np.ndarray:
    """Unsigned numbers that rise where finite scores fall (n,) uint64: the bits of IEEE 754, turned over."""
    bits = (scores.astype(np.float64, copy=False) + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    if len(bits) and bits.min() < 0:  # the bits of negative scores rise where they fall
        bits ^= (bits >> np.int64(63)) & np.int64(2**63 - 1)
        bits ^= np.int64(-(2**63))
    return np.invert(bits, out=bits).view(np.uint64)


def _order_ties(order: np.ndarray, same: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> None:
    """Order sorted entries whose scores share their first bits, by score, then by id; in place.

    Parameters
    ----------
    same
        (n,) bool: an entry shares these bits with the one before it in its row.
    """
    behind = np.flatnonzero(same)
    before, after = order[behind - 1], order[behind]
    if not ((scores[before] < scores[after]) | ((scores[before] == scores[after]) & (ids[before] > ids[after]))).any():
        return
    tied = same.copy()
    tied[behind - 1] = True
    run = np.cumsum(~same)[tied]
    entries = order[tied]
    order[tied] = entries[np.lexsort((ids[entries], -scores[entries], run))]


def summed(
    ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, n_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One entry for each token of a row, with the sum of its values; ids, values and offsets again."""
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    distinct, where = np.unique(row * n_tokens + ids, return_inverse=True)
    totals = np.bincount(where, weights=values, minlength=len(distinct))
    counts = np.bincount(distinct // n_tokens, minlength=len(lengths))
    return (distinct % n_tokens).astype(np.int32), totals, np.concatenate([[0], np.cumsum(counts)])


def framed(
    body: np.ndarray, offsets: np.ndarray, before: np.ndarray, after: np.ndarray, fill: float, *, width: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Put special tokens around the rows of a ragged array.

    Parameters
    ----------
    body
        (n_entries,).
    offsets
        (n_rows + 1,) int64.
    before, after
        (n_rows, k) entries in front of and behind every row.
    fill
        What rows shorter than `width` are filled up with, at their end.
    width
        Least length of a row.

    Returns
    -------
    array, offsets
        The framed rows.
    """
    kept = np.diff(offsets)
    front, real = before.shape[1], before.shape[1] + kept + after.shape[1]
    place = np.concatenate([[0], np.cumsum(np.maximum(real, width))])
    out = np.full(place[-1], fill, dtype=body.dtype)
    begin = place[:-1]
    for at, start, end in zip((begin + front).tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        out[at : at + end - start] = body[start:end]  # slices: no array of positions
    out[begin[:, None] + np.arange(front)] = before
    out[(begin + front + kept)[:, None] + np.arange(after.shape[1])] = after
    return out, place


def read_rank_table(path: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Read a shipped table: a line a gene with its identifier, its median, and further names of it separated by "|".

    Returns
    -------
    medians
        Gene -> median, in the order of the table.
    aliases
        Further name -> gene.
    """
    medians: dict[str, float] = {}
    aliases: dict[str, str] = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines()[1:]:
        gene, median, names = line.split("\t")
        medians[gene] = float(median)
        aliases.update(dict.fromkeys(filter(None, names.split("|")), gene))
    return medians, aliases


def median_column(tokens: tuple[str, ...], medians: Mapping[str, float]) -> np.ndarray:
    """Medians by token id (n_tokens,) float64, NaN for tokens that are no genes."""
    return np.array([medians.get(token, np.nan) for token in tokens], dtype=np.float64)
