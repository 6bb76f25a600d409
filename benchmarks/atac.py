"""Chromatin: settings of the baselines, and speed against the tools of the original pipeline. Writes results/atac.md.

    .venv/bin/python benchmarks/atac.py --shared ../shared [--bioframe-python /tmp/bf-venv/bin/python] \\
        [--snapatac2-python /tmp/snap-venv/bin/python] [--only labels join]

`bedtools` must be on the PATH for "fragments" (apt-get install bedtools), bioframe and snapatac2 in some environment for "join" and
"fragments"; without them their rows say so. Rivals run by turns with ours, on the same files, in one run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import read_h5ad
from scipy import sparse

import scfm
from scfm.fragments import count_fragments
from scfm.genes import Vocabulary
from scfm.metrics import bootstrap_mean, knn_labels
from scfm.regions import BUILDS, Regions, overlaps
from scfm.tokenizers.regions import RegionTokenizer, tfidf

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "atac.md"
REGIONS, PEAKS, FRAGMENTS = 1_355_445, 200_000, 2_000_000


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def halves(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random half of the cells and the other half, each ascending."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock time and result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def by_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every run in every round; each run says its own time. The first round warms up and is dropped."""
    times = np.array([[run() for run in runs.values()] for _ in range(rounds + 1)])[1:]
    return dict(zip(runs, times.T, strict=True))


def timing(times: np.ndarray) -> str:
    """Median and range."""
    return f"{np.median(times):.2f} ({times.min():.2f} to {times.max():.2f})"


def ratio(theirs: np.ndarray, ours: np.ndarray) -> str:
    """Median and range over the rounds."""
    of_round = theirs / ours
    return f"{np.median(of_round):.1f} ({of_round.min():.1f} to {of_round.max():.1f})"


# Quality


def labels(args: argparse.Namespace) -> str:
    """Settings of `lsi` and `pca` on bone marrow."""
    data = read_h5ad(args.shared / "data/hematopoiesis_scatac/hematopoiesis_scatac.h5ad")
    reference, query = halves(data.n_obs)
    cells, others = data[reference].copy(), data[query].copy()
    truth = others.obs["cell_type"].astype(str).to_numpy()
    rows = []
    for name, load in {
        "lsi, 50 components, first dropped": lambda: scfm.load("lsi", device="cpu"),
        "lsi, 50 components, first kept": lambda: scfm.load("lsi", device="cpu", drop_first=False),
        "lsi, 10 components, first dropped": lambda: scfm.load("lsi", device="cpu", components=10),
        "lsi, 10 components, first kept": lambda: scfm.load("lsi", device="cpu", components=10, drop_first=False),
        "pca, 50 components, 2,000 peaks (its default)": lambda: scfm.load("pca", device="cpu"),
        "pca, 50 components, all peaks": lambda: scfm.load("pca", device="cpu", top_genes=5000),
        "pca, 10 components, all peaks": lambda: scfm.load("pca", device="cpu", components=10, top_genes=5000),
    }.items():
        fitted = load().fit(cells)
        kind = cells.obs["cell_type"].astype(str).to_numpy()
        right = knn_labels(fitted.embed(cells), kind, fitted.embed(others)) == truth
        rows.append((name, str(bootstrap_mean(right)), fitted.origin.get("first_component", "")))
    chance = max(np.unique(truth, return_counts=True)[1]) / len(truth)
    return (
        "## Bone marrow, scATAC (hematopoiesis_scatac: 600 cells, 5,000 peaks, hg19)\n\n"
        "Transfer of six cell types by 15 nearest neighbours: fitted on a random half of the cells, scored on the other half. Both halves "
        "are of the same two samples, so this says nothing about new donors. Intervals: bootstrap over cells, descriptive.\n\n"
        + table(("encoder", "accuracy [95 %]", "first component"), rows)
        + f"\nMost frequent type: {chance:.3f}.\n"
    )


# Speed


