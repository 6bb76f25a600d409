"""What changes do to the embeddings of cells, and to the states of their genes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from scfm.cells import BLOCK_ROWS, Block
from scfm.encoder import CellEncoder, Request
from scfm.engine import Run
from scfm.errors import CapabilityError, InputError
from scfm.in_silico.changes import CHANGE, ORIGINAL, Change, ChangedTokenizer, Kind, Level
from scfm.in_silico.repeated import RepeatedSource
from scfm.inference import BlockResult, encode
from scfm.reading import InputWarning, Part, Reading
from scfm.tokenizers.base import Tokens

__all__ = ["Effects", "changed_cells", "effects_of", "expressed_changes", "genes_in"]

_STATES = 1 << 19  # token states of a block, where they are kept


@dataclass
class Effects:
    """What perturbations did, one row a perturbed cell.

    Parameters
    ----------
    cell
        (n,) int64 position of the cell in the data.
    change
        (n,) int64 position in the list of changes.
    cosine
        (n,) float64 between the cell's embeddings before and after.
    gene_cosine
        (n,) mean over the cell's unperturbed genes of the cosine between their states; NaN where states were not asked for.
    shifts
        State -> (n,) cosine to the state after minus before.
    affected
        (m, 4) of every gene of every perturbed cell: row of `cell`, token id, cosine; empty unless asked for.
    """

    cell: np.ndarray
    change: np.ndarray
    cosine: np.ndarray
    gene_cosine: np.ndarray
    shifts: dict[str, np.ndarray] = field(default_factory=dict)
    affected: tuple[np.ndarray, np.ndarray, np.ndarray] = (
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros(0),
    )

    @classmethod
    def joined(cls, parts: Sequence[Effects]) -> Effects:
        """Several behind one another."""
        starts = np.cumsum([0, *(len(part.cell) for part in parts)])
        rows = [part.affected[0] + start for part, start in zip(parts, starts, strict=False)]
        empty = np.zeros(0)
        return cls(
            np.concatenate([part.cell for part in parts]) if parts else empty.astype(np.int64),
            np.concatenate([part.change for part in parts]) if parts else empty.astype(np.int64),
            np.concatenate([part.cosine for part in parts]) if parts else empty,
            np.concatenate([part.gene_cosine for part in parts]) if parts else empty,
            {
                name: np.concatenate([part.shifts[name] for part in parts])
                for name in (parts[0].shifts if parts else ())
            },
            (
                np.concatenate(rows) if rows else empty.astype(np.int64),
                np.concatenate([part.affected[1] for part in parts]) if parts else empty.astype(np.int64),
                np.concatenate([part.affected[2] for part in parts]) if parts else empty,
            ),
        )


def effects_of(
    encoder: CellEncoder,
    reading: Reading,
    changes: Sequence[Change],
    pairs: tuple[np.ndarray, np.ndarray],
    *,
    states: Mapping[str, np.ndarray] | None = None,
    gene_states: bool = False,
    affected: bool = False,
    level: Level = "values",
    pooling: str | None = None,
    hidden_layer: int | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> Effects:
    """Encode perturbed cells beside their originals.

    Parameters
    ----------
    encoder
        Any whose cells do not see each other.
    reading
        The unperturbed data, one source; left open.
    changes
        What may be done.
    pairs
        (n,) positions of cells, ascending, and (n,) positions in `changes`: what is done to which cell.
    states
        Name -> (dim,) embedding; gives `Effects.shifts`.
    gene_states, affected
        Also compare the states of each cell's genes: their mean, and every one.
    level
        "values" or "ranks"; see `level_of`.
    pooling, hidden_layer
        As for `CellEncoder.embed`.

    Raises
    ------
    CapabilityError
        Cells see each other, or the token states are not those of genes.
    """
    if encoder.tokenizer.grouped:
        raise CapabilityError(
            f"{encoder.name} lets cells see each other, so that a perturbed cell would change the others.",
            "Use an encoder that reads each cell alone.",
        )
    if encoder.tokenizer.random and (encoder.tokenizer.sequential or not encoder.tokenizer.draws_by_origin):
        warnings.warn(
            f"{encoder.name} draws tokens at random, other ones for a perturbed cell than for its original: effects are those of the "
            "perturbation and of the draws. Compare them with the null only.",
            InputWarning,
            stacklevel=3,
        )
    (part,) = reading.parts
    outputs = frozenset({"cells", "tokens"} if gene_states or affected else {"cells"})
    request = Request(outputs, hidden_layer, pooling)
    perturbing = copy(encoder)
    perturbing.tokenizer = ChangedTokenizer(encoder.tokenizer, tuple(changes), level)
    size = BLOCK_ROWS
    if "tokens" in outputs:
        size = max(2, min(size, _STATES // max(1, min(encoder.tokenizer.context, part.source.shape[1]))))
    source = RepeatedSource(part.source, *pairs, size)
    columns = (*reading.obs_columns, CHANGE)
    repeated = Reading([Part(source, part.alignment, 0)], reading.values, columns)
    found = []
    with closing(encode(perturbing, repeated, Run(request), progress=progress, seed=seed)) as results:
        for result in results:
            found.append(_effects(result, source, changes, encoder, states or {}, affected))
    return Effects.joined(found)


def _effects(
    result: BlockResult,
    source: RepeatedSource,
    changes: Sequence[Change],
    encoder: CellEncoder,
    states: Mapping[str, np.ndarray],
    affected: bool,
) -> Effects:
    """Effects of one block's rows."""
    rows = result.cells
    change = source.changes[rows]
    before = np.maximum.accumulate(np.where(change == ORIGINAL, np.arange(len(rows)), 0))
    after = np.flatnonzero(change != ORIGINAL)
    vectors = np.zeros((len(rows), 0))
    tokens: dict[int, np.ndarray] = {}
    for at, encoded in result.batches:
        assert encoded.cells is not None
        if not vectors.shape[1]:
            vectors = np.zeros((len(rows), encoded.cells.shape[1]))
        vectors[at] = encoded.cells.numpy()
        if encoded.tokens is not None:
            lengths = result.tokens.lengths[at]
            if "ids" not in result.tokens.fields or encoded.tokens.shape[1] != lengths.max():
                raise CapabilityError(
                    f"the token states of {encoder.name} are not those of genes.", "Leave out gene_states and affected."
                )
            for i, (row, length) in enumerate(zip(at, lengths, strict=True)):
                tokens[int(row)] = encoded.tokens[i, :length].numpy()
    found = Effects(
        source.cells[rows][after],
        change[after],
        _cosine(vectors[after], vectors[before[after]]),
        np.full(len(after), np.nan),
        {
            name: _cosine(vectors[after], state) - _cosine(vectors[before[after]], state)
            for name, state in states.items()
        },
    )
    if tokens:
        special = np.array(sorted(encoder.vocabulary.special_ids))
        of, gene, value = [], [], []
        for i, row in enumerate(after):
            own = changes[change[row]].genes
            ids, cosines = _genes(result.tokens, tokens, int(row), int(before[row]), np.r_[special, own])
            found.gene_cosine[i] = cosines.mean() if len(cosines) else np.nan
            if affected:
                of.append(np.full(len(ids), i))
                gene.append(ids)
                value.append(cosines)
        if affected and of:
            found.affected = (np.concatenate(of), np.concatenate(gene).astype(np.int64), np.concatenate(value))
    return found


