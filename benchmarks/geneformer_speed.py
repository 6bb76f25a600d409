"""Embedding with Geneformer's published sizes: scfm against the loop of the authors' extractor, same weights, same cells, one run.

    .venv/bin/python benchmarks/geneformer_speed.py [--models v1 v2] [--cells 32 8] [--rounds 2]

The authors' extractor is not on a package index; its loop is written here as its documentation and `performance.md` describe it: cells sorted
longest first, padded batches, `BertForMaskedLM` with all hidden states; of the second-to-last layer the mean over the real tokens (V1) or the state of <cls> (V2). It reads the tokens that scfm makes, so that tokenizing is not compared. Weights are random. Writes results/geneformer.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, Any]] = {
    "v1": {
        "vocab_size": 25426,
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "hidden_act": "relu",
    },
    "v2": {
        "vocab_size": 20275,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 4096,
        "hidden_act": "relu",
    },
}
BATCH = {"v1": 16, "v2": 4}
"""Cells in a step of the original: its default of 100 does not fit this machine's memory."""


def original(folder: Path, tokens: list[np.ndarray], batch: int, attention: str) -> tuple[np.ndarray, float]:
    """The loop; (n_cells, dim) and seconds, loading not counted."""
    import torch
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(folder, output_hidden_states=True, attn_implementation=attention).eval()
    order = np.argsort([-len(cell) for cell in tokens], kind="stable")
    out = np.empty((len(tokens), model.config.hidden_size), np.float32)
    begin = time.perf_counter()
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = len(tokens[rows[0]])
        ids = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(tokens[row])] = tokens[row]
        mask = torch.from_numpy(
            (np.arange(width) < np.array([len(tokens[row]) for row in rows])[:, None]).astype(np.int64)
        )
        with torch.no_grad():
            states = model(input_ids=torch.from_numpy(ids), attention_mask=mask).hidden_states[-2]
        if model.config.vocab_size == SIZES["v2"]["vocab_size"]:  # which begins cells with <cls>, and reads its state
            out[rows] = states[:, 0].numpy()
        else:
            out[rows] = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
    return out, time.perf_counter() - begin


def ours(folder: Path, data: Any) -> tuple[np.ndarray, float, Any]:
    """scfm on the same folder; seconds of embed, which reads, checks and tokenizes too."""
    import scfm

    encoder = scfm.load(folder, device="cpu")
    begin = time.perf_counter()
    return encoder.embed(data), time.perf_counter() - begin, encoder


def measure(name: str, cells: int, rounds: int) -> dict[str, Any]:
    """One model: seconds of each side in each round, and the largest difference."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from scfm.data import pbmc_demo

    data = pbmc_demo()[:cells].copy()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig(**SIZES[name], pad_token_id=0, attention_probs_dropout_prob=0.02))
        model.save_pretrained(folder)
        del model
        import scfm

        encoder = scfm.load(folder, device="cpu")
        data.var["ensembl"] = [
            gene or symbol for gene, symbol in zip(scfm.genes.to_ensembl(data.var_names), data.var_names, strict=True)
        ]
        data.var_names = data.var["ensembl"].astype(str)
        data.var_names_make_unique()
        tokens = [cell["ids"] for block in encoder.tokenize(data) for cell in block]
        runs: dict[str, list[float]] = {"scfm": [], "original, sdpa": [], "original, eager": []}
        difference = 0.0
        for _ in range(rounds):
            for way in ("sdpa", "eager"):
                theirs, seconds = original(folder, tokens, BATCH[name], way)
                runs[f"original, {way}"].append(seconds)
            z, seconds, _ = ours(folder, data)
            runs["scfm"].append(seconds)
            difference = max(difference, float(np.abs(z - theirs).max()))
    return {
        "model": name,
        "cells": cells,
        "tokens": float(np.mean([len(cell) for cell in tokens])),
        "seconds": runs,
        "difference": difference,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["v1", "v2"], choices=list(SIZES))
    parser.add_argument("--cells", nargs="+", type=int, default=[32, 8])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    found = [measure(name, cells, args.rounds) for name, cells in zip(args.models, args.cells, strict=True)]
    HERE.mkdir(exist_ok=True)
    (HERE / "geneformer.json").write_text(json.dumps(found, indent=1))
    lines = [
        "# Geneformer against the authors' loop",
        "",
        "`python benchmarks/geneformer_speed.py`: published sizes, random weights, shipped PBMCs, 2 cores; medians of the rounds.",
        "The loop is reproduced around `transformers.BertForMaskedLM`, as its authors' extractor runs it; scfm's time includes reading,",
        "checking and tokenizing, the loop's does not.",
        "",
        "| model | cells | tokens a cell | scfm, cells/s | loop (eager), cells/s | loop (sdpa), cells/s | ratio to eager | ratio to sdpa | largest difference | load of the machine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        rate = {side: row["cells"] / float(np.median(seconds)) for side, seconds in row["seconds"].items()}
        lines.append(
            f"| {row['model']} | {row['cells']} | {row['tokens']:.0f} | {rate['scfm']:.2f} | {rate['original, eager']:.2f} | "
            f"{rate['original, sdpa']:.2f} | {rate['scfm'] / rate['original, eager']:.1f} | {rate['scfm'] / rate['original, sdpa']:.1f} | "
            f"{row['difference']:.1e} | {row['load']:.1f} |"
        )
    (HERE / "geneformer.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
