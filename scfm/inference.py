"""The only embedding loop: read, check, tokenize, batch by length, run the network, give back in order.

Reading and tokenizing run in a background thread while the network computes. On a CPU every worker thread runs one batch on one core:
cells of a few hundred tokens are computed alone, without padding or mask (faster than any batch, see benchmarks/); shorter cells share
a batch under a token budget. On a GPU one worker fills larger batches. No output depends on which cells share a batch.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from scfm.cells import (
    Data,
    Source,
    sample_rows,
)
from scfm.encoder import CellEncoder, Encoded, Request
from scfm.errors import InputError, listing
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

T = TypeVar("T")
BatchSize = int | Literal["auto"]
Precision = Literal["float32", "bfloat16", "float16"]

_TOKEN_BUDGET = {"cpu": 1024, "mps": 16_384, "cuda": 65_536}
_MOST_CELLS = {"cpu": 128, "mps": 512, "cuda": 2048}


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device; "auto" is CUDA, else Apple's MPS, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, produced by a background thread that keeps `depth` of them ready."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=produce, name="scfm-reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class BlockResult:
    """Outputs for the cells of a block, by their positions in the data: batches of (rows within the block, outputs)."""

    cells: np.ndarray
    tokens: Tokens
    batches: list[tuple[np.ndarray, Encoded]]


def plan_batches(lengths: np.ndarray, *, budget: int, most_cells: int) -> list[np.ndarray]:
    """Group cells of similar length, longest first, so that cells x longest stays within the budget (one cell always goes)."""
    order = np.argsort(-lengths, kind="stable")
    batches, at = [], 0
    while at < len(order):
        count = min(max(1, budget // max(int(lengths[order[at]]), 1)), most_cells)
        batches.append(order[at : at + count])
        at += count
    return batches


@contextmanager
def _workers(device: torch.device, n_cells: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run batches. On a CPU: one a core, each with one torch thread, within the caller's own limit, restored afterwards."""
    threads = torch.get_num_threads()
    count = max(1, min(threads, n_cells)) if device.type == "cpu" else 1
    share = threads // count
    try:
        with ThreadPoolExecutor(count, "scfm-worker", initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]  # parts may be frozen in eval mode
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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


def check_run(encoder: CellEncoder, request: Request, batch_size: BatchSize, precision: Precision) -> None:
    """Refuse, before any work, what no run can do."""
    if request.pooling is not None and request.pooling not in encoder.poolings:
        raise InputError(
            f"pooling={request.pooling!r} is not offered by {encoder.name}.",
            f"It offers {listing(encoder.poolings) or 'one way only'}.",
        )
    if request.hidden_layer is not None and not 0 <= request.hidden_layer <= encoder.network.depth:
        raise InputError(
            f"hidden_layer={request.hidden_layer}; {encoder.name} has {encoder.network.depth} layers.",
            "Pass 0 (input) to that number.",
        )
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size={batch_size!r}; it must be a whole number from 1 up, or 'auto'.")
    if precision not in ("float32", "bfloat16", "float16"):
        raise InputError(f"precision={precision!r} is not known.", "Pass 'float32', 'bfloat16' or 'float16'.")


def encode(
    encoder: CellEncoder,
    reading: Reading,
    request: Request,
    *,
    empty_cells: Literal["nan", "embed", "error"] = "embed",
    batch_size: BatchSize = "auto",
    precision: Precision = "float32",
    progress: bool | None = None,
    seed: int = 0,
    skip: int = 0,
) -> Generator[BlockResult, None, None]:
    """Outputs for all cells, block by block in order; batches of a block come in the order they were computed.

    With `empty_cells="nan"`, cells without an expressed known gene are in no batch. Cells that see each other are one batch, all of them,
    whatever `batch_size` and `empty_cells`.
    """
    device, network = encoder.device, encoder.network
    budget, most = _TOKEN_BUDGET.get(device.type, 16_384) // network.token_cost, _MOST_CELLS.get(device.type, 512)
    if batch_size != "auto":
        budget, most = sys.maxsize, batch_size
    low = precision != "float32"

    def step(tokens: Tokens, rows: np.ndarray) -> Encoded:
        autocast = torch.autocast(device.type, dtype=getattr(torch, precision)) if low else nullcontext()
        with torch.inference_mode(), autocast:
            return network(tokens.collate(rows).to(device), request).cpu()

    with ExitStack() as stack:
        stack.callback(reading.close)
        stack.enter_context(evaluating(network))
        advance = stack.enter_context(progress_bar(reading.n_cells, progress, encoder.name))
        grouped = encoder.tokenizer.grouped
        pool = stack.enter_context(_workers(device, 1 if grouped else reading.n_cells - skip))
        advance(skip)
        ahead = stack.enter_context(closing(_ahead(tokenized(encoder, reading, seed, skip=skip))))
        for block in ahead:
            tokens = block.tokens
            rows = np.arange(len(tokens))
            if empty_cells != "embed":
                rows = rows[tokens.expressed > 0]
                if empty_cells == "error" and len(rows) < len(tokens):
                    raise _empty_error(encoder, block)
            plan = [rows[batch] for batch in plan_batches(tokens.lengths[rows], budget=budget, most_cells=most)]
            if grouped:
                rows = np.arange(len(tokens))
                plan = [rows]
            futures = [pool.submit(step, tokens, batch) for batch in plan]
            try:
                batches = [
                    (batch, _finished(future, advance, len(batch))) for batch, future in zip(plan, futures, strict=True)
                ]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
            advance(len(tokens) - len(rows))
            yield BlockResult(block.cells, tokens, batches)


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


