"""Peak memory while embedding an .h5ad of 10,000 and of 100,000 cells: it must not grow with the number of cells.

    .venv/bin/python benchmarks/memory.py [--folder /tmp/scfm-bench] [--cells 10000 100000]

Cells are the shipped PBMCs, repeated. Each run is a process of its own; its peak is the kernel's `ru_maxrss`. `mini` is run with 32 tokens
a cell, so that 100,000 cells take minutes: reading, checking, tokenizing and writing are those of any run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def make(path: Path, cells: int) -> None:
    """Write the shipped PBMCs over and over, block by block."""
    import h5py
    import numpy as np
    import pandas as pd
    from anndata.io import write_elem

    from scfm.data import pbmc_demo

    source = pbmc_demo()
    x = source.X
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", pd.DataFrame(index=[f"cell{i}" for i in range(cells)]))
        write_elem(file, "var", pd.DataFrame(index=source.var_names))
        group = file.create_group("X")
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([cells, x.shape[1]])}
        )
        data = group.create_dataset("data", (0,), np.float32, maxshape=(None,), chunks=(1 << 18,))
        indices = group.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=(1 << 18,))
        offsets, done = [np.zeros(1, np.int64)], 0
        while done < cells:
            part = x[: min(x.shape[0], cells - done)]
            at = data.shape[0]
            for target, values in ((data, part.data), (indices, part.indices)):
                target.resize(at + len(values), axis=0)
                target[at:] = values
            offsets.append(part.indptr[1:].astype(np.int64) + at)
            done += part.shape[0]
        group.create_dataset("indptr", data=np.concatenate(offsets))


def embed(path: Path, model: str, out: Path) -> None:
    """The measured process: embed a file to a .npy and print its peak."""
    import scfm

    encoder = scfm.load(model)
    if model == "mini":
        encoder = encoder.with_options(context=32)
    else:
        from scfm.data import pbmc_demo

        encoder = encoder.fit(pbmc_demo())
    begin = time.perf_counter()
    shape = encoder.embed(path, out=out, resume=False).shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cells": shape[0], "seconds": time.perf_counter() - begin, "peak_mb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scfm-bench"))
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--embed", nargs=2, metavar=("FILE", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.embed:
        embed(Path(arguments.embed[0]), arguments.embed[1], arguments.folder / "memory.npy")
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in ("pca", "mini"):
        for cells in arguments.cells:
            path = arguments.folder / f"pbmc_{cells}.h5ad"
            if not path.exists():
                make(path, cells)
            command = [sys.executable, __file__, "--folder", str(arguments.folder), "--embed", str(path), model]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"model": model, "file_mb": path.stat().st_size / 2**20, **json.loads(done.stdout)})
            print(rows[-1], file=sys.stderr)
    lines = ["| model | cells | file, MB | peak, MB | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['model']} | {r['cells']:,} | {r['file_mb']:.0f} | {r['peak_mb']:.0f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    for model in ("pca", "mini"):
        peaks = [r["peak_mb"] for r in rows if r["model"] == model]
        lines.append(
            f"\n{model}: {peaks[-1] - peaks[0]:+.0f} MB from {arguments.cells[0]:,} to {arguments.cells[-1]:,} cells"
        )
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "memory.md").write_text("# Peak memory\n\n`python benchmarks/memory.py`\n\n" + "\n".join(lines) + "\n")
    (results / "memory.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
