"""Cells a second of every model at its published size, with random weights, on this machine's CPU.

    .venv/bin/python benchmarks/models.py [--only scgpt uce/4-layer] [--seconds 6]

Writes results/models.json, results/models.md and docs/speed.json, which the documentation's table of models reads; with --only
the other models keep their figures. Each model runs in a process of its own. Cells are the shipped PBMCs (some 800 expressed genes
each). A vocabulary that is not shipped is filled with their genes and others of the GENCODE table; models of other species or of
peaks read the same counts under names of their own. Speed depends on the number of tokens, not on the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.encoder import CellEncoder
    from scfm.genes import Vocabulary

HERE = Path(__file__).parent
SPEED = HERE.parent / "docs" / "speed.json"
MOST_MEMORY = 8e9
"""Models whose weights need more bytes are left out."""


@dataclass(frozen=True)
class Model:
    """A published size.

    Parameters
    ----------
    vocabulary
        Number of tokens, or what gives them.
    sizes
        Settings of the network that differ from the defaults, which are those of the released model.
    options
        Tokenizer settings.
    variants
        Other cards of the same size.
    note
        What the reader should know of the figure.
    """

    vocabulary: Callable[[], Vocabulary] | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    note: str = ""


# Vocabularies


def human(
    ids: str, tokens: int, *special: str, roles: dict[str, str] | None = None, **columns: np.ndarray
) -> Vocabulary:
    """Special tokens, then the genes of the PBMCs, then others of the GENCODE table, up to a number of tokens."""
    from scfm.genes import Vocabulary

    names = dict.fromkeys([*special, *pbmc_genes(ids), *table_genes(ids), *(f"spare {i}" for i in range(tokens))])
    roles = {role: role for role in special} if roles is None else roles
    return Vocabulary(tuple(names)[:tokens], ids=ids, special=roles, columns=columns)  # type: ignore[arg-type]


def pbmc_genes(ids: str) -> list[str]:
    """Genes of the shipped cells, in their order."""
    from scfm.data import pbmc_demo
    from scfm.genes import to_ensembl

    names = pbmc_demo().var_names
    return list(names) if ids == "symbol" else [gene for gene in to_ensembl(names) if gene is not None]


def table_genes(ids: str) -> list[str]:
    """Symbols or Ensembl ids of the coding human genes."""
    from scfm.gene_tables import gene_table

    table = gene_table("human").query("biotype == 'protein_coding'")
    return list(table["symbol"] if ids == "symbol" else table.index)


def others(ids: str, species: str, tokens: int, name: Callable[[int], str], *special: str) -> Vocabulary:
    """Special tokens, then made-up features."""
    from scfm.genes import Vocabulary

    names = (*special, *(name(i) for i in range(tokens - len(special))))
    return Vocabulary(names, ids=ids, species=(species,), special={role: role for role in special})  # type: ignore[arg-type]


def shipped(family: str, tokens: int) -> Vocabulary:
    """The vocabulary that an adapter holds."""
    from importlib import import_module

    from scfm.checkpoint import Checkpoint

    with tempfile.TemporaryDirectory() as empty:
        checkpoint = Checkpoint(Path(empty))
        if family == "geneformer":
            return import_module("scfm.adapters.geneformer.dictionaries").read(checkpoint, tokens)
        module = import_module(f"scfm.adapters.{family}.adapter")
        if family == "scmulan":
            meta = module._meta(checkpoint)
            return module._vocabulary(meta["token_set"], meta["gene_set"], tokens, checkpoint)
        return module._vocabulary(checkpoint.folder if family == "langcell" else checkpoint, tokens)


def uce() -> Vocabulary:
    """20,000 human genes, evenly over 25 chromosomes; rows of other species are not loaded."""
    from scfm.adapters.uce.adapter import SPECIAL
    from scfm.genes import Vocabulary

    genes = human("symbol", 20_000).tokens
    ends = [f"<{i}>" for i in range(25)]
    blank, none = np.full(len(SPECIAL), np.nan), np.full(len(ends), np.nan)
    place = len(SPECIAL) + len(genes) + np.arange(len(genes)) * len(ends) // len(genes)
    return Vocabulary(
        (*SPECIAL.values(), *genes, *ends),
        ids="symbol",
        special=SPECIAL | {end: end for end in ends},
        fold_case=True,
        columns={
            "chromosome": np.concatenate([blank, place, none]),
            "start": np.concatenate([blank, np.arange(len(genes)), none]),
        },
    )


def transcriptformer() -> Vocabulary:
    """The 23,829 tokens of Sapiens."""
    from scfm.adapters.transcriptformer.adapter import PAD, SPECIAL, START

    return human("ensembl", 23_829, *SPECIAL, roles={"pad": PAD, "start": START})


def cellmemory() -> Vocabulary:
    """3,000 genes of a reference."""
    from scfm.adapters.cellmemory.adapter import reference_vocabulary

    return reference_vocabulary(pbmc_genes("symbol")[:3000], "fast")


def scbert() -> Vocabulary:
    """16,906 genes, and a token behind them."""
    from dataclasses import replace

    genes = human("symbol", 16_906)
    return replace(genes, tokens=(*genes.tokens, "<cls>"), special={"cls": "<cls>"})


def epiagent() -> Vocabulary:
    """1,355,445 regions and four special tokens."""
    from dataclasses import replace

    from scfm.adapters.epiagent.adapter import SPECIAL

    def region(i: int) -> str:
        return f"chr{1 + i % 22}:{1000 * (i // 22) + 1}-{1000 * (i // 22) + 600}"

    made = others("region", "human", 1_355_449, region, *SPECIAL.values())
    frequency = np.r_[np.full(4, np.nan), np.full(len(made) - 4, 0.01)]
    return replace(made, special=SPECIAL, columns={"document_frequency": frequency}, build="hg38")


def locus(i: int) -> str:
    """An Arabidopsis locus."""
    return f"AT{1 + i // 99_999}G{i % 99_999:05d}"


V1 = {"tokens": 25_426}
V2 = {"tokens": 20_275, "context": 4096, "cls": 2, "eos": 3}
GENES_19264 = partial(shipped, "scfoundation", 19_264)
ORGANS = ("blood", "brain", "continual", "heart", "kidney", "lung", "pan-cancer")
TISSUES = ("flower", "leaf", "root", "seed")

MODELS: dict[str, Model] = {
    "aido_cell/3m": Model(GENES_19264, {"dim": 128, "layers": 6, "heads": 4, "hidden": 320}),
    "aido_cell/10m": Model(GENES_19264, {"dim": 256, "layers": 8, "heads": 8, "hidden": 640}),
    "aido_cell/100m": Model(GENES_19264),
    "cellmemory/reference": Model(
        cellmemory, {"genes": 3000, "labels": tuple("abcdefghij")}, note="3,000 genes, fast mode"
    ),
    "cellpatch/50ep": Model(partial(human, "symbol", 20_000, "pad")),
    "cellplm/20230926-85m": Model(
        partial(human, "ensembl", 19_374),
        {"genes": 19_374, "decoder_hidden": 1024, "batches": 12_596, "datasets": 484},
        variants=("cellplm/20231027-85m",),
        note="cells in one group",
    ),
    "epiagent": Model(
        epiagent,
        {"tokens": 1_355_449, "regions": 1_355_445, "signals": 1_355_445, "openness": 64, "membership": 128},
        note="some 800 open regions a cell",
    ),
    "geneformer/v1-10m": Model(partial(shipped, "geneformer", 25_426), V1),
    "geneformer/v2-104m": Model(
        partial(shipped, "geneformer", 20_275),
        {**V2, "layers": 12, "dim": 768, "heads": 12, "hidden": 3072},
        variants=("geneformer/v2-104m-clcancer",),
    ),
    "geneformer/v2-316m": Model(
        partial(shipped, "geneformer", 20_275), {**V2, "layers": 18, "dim": 1152, "heads": 18, "hidden": 4608}
    ),
    "langcell": Model(partial(shipped, "langcell", 25_427), {"tokens": 25_427}, note="cells only; sizes unverified"),
    "mini": Model(note="its own weights"),
    "nicheformer": Model(
        partial(shipped, "nicheformer", 20_340),
        {"tokens": 20_340},
        {"species": "human", "assay": "10x 3' v2", "modality": "dissociated"},
    ),
    "sc_mamba2/whole-body": Model(
        partial(human, "symbol", 60_697, "pad", "cls"), {"genes": 60_697}, note="size of the gene table unverified"
    ),
    "scbert": Model(scbert),
    "scfoundation": Model(GENES_19264, variants=("scfoundation/gene", "scfoundation/rde")),
    "scgpt": Model(
        partial(human, "symbol", 60_697, "pad", "cls"),
        {"genes": 60_697, "decoder": "expression", "cell_decoder": True},
        variants=tuple(f"scgpt/{organ}" for organ in ORGANS),
    ),
    "scmulan": Model(partial(shipped, "scmulan", 2222)),
    "scplantformer": Model(
        partial(others, "locus", "arabidopsis", 8000, locus),
        variants=tuple(f"scplantformer/{tissue}" for tissue in TISSUES),
    ),
    "scplantllm": Model(
        partial(others, "locus", "arabidopsis", 185_622, locus, "pad", "cls"),
        variants=("scplantllm/maize", "scplantllm/rice"),
    ),
    "transcriptformer/sapiens": Model(
        transcriptformer,
        {"tokens": 23_829, "pad": 5},
        variants=("transcriptformer/exemplar", "transcriptformer/metazoa"),
    ),
    "uce/4-layer": Model(uce, {"tokens": 20_029}),
    "uce/33-layer": Model(uce, {"tokens": 20_029, "layers": 33}),
}


# One model, in a process of its own


def build(name: str) -> CellEncoder:
    """The encoder with random weights."""
    import torch

    import scfm
    from scfm.registry import find

    model = MODELS[name]
    if model.vocabulary is None:
        return scfm.load(name, device="cpu")
    adapter, card = find(name)
    assert card is not None
    cls = adapter.load_class()
    config, vocabulary = cls.Config(**model.sizes), model.vocabulary()
    with torch.device("meta"):
        tensors = cls.build(config, vocabulary, card).network.state_dict().values()
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if needed > MOST_MEMORY:
        raise SystemExit(f"its weights need {needed / 1e9:.0f} GB")
    torch.manual_seed(0)
    return cls.build(config, vocabulary, card).with_options(**model.options)


def cells(encoder: CellEncoder, count: int) -> AnnData:
    """Shipped PBMCs under the model's identifiers and in its unit; every 37th, so that all cell types are among the first."""
    import pandas as pd
    from anndata import AnnData

    from scfm.data import pbmc_demo
    from scfm.genes import to_ensembl

    data = pbmc_demo()
    rows = np.arange(count) * 37 % data.n_obs
    x, names = data.X[rows], data.var_names.to_numpy(dtype=object)
    vocabulary = encoder.vocabulary
    if vocabulary.ids == "ensembl":
        mapped = to_ensembl(names)
        names = np.where(mapped == None, names, mapped)  # noqa: E711
    elif vocabulary.ids != "symbol":
        order = np.argsort(-np.asarray(data.X.sum(axis=0)).ravel())[: len(vocabulary.genes)]
        spread = np.linspace(0, len(vocabulary.genes) - 1, len(order)).astype(int)
        x, names = x[:, order], np.array([vocabulary.tokens[vocabulary.genes[i]] for i in spread], dtype=object)
    if encoder.card.input.values == "lognorm":
        x = x.multiply(1e4 / x.sum(axis=1)).log1p().tocsr().astype(np.float32)
    return AnnData(x, var=pd.DataFrame(index=names))


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Embed cells for about so long, at least two of them; after two others, where these take less."""
    warnings.simplefilter("ignore")
    encoder = build(name)
    (tokens,) = encoder.tokenize(cells(encoder, 32))

    def timed(count: int) -> tuple[float, float]:
        data = cells(encoder, count)
        start, cpu = time.perf_counter(), time.process_time()
        embedding = encoder.embed(data, progress=False)
        assert np.isfinite(embedding).all(), f"{name}: not finite"
        return time.perf_counter() - start, time.process_time() - cpu

    count = 2
    spent, cpu = timed(count)
    while spent < seconds / 3 and count < 900:
        count = min(900, max(count + 2, int(count * min(30, seconds / spent)) // 2 * 2))
        spent, cpu = timed(count)
    return {
        "flops": flops_a_cell(encoder),
        "tokenized_a_cpu_second": tokenized_a_cpu_second(encoder),
        "gemm_gflops": gemm(),
        "parameters": sum(p.numel() for p in encoder.network.parameters()),
        "tokens": int(np.median(tokens.lengths)),
        "cells": count,
        "seconds": spent,
        "cpu_seconds": cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def flops_a_cell(encoder: CellEncoder) -> float | None:
    """Floating-point operations of matrix products for a cell, mean of four, without fused attention, which torch does not count on CPUs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    data = cells(encoder, 4)
    (tokens,) = encoder.tokenize(data)
    parts = [np.arange(4)] if encoder.tokenizer.grouped else [np.array([row]) for row in range(4)]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for rows in parts:
            encoder.network(tokens.collate(rows))
    return counter.get_total_flops() / 4 or None