def _genes(
    tokens: Tokens, states: Mapping[int, np.ndarray], after: int, before: int, skip: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Genes that a cell has before and after, but for `skip`, and the cosine of their states; order of the perturbed cell."""
    new, old = tokens.cell(after)["ids"], tokens.cell(before)["ids"]
    _, first, second = np.intersect1d(new, old, return_indices=True)
    order = np.argsort(first)
    first, second = first[order], second[order]
    kept = ~np.isin(new[first], skip)
    first, second = first[kept], second[kept]
    return new[first], _cosine(states[after][first], states[before][second])


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a (n, d) with the same row of b, or with b (d,); NaN with a row of zeros."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norm = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    found = np.divide((a * b).sum(axis=-1), norm, out=np.full(len(a), np.nan), where=norm > 0)
    return np.clip(found, -1, 1)


def genes_in(
    encoder: CellEncoder, reading: Reading, cells: np.ndarray, *, level: Level, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genes that the encoder reads of each cell.

    Returns
    -------
    row
        (n,) position in `cells`, ascending.
    gene
        (n,) token id; at the level of ranks those within the context, in their order, else all that are expressed.
    value
        (n,) expression; at the level of ranks NaN.
    """
    (part,) = reading.parts
    tokenize = encoder.tokenizer.stream(seed)
    found = []
    for start in range(0, len(cells), BLOCK_ROWS):
        some = cells[start : start + BLOCK_ROWS]
        matrix = part.alignment.columns(part.source.take(some))
        if level == "values":
            ids, row = part.alignment.tokens[matrix.indices], np.repeat(np.arange(len(some)), np.diff(matrix.indptr))
            known = ids >= 0
            pair, where = np.unique(row[known] * len(encoder.vocabulary) + ids[known], return_inverse=True)
            row, ids = np.divmod(pair, len(encoder.vocabulary))
            value = np.bincount(where, weights=matrix.data[known], minlength=len(pair))
        else:
            obs = part.source.obs[list(reading.obs_columns)].iloc[some]
            tokens = tokenize(Block(matrix, part.alignment, obs))
            ids, row = tokens.fields["ids"].astype(np.int64), np.repeat(np.arange(len(some)), tokens.lengths)
            gene = ~np.isin(ids, sorted(encoder.vocabulary.special_ids))
            row, ids, value = row[gene], ids[gene], np.full(int(gene.sum()), np.nan)
        found.append((row + start, ids, value))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    row, ids, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, ids, value


def expressed_changes(
    encoder: CellEncoder, reading: Reading, cells: np.ndarray, *, level: Level, kind: Kind, factor: float, seed: int = 0
) -> tuple[list[Change], tuple[np.ndarray, np.ndarray]]:
    """Every gene of each cell, one at a time: the changes, and which is made to which cell.

    At the level of ranks, activating the gene in front changes nothing and is left out.
    """
    row, ids, _ = genes_in(encoder, reading, cells, level=level, seed=seed)
    if level == "ranks" and kind == "activate":
        behind = np.r_[False, row[1:] == row[:-1]] if len(row) else np.zeros(0, bool)
        row, ids = row[behind], ids[behind]
    distinct, number = np.unique(ids, return_inverse=True)
    if not len(distinct):
        raise InputError(f"the cells express no gene that {encoder.name} knows.")
    return [Change((int(gene),), kind, factor) for gene in distinct], (cells[row], number)


def changed_cells(
    changes: Sequence[Change], cells: np.ndarray, row: np.ndarray, gene: np.ndarray, n_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which changes are made to which cells: those that express all genes of a change, or all cells where it needs no expression.

    Parameters
    ----------
    changes, cells
        What may be done, and to whom.
    row, gene
        As `genes_in` gives them.
    n_tokens
        Size of the vocabulary.

    Returns
    -------
    tuple
        (n,) cells, ascending, and (n,) positions in `changes`.
    """
    from scipy import sparse

    present = sparse.csc_matrix((np.ones(len(row), bool), (row, gene)), shape=(len(cells), n_tokens))
    at, number = [], []
    for i, change in enumerate(changes):
        have = np.asarray(present[:, list(change.genes)].sum(axis=1)).reshape(-1) == len(set(change.genes))
        mine = np.flatnonzero(have) if change.needs_expression else np.arange(len(cells))
        at.append(mine)
        number.append(np.full(len(mine), i))
    where, which = np.concatenate(at), np.concatenate(number)
    order = np.argsort(where, kind="stable")
    return cells[where[order]], which[order]
