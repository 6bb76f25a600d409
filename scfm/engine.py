"""Where and how the network is computed: devices, arithmetic, batches by length, worker threads, and processes for several devices.

On a CPU every worker thread runs one batch on one core: cells of a few hundred tokens are computed alone, without padding or mask (faster
than any batch, see benchmarks/); shorter cells share a batch under a token budget. On a GPU one worker fills larger batches. With several
devices, each has a process of its own that takes the next block of cells when it is free. No output depends on any of this.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scfm.encoder import CellEncoder, Encoded, Network, Request
from scfm.errors import InputError, ScfmError, listing
from scfm.inexact import compiled, quantised
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = [
    "BatchSize",
    "Devices",
    "Engine",
    "Precision",
    "Run",
    "engine_of",
    "evaluating",
    "plan_batches",
    "resolve_device",
    "resolve_devices",
]

BatchSize = int | Literal["auto"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
Devices = str | int | Sequence[str | torch.device] | None
Batches = list[tuple[np.ndarray, Encoded]]
"""(rows within the block, outputs) of each batch."""

_TOKEN_BUDGET = {"cpu": 1024, "mps": 16_384, "cuda": 65_536}
_MOST_CELLS = {"cpu": 128, "mps": 512, "cuda": 2048}


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device; "auto" is CUDA, else Apple's MPS, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_devices(devices: Devices) -> list[torch.device]:
    """The devices of a run: None is none of its own, "all" every CUDA device, n the first n, else a list of names.

    Raises
    ------
    InputError
        There are no, or not so many, CUDA devices, or the list is empty.
    """
    if devices is None:
        return []
    if not isinstance(devices, str | int) and list(devices) == ["all"]:
        devices = "all"
    if isinstance(devices, str) and devices != "all":
        devices = [devices]
    if isinstance(devices, str | int):
        count = torch.cuda.device_count()
        wanted = count if isinstance(devices, str) else devices
        if isinstance(devices, bool) or wanted < 1 or wanted > count:
            raise InputError(
                f"devices={devices!r}: this machine has {count} CUDA devices.",
                "Name them, e.g. devices=['cuda:0', 'cuda:1'] or ['cpu', 'cpu'], or leave devices= out.",
            )
        return [torch.device("cuda", i) for i in range(wanted)]
    if not devices:
        raise InputError("devices=[] names no device.", "Name some, e.g. ['cuda:0', 'cuda:1'], or leave devices= out.")
    return [resolve_device(device) for device in devices]


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
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]  # parts may be frozen in eval mode
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Run:
    """What is computed, and how.

    Parameters
    ----------
    request
        Outputs that are needed.
    batch_size, precision, empty_cells, compile, max_tokens
        As for `CellEncoder.embed`.
    reduce
        Outputs of a whole block are held together. Where they are too large for that, this is called by the thread that computed a batch,
        with the cells' positions in the data, their tokens and their outputs on the device; what it returns is kept instead. Not with
        several devices.
    """

    request: Request
    batch_size: BatchSize = "auto"
    precision: Precision = "float32"
    empty_cells: Literal["nan", "embed", "error"] = "embed"
    reduce: Callable[[np.ndarray, Tokens, Encoded], Encoded] | None = None
    compile: bool = False
    max_tokens: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What of it decides the numbers, for provenance; None for what is left out."""
        return {
            "precision": self.precision,
            "empty_cells": self.empty_cells,
            "compile": self.compile or None,
            "max_tokens": self.max_tokens,
        }

    def check(self, encoder: CellEncoder) -> None:
        """Refuse, before any work, what no run can do."""
        request = self.request
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
        if self.batch_size != "auto" and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise InputError(f"batch_size={self.batch_size!r}; it must be a whole number from 1 up, or 'auto'.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision={self.precision!r} is not known.", f"Pass one of {listing(PRECISIONS)}.")
        if self.precision == "int8" and encoder.device.type != "cpu":
            raise InputError(
                f"precision='int8' is for CPUs; {encoder.name} is on {encoder.device}.", "Pass precision='bfloat16'."
            )
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 1):
            raise InputError(f"max_tokens={self.max_tokens!r}; it must be a whole number from 1 up.")
        if self.empty_cells not in ("nan", "embed", "error"):
            raise InputError(f"empty_cells={self.empty_cells!r} is not known.", "Pass 'nan', 'embed' or 'error'.")

    def plan(self, encoder: CellEncoder, tokens: Tokens) -> list[np.ndarray]:
        """The batches of a block: rows of cells of similar length; with `empty_cells="nan"` those without a known gene are in none."""
        if encoder.tokenizer.grouped:  # cells that see each other
            return [np.arange(len(tokens))]
        kind, cost = encoder.device.type, encoder.network.token_cost
        budget, most = int(_TOKEN_BUDGET.get(kind, 16_384) / cost), _MOST_CELLS.get(kind, 512)
        if self.batch_size != "auto":
            budget, most = sys.maxsize, self.batch_size
        rows = np.arange(len(tokens)) if self.empty_cells == "embed" else np.flatnonzero(tokens.expressed > 0)
        return [rows[batch] for batch in plan_batches(tokens.lengths[rows], budget=budget, most_cells=most)]

    def network_of(self, encoder: CellEncoder) -> Network:
        """The network that computes: the encoder's own, or what `precision` and `compile` make of it."""
        network = quantised(encoder.network, encoder.name) if self.precision == "int8" else encoder.network
        return compiled(network) if self.compile else network

    def step(
        self, network: Network, device: torch.device, tokens: Tokens, cells: np.ndarray, rows: np.ndarray
    ) -> Encoded:
        """Outputs of one batch, some rows of a block, on the CPU."""
        low = self.precision not in ("float32", "int8")
        autocast = torch.autocast(device.type, dtype=getattr(torch, self.precision)) if low else nullcontext()
        with torch.inference_mode(), autocast:
            encoded = network(tokens.collate(rows).to(device), self.request)
            if self.reduce is not None:
                encoded = self.reduce(cells[rows], tokens.select(rows), encoded)
            return encoded.cpu()