def some_regions(count: int, seed: int, width: tuple[int, int]) -> Regions:
    """Regions over hg38's autosomes in proportion to their length, sorted."""
    rng = np.random.default_rng(seed)
    lengths = {name: size for name, size in BUILDS["hg38"].lengths.items() if name[3:].isdigit()}
    names = np.array(list(lengths), dtype=object)
    sizes = np.array(list(lengths.values()), dtype=np.float64)
    chosen = rng.choice(len(names), count, p=sizes / sizes.sum())
    start = (rng.random(count) * (sizes[chosen] - width[1])).astype(np.int64)
    end = start + rng.integers(*width, count)
    order = np.lexsort((end, start, names[chosen].astype(str)))
    return Regions(names[chosen][order], start[order], end[order])


def write_bed(regions: Regions, path: Path) -> None:
    """Three columns."""
    frame = pd.DataFrame({"chrom": regions.chrom, "start": regions.start, "end": regions.end})
    frame.to_csv(path, sep="\t", header=False, index=False)


BIOFRAME = """
import sys, time, pandas as pd, bioframe
peaks, regions = (pd.read_csv(p, sep="\\t", header=None, names=["chrom", "start", "end"]) for p in sys.argv[1:3])
for _ in range(2):
    t = time.perf_counter()
    found = bioframe.overlap(peaks, regions, how="inner", return_index=True, return_input=False)
    taken = time.perf_counter() - t
print(taken, len(found), bioframe.__version__, pd.__version__)
"""


def join(args: argparse.Namespace) -> str:
    """All overlapping pairs of 200,000 peaks and 1.36 M regions."""
    peaks, regions = some_regions(PEAKS, 1, (200, 1200)), some_regions(REGIONS, 2, (150, 900))
    pairs: dict[str, int] = {}
    said: list[str] = []

    def ours() -> float:
        taken, (query, _) = seconds(
            lambda: overlaps(replace(peaks), replace(regions))
        )  # nothing kept from the run before
        pairs["ours"] = len(query)
        return taken

    def bioframe() -> float:
        command = [str(args.bioframe_python), "-c", BIOFRAME, *map(str, paths)]
        taken, found, *versions = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        pairs["bioframe"] = int(found)
        said[:] = versions
        return float(taken)

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("peaks.bed", "regions.bed")]
        for path, own in zip(paths, (peaks, regions), strict=True):
            write_bed(own, path)
        times = by_turns({"ours": ours} | ({} if args.bioframe_python is None else {"bioframe": bioframe}), 5)
    rows = [(f"scfm.regions.overlaps (pandas {pd.__version__})", timing(times["ours"]), f"{pairs['ours']:,}", "1")]
    if "bioframe" in times:
        if pairs["bioframe"] != pairs["ours"]:
            raise SystemExit("the two joins differ")
        name = f"bioframe {said[0]} overlap (pandas {said[1]})"
        rows.append(
            (name, timing(times["bioframe"]), f"{pairs['bioframe']:,}", ratio(times["bioframe"], times["ours"]))
        )
    else:
        rows.append(("bioframe", "not installed (--bioframe-python)", "", ""))
    return (
        f"## Overlap join: {PEAKS:,} peaks x {REGIONS:,} regions\n\nFive rounds by turns, median (range); both sets sorted, "
        "both warmed up, reading the files not timed. bioframe stands in an environment of its own.\n\n"
        + table(("join", "seconds", "pairs", "time / ours"), rows)
    )


