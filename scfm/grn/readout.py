"""Relations between genes read from an encoder's attention, streamed: memory grows with the chosen genes, never with the cells.

A relation is a matrix whose rows are queries (the gene that is influenced, the target) and whose columns are keys (the gene that
influences, the regulator). Three recipes:

- "attention": the attention probabilities, averaged over layers, heads and the cells in which both genes have tokens.
- "attention_rank": scGPT's attention tutorial. The raw q·k of a layer (no scaling, no softmax) is replaced by its ranks along rows, then
  by the ranks of those along columns, each divided by the number of tokens; averaged over heads and cells. The tutorial leaves the first
  cell of each condition out of the sum but not out of the divisor; here every cell counts.
- "attention_qk": as scPRINT does. Queries and keys of a gene are averaged over the cells first, then softmax(Q Kᵀ / sqrt(d_head)) over the
  chosen genes gives one matrix a layer and head; averaged over these.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from scfm.encoder import Capability, CellEncoder, Encoded, Request
from scfm.engine import Run
from scfm.errors import InputError, listing
from scfm.grn.capture import QueriesKeys, queries_and_keys
from scfm.inference import encode

if TYPE_CHECKING:
    from scfm.reading import Reading
    from scfm.tokenizers.base import Tokens

__all__ = ["RECIPES", "Labels", "Readout", "read_out"]

Recipe = Literal["attention", "attention_rank", "attention_qk"]
RECIPES: tuple[Recipe, ...] = ("attention", "attention_rank", "attention_qk")
MOST_BYTES = 6 * 2**30
"""Larger accumulators are refused."""


@dataclass(frozen=True)
class Labels:
    """Classes of cells to read apart, and shuffled labels for a null.

    Parameters
    ----------
    classes
        (n_cells,) int64: the class of each cell. With `shuffled`, 0 is control and 1 is perturbed.
    shuffled
        (permutations, n_cells) bool: cells that are called perturbed in each permutation.
    regulators
        (n_regulators,) positions among the chosen genes: only their relations are kept for every permutation.
    """

    classes: np.ndarray
    shuffled: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    regulators: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def count(self) -> int:
        """Number of classes."""
        return int(self.classes.max(initial=0)) + 1


@dataclass(frozen=True)
class Readout:
    """Relations between the chosen genes.

    Parameters
    ----------
    relations
        (n_classes, n_genes, n_genes) float64: rows are queries (targets), columns keys (regulators); NaN where two genes never met.
    shuffled
        (permutations, 2, n_regulators, n_genes) float32: perturbed - control under shuffled labels, first with the regulator as key, then
        as query.
    nbytes
        Size of the accumulators.
    """

    relations: np.ndarray
    shuffled: np.ndarray
    nbytes: int


class _Accumulator(ABC):
    """Sums over cells; `add` is called by several threads."""

    labels: Labels
    nbytes: int

    def __init__(self) -> None:
        self.lock = threading.Lock()

    @abstractmethod
    def add(self, cell: int, at: np.ndarray, values: np.ndarray) -> None:
        """One cell's values for the chosen genes at these positions."""

    @abstractmethod
    def result(self) -> Readout:
        """What the sums say."""

    def allocate(self, *shapes: tuple[tuple[int, ...], Any]) -> list[np.ndarray]:
        """Zeros of these shapes and dtypes, if they fit."""
        self.nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes)
        if self.nbytes > MOST_BYTES:
            raise InputError(
                f"the sums for these genes and permutations take {self.nbytes / 2**30:.1f} GiB; at most "
                f"{MOST_BYTES / 2**30:.0f} are used.",
                "Pass fewer genes=, permutations= or layers=.",
            )
        return [np.zeros(shape, dtype) for shape, dtype in shapes]


