"""Fine-tuning, measured: LoRA against the frozen probe and PCA on real cells of a chemistry that was held out; memory; speed.

    python benchmarks/finetune.py --shared ../shared --inputs /tmp/scfm-bench --original-python /work/venvs/orig/bin/python

writes results/finetune.md and results/finetune.json; `--only` runs one part (annotation, memory, speed).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PARTS = ("annotation", "memory", "speed")
EPOCHS, CONTEXT = 3, 96


# LoRA, frozen probe, PCA


def pca_probe(train: Any, test: Any, column: str) -> np.ndarray:
    """Labels by logistic regression on 30 principal components of log1p(CP10k), all fitted on the training cells only."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def logged(adata: Any) -> np.ndarray:
        counts = np.asarray(adata.X.todense(), dtype=np.float64)
        return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)

    model = make_pipeline(PCA(30, random_state=0), StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(logged(train), train.obs[column].astype(str))
    return model.predict(logged(test))


def _small_scgpt(inputs: Path) -> Any:
    """scGPT with its whole vocabulary, its input of fine-tuning, and few small layers."""
    from dataclasses import replace

    import torch

    import scfm

    whole = scfm.load(inputs / "checkpoint", device="cpu")
    config = replace(whole.config, dim=64, heads=4, hidden=64, layers=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = type(whole).build(config, whole.vocabulary, whole.card)
    return small.with_options(**{**type(whole).FINE_TUNING, "context": CONTEXT})


def annotation(shared: Path, inputs: Path, held_out: list[str] | None) -> Iterator[list[dict[str, Any]]]:
    """Every chemistry of pbmc_3tech held out in turn; after each, the scores of all predictions so far."""
    import anndata

    import scfm

    adata = anndata.read_h5ad(shared / "data/pbmc_3tech/pbmc_3tech.h5ad")
    counts = adata.obs["cell_type"].value_counts()
    adata = adata[adata.obs["cell_type"].isin(counts[counts >= 5].index)].copy()
    encoders = {
        "mini": scfm.load("mini", device="cpu").with_options(context=CONTEXT),
        "scgpt's architecture, 4 layers x 64, random weights": _small_scgpt(inputs),
    }
    predicted: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    done: list[str] = []
    for tech in held_out or adata.obs["batch"].unique():
        held = (adata.obs["batch"] == tech).to_numpy()
        train, test = adata[~held].copy(), adata[held].copy()
        predicted.setdefault("PCA + logistic regression", np.empty(adata.n_obs, dtype=object))[held] = pca_probe(
            train, test, "cell_type"
        )
        for name, encoder in encoders.items():
            for method in ("head", "lora"):
                start = time.process_time()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tuned = scfm.finetune(
                        encoder,
                        train,
                        "cell_type",
                        method=method,
                        groups="batch",
                        epochs=30 if method == "head" else EPOCHS,
                        patience=None,
                        progress=False,
                    )
                    found = tuned.predict(test, progress=False)["label"].astype(str).to_numpy()
                key = f"{name}: {method}"
                predicted.setdefault(key, np.empty(adata.n_obs, dtype=object))[held] = found
                seconds[key] = seconds.get(key, 0.0) + time.process_time() - start
                print(key, tech, flush=True)
        done.append(str(tech))
        known = adata.obs["batch"].isin(done).to_numpy()
        truth = adata.obs["cell_type"].astype(str).to_numpy()[known]
        yield _scored(truth, {key: given[known] for key, given in predicted.items()}, seconds, done)


def _scored(
    truth: np.ndarray, predicted: dict[str, np.ndarray], seconds: dict[str, float], held_out: list[str]
) -> list[dict[str, Any]]:
    from sklearn.metrics import f1_score

    from scfm.metrics import bootstrap

    baseline = predicted["PCA + logistic regression"]

    def f1(given: np.ndarray, rows: np.ndarray) -> float:
        return float(f1_score(truth[rows], given[rows], average="macro", zero_division=0.0))

    rows = []
    for name, given in predicted.items():
        given, base = given.astype(str), baseline.astype(str)
        score = bootstrap(lambda r, given=given: f1(given, r), len(truth), resamples=300)
        against = bootstrap(lambda r, given=given, base=base: f1(given, r) - f1(base, r), len(truth), resamples=300)
        rows.append(
            {
                "what": name,
                "cells": len(truth),
                "held_out": list(held_out),
                "accuracy": float((given == truth).mean()),
                "macro_f1": [score.value, score.low, score.high],
                "against_pca": [against.value, against.low, against.high],
                "cpu_seconds": round(seconds.get(name, 0.0), 1),
            }
        )
    return rows


# Memory and speed, each run in a process of its own


def _run(python: str, script: str, inputs: Path, *options: str) -> dict[str, Any]:
    command = [python, script, "--checkpoint", str(inputs / "checkpoint"), "--data", str(inputs / "cells_64.h5ad")]
    done = subprocess.run([*command, *options], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(script, options, found, flush=True)
    return found


def memory(inputs: Path) -> list[dict[str, Any]]:
    """Peak memory of a few steps of scGPT at its released size."""
    rows = []
    for method, again in (("full", False), ("full", True), ("lora", False), ("lora", True), ("head", False)):
        options = ["--cells", "8", "--batch-size", "4", "--method", method, *(["--checkpointing"] if again else [])]
        found = _run(sys.executable, "finetune_ours.py", inputs, *options)
        rows.append({"method": method, "gradient_checkpointing": again, **found})
    return rows


def speed(inputs: Path, original: str, rounds: int) -> list[dict[str, Any]]:
    """Full fine-tuning of scGPT at its released size, ours and the original's loop by turns."""
    options = ["--cells", "24", "--batch-size", "4"]
    rows = []
    for turn in range(rounds):
        rows.append({"who": "original", "round": turn, **_run(original, "finetune_original.py", inputs, *options)})
        rows.append({"who": "scfm", "round": turn, **_run(sys.executable, "finetune_ours.py", inputs, *options)})
    return rows


# The page


def _interval(values: list[float]) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def page(results: dict[str, Any], command: str) -> str:
    """What was measured, as Markdown."""
    lines = ["# Fine-tuning, measured", "", f"`{command}`", ""]
    if rows := results.get("annotation"):
        lines += [
            "## Cell types of a chemistry that was held out",
            "",
            f"pbmc_3tech, held out in turn: {', '.join(rows[0]['held_out'])} ({rows[0]['cells']:,} cells). {EPOCHS} epochs of LoRA, cells "
            f"of {CONTEXT} tokens (mini). 95 % bootstrap intervals over cells; the last column is the difference of macro F1 to PCA +",
            "logistic regression on the same resampled cells. Random weights are a floor.",
            "",
            "| | accuracy | macro F1 | against PCA | CPU s |",
            "|---|---|---|---|---|",
            *(
                f"| {r['what']} | {r['accuracy']:.3f} | {_interval(r['macro_f1'])} | {_interval(r['against_pca'])} | {r['cpu_seconds']} |"
                for r in rows
            ),
            "",
        ]
    if rows := results.get("memory"):
        lines += [
            "## Peak memory",
            "",
            "scGPT at its released size (51 M parameters, random weights), batches of 4 cells, float32, CPU; the whole process.",
            "",
            "| method | gradient checkpointing | trained parameters | peak MB |",
            "|---|---|---|---|",
            *(
                f"| {r['method']} | {'yes' if r['gradient_checkpointing'] else 'no'} | {r['trained']:,} "
                f"| {r['peak_rss_mb']:,.0f} |"
                for r in rows
            ),
            "",
        ]
    if rows := results.get("speed"):
        lines += [
            "## Speed beside the original's annotation loop",
            "",
            "Full fine-tuning of scGPT at its released size, float32, batches of 4 cells, 2 threads; first step not timed.",
            "",
            "| round | who | cells/s | CPU s | tokens computed | peak MB |",
            "|---|---|---|---|---|---|",
            *(
                f"| {r['round'] + 1} | {r['who']} | {r['cells_per_second']} | {r['cpu_seconds']} | {r['tokens']:,} "
                f"| {r['peak_rss_mb']:,.0f} |"
                for r in rows
            ),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--inputs", type=Path, help="folder of make_inputs.py")
    parser.add_argument("--original-python", help="of the original's environment, see README.md")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--held-out", nargs="*", help="chemistries of pbmc_3tech to hold out in turn; default: all")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    path = RESULTS / "finetune.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in [args.only] if args.only else PARTS:
        if part == "annotation":
            steps: Iterable[Any] = annotation(args.shared, args.inputs, args.held_out)
        elif part == "memory":
            steps = [memory(args.inputs)]
        else:
            steps = [speed(args.inputs, args.original_python, args.rounds)]
        for results[part] in steps:
            path.write_text(json.dumps(results, indent=1))
            (RESULTS / "finetune.md").write_text(page(results, "python benchmarks/finetune.py") + "\n")


if __name__ == "__main__":
    main()
