"""Responses to drugs and perturbed genes: fine-tuned `mini` beside the plain baselines, on small real screens and a generated one.

    python benchmarks/responses.py ../shared/data benchmarks/results/responses.md

Real: Norman et al. 2019 (K562, CRISPRa: trained on singles, tested on pairs; both without genes that mini does not know),
McFaline-Figueroa et al. 2023 (three glioblastoma lines, CRISPRi: each line in turn is new), A549 and dexamethasone (sci-CAR: trained on
1 h, tested on 3 h). Generated: `scfm.data.drugs.drug_demo`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

import scfm
from scfm.data.drugs import drug_demo
from scfm.perturbation import (
    Key,
    ScreenScores,
    additive,
    drug_screen,
    few_shot,
    gene_screen,
    score_responses,
    unseen_cell_lines,
    unseen_drugs,
    unseen_pairs,
)
from scfm.perturbation.screen import Screen

DEXAMETHASONE = "C[C@@H]1C[C@H]2[C@@H]3CCC4=CC(=O)C=C[C@@]4([C@]3([C@H](C[C@@]2([C@]1(C(=O)CO)O)C)O)F)C"
COLUMNS = ["mse", "r2_mean", "r2_delta", "pearson_delta", "pearson_delta_mean", "r2_delta_top20", "pearson_delta_top20"]
METHODS = {
    "adapter, shift": ("drug_conditional", 0),
    "adapter, film": (scfm.DrugConditional(mode="film"), 0),
    "LoRA": (scfm.LoRA(rank=8), 8),
}
EPOCHS = 40


def fitted(encoder: scfm.CellEncoder, screen: Screen, train: Sequence[Key], kind: str, seed: int = 0) -> scfm.FineTuned:
    """The last epoch's weights: nothing of the test side decides."""
    method, interaction = METHODS[kind]
    make = scfm.DrugResponse if kind_of(screen) == "drug" else scfm.GeneResponse
    objective = make(screen, interaction=interaction)
    run: dict[str, Any] = {"valid": None, "epochs": EPOCHS, "batch_size": 6, "learning_rate": 5e-3, "progress": False}
    return scfm.finetune(encoder, screen.examples(train), objective, method=method, seed=seed, **run)


def kind_of(screen: Screen) -> str:
    return "drug" if hasattr(screen, "conditions") else "gene"


def compared(encoder: scfm.CellEncoder, screen: Screen, train: Sequence[Key], test: Sequence[Key]) -> ScreenScores:
    others: dict[str, Any] = {}
    if kind_of(screen) == "gene" and any("+" in name for _, name in test):
        others["additive"] = additive(screen.profiles.select(list(train)), test)
    models = {f"mini, {kind}": fitted(encoder, screen, train, kind) for kind in METHODS}
    return score_responses(screen, train, test, {**others, **models})


def known(cells: AnnData, encoder: scfm.CellEncoder) -> np.ndarray:
    """Cells whose perturbed genes the encoder knows, and controls."""
    names = cells.obs["condition"].astype(str)
    unknown = {
        name for name in set(names) if name != "control" and (encoder.vocabulary.lookup(name.split("+")) < 0).any()
    }
    print("left out, a gene is unknown:", sorted(unknown))
    return ~names.isin(unknown).to_numpy()


def norman(folder: Path, encoder: scfm.CellEncoder) -> ScreenScores:
    cells = read_h5ad(folder / "perturb_norman_mcfaline" / "perturb_500genes.h5ad")
    cells = cells[cells.obs["dataset"] == "norman19"].copy()
    screen = gene_screen(cells[known(cells, encoder)].copy(), control="control")
    test = [key for key in screen.keys if "+" in key[1]]
    return compared(encoder, screen, [key for key in screen.keys if key not in test], test)


def mcfaline(folder: Path, encoder: scfm.CellEncoder) -> ScreenScores:
    cells = read_h5ad(folder / "perturb_norman_mcfaline" / "perturb_500genes.h5ad")
    cells = cells[cells.obs["dataset"] == "mcfaline23"].copy()
    screen = gene_screen(cells[known(cells, encoder)].copy(), control="control", context="cell_type")
    parts = []
    for line in sorted({line for line, _ in screen.keys}):
        test = [key for key in screen.keys if key[0] == line]
        parts.append(compared(encoder, screen, [key for key in screen.keys if key[0] != line], test).scores)
    return ScreenScores(pd.concat(parts, ignore_index=True))


def dexamethasone(folder: Path, encoder: scfm.CellEncoder) -> ScreenScores:
    cells: AnnData = read_h5ad(folder / "a549_dexamethasone_multiome" / "rna.h5ad")
    cells.obs["drug"] = cells.obs["treatment"].astype(str)
    cells.obs["smiles"] = DEXAMETHASONE
    cells.obs["cell_line"], cells.obs["hours"] = "A549", cells.obs["dex_hours"].astype(float)
    screen = drug_screen(cells, dose=None, time="hours")
    return compared(encoder, screen, [("A549", "dexamethasone 1 h")], [("A549", "dexamethasone 3 h")])


def generated(encoder: scfm.CellEncoder) -> dict[str, ScreenScores]:
    screen = drug_screen(drug_demo(genes=120, cells=10))
    splits = {
        "unseen drugs": unseen_drugs(screen, drugs=["dexamethasone", "naproxen"]),
        "unseen cell line": unseen_cell_lines(screen, ["NK"]),
        "unseen drug-cell line pairs": unseen_pairs(screen),
        "few-shot cell line (3 drugs)": few_shot(screen, "NK", drugs=3),
    }
    return {name: compared(encoder, screen, [*split.train, *split.valid], split.test) for name, split in splits.items()}


def main(folder: Path, out: Path) -> None:
    encoder = scfm.load("mini", device="cpu").with_options(context=1200)
    found = {
        "Norman 2019, K562, CRISPRa: trained on singles, tested on pairs": norman(folder, encoder),
        "McFaline 2023, CRISPRi: a glioblastoma line that is new (each of three in turn)": mcfaline(folder, encoder),
        "A549, dexamethasone: trained on 1 h, tested on 3 h (one condition)": dexamethasone(folder, encoder),
        **{f"Generated screen (no real drug effects): {name}": scores for name, scores in generated(encoder).items()},
    }
    lines = [f"Written by `{Path(sys.argv[0]).as_posix()}`; {EPOCHS} epochs, the last one's weights, seed 0.", ""]
    for title, scores in found.items():
        table = scores.table[COLUMNS]
        conditions = len(scores.scores[["context", "condition"]].drop_duplicates())
        lines += [f"### {title}", "", f"{conditions} test conditions.", ""]
        lines += ["| predictor | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for name, row in table.iterrows():
            lines.append(f"| {name} | " + " | ".join("" if np.isnan(v) else f"{v:.3f}" for v in row) + " |")
        lines.append("")
    out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    started = time.time()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{time.time() - started:.0f} s")