def tokenized_a_cpu_second(encoder: CellEncoder) -> float:
    """Cells read, checked and tokenized in a second of one core."""
    data = cells(encoder, 900)
    for _ in encoder.tokenize(cells(encoder, 32)):
        pass
    start = time.process_time()
    for _ in encoder.tokenize(data):
        pass
    return 900 / (time.process_time() - start)


def gemm() -> float:
    """This machine's rate for one thread, in 10^9 operations a second."""
    import torch
    from gemm import SHAPES, window_gflops

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return max(window_gflops(*shape) for shape in SHAPES)
    finally:
        torch.set_num_threads(threads)


def share_of_gemm(r: dict[str, Any]) -> float | None:
    """Counted operations a CPU second, as a share of what one thread's matrix product does."""
    if not r.get("flops"):
        return None
    return r["flops"] * r["cells"] / r["cpu_seconds"] / (r["gemm_gflops"] * 1e9)


# All models


def run(name: str, seconds: float) -> dict[str, Any]:
    """One subprocess: what it measured, and how many cores others kept busy; or why not."""
    from scgpt_speed import children_cpu_seconds, machine_cpu_seconds

    start, everyone, own = time.perf_counter(), machine_cpu_seconds(), children_cpu_seconds()
    command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"why_not": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    result = json.loads(done.stdout.splitlines()[-1])
    elsewhere = (machine_cpu_seconds() - everyone) - (children_cpu_seconds() - own)
    result["busy_elsewhere"] = max(0.0, elsewhere) / (time.perf_counter() - start)
    result["day"] = datetime.now(UTC).date().isoformat()
    return result


