"""Embedding on many machines: Ray workers, each with an encoder, compute blocks of cells; one process writes and keeps the journal.

The unit of work is a run of blocks of the data (`Reading.blocks`), which every worker opens by itself, so that nothing but embeddings
travels. A worker that dies is started again, and its work is done again; a driver that dies continues by the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from scfm import errors
from scfm._lazy import optional
from scfm.encoder import CellEncoder
from scfm.engine import Run, resolve_device
from scfm.errors import InputError, ScfmError
from scfm.inference import encode, progress_bar, provenance, sink_for, warn_of_empty_cells
from scfm.reading import Reading, read

__all__ = ["embed_on_ray"]

REFUSED = -1
"""In the place of a block's number: the data were refused."""
TASK_BLOCKS = 8
"""Blocks that a worker takes at a time: what is lost when it dies, and what its start is spread over."""


def embed_on_ray(
    encoder: CellEncoder,
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    run: Run,
    *,
    out: str | PathLike[str],
    reading: dict[str, Any] | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    cpus_per_worker: float = 1.0,
    address: str | None = None,
    key_added: str | None = None,
    resume: bool = True,
    progress: bool | None = None,
    seed: int = 0,
    task_blocks: int = TASK_BLOCKS,
) -> np.ndarray:
    """Embed cells with Ray Data on the machines of a cluster.

    Parameters
    ----------
    encoder
        Sent to every worker once.
    data
        `.h5ad` or `.zarr` paths that every machine sees under the same name.
    run
        What is computed, and how.
    out
        `.npy`, `.zarr` or `.h5ad`, written by this process.
    reading
        layer, gene_column, map_genes, values of `CellEncoder.embed`.
    workers
        Processes with an encoder; None is as many as the cluster has room for.
    gpus_per_worker, cpus_per_worker
        What each takes; with a GPU the encoder is moved to it, and torch uses as many threads as there are CPUs.
    address
        Of a running cluster, e.g. "auto"; None begins one on this machine, and ends it.
    key_added, resume, progress, seed
        As for `CellEncoder.embed`.
    task_blocks
        Blocks of 512 cells that a worker takes at a time.

    Returns
    -------
    np.ndarray
        (n_cells, dim) float32, bit for bit what `CellEncoder.embed` gives on the same kind of device.

    Raises
    ------
    InputError
        The data are not on disk, or their tokens must be drawn in order.
    ScfmError
        A worker raised an error that is none of the data's.
    """
    optional("ray.data", extra="ray", purpose="embedding on many machines")
    import ray

    paths = [str(Path(path).resolve()) for path in ([data] if isinstance(data, str | PathLike) else data)]
    if encoder.tokenizer.sequential:
        raise InputError(
            f"the tokens of {encoder.name} are drawn in the order of the cells, as with_options() asked for.",
            "Leave that option out, or embed on one machine.",
        )
    run.check(encoder)
    options = dict(reading or {})
    with closing(read(encoder, paths, **options)) as opened:
        record = provenance(encoder, opened, run.request, seed=seed, **run.settings)
        width = encoder.network.width(run.request)
        sink = sink_for(opened, width, record, out, key=key_added or f"X_{encoder.card.family}", resume=resume)
        missing = [number for number in range(len(opened.blocks)) if number not in sink.done]
        cells, empty = opened.n_cells, 0
        if missing:
            started = not ray.is_initialized()
            if started:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            try:
                work = {
                    "encoder": ray.put(encoder),
                    "paths": paths,
                    "run": run,
                    "reading": options,
                    "seed": seed,
                    "gpu": gpus_per_worker > 0,
                    "threads": max(1, int(cpus_per_worker)),
                }
                count = workers or _room(ray.cluster_resources(), cpus_per_worker, gpus_per_worker)
                tasks = [missing[at : at + task_blocks] for at in range(0, len(missing), task_blocks)]
                with progress_bar(cells, progress, f"{encoder.name} on {count} workers") as advance:
                    advance(cells - sum(_size(opened, number) for number in missing))
                    for number, rows, without in _results(ray, tasks, work, count, cpus_per_worker, gpus_per_worker):
                        sink.write(number, rows)
                        empty += without
                        advance(len(rows))
            finally:
                if started:
                    ray.shutdown()
    warn_of_empty_cells(encoder, run, empty, cells)
    return sink.finish()


def _size(opened: Reading, number: int) -> int:
    positions = opened.positions[number]
    return positions.stop - positions.start if isinstance(positions, slice) else len(positions)


def _room(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Workers that a cluster has room for."""
    fit = [int(resources.get(kind, 0) // each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each > 0]
    if not fit or min(fit) < 1:
        raise InputError(
            f"the Ray cluster has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; "
            f"a worker needs {cpus:g} and {gpus:g}.",
            "Pass smaller cpus_per_worker= or gpus_per_worker=, or another address=.",
        )
    return min(fit)


def _results(
    ray: Any, tasks: list[list[int]], work: dict[str, Any], workers: int, cpus: float, gpus: float
) -> Iterator[tuple[int, np.ndarray, int]]:
    """(number, rows, empty cells) of each block, as they come."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.actor_task_retry_on_errors = False
    blocks = ray.data.from_items([{"numbers": numbers} for numbers in tasks], override_num_blocks=len(tasks))
    results = blocks.map_batches(
        Worker,
        fn_constructor_kwargs=work,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(tasks))),
        num_cpus=cpus,
        num_gpus=gpus or None,
        max_restarts=-1,  # a worker that dies is started again,
        max_task_retries=-1,  # and what it was at is given to another
    )
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="numpy"):
            for number, rows, shape, empty in zip(
                batch["number"], batch["rows"], batch["shape"], batch["empty"], strict=True
            ):
                if number == REFUSED:  # raised here as on one machine
                    kind, found, fix = json.loads(rows)
                    raise getattr(errors, kind, ScfmError)(found, fix)
                yield int(number), np.frombuffer(rows, dtype=np.float32).reshape(tuple(shape)), int(empty)
    except ray.exceptions.RayError as error:
        raise ScfmError(f"a worker failed: {error}", "What was written stays; the same call continues it.") from error


class Worker:
    """One process of the cluster, with an encoder and the data open."""

    def __init__(
        self,
        encoder: Any,
        paths: list[str],
        run: Run,
        reading: dict[str, Any],
        seed: int,
        gpu: bool,
        threads: int,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self.encoder: CellEncoder = ray.get(encoder)
        if gpu:
            self.encoder.to(resolve_device("cuda"))
        self.run, self.seed = run, seed
        self.reading = read(self.encoder, paths, **reading)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The rows of the blocks of one task."""
        numbers = [int(number) for row in batch["numbers"] for number in row]
        width = self.encoder.network.width(self.run.request)
        found: dict[str, list[Any]] = {"number": [], "rows": [], "shape": [], "empty": []}
        results = encode(
            self.encoder,
            self.reading,
            self.run,
            numbers=numbers,
            seed=self.seed,
            progress=False,
            keep_open=True,
        )
        try:
            with closing(results):
                for result in results:
                    rows = result.cell_rows(width, self.run)
                    found["number"].append(result.number)
                    found["rows"].append(rows.tobytes())
                    found["shape"].append(rows.shape)
                    found["empty"].append(int((result.tokens.expressed == 0).sum()))
        except ScfmError as error:
            message = json.dumps([type(error).__name__, error.found, error.fix]).encode()
            for name, value in (("number", REFUSED), ("rows", message), ("shape", (0, 0)), ("empty", 0)):
                found[name].append(value)
        return {name: _column(values) for name, values in found.items()}


def _column(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column if isinstance(values[0], bytes) else np.array(values)