class _Pairs(_Accumulator):
    """Mean of a relation over the cells in which both genes have tokens."""

    def __init__(self, n: int, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        p, r = len(labels.shuffled), len(labels.regulators)
        self.sums, self.met, self.shuffled, self.shuffled_met = self.allocate(
            ((labels.count, n, n), np.float64),
            ((labels.count, n, n), np.int32),
            ((p, 2, r, n), np.float32),
            ((p, r, n), np.float32),
        )

    def add(self, cell: int, at: np.ndarray, values: np.ndarray) -> None:
        """A relation (t, t) of the tokens of genes `at` (t,)."""
        c = self.labels.classes[cell]
        square = np.ix_(at, at)
        if len(np.unique(at)) == len(at):
            self.sums[c][square] += values
            self.met[c][square] += 1
        else:  # a gene with several tokens
            np.add.at(self.sums[c], square, values)
            np.add.at(self.met[c], square, 1)
        if not len(self.labels.shuffled):
            return
        both = np.zeros((2, self.sums.shape[1], self.sums.shape[1]), np.float32)
        np.add.at(both[0], square, values)
        np.add.at(both[1], square, 1)
        here, rows = self.labels.shuffled[:, cell], self.labels.regulators
        self.shuffled[here, 0] += both[0].T[rows]
        self.shuffled[here, 1] += both[0][rows]
        self.shuffled_met[here] += both[1][rows]

    def result(self) -> Readout:
        """Means, and differences of means."""
        relations = _ratio(self.sums, self.met)
        if len(self.shuffled):
            rows = self.labels.regulators
            total = self.sums.sum(axis=0)
            total = np.stack([total.T[rows], total[rows]]).astype(np.float32)
            met = self.met.sum(axis=0)[rows].astype(np.float32)
            for sums, count in zip(
                self.shuffled, self.shuffled_met, strict=True
            ):  # in place, one permutation at a time
                sums[:] = _ratio(sums, count[None]) - _ratio(total - sums, (met - count)[None])
        return Readout(relations, self.shuffled, self.nbytes)


class _Averages(_Accumulator):
    """Mean queries and keys of each gene, then one softmax a layer and head."""

    def __init__(self, n: int, labels: Labels, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.labels = labels
        self.shape = (2, layers, heads, width)
        size, p = int(np.prod(self.shape)), len(labels.shuffled)
        self.sums, self.met, self.shuffled, self.shuffled_met = self.allocate(
            ((labels.count, n, size), np.float64),
            ((labels.count, n), np.int64),
            ((p, n, size), np.float32),
            ((p, n), np.float32),
        )

    def add(self, cell: int, at: np.ndarray, values: np.ndarray) -> None:
        """Queries and keys (t, 2 * layers * heads * d_head) of the tokens of genes `at` (t,)."""
        c = self.labels.classes[cell]
        np.add.at(self.sums[c], at, values)
        np.add.at(self.met[c], at, 1)
        for p in np.flatnonzero(self.labels.shuffled[:, cell]) if len(self.labels.shuffled) else ():
            np.add.at(self.shuffled[p], at, values)
            np.add.at(self.shuffled_met[p], at, 1)

    def result(self) -> Readout:
        """Relations, and their differences."""
        relations = np.stack([self._relation(*pair) for pair in zip(self.sums, self.met, strict=True)])
        rows, total, met = self.labels.regulators, self.sums.sum(axis=0), self.met.sum(axis=0)
        differences = np.zeros((len(self.shuffled), 2, len(rows), len(met)), np.float32)
        for p, (sums, count) in enumerate(zip(self.shuffled, self.shuffled_met, strict=True)):
            change = self._relation(sums, count) - self._relation(total - sums, met - count)
            differences[p] = change.T[rows], change[rows]
        return Readout(relations, differences, self.nbytes)

    def _relation(self, sums: np.ndarray, met: np.ndarray) -> np.ndarray:
        """(n, n) mean over layers and heads; NaN for genes without a token."""
        n = len(met)
        seen = np.flatnonzero(met > 0)
        means = (sums[seen] / met[seen, None]).reshape(len(seen), *self.shape)
        queries, keys = (torch.from_numpy(means[:, i]).permute(1, 2, 0, 3).float() for i in (0, 1))  # (layers, h, n, d)
        out = torch.zeros(len(seen), len(seen), dtype=torch.float64)
        for q, k in zip(queries, keys, strict=True):
            out += (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1).double().mean(dim=0) / len(queries)
        relation = np.full((n, n), np.nan)
        relation[np.ix_(seen, seen)] = out.numpy()
        return relation


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan, sums.dtype), where=counts > 0)


