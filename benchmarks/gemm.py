"""What this machine's matrix multiplication can do: the limit that a model's speed is compared with.

python benchmarks/gemm.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch

# (rows, inputs, outputs): scGPT's fused query-key-value layer for one cell, and its feed-forward layer for ten
SHAPES = ((640, 512, 1536), (6400, 512, 512))
WINDOWS, WINDOW_SECONDS = 3, 0.5


def window_gflops(rows: int, inputs: int, outputs: int) -> float:
    """Mean rate of one float32 linear layer over a window, in 10^9 operations a second, as torch is set up now."""
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    out = torch.empty(rows, outputs)
    torch.addmm(
        bias, x, weight.t(), out=out
    )  # the output is touched before the clock starts: page faults are not the limit
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < WINDOW_SECONDS:
        torch.addmm(bias, x, weight.t(), out=out)
        calls += 1
    return 2e-9 * rows * inputs * outputs * calls / elapsed


@contextmanager
def thread_count_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gemm_gflops(threads: int) -> float:
    """Best window of float32 linear layers, GFLOP/s, with `threads` threads on each multiplication."""
    with thread_count_restored():
        torch.set_num_threads(threads)
        return max(window_gflops(*shape) for shape in SHAPES for _ in range(WINDOWS))


def workers_gflops(workers: int) -> float:
    """Best window of `workers` Python threads multiplying at the same time, one core each: sum of their rates."""
    together = Barrier(workers)

    def work(_: int) -> list[float]:
        torch.set_num_threads(1)  # holds for the calling Python thread
        rates = []
        for shape in SHAPES * WINDOWS:
            together.wait()
            rates.append(window_gflops(*shape))
        return rates

    with thread_count_restored(), ThreadPoolExecutor(workers) as pool:
        return max(sum(same_window) for same_window in zip(*pool.map(work, range(workers)), strict=True))


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    for threads in sorted({1, cores}):
        print(f"{threads} thread(s) on one multiplication: {gemm_gflops(threads):.0f} GFLOP/s")
    print(f"{cores} workers of one thread, sum: {workers_gflops(cores):.0f} GFLOP/s")


if __name__ == "__main__":
    main()