def _finished(future: Future[Encoded], advance: Any, cells: int) -> Encoded:
    result = future.result()
    advance(cells)
    return result


def _empty_error(encoder: CellEncoder, block: TokenBlock) -> InputError:
    at = block.cells[block.tokens.expressed == 0][0]
    return InputError(
        f"cell number {at} has no expressed gene that {encoder.name} knows.",
        "Remove such cells (sc.pp.filter_cells), or pass empty_cells='nan'.",
    )


def embed(
    encoder: CellEncoder,
    data: Data,
    request: Request,
    *,
    reading: dict[str, Any],
    empty_cells: Literal["nan", "embed", "error"],
    batch_size: BatchSize,
    precision: Precision,
    key_added: str | None,
    out: str | PathLike[str] | None,
    resume: bool,
    progress: bool | None,
    seed: int,
) -> np.ndarray:
    """Cell embeddings of all cells; the arguments are explained at `CellEncoder.embed`."""
    check_run(encoder, request, batch_size, precision)
    if empty_cells not in ("nan", "embed", "error"):
        raise InputError(f"empty_cells={empty_cells!r} is not known.", "Pass 'nan', 'embed' or 'error'.")
    with ExitStack() as stack:
        opened = stack.enter_context(closing(read(encoder, data, **reading)))
        record = provenance(encoder, opened, request, precision=precision, seed=seed, empty_cells=empty_cells)
        targets = _annotated(data, key_added, out)
        key = key_added or f"X_{encoder.card.family}"
        width = encoder.network.width(request)
        sink = _output(opened, width, record, out, key=key, resume=resume)
        empty = 0
        results = encode(
            encoder,
            opened,
            request,
            empty_cells=empty_cells,
            batch_size=batch_size,
            precision=precision,
            progress=progress,
            seed=seed,
            skip=sink.done,
        )
        for result in stack.enter_context(closing(results)):
            rows = np.full((len(result.tokens), width), np.nan, dtype=np.float32)
            for at, encoded in result.batches:
                assert encoded.cells is not None
                rows[at] = encoded.cells.numpy()
            if empty_cells == "nan":
                rows[result.tokens.expressed == 0] = np.nan
            empty += int((result.tokens.expressed == 0).sum())
            sink.write(result.cells, rows)
    if empty and empty_cells == "nan":
        warnings.warn(
            f"{empty} of {opened.n_cells} cells have no expressed gene that {encoder.name} knows; their rows are NaN. "
            "Remove such cells, or pass empty_cells='embed' or 'error'.",
            InputWarning,
            stacklevel=3,
        )
    embedding = sink.finish()
    start = 0
    for adata in targets:
        adata.obsm[key] = np.array(embedding[start : start + adata.n_obs])
        attach(adata, key, record)
        start += adata.n_obs
    return embedding


def _output(
    reading: Reading, width: int, record: dict[str, Any], out: str | PathLike[str] | None, *, key: str, resume: bool
) -> Sink:
    import pandas as pd

    sources = [part.source for part in reading.parts]
    obs = pd.DataFrame(index=pd.Index([name for s in sources for name in s.obs.index.astype(str)], dtype=object))
    if out is not None:
        record = {**record, "cells": _digest(obs.index), "sample": [_sample_digest(source) for source in sources]}
    file = Path(sources[0].label) if len(sources) == 1 and sources[0].label.endswith(".h5ad") else None
    return open_sink(out, (reading.n_cells, width), record, key=key, obs=obs, copied=file, resume=resume)


def _annotated(data: Data, key_added: str | None, out: str | PathLike[str] | None) -> Sequence[Any]:
    """The AnnData objects that `key_added` writes to; with data on disk it names the embedding in `out`."""
    if key_added is None:
        return []
    items = list(data) if isinstance(data, list | tuple) else [data]
    if any(isinstance(item, str | os.PathLike) for item in items):
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
