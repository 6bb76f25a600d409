"""The only embedding loop: read, check, tokenize, compute, give back in order.

Reading and tokenizing run in a background thread while the network computes (`scfm.engine`).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.ahead import ahead_of
from scfm.cells import (
    Data,
    Source,
    sample_rows,
)
from scfm.encoder import CellEncoder, Encoded, Request
from scfm.engine import Devices, Pending, Run, engine_of, evaluating, plan_batches, resolve_device, resolve_devices
from scfm.errors import InputError
from scfm.inexact import shortened
from scfm.provenance import attach, versions
from scfm.reading import InputWarning, Reading, TokenBlock, read, tokenized
from scfm.sinks import Sink, open_sink
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "BlockResult",
    "embed",
    "encode",
    "evaluating",
    "plan_batches",
    "progress_bar",
    "provenance",
    "resolve_device",
]


@dataclass(frozen=True)
class BlockResult:
    """Outputs for the cells of a block, by their positions in the data: batches of (rows within the block, outputs)."""

    number: int
    cells: np.ndarray
    tokens: Tokens
    batches: list[tuple[np.ndarray, Encoded]]

    def cell_rows(self, width: int, run: Run) -> np.ndarray:
        """The cells' embeddings (n, width) float32; NaN for those that the run leaves empty."""
        rows = np.full((len(self.tokens), width), np.nan, dtype=np.float32)
        for at, encoded in self.batches:
            assert encoded.cells is not None
            rows[at] = encoded.cells.numpy()
        if run.empty_cells == "nan":
            rows[self.tokens.expressed == 0] = np.nan
        return rows


@contextmanager
def progress_bar(total: int, shown: bool | None, title: str) -> Iterator[Any]:
    """A function advance(n); a rich bar on stderr when shown."""
    if shown is None:
        shown = sys.stderr.isatty()
    if not shown:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)


def encode(
    encoder: CellEncoder,
    reading: Reading,
    run: Run,
    *,
    devices: Devices = None,
    progress: bool | None = None,
    seed: int = 0,
    done: Collection[int] = (),
    numbers: Sequence[int] | None = None,
    keep_open: bool = False,
) -> Generator[BlockResult, None, None]:
    """Outputs of all cells, block by block in order; batches of a block come in the order they were computed.

    Parameters
    ----------
    run
        What is computed, and how.
    devices
        As for `CellEncoder.embed`.
    done, numbers
        Blocks that are not needed; blocks to compute, ascending (None: all).
    keep_open
        Leave the reading open behind the last block.
    """
    with ExitStack() as stack:
        if not keep_open:
            stack.callback(reading.close)
        chosen = range(len(reading.blocks)) if numbers is None else numbers
        sizes = {number: _cells_in(reading.positions[number]) for number in chosen}
        left = sum(size for number, size in sizes.items() if number not in done)
        engine = stack.enter_context(engine_of(encoder, run, left, devices))
        advance = stack.enter_context(progress_bar(sum(sizes.values()), progress, encoder.name))
        advance(sum(sizes.values()) - left)
        blocks = ahead_of(tokenized(encoder, reading, seed, done=done, numbers=numbers))
        waiting: deque[tuple[TokenBlock, Pending]] = deque()

        def finished() -> BlockResult:
            block, wait = waiting.popleft()
            batches = wait(advance)
            advance(len(block.tokens) - sum(len(rows) for rows, _ in batches))
            return BlockResult(block.number, block.cells, block.tokens, batches)

        for block in stack.enter_context(closing(blocks)):
            if run.empty_cells == "error" and (block.tokens.expressed == 0).any():
                raise _empty_error(encoder, block)
            if run.max_tokens is not None:
                block = replace(block, tokens=shortened(block.tokens, run.max_tokens, encoder))
            waiting.append((block, engine.submit(block.tokens, block.cells)))
            if len(waiting) > engine.ahead:
                yield finished()
        while waiting:
            yield finished()


def _cells_in(positions: slice | np.ndarray) -> int:
    return positions.stop - positions.start if isinstance(positions, slice) else len(positions)


def output(encoder: CellEncoder, data: Data, name: str, **options: Any) -> np.ndarray:
    """One output of all cells (n_cells, ...), in order; the arguments are explained at `CellEncoder.output`."""
    rows: dict[int, np.ndarray] = {}
    for cells, _, encoded in encoder.encode(data, outputs=(name,), **options):
        values = {"cells": encoded.cells, "tokens": encoded.tokens, **encoded.heads}.get(name)
        if values is None:
            raise InputError(f"output() gives no {name!r}.", "Use attention().")
        rows |= dict(zip(cells.tolist(), values.numpy(), strict=True))
    if len({row.shape for row in rows.values()}) > 1:
        raise InputError(f"{name!r} has different lengths in different cells.", "Use encode(), which gives batches.")
    return np.stack([rows[cell] for cell in sorted(rows)]) if rows else np.zeros(0, np.float32)