def bedtools_pipeline(fragments: Path, regions: Path, count: int) -> sparse.csr_matrix:
    """The original's way: bedtools writes every (fragment, region) pair as text, pandas sums."""
    pairs = fragments.with_suffix(".pairs")
    with pairs.open("w") as out:
        command = ["bedtools", "intersect", "-a", str(fragments), "-b", str(regions), "-wa", "-wb"]
        subprocess.run(command, stdout=out, check=True)
    names = ["chrom", "start", "end", "barcode", "count", "region_chrom", "region_start", "region_end"]
    found = pd.read_csv(pairs, sep="\t", header=None, names=names)
    bed = pd.read_csv(regions, sep="\t", header=None, names=names[5:])
    bed["region"] = np.arange(count)
    summed = found.merge(bed, on=names[5:]).groupby(["barcode", "region"], sort=True)["count"].sum().reset_index()
    cell = summed["barcode"].astype("category")
    entries = summed["count"].to_numpy(np.float32), (cell.cat.codes.to_numpy(), summed["region"].to_numpy())
    return sparse.csr_matrix(entries, shape=(len(cell.cat.categories), count))


SNAPATAC2 = """
import json, sys, time
if __name__ == "__main__":
    import snapatac2 as snap
    t = time.perf_counter()
    sizes = json.load(open(sys.argv[3]))
    data = snap.pp.import_fragments(sys.argv[1], chrom_sizes=sizes, sorted_by_barcode=False, min_num_fragments=0)
    made = snap.pp.make_peak_matrix(data, peak_file=sys.argv[2], counting_strategy="fragment")
    print(time.perf_counter() - t, int(made.X.sum()), snap.__version__)
"""


def write_fragments(path: Path) -> None:
    """Synthetic fragments of 5,000 cells, sorted by position, with reads."""
    rng = np.random.default_rng(3)
    cuts = some_regions(FRAGMENTS, 4, (40, 600))
    names = ["".join(letters) + "-1" for letters in rng.choice(list("ACGT"), (5000, 16))]
    barcodes = np.array(names, dtype=object)[rng.integers(0, 5000, FRAGMENTS)]
    columns = {"c": cuts.chrom, "s": cuts.start, "e": cuts.end, "b": barcodes, "n": rng.integers(1, 4, FRAGMENTS)}
    pd.DataFrame(columns).to_csv(path, sep="\t", header=False, index=False)


def fragments(args: argparse.Namespace) -> str:
    """Fragments to a cell-by-region matrix."""
    regions = some_regions(REGIONS, 2, (150, 900))
    frame = pd.DataFrame({"c": regions.chrom, "s": regions.start, "e": regions.end})
    regions = regions.take(
        frame.drop_duplicates().index.to_numpy()
    )  # a merge by coordinates would count a repeated one twice
    rows: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        bed, path, sizes = (Path(folder) / name for name in ("ccre.bed", "fragments.bed", "sizes.json"))
        write_bed(regions, bed)
        write_fragments(path)
        sizes.write_text(json.dumps(dict(BUILDS["hg38"].lengths)))
        packed = path.with_suffix(".bed.gz")
        with path.open("rb") as plain, gzip.open(packed, "wb", compresslevel=6) as out:
            shutil.copyfileobj(plain, out)
        results: dict[str, Any] = {}

        def run(name: str, code: Callable[[], Any]) -> Callable[[], float]:
            def timed() -> float:
                taken, results[name] = seconds(code)
                return taken

            return timed

        runs = {
            "ours": run("ours", lambda: count_fragments(path, replace(regions)).X),
            "packed": run("packed", lambda: count_fragments(packed, replace(regions)).X),
        }
        if shutil.which("bedtools"):
            runs["bedtools"] = run("bedtools", lambda: bedtools_pipeline(path, bed, len(regions)))
        times = by_turns(runs, 3)
        if args.snapatac2_python is not None:
            command = [str(args.snapatac2_python), "-c", SNAPATAC2, str(packed), str(bed), str(sizes)]
            (Path(folder) / "snap.py").write_text(SNAPATAC2)
            command[1:3] = [str(Path(folder) / "snap.py")]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.split()
            times["snapatac2"], version = np.array([float(done[-3])]), done[-1]
    for name in ("packed", "bedtools"):
        if name in results and abs(results[name] - results["ours"]).max() != 0:
            raise SystemExit(f"the matrices of ours and {name} differ")
    titles = {
        "ours": "scfm.fragments.count_fragments",
        "packed": "scfm.fragments.count_fragments, .gz",
        "bedtools": "bedtools intersect -wa -wb + pandas",
        "snapatac2": f"snapatac2 {version if 'snapatac2' in times else ''} import_fragments + make_peak_matrix, .gz, once",
    }
    for name, title in titles.items():
        if name not in times:
            rows.append((title, "not installed", "", ""))
            continue
        own = times["packed" if name == "snapatac2" else "ours"]
        factor = "1" if name == "ours" else ratio(times[name], own if len(own) == len(times[name]) else np.median(own))
        rows.append((title, timing(times[name]), f"{FRAGMENTS / np.median(times[name]):,.0f}", factor))
    return (
        f"## {FRAGMENTS:,} synthetic fragments of 5,000 cells -> matrix over {len(regions):,} regions\n\n"
        "Reading included, three rounds by turns, median (range); our matrices and that of bedtools are equal. The summing by pandas is "
        "written here: the original's own loop over the pairs is not run. snapatac2 writes and reads an AnnData between its two steps and "
        "counts otherwise; its time is set against ours of the same .gz.\n\n"
        + table(("pipeline", "seconds", "fragments / s", "time / ours"), rows)
    )