def read_out(
    encoder: CellEncoder,
    reading: Reading,
    recipe: Recipe,
    tokens: np.ndarray,
    labels: Labels,
    *,
    layers: Sequence[int] | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> Readout:
    """Read relations between some genes from the attention of all cells, in one pass.

    Parameters
    ----------
    encoder
        With attention.
    reading
        The cells, opened by `scfm.reading.read`; closed afterwards.
    recipe
        One of `RECIPES`, explained at the top of this module.
    tokens
        (n_genes,) int64 token ids of the chosen genes, all different. The network sees the other genes too.
    labels
        Classes of the cells, all of which are read in the one pass.
    layers
        Numbers from 0; None is the last for "attention_rank", as in the tutorial, and all for the others.

    Returns
    -------
    Readout
        Accumulators take 12 bytes for each class and pair of genes and 12 for each permutation, regulator and gene; for "attention_qk"
        16 x layers x width bytes for each class and gene, and 8 x layers x width for each permutation and gene.

    Raises
    ------
    CapabilityError
        No attention; or, for the recipes that read queries and keys, attention that is not their softmax.
    """
    encoder.require(Capability.ATTENTION)
    chosen = _layers(encoder, recipe, layers)
    place = np.full(len(encoder.vocabulary), -1)
    place[tokens] = np.arange(len(tokens))
    sums: list[_Accumulator] = [] if recipe == "attention_qk" else [_Pairs(len(tokens), labels)]
    starting = threading.Lock()

    def reduce(cells: np.ndarray, found: Tokens, encoded: Encoded) -> Encoded:
        lengths = found.lengths
        parts = None if caught is None else caught.take(encoded, int(lengths[0]))
        with starting:
            if not sums and parts is not None:
                _, heads, _, width = next(iter(parts.values()))[0].shape
                sums.append(_Averages(len(tokens), labels, len(chosen), heads, width))
        for row, cell in enumerate(cells):
            at = place[found.cell(row)["ids"]]
            kept = np.flatnonzero(at >= 0)
            values = _values(recipe, encoded, parts, row, int(lengths[row]), chosen, torch.from_numpy(kept))
            with sums[0].lock:
                sums[0].add(int(cell), at[kept], values)
        return Encoded()

    request = Request(frozenset({"attention"}), attention_layers=chosen)
    caught: QueriesKeys | None
    with nullcontext() if recipe == "attention" else queries_and_keys(encoder) as caught:
        running = encode(encoder, reading, Run(request, reduce=reduce), progress=progress, seed=seed)
        with closing(running):
            for _ in running:
                pass
    return sums[0].result()


def rank_normalised(scores: np.ndarray) -> np.ndarray:
    """Ranks of q·k along rows, and the ranks of those along columns, both 0 .. (m-1)/m: (heads, m, m) -> (heads, m, m) float32.

    Equal ranks of a column keep the order of the tokens, as in the recorded outputs of the tutorial.
    """
    rows = _ranks(scores.argsort(axis=-1))  # numpy's sort is five times as fast as torch's on a CPU
    columns = np.ascontiguousarray(rows.transpose(0, 2, 1))
    ranks = _ranks(columns.argsort(axis=-1, kind="stable")).transpose(0, 2, 1)
    return ranks.astype(np.float32) / np.float32(scores.shape[-1])


def _ranks(order: np.ndarray) -> np.ndarray:
    m = order.shape[-1]
    ranks = np.empty(order.shape, np.uint16 if m < 2**16 else np.int64)
    np.put_along_axis(ranks, order, np.arange(m, dtype=ranks.dtype)[None, None], axis=-1)
    return ranks


def _layers(encoder: CellEncoder, recipe: Recipe, layers: Sequence[int] | None) -> tuple[int, ...]:
    depth = encoder.network.depth
    if layers is None:
        return (depth - 1,) if recipe == "attention_rank" else tuple(range(depth))
    chosen = tuple(sorted({int(i) for i in layers}))
    if bad := [i for i in chosen if not 0 <= i < depth]:
        raise InputError(f"layers={listing(bad)} do not exist; {encoder.name} has layers 0 to {depth - 1}.")
    if not chosen:
        raise InputError("layers= is empty.", "Leave it out for the recipe's own choice.")
    return chosen


def _values(
    recipe: Recipe,
    encoded: Encoded,
    parts: dict[int, tuple[Tensor, Tensor]] | None,
    row: int,
    length: int,
    layers: Sequence[int],
    kept: Tensor,
) -> np.ndarray:
    """What one cell adds: a relation (kept, kept), or queries and keys (kept, 2 * layers * heads * d_head)."""
    if parts is None:
        weights = torch.stack([encoded.attention[i][row, :, :length, :length].mean(dim=0) for i in layers]).mean(dim=0)
        return weights[kept][:, kept].float().cpu().numpy()
    if recipe == "attention_rank":
        relation = np.zeros((len(kept), len(kept)))
        for i in layers:
            q, k = (x[row, :, :length] for x in parts[i])  # (h, length, d)
            real = encoded.attention[i][row, :, :length, : k.shape[1]].amax(dim=(0, 1)) > 0  # nobody attends to padding
            scores = (q[:, real] @ k[:, real].transpose(-1, -2)).float().cpu().numpy()
            at = (real.cumsum(dim=0) - 1).cpu().numpy()[kept.numpy()]
            relation += rank_normalised(scores).mean(axis=0)[np.ix_(at, at)] / len(layers)
        return relation
    both = torch.stack([torch.stack([parts[i][j][row][:, kept] for i in layers]) for j in (0, 1)])  # (2, l, h, t, d)
    return both.permute(3, 0, 1, 2, 4).flatten(1).float().cpu().numpy()