def cells_a_second(result: dict[str, Any]) -> float:
    """By CPU time, all cores busy: what an otherwise idle machine does; wall clock where that was faster."""
    by_cpu = result["cells"] * (os.cpu_count() or 1) / result["cpu_seconds"]
    return max(by_cpu if result["busy_elsewhere"] > 0.2 else 0.0, result["cells"] / result["seconds"])


def rounded(rate: float) -> float:
    """To two digits: few cells were measured."""
    return float(f"{rate:.2g}")


def processor() -> str:
    """What the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def report(results: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Speed of every model",
        "",
        "`python benchmarks/models.py`",
        "",
        f"Published sizes, random weights, float32, {os.cpu_count()} cores ({processor()}, the rows with a GEMM share; others on an AMD EPYC). Cells are the shipped PBMCs.",
        "*elsewhere*: cores that other programs used meanwhile. Above 0.2 the wall clock is too slow, and *cells/s* is from CPU time,",
        "times the number of cores. Two cells were measured of slow models: read these figures to a factor of two.",
        "*GFLOP*: matrix products of a cell as torch counts them, without fused attention (a third more for scGPT, whose 46 GFLOP it counts as 31).",
        "*GEMM*: those a CPU second, as a share of one thread's matrix product in the same process. *tokenized*: cells read, checked and tokenized",
        "in a second of one core, matching of genes included.",
        "",
        "| model | parameters | tokens a cell | GFLOP a cell | tokenized/s | cells/s | GEMM | cells | seconds | CPU seconds | peak, GB | elsewhere | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        note = MODELS[name].note
        if "why_not" in r:
            lines.append(f"| {name} | | | | | not measured | | | | | | | {r['why_not']} |")
            continue
        share = share_of_gemm(r)
        lines.append(
            f"| {name} | {r['parameters']:,} | {r['tokens']:,} | {'' if not r.get('flops') else format(r['flops'] / 1e9, '.3g')} "
            f"| {'' if 'tokenized_a_cpu_second' not in r else format(rounded(r['tokenized_a_cpu_second']), ',g')} "
            f"| {rounded(cells_a_second(r)):,g} | {'' if share is None else format(share, '.0%')} | {r['cells']} | {r['seconds']:.1f} "
            f"| {r['cpu_seconds']:.1f} | {r['peak_gb']:.1f} | {r['busy_elsewhere']:.1f} | {note} |"
        )
    return "\n".join(lines) + "\n"


def speeds(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the documentation reads: cells a second by card."""
    found = {}
    for name, result in results.items():
        if "why_not" not in result:
            found |= dict.fromkeys((name, *MODELS[name].variants), rounded(cells_a_second(result)))
    return {"cores": os.cpu_count(), "cells_a_second": dict(sorted(found.items()))}


def main() -> None:
    """Measure the models asked for, and write the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.seconds)))
        return
    path = HERE / "results" / "models.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.only:
        results[name] = run(name, arguments.seconds)
        print(f"{name}: {results[name]}", flush=True)
        results = {name: results[name] for name in MODELS if name in results}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(report(results))
        SPEED.write_text(json.dumps(speeds(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