def _empty_error(encoder: CellEncoder, block: TokenBlock) -> InputError:
    at = block.cells[block.tokens.expressed == 0][0]
    return InputError(
        f"cell number {at} has no expressed gene that {encoder.name} knows.",
        "Remove such cells (sc.pp.filter_cells), or pass empty_cells='nan'.",
    )


def embed(
    encoder: CellEncoder,
    data: Data,
    run: Run,
    *,
    reading: dict[str, Any],
    devices: Devices,
    key_added: str | None,
    out: str | PathLike[str] | None,
    resume: bool,
    progress: bool | None,
    seed: int,
) -> np.ndarray:
    """Cell embeddings of all cells; the arguments are explained at `CellEncoder.embed`."""
    run.check(encoder)
    resolve_devices(devices)
    with ExitStack() as stack:
        opened = stack.enter_context(closing(read(encoder, data, **reading)))
        record = provenance(encoder, opened, run.request, seed=seed, **run.settings)
        targets = _annotated(data, key_added, out)
        key = key_added or f"X_{encoder.card.family}"
        width = encoder.network.width(run.request)
        sink = sink_for(opened, width, record, out, key=key, resume=resume)
        empty = 0
        results = encode(encoder, opened, run, devices=devices, progress=progress, seed=seed, done=sink.done)
        for result in stack.enter_context(closing(results)):
            empty += int((result.tokens.expressed == 0).sum())
            sink.write(result.number, result.cell_rows(width, run))
    warn_of_empty_cells(encoder, run, empty, opened.n_cells)
    embedding = sink.finish()
    start = 0
    for adata in targets:
        adata.obsm[key] = np.array(embedding[start : start + adata.n_obs])
        attach(adata, key, record)
        start += adata.n_obs
    return embedding


def warn_of_empty_cells(encoder: CellEncoder, run: Run, empty: int, n_cells: int) -> None:
    """Tell how many rows are NaN."""
    if empty and run.empty_cells == "nan":
        warnings.warn(
            f"{empty} of {n_cells} cells have no expressed gene that {encoder.name} knows; their rows are NaN. "
            "Remove such cells, or pass empty_cells='embed' or 'error'.",
            InputWarning,
            stacklevel=4,
        )


def sink_for(
    reading: Reading, width: int, record: dict[str, Any], out: str | PathLike[str] | None, *, key: str, resume: bool
) -> Sink:
    """Where a run's rows go; the record gets the digests of the data."""
    import pandas as pd

    sources = [part.source for part in reading.parts]
    obs = pd.DataFrame(index=pd.Index([name for s in sources for name in s.obs.index.astype(str)], dtype=object))
    if out is not None:
        record = {**record, "cells": _digest(obs.index), "sample": [_sample_digest(source) for source in sources]}
    file = Path(sources[0].label) if len(sources) == 1 and sources[0].label.endswith(".h5ad") else None
    return open_sink(
        out, (reading.n_cells, width), record, reading.positions, key=key, obs=obs, copied=file, resume=resume
    )


def _annotated(data: Data, key_added: str | None, out: str | PathLike[str] | None) -> Sequence[Any]:
    """The AnnData objects that `key_added` writes to; with data on disk it names the embedding in `out`."""
    if key_added is None:
        return []
    items = list(data) if isinstance(data, list | tuple) else [data]
    if any(isinstance(item, str | os.PathLike) or hasattr(item, "open_source") for item in items):
        if out is not None and not str(out).endswith(".npy"):
            return []
        raise InputError(
            "key_added= names the embedding in an AnnData; data is a path, and out= no AnnData.",
            "Pass out='embedding.zarr' or '.h5ad', or read the file first: anndata.read_h5ad(path).",
        )
    return items


def provenance(encoder: CellEncoder, reading: Reading, request: Request, **settings: Any) -> dict[str, Any]:
    """Everything that decides an embedding."""
    return {
        "model": encoder.name,
        "species": list(encoder.vocabulary.species),
        "origin": encoder.origin,
        "licences": {"code": encoder.card.code_licence, "weights": encoder.card.weights_licence},
        "tokenizer": {"class": type(encoder.tokenizer).__name__, **encoder.tokenizer.settings()},
        "hidden_layer": request.hidden_layer,
        "pooling": request.pooling,
        **settings,
        "values": reading.values,
        "data": [
            {
                "source": Path(p.source.label).name,
                "layer": p.source.layer or "X",
                "genes": replace(p.alignment.report),
                "groups": None if p.groups is None else _groups_record(p.groups),
            }
            for p in reading.parts
        ],
        "versions": versions(),
    }


def _groups_record(groups: list[np.ndarray]) -> dict[str, Any]:
    return {"count": len(groups), "sha256": _digest(" ".join(map(str, rows.tolist())) for rows in groups)}


def _digest(names: Iterable[str]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _sample_digest(source: Source) -> str:
    """Hash of a sample of the matrix: another input under the same name does not continue a run."""
    import hashlib

    sample = sample_rows(source)
    return hashlib.sha256(sample.data.tobytes() + sample.indices.tobytes() + sample.indptr.tobytes()).hexdigest()
