"""Time scfm's fine-tuning of scGPT for annotation on the CPU: same cells, batches, precision and optimizer as `finetune_original.py`.

    python benchmarks/finetune_ours.py --checkpoint CHECKPOINT --data CELLS.h5ad --method full

Prints one JSON line: cells, steps, seconds (of the steps after the first), cpu_seconds, cells_per_second, tokens, peak_rss_mb.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CLASSES = 8
FIRST = 1
"""Steps that are not timed: memory is taken from the system in them."""


def options(description: str) -> argparse.Namespace:
    """Command line of both scripts; also confines the process to `--threads` cores. Call it before torch is imported."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", type=Path, required=True, help="args.json, vocab.json, best_model.pt are here")
    parser.add_argument("--data", type=Path, required=True, help="h5ad: counts in X, gene symbols as var index")
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", default="full", help="ours only")
    parser.add_argument("--checkpointing", action="store_true", help="ours only: gradient checkpointing")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if args.threads < len(cores):
        os.sched_setaffinity(0, cores[: args.threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    return args


def counted(
    args: argparse.Namespace, cells: int, seconds: float, cpu_seconds: float, peak: float, tokens: int
) -> dict[str, Any]:
    """What both scripts print."""
    timed = cells - FIRST * args.batch_size
    return {
        "cells": timed,
        "steps": -(-timed // args.batch_size),
        "batch_size": args.batch_size,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "cells_per_second": round(timed / seconds, 3),
        "tokens": int(tokens),
        "peak_rss_mb": peak,
    }


def main() -> None:
    args = options(__doc__.splitlines()[0])
    import anndata
    import torch
    from scgpt_original import Stopwatch, peak_rss_mb

    import scfm
    import scfm.finetuning
    import scfm.training

    torch.set_num_threads(args.threads)
    adata = anndata.read_h5ad(args.data)[: args.cells].copy()
    adata.obs["label"] = [str(i % CLASSES) for i in range(adata.n_obs)]
    encoder = scfm.load(args.checkpoint, device="cpu")
    encoder = encoder.with_options(**type(encoder).FINE_TUNING)
    ends: list[float] = []
    watches: list[Stopwatch] = []

    @contextmanager
    def noted(*_: Any) -> Iterator[Any]:
        def advance(cells: int) -> None:
            ends.append(time.perf_counter())
            if len(ends) == FIRST:
                watches.append(Stopwatch())
            if len(ends) == -(-adata.n_obs // args.batch_size):
                watches.append(watches[0].read())  # type: ignore[arg-type]

        yield advance

    scfm.finetuning.progress_bar = noted  # type: ignore[assignment]
    tuned = scfm.finetune(
        encoder,
        adata,
        "label",
        method=args.method,
        valid=None,
        epochs=1,
        batch_size=args.batch_size,
        learning_rate=1e-4,
        schedule="constant",
        warmup=0.0,
        gradient_checkpointing=args.checkpointing,
        progress=False,
    )
    (tokens,) = encoder.tokenize(adata)
    cpu = watches[1]["cpu_seconds"]  # type: ignore[index]
    found = counted(args, adata.n_obs, ends[-1] - ends[FIRST - 1], cpu, peak_rss_mb(), int(tokens.lengths.sum()))
    print(json.dumps({**found, "trained": tuned.record["trainable"]["parameters"], "method": args.method}))


if __name__ == "__main__":
    main()
