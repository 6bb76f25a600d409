"""Compare scfm's scGPT with the original: speed, memory, equality. Runs in scfm's environment.

    python benchmarks/scgpt_speed.py --inputs /tmp/scfm-bench --original-python /work/venvs/orig/bin/python

Both are subprocesses that run by turns (original, ours, original, ours ...), so that a busy machine disturbs both.
Writes results/scgpt.json, with every single run, and results/scgpt.md, the table. README.md tells how to make the
inputs and the original's environment.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
from gemm import gemm_gflops, workers_gflops

HERE = Path(__file__).parent
MAX_LENGTH = 1200  # tokens of a cell, <cls> included: what scgpt_original.py asks for


def token_counts(data: Path, checkpoint: Path) -> np.ndarray:
    """(n_cells,) int64: expressed genes of the vocabulary + <cls>, before cutting to the context."""
    adata = ad.read_h5ad(data)
    known = adata.var_names.isin(json.loads((checkpoint / "vocab.json").read_text()))
    return adata[:, known].X.getnnz(axis=1).astype(np.int64) + 1


def useful_flops(tokens: np.ndarray, checkpoint: Path) -> float:
    """Operations the network needs for these cells without padding: a layer costs 2 L (4 d^2 + 2 d f) + 4 d L^2.

    The same formula for both sides, though only the <cls> row of the last layer is needed.
    """
    config = json.loads((checkpoint / "args.json").read_text())
    d, f = config["embsize"], config["d_hid"]
    length = np.minimum(tokens, MAX_LENGTH).astype(np.float64)
    return float(config["nlayers"] * (2 * length * (4 * d * d + 2 * d * f) + 4 * d * length**2).sum())


def machine_cpu_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started, time stolen by the host included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(python: Path, script: str, *arguments: object) -> dict:
    """One subprocess; returns the JSON line it printed last, and `busy_elsewhere`: cores that others kept busy."""
    command = [str(python), str(HERE / script), *map(str, arguments)]
    start, everyone, own = time.perf_counter(), machine_cpu_seconds(), children_cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True)
    others = (machine_cpu_seconds() - everyone) - (children_cpu_seconds() - own)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed ({done.returncode}):\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["busy_elsewhere"] = round(max(0.0, others) / (time.perf_counter() - start), 2)
    print(f"{script}: {result}", flush=True)
    return result


def measure(args: argparse.Namespace) -> dict:
    """All runs: `gemm`, and `embed` and `tokenize` for `original` and `ours`, one entry a round; then `equality`."""
    checkpoint = args.inputs / "checkpoint"
    cells, many_cells = (args.inputs / f"cells_{n}.h5ad" for n in (args.cells, args.tokenize_cells))

    def both(*arguments: object) -> dict[str, dict]:
        return {
            "original": run(args.original_python, "scgpt_original.py", "--checkpoint", checkpoint, *arguments),
            "ours": run(args.ours_python, "scgpt_ours.py", "--checkpoint", checkpoint, *arguments),
        }

    rounds = {"gemm": [], "embed": [], "tokenize": []}
    for _ in range(args.rounds):
        rounds["gemm"].append({"threads": gemm_gflops(args.threads), "workers": workers_gflops(args.threads)})
        rounds["tokenize"].append(both("--task", "tokenize", "--data", many_cells, "--threads", 1))
        rounds["embed"].append(both("--task", "embed", "--data", cells, "--threads", args.threads))
    return rounds | {"equality": equality(args, checkpoint, cells)}


def equality(args: argparse.Namespace, checkpoint: Path, cells: Path) -> dict:
    """Largest difference of the L2-normalised embeddings of the same cells, ties of the binning drawn from one seed.

    Not timed: the original runs without DataLoader workers, which would draw from other seeds. Cells longer than the
    context are left out, because each side cuts them to another random subset of genes.
    """
    fits = token_counts(cells, checkpoint)[: args.equal_cells] <= MAX_LENGTH
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, python in (("original", args.original_python), ("ours", args.ours_python)):
            out = Path(folder) / f"{name}.npz"
            options = [
                "--task",
                "embed",
                "--data",
                cells,
                "--threads",
                args.threads,
                "--first",
                args.equal_cells,
                "--out",
                out,
            ]
            if name == "original":
                options.append("--in-process")
            run(python, f"scgpt_{name}.py", "--checkpoint", checkpoint, *options)
            with np.load(out) as arrays:
                found[name] = arrays["embeddings"].astype(np.float64)
    difference = np.abs(found["original"] - found["ours"])[fits]
    return {"cells": int(fits.sum()), "left_out": int((~fits).sum()), "max_abs_diff": float(difference.max())}


def summarize(measured: dict, flops: float) -> dict:
    """Rates over all rounds together. The limit is the best GEMM rate of any round, threads together or apart."""
    limit = max(max(entry["threads"], entry["workers"]) for entry in measured["gemm"])
    summary = {"gemm_gflops": limit, "gflop_a_cell": flops / measured["embed"][0]["original"]["cells"] / 1e9}
    for task in ("embed", "tokenize"):
        for side in ("original", "ours"):
            runs = [entry[side] for entry in measured[task]]

            def rate(key: str, runs: list[dict] = runs) -> float:
                return sum(run["cells"] for run in runs) / sum(run[key] for run in runs)

            figures = {
                "cells_a_second": rate("seconds"),
                "cells_a_cpu_second": rate("cpu_seconds"),
                "peak_rss_mb": max(run["peak_rss_mb"] for run in runs),
            }
            if task == "embed":
                figures["cells_a_second_without_loading"] = rate("seconds_without_loading")
                achieved = figures["cells_a_second_without_loading"] * summary["gflop_a_cell"]
                figures["fraction_of_gemm"] = achieved / limit
            summary[f"{task}/{side}"] = figures
        summary[f"{task}/by_round"] = [
            {key: entry["original"][key] / entry["ours"][key] for key in ("seconds", "cpu_seconds")}
            for entry in measured[task]
        ]
    return summary


def machine() -> dict:
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":"
    )
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model.split(":", 1)[1].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


ROWS = (  # task, key, what it is, format
    ("embed", "cells_a_second", "embedding: cells/s, model loading included", "{:.2f}"),
    ("embed", "cells_a_second_without_loading", "embedding: cells/s", "{:.2f}"),
    ("embed", "cells_a_cpu_second", "embedding: cells per CPU-second, loading included", "{:.2f}"),
    ("embed", "fraction_of_gemm", "embedding: useful operations / GEMM limit", "{:.0%}"),
    ("embed", "peak_rss_mb", "embedding: peak memory of the main process, MB", "{:,.0f}"),
    ("tokenize", "cells_a_second", "tokenising, 1 thread: cells/s", "{:,.0f}"),
    ("tokenize", "cells_a_cpu_second", "tokenising, 1 thread: cells per CPU-second", "{:,.0f}"),
    ("tokenize", "peak_rss_mb", "tokenising: peak memory, MB", "{:,.0f}"),
)


def table(result: dict) -> str:
    """The page results/scgpt.md."""
    summary, first, equal = result["summary"], result["measured"]["embed"][0], result["measured"]["equality"]
    lines = [
        "# scGPT: scfm against the original",
        "",
        "Written by `benchmarks/scgpt_speed.py`; every single run is in `scgpt.json`.",
        "",
        "{cpu}, {cores} cores, Python {python}, {date}; ".format(**result["machine"])
        + f"torch {first['original']['torch']} (original), {first['ours']['torch']} (scfm).",
        f"Embedding: {first['original']['cells']} cells, {result['threads']} threads; "
        f"tokenising: {result['measured']['tokenize'][0]['original']['cells']} cells. "
        f"{len(result['measured']['embed'])} rounds by turns. Random weights of the released size.",
        f"GEMM limit {summary['gemm_gflops']:.0f} GFLOP/s; {summary['gflop_a_cell']:.1f} GFLOP a cell.",
        "",
        "| | original | scfm | ratio |",
        "|---|---|---|---|",
    ]
    for task, key, title, form in ROWS:
        original, ours = (summary[f"{task}/{side}"][key] for side in ("original", "ours"))
        lines.append(f"| {title} | {form.format(original)} | {form.format(ours)} | {ours / original:.2f} |")
    for task in ("embed", "tokenize"):
        wall, cpu = (
            ", ".join(f"{r[key]:.2f}" for r in summary[f"{task}/by_round"]) for key in ("seconds", "cpu_seconds")
        )
        runs = [entry[side] for entry in result["measured"][task] for side in ("original", "ours")]
        busiest = max(run["busy_elsewhere"] for run in runs)
        lines += [
            "",
            f"{task}: ratio by round {wall} (wall clock), {cpu} (CPU time); others used {busiest} cores at most.",
        ]
    left_out = f" ({equal['left_out']} longer than the context left out)" if equal["left_out"] else ""
    lines += [
        "",
        f"Largest difference of the normalised embeddings, same seed, {equal['cells']} cells{left_out}: "
        f"{equal['max_abs_diff']:.1e}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=Path, required=True, help="folder written by make_inputs.py")
    parser.add_argument("--original-python", type=Path, required=True, help="python of the original's environment")
    parser.add_argument("--ours-python", type=Path, default=Path(sys.executable), help="python that has scfm")
    parser.add_argument("--cells", type=int, default=64, help="cells to embed; cells_N.h5ad must exist")
    parser.add_argument("--tokenize-cells", type=int, default=8192, help="cells to tokenise; cells_N.h5ad must exist")
    parser.add_argument("--equal-cells", type=int, default=16, help="first cells whose embeddings are compared")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()

    measured = measure(args)
    tokens = token_counts(args.inputs / f"cells_{args.cells}.h5ad", args.inputs / "checkpoint")
    summary = summarize(measured, useful_flops(tokens, args.inputs / "checkpoint"))
    result = {"machine": machine(), "threads": args.threads, "summary": summary, "measured": measured}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "scgpt.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.results / "scgpt.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
