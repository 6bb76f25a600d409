"""What is faster and not exact: speed and agreement with the exact embedding, on real cells.

    .venv/bin/python benchmarks/inexact.py [--cells 400]

The shipped model on the shipped PBMCs: half of the cells are the reference of label transfer. Writes results/inexact.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "results"
OPTIONS: dict[str, dict[str, Any]] = {
    "float32 (exact)": {},
    "int8": {"precision": "int8"},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "max_tokens=512": {"max_tokens": 512},
    "max_tokens=256": {"max_tokens": 256},
    "max_tokens=128": {"max_tokens": 128},
    "int8, max_tokens=256": {"precision": "int8", "max_tokens": 256},
}


def units() -> str:
    """Which low-precision units this processor has."""
    flags = Path("/proc/cpuinfo").read_text()
    known = ("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return ", ".join(flag for flag in known if flag in flags) or "no bfloat16 or int8 units"


def main() -> None:
    """Measure every option and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=400)
    args = parser.parse_args()
    import scfm
    from scfm.data import pbmc_demo
    from scfm.metrics import bootstrap, knn_labels
    from scfm.neighbours import neighbours

    cells = pbmc_demo()
    cells = cells[np.random.default_rng(0).permutation(cells.n_obs)[: args.cells]].copy()
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    query = np.arange(len(labels)) % 2 == 1
    encoder = scfm.load("mini", device="cpu")
    found: list[dict[str, Any]] = []
    exact, right = np.empty(0), np.empty(0)
    for name, options in OPTIONS.items():
        wall, cpu = time.perf_counter(), time.process_time()
        z = encoder.embed(cells, **options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        correct = (knn_labels(z[~query], labels[~query], z[query]) == labels[query]).astype(float)
        if name == "float32 (exact)":
            exact, right, base = z, correct, cpu
        cosine = (z * exact).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(exact, axis=1)
        near = [neighbours(x, k=15)[1] for x in (exact, z)]
        overlap = np.mean([len(np.intersect1d(a, b)) / 15 for a, b in zip(*near, strict=True)])
        change = bootstrap(lambda rows, c=correct, r=right: float((c - r)[rows].mean()), len(correct))
        found.append(
            {
                "option": name,
                "cells_per_cpu_second": len(z) / cpu,
                "speed": base / cpu,
                "cosine_min": float(cosine.min()),
                "cosine": float(cosine.mean()),
                "overlap": float(overlap),
                "accuracy": float(correct.mean()),
                "change": [change.value, change.low, change.high],
                "seconds": wall,
            }
        )
    HERE.mkdir(exist_ok=True)
    (HERE / "inexact.json").write_text(
        json.dumps({"load": os.getloadavg()[0], "cells": len(labels), "rows": found}, indent=1)
    )
    lines = [
        "# Faster and not exact",
        "",
        f"`python benchmarks/inexact.py --cells {args.cells}`: mini on {len(labels)} PBMCs, {int(query.sum())} of them labelled by 15 nearest of the others; CPU time, "
        f"a CPU with {units()}.",
        "",
        "| option | cells per CPU second | times exact | cosine, mean | cosine, least | of 15 neighbours the same | label transfer | change [95 % interval] |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['option']} | {r['cells_per_cpu_second']:.1f} | {r['speed']:.2f} | {r['cosine']:.5f} | {r['cosine_min']:.5f} | {r['overlap']:.3f} | {r['accuracy']:.3f} | "
            f"{r['change'][0]:+.3f} [{r['change'][1]:+.3f}, {r['change'][2]:+.3f}] |"
            for r in found
        ),
    ]
    (HERE / "inexact.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