MEMORY = """
import resource, sys
from scfm.fragments import count_fragments
from scfm.regions import Regions
cells = count_fragments(sys.argv[1], Regions.read_bed(sys.argv[2]))
print(cells.uns["fragments"]["fragments"], cells.X.nnz, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(args: argparse.Namespace) -> str:
    """Peak memory of counting a file, and the same fragments four times over (a matrix of the same size)."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bed, once, often = (Path(folder) / name for name in ("ccre.bed", "once.bed", "often.bed"))
        write_bed(some_regions(REGIONS, 2, (150, 900)), bed)
        write_fragments(once)
        often.write_bytes(once.read_bytes() * 4)
        for path in (once, often):
            command = [sys.executable, "-c", MEMORY, str(path), str(bed)]
            lines, entries, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            rows.append(
                (
                    f"{int(lines):,}",
                    f"{path.stat().st_size / 1e6:,.0f}",
                    f"{int(entries):,}",
                    f"{int(peak) / 1024:,.0f}",
                )
            )
    return (
        "## Memory of counting fragments\n\nThe same fragments once and four times over, each in a process of its own; most of it is the "
        f"libraries and the {REGIONS:,} names of regions.\n\n"
        + table(("fragments", "file, MB", "entries of the matrix", "peak memory, MB"), rows)
    )


def sentences_dense(matrix: sparse.csr_matrix, frequency: np.ndarray, context: int) -> list[np.ndarray]:
    """The original's steps: TF-IDF of the stored values of all cells, then each row made dense, its open regions found and sorted."""
    values, found = tfidf(matrix, frequency), []
    for i in range(matrix.shape[0]):
        row = values[i].toarray()[0]
        at = np.flatnonzero(row)
        found.append(np.concatenate([[1], at[np.argsort(-row[at], kind="stable")][: context - 2] + 4, [2]]))
    return found


def sentences_as_text(matrix: sparse.csr_matrix, frequency: np.ndarray, context: int) -> list[np.ndarray]:
    """The same, each sentence kept as text "[a,b,...]" and parsed again, as the original does between tokenization and model."""
    whole = (str(sentence[1:-1].tolist()) for sentence in sentences_dense(matrix, frequency, REGIONS))
    return [np.array([1, *json.loads(text)[: context - 2], 2]) for text in whole]


def sentences_sparse(matrix: sparse.csr_matrix, frequency: np.ndarray, context: int) -> list[np.ndarray]:
    """The same without making rows dense."""
    values, found = tfidf(matrix, frequency), []
    for start, end in zip(values.indptr[:-1], values.indptr[1:], strict=True):
        order = np.argsort(-values.data[start:end], kind="stable")
        found.append(np.concatenate([[1], values.indices[start:end][order][: context - 2] + 4, [2]]))
    return found


