"""The cells of a training run: read and tokenized once, then split into those to train on and those held out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm.cells import Block, Data
from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.examples import Labelled, Matrices
from scfm.objectives import Objective, Target, objective_of
from scfm.reading import InputWarning, Reading, TokenBlock, read, tokenized
from scfm.splits import hold_out
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Sides", "digest", "divide", "made_ready", "read_labelled"]


@dataclass(frozen=True)
class Sides:
    """The target on the training cells, those, and the held-out ones."""

    target: Target
    training: Labelled
    held_out: Labelled | None


def read_labelled(
    encoder: CellEncoder,
    data: Data,
    reading: dict[str, Any],
    objective: str | Objective | Target,
    *,
    also: Sequence[str] = (),
    keep: bool = False,
    seed: int = 0,
) -> Labelled:
    """Tokens and labels of all cells that express a gene the model knows.

    Parameters
    ----------
    reading
        Arguments of `read`.
    objective
        Labels that it refuses are refused before the cells are read.
    also
        Further columns of `obs` to keep.
    keep
        Keep the cells' values, too.
    """
    wanted = (objective,) if isinstance(objective, str) else getattr(objective, "columns", None)
    if wanted is None:
        objective_of(objective, None)  # type: ignore[arg-type]  # raises
    with closing(read(encoder, data, **reading)) as opened:
        obs = _obs(opened, list(dict.fromkeys([*(wanted or ()), *also])))
        if opened.n_cells == 0:
            raise InputError("the data have no cells.", "Pass labelled cells.")
        names = obs.index.astype(str).to_numpy()
        if obs.index.has_duplicates:
            raise InputError(
                f"{int(obs.index.duplicated().sum()):,} obs_names are repeated; a split is a list of names.",
                "Call adata.obs_names_make_unique(); for several data sets, prefix the names.",
            )
        ready = objective if isinstance(objective, Target) else objective_of(objective, obs)
        _ = ready.encode(obs) if isinstance(ready, Target) else ready.target(obs)
        blocks = list(tokenized(encoder, opened, seed, keep=keep))
        parts = [part.start for part in opened.parts]
    at = np.concatenate([block.cells for block in blocks])
    tokens = Tokens.joined([block.tokens for block in blocks]).select(np.argsort(at))
    groups = [block.cells for block in blocks] if encoder.tokenizer.grouped else None
    labelled = Labelled(names, obs, tokens, groups, _matrices(blocks, parts) if keep else None)
    expressed = tokens.expressed > 0
    if not expressed.all() and groups is None:
        warnings.warn(
            f"{int((~expressed).sum()):,} of {len(names):,} cells have no expressed gene that {encoder.name} knows; they are not used.",
            InputWarning,
            stacklevel=4,
        )
        labelled = labelled.select(np.flatnonzero(expressed))
    return labelled


def _obs(reading: Reading, columns: Sequence[str]) -> pd.DataFrame:
    """The columns needed, of all parts."""
    import pandas as pd

    tables = []
    for part in reading.parts:
        part.source.require_obs(columns, "Name columns that all data have.")
        tables.append(part.source.obs[list(columns)])
    return tables[0] if len(tables) == 1 else pd.concat(tables)


def _matrices(blocks: Sequence[TokenBlock], starts: Sequence[int]) -> Matrices:
    """The blocks' values by data set; `starts` are the numbers of the data sets' first cells."""
    import pandas as pd

    def part_of(block: TokenBlock) -> int:
        return int(np.searchsorted(starts, block.cells[0], side="right")) - 1

    count = sum(len(block.cells) for block in blocks)
    part, row = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    parts: list[Block] = []
    for _, members in groupby(blocks, key=part_of):
        own = list(members)
        found = [block.block for block in own if block.block is not None]
        cells = np.concatenate([block.cells for block in own])
        part[cells], row[cells] = len(parts), np.arange(len(cells))
        matrix = sparse.vstack([block.matrix for block in found], format="csr")
        parts.append(replace(found[0], matrix=matrix, obs=pd.concat([block.obs for block in found])))
    return Matrices(tuple(parts), part, row)


def divide(
    encoder: CellEncoder,
    cells: Labelled,
    valid: Data | float | None,
    objective: str | Objective,
    reading: dict[str, Any],
    *,
    groups: str | None,
    seed: int,
) -> Sides:
    """Split labelled cells, or read the held-out ones; fit the target to those that are trained on."""
    goal = objective_of(objective, cells.obs)
    if valid is None or (isinstance(valid, bool) and not valid):
        return Sides(goal.target(cells.obs), cells, None)
    if isinstance(valid, int | float):
        training, held_out = _share(encoder, cells, float(valid), goal.target(cells.obs), groups, seed)
        target = goal.target(training.obs)
    else:
        training, target = cells, goal.target(cells.obs)
        also = [groups] if groups is not None else []
        held_out = read_labelled(encoder, valid, reading, target, also=also, keep=cells.matrices is not None, seed=seed)
        _refuse_shared(training, held_out, groups)
    if target.strata:
        held_out = _known(held_out, target)
    return Sides(target, training, held_out)


def made_ready(
    encoder: CellEncoder,
    sides: Sides,
    train: Data,
    valid: Data | float | None,
    reading: dict[str, Any],
    *,
    groups: str | None,
    seed: int,
) -> tuple[CellEncoder, Sides]:
    """The encoder with what the target needs, and the same cells as its tokenizer reads them."""
    import pandas as pd

    ready = sides.target.ready(encoder)
    if ready.tokenizer is encoder.tokenizer:
        return ready, sides
    also = [groups] if groups is not None else []

    def again(data: Data, side: Labelled) -> Labelled:
        keep = side.matrices is not None
        whole = read_labelled(ready, data, reading, sides.target, also=also, keep=keep, seed=seed)
        return whole.select(pd.Index(whole.names).get_indexer(pd.Index(side.names)))

    held_out = sides.held_out
    if held_out is not None:
        held_out = again(train if isinstance(valid, int | float) or valid is None else valid, held_out)
    return ready, Sides(sides.target, again(train, sides.training), held_out)


def _share(
    encoder: CellEncoder, cells: Labelled, share: float, target: Target, groups: str | None, seed: int
) -> tuple[Labelled, Labelled]:
    """Training and held-out cells of one data set."""
    by = None if groups is None else cells.obs[groups]
    labels = target.encode(cells.obs) if target.strata else None
    if cells.groups is not None:
        by = _computing_groups(cells, by, encoder.name)
    train_rows, valid_rows = hold_out(len(cells), share=share, groups=by, strata=labels, seed=seed)
    return cells.select(train_rows), cells.select(valid_rows)


def _refuse_shared(training: Labelled, held_out: Labelled, groups: str | None) -> None:
    if both := sorted(set(training.names) & set(held_out.names)):
        raise InputError(
            f"{len(both):,} cells are in train and in valid: {listing(both)}.", "Remove them from one of the two."
        )
    if groups is not None:
        here, there = (set(c.obs[groups].dropna().astype(str)) for c in (training, held_out))
        if both := sorted(here & there):
            raise InputError(
                f"obs[{groups!r}] has the same values in train and valid: {listing(both)}.",
                "Keep each on one side, or pass groups=None.",
            )


def _known(held_out: Labelled, target: Target) -> Labelled:
    """Held-out cells of classes that are trained; the others cannot be judged, which is told."""
    known = target.encode(held_out.obs) >= 0
    if known.all():
        return held_out
    (column,) = target.columns
    names = sorted(set(held_out.obs[column].astype(str)[~known]))
    warnings.warn(
        f"{int((~known).sum()):,} held-out cells are of classes without training cells, {listing(names)}; they are not scored.",
        InputWarning,
        stacklevel=5,
    )
    if not known.any() or held_out.groups is not None:
        raise InputError(
            f"held-out cells are of classes without training cells: {listing(names)}.",
            "Remove these classes, or pass other held-out data as valid=.",
        )
    return held_out.select(np.flatnonzero(known))


def _computing_groups(cells: Labelled, by: pd.Series | None, name: str) -> pd.Series:
    """Where cells see each other, the groups that are computed together stay whole."""
    import pandas as pd

    assert cells.groups is not None
    number = np.empty(len(cells), dtype=np.int64)
    for i, rows in enumerate(cells.groups):
        number[rows] = i
    if by is None:
        return pd.Series(number, index=cells.obs.index, name="group computed together")
    if any(by.iloc[rows].nunique(dropna=False) > 1 for rows in cells.groups):
        raise InputError(
            f"cells of several obs[{by.name!r}] are computed together by {name}, which would show held-out cells to training ones.",
            f"Pass encoder.with_options(group_key={str(by.name)!r}).",
        )
    return by


def digest(cells: Labelled, target: Target) -> str:
    """Hash of names, labels and tokens: another input does not continue a run."""
    import hashlib

    sha = hashlib.sha256("\n".join(cells.names).encode())
    arrays = [
        target.encode(cells.obs),
        cells.tokens.offsets,
        *cells.tokens.fields.values(),
        *cells.tokens.cells.values(),
    ]
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
