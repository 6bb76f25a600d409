"""Responses to drugs and perturbed genes: fine-tuned `mini` beside the plain baselines, on small real screens and a generated one.

    python benchmarks/responses.py --shared ../shared [--only Norman]

Writes results/responses.json and results/responses.md; parts that are not run again stay.

Real: Norman et al. 2019 (K562, CRISPRa: trained on singles, tested on pairs; both without genes that mini does not know),
McFaline-Figueroa et al. 2023 (three glioblastoma lines, CRISPRi: each line in turn is new), A549 and dexamethasone (sci-CAR: trained on
1 h, tested on 3 h). Generated: `scfm.data.drugs.drug_demo`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
METHODS: dict[str, tuple[Any, int, str]] = {
    "adapter": ("drug_conditional", 0, "none"),
    "adapter from the mean effect": ("drug_conditional", 0, "mean"),
    "LoRA from the mean effect": (scfm.LoRA(rank=8), 8, "mean"),
    "film adapter": (scfm.DrugConditional(mode="film"), 0, "none"),
}
"""Method, rank of the head's interaction, where predictions start."""
REAL = tuple(METHODS)[:3]
SEEN = {"gene": 300, "drug": 600}
"""Examples that a run goes through; at most 100 epochs."""
RESULTS = Path(__file__).parent / "results"
TRAINED: list[int] = []


def fitted(encoder: scfm.CellEncoder, screen: Screen, train: Sequence[Key], kind: str, seed: int = 0) -> scfm.FineTuned:
    """The last epoch's weights: nothing of the test side decides."""
    method, interaction, offset = METHODS[kind]
    make = scfm.DrugResponse if kind_of(screen) == "drug" else scfm.GeneResponse
    objective = make(screen, interaction=interaction, offset=offset)
    epochs = min(round(SEEN[kind_of(screen)] / len(train)), 100)
    run: dict[str, Any] = {"valid": None, "epochs": epochs, "batch_size": 4, "learning_rate": 5e-3, "progress": False}
    return scfm.finetune(encoder, screen.examples(train), objective, method=method, seed=seed, **run)


def kind_of(screen: Screen) -> str:
    return "drug" if hasattr(screen, "conditions") else "gene"


def compared(
    encoder: scfm.CellEncoder, screen: Screen, train: Sequence[Key], test: Sequence[Key], kinds: Sequence[str] = REAL
) -> ScreenScores:
    others: dict[str, Any] = {}
    if kind_of(screen) == "gene" and any("+" in name for _, name in test):
        others["additive"] = additive(screen.profiles.select(list(train)), test)
    models = {f"mini, {kind}": fitted(encoder, screen, train, kind) for kind in kinds}
    TRAINED.append(len(train))
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


def mcfaline(folder: Path, encoder: scfm.CellEncoder, line: str) -> ScreenScores:
    cells = read_h5ad(folder / "perturb_norman_mcfaline" / "perturb_500genes.h5ad")
    cells = cells[cells.obs["dataset"] == "mcfaline23"].copy()
    screen = gene_screen(cells[known(cells, encoder)].copy(), control="control", context="cell_type")
    test = [key for key in screen.keys if key[0] == line]
    return compared(encoder, screen, [key for key in screen.keys if key[0] != line], test)


def dexamethasone(folder: Path, encoder: scfm.CellEncoder) -> ScreenScores:
    cells: AnnData = read_h5ad(folder / "a549_dexamethasone_multiome" / "rna.h5ad")
    cells.obs["drug"] = cells.obs["treatment"].astype(str)
    cells.obs["smiles"] = DEXAMETHASONE
    cells.obs["cell_line"], cells.obs["hours"] = "A549", cells.obs["dex_hours"].astype(float)
    screen = drug_screen(cells, dose=None, time="hours")
    return compared(encoder, screen, [("A549", "dexamethasone 1 h")], [("A549", "dexamethasone 3 h")])


def generated(encoder: scfm.CellEncoder, name: str) -> ScreenScores:
    screen = drug_screen(drug_demo(genes=60, cells=10))
    split = {
        "unseen drugs": lambda: unseen_drugs(screen, drugs=["dexamethasone", "naproxen"]),
        "unseen cell line": lambda: unseen_cell_lines(screen, ["NK"]),
        "unseen drug-cell line pairs": lambda: unseen_pairs(screen),
        "few-shot cell line, 3 drugs": lambda: few_shot(screen, "NK", drugs=3),
    }[name]()
    return compared(encoder, screen, [*split.train, *split.valid], split.test, tuple(METHODS))


PARTS: dict[str, Callable[[Path, scfm.CellEncoder], ScreenScores]] = {
    "Norman 2019, K562, CRISPRa: trained on singles, tested on pairs": norman,
    **{f"McFaline 2023, CRISPRi: {line} is new": partial(mcfaline, line=line) for line in ("A172", "T98G", "U87MG")},
    "A549, dexamethasone: trained on 1 h, tested on 3 h": dexamethasone,
    **{
        f"Generated, no real drug effects: {name}": lambda _, encoder, name=name: generated(encoder, name)
        for name in ("unseen drugs", "unseen cell line", "unseen drug-cell line pairs", "few-shot cell line, 3 drugs")
    },
}


def render(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [f"Written by `benchmarks/responses.py`; runs of {SEEN} examples, the last epoch's weights, seed 0.", ""]
    for title in PARTS:
        if title not in found:
            continue
        part = found[title]
        lines += [f"### {title}", "", f"{part['trained']} conditions trained on, {part['tested']} tested.", ""]
        lines += ["| predictor | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for name, row in part["rows"].items():
            values = ["" if row[column] is None else f"{row[column]:.3f}" for column in COLUMNS]
            lines.append(f"| {name} | " + " | ".join(values) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", default="", help="Parts whose title begins so.")
    options = parser.parse_args()
    encoder = scfm.load("mini", device="cpu").with_options(context=1200)
    store = RESULTS / "responses.json"
    found = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    for title, part in PARTS.items():
        if title.startswith(options.only):
            scores = part(options.shared / "data", encoder)
            rows = {
                name: {column: None if np.isnan(row[column]) else float(row[column]) for column in COLUMNS}
                for name, row in scores.table.iterrows()
            }
            tested = len(scores.scores[["context", "condition"]].drop_duplicates())
            found[title] = {"trained": TRAINED[-1], "tested": tested, "rows": rows}
            print(title, scores, sep="\n")
    store.write_text(json.dumps(found, indent=1), encoding="utf-8")
    (RESULTS / "responses.md").write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