def tokens(args: argparse.Namespace) -> str:
    """EpiAgent's sentences of cells."""
    from scfm.cells import Block
    from scfm.genes import Alignment, GeneReport

    rng = np.random.default_rng(5)
    n, mean = 512, 4000
    frequency = rng.beta(0.4, 8.0, REGIONS) + 1e-5
    lengths = np.clip(rng.lognormal(np.log(mean), 0.5, n), 200, 40_000).astype(int)
    at = [np.sort(rng.choice(REGIONS, size, replace=False)) for size in lengths]
    counts = rng.poisson(0.4, int(lengths.sum())) + 1.0
    matrix = sparse.csr_matrix(
        (counts.astype(np.float32), np.concatenate(at), np.concatenate([[0], np.cumsum(lengths)])), shape=(n, REGIONS)
    )
    special = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "reserved": "[RESERVED]"}
    names = [*special.values(), *(f"chr1:{i}-{i + 1}" for i in range(REGIONS))]
    column = np.concatenate([np.full(4, np.nan), frequency])
    vocabulary = Vocabulary(
        tuple(names), ids="region", special=special, columns={"document_frequency": column}, build="hg38"
    )
    tokenizer = RegionTokenizer(vocabulary)
    report = GeneReport(column="index", features=REGIONS, matched=REGIONS, duplicates=0, mapped=False)
    block = Block(
        matrix,
        Alignment(np.arange(REGIONS) + 4, np.array(names[4:], dtype=object), report),
        pd.DataFrame(index=range(n)),
    )
    results: dict[str, Any] = {}

    def run(name: str, code: Callable[[], Any]) -> Callable[[], float]:
        def timed() -> float:
            taken, results[name] = seconds(code)
            return taken

        return timed

    names_of = {
        "scfm RegionTokenizer": lambda: list(tokenizer.tokenize(block)),
        "loop over cells, rows made dense as in the original": lambda: sentences_dense(matrix, frequency, 8192),
        "the same, and sentences as text, as in the original": lambda: sentences_as_text(matrix, frequency, 8192),
        "loop over cells, sparse rows": lambda: sentences_sparse(matrix, frequency, 8192),
    }
    times = by_turns({name: run(name, code) for name, code in names_of.items()}, 3)
    mine = next(iter(names_of))
    rows = []
    for name, taken in times.items():
        given = [cell["ids"] if isinstance(cell, dict) else cell for cell in results[name]]
        same = np.mean([np.array_equal(cell, ours["ids"]) for cell, ours in zip(given, results[mine], strict=True)])
        factor = "1" if name == mine else ratio(taken, times[mine])
        rows.append((name, f"{n / np.median(taken):,.0f}", factor, f"{same:.1%}"))
    return (
        f"## Tokenization: {n} cells with {int(np.median(lengths)):,} open of {REGIONS:,} regions (median), context 8,192\n\n"
        "One thread, three rounds by turns, median (range). The loops are written here after the description of the original, whose code "
        "is not run.\n\n" + table(("code", "cells / s", "time / ours", "cells with equal tokens"), rows)
    )


SECTIONS: dict[str, Callable[[argparse.Namespace], str]] = {
    "labels": labels,
    "join": join,
    "fragments": fragments,
    "memory": memory,
    "tokens": tokens,
}


def main() -> None:
    """Run the sections asked for and write those of this run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--bioframe-python", type=Path)
    parser.add_argument("--snapatac2-python", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    parts = [
        "# Chromatin accessibility\n\n`python benchmarks/atac.py`, "
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load average {load:.1f} at the start (other work runs on this machine: "
        "read ratios, not seconds).\n"
    ]
    for name in args.only:
        taken, text = seconds(lambda name=name: SECTIONS[name](args))
        print(text, f"({name}: {taken:.0f} s)\n", flush=True)
        parts.append(text)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