Pending = Callable[[Callable[[int], None]], Batches]
"""Waits for a block; called with what is told of each number of cells that is done."""


class Engine:
    """Computes blocks on the encoder's own device, in threads.

    Parameters
    ----------
    n_cells
        Of the whole run: no more threads than cells.
    """

    ahead = 0
    """Blocks that are worth handing in before the first is waited for."""

    def __init__(self, encoder: CellEncoder, run: Run, n_cells: int) -> None:
        self._encoder, self._run = encoder, run
        self._cells = 1 if encoder.tokenizer.grouped else n_cells
        self._open = ExitStack()

    def __enter__(self) -> Engine:
        self._open.enter_context(evaluating(self._encoder.network))
        self._network = self._run.network_of(self._encoder)
        cells = 1 if self._run.compile else self._cells  # threads don't share a compiler
        self._pool = self._open.enter_context(_threads(self._encoder.device, cells))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def submit(self, tokens: Tokens, cells: np.ndarray) -> Pending:
        """Begin a block: the tokens of cells at these positions in the data."""
        plan = self._run.plan(self._encoder, tokens)
        device = self._encoder.device
        futures = [self._pool.submit(self._run.step, self._network, device, tokens, cells, rows) for rows in plan]

        def wait(advance: Callable[[int], None]) -> Batches:
            try:
                return [
                    (rows, _finished(future, advance, len(rows))) for rows, future in zip(plan, futures, strict=True)
                ]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

        return wait


def _finished(future: Future[Encoded], advance: Any, cells: int) -> Encoded:
    result = future.result()
    advance(cells)
    return result


@contextmanager
def _threads(device: torch.device, n_cells: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run batches. On a CPU: one a core, each with one torch thread, within the caller's own limit, restored afterwards."""
    threads = torch.get_num_threads()
    count = max(1, min(threads, n_cells)) if device.type == "cpu" else 1
    share = threads // count
    try:
        with ThreadPoolExecutor(count, "scfm-worker", initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


class ProcessEngine(Engine):
    """Computes blocks on several devices: a process for each, which takes the next block when it is free."""

    def __init__(self, encoder: CellEncoder, run: Run, n_cells: int, devices: Sequence[torch.device]) -> None:
        super().__init__(encoder, run, n_cells)
        self.ahead = 2 * len(devices)
        on_cpu = sum(device.type == "cpu" for device in devices)
        threads = max(1, torch.get_num_threads() // max(1, on_cpu))
        plain = copy(encoder)
        if encoder.device.type != "cpu":
            from copy import deepcopy

            plain.network = deepcopy(encoder.network).cpu()
        context = multiprocessing.get_context("spawn")
        turns: Queue[str] = context.Queue()
        for device in devices:
            turns.put(str(device))
        self._processes = ProcessPoolExecutor(
            len(devices), mp_context=context, initializer=_begin_process, initargs=(plain, run, turns, threads)
        )

    def __enter__(self) -> ProcessEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self._processes.shutdown(wait=True, cancel_futures=True)

    def submit(self, tokens: Tokens, cells: np.ndarray) -> Pending:
        """Begin a block."""
        try:
            future = self._processes.submit(_run_block, tokens, cells)
        except BrokenProcessPool as error:
            raise _died() from error

        def wait(advance: Callable[[int], None]) -> Batches:
            try:
                found = future.result()
            except BrokenProcessPool as error:
                raise _died() from error
            advance(sum(len(rows) for rows, _ in found))
            return [(rows, encoded.as_tensors()) for rows, encoded in found]

        return wait


def _died() -> ScfmError:
    return ScfmError(
        "a worker process of devices= died (out of memory, killed, or its script has no main guard).",
        "Scripts that pass devices= begin with: if __name__ == '__main__'. With out=, the same call continues the run.",
    )


_process: dict[str, Any] = {}
"""Of a worker process: its engine."""


def _begin_process(encoder: CellEncoder, run: Run, turns: Queue[str], threads: int) -> None:
    torch.set_num_threads(threads)
    encoder.to(turns.get())
    _process["engine"] = Engine(encoder, run, sys.maxsize).__enter__()


def _run_block(tokens: Tokens, cells: np.ndarray) -> list[tuple[np.ndarray, Encoded]]:
    batches = _process["engine"].submit(tokens, cells)(lambda n: None)
    return [(rows, encoded.as_arrays()) for rows, encoded in batches]  # tensors would be passed as open files


def engine_of(encoder: CellEncoder, run: Run, n_cells: int, devices: Devices = None) -> Engine:
    """The engine for these devices."""
    chosen = resolve_devices(devices)
    return ProcessEngine(encoder, run, n_cells, chosen) if chosen else Engine(encoder, run, n_cells)
