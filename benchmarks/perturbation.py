"""Perturbation and genes on real data: every baseline and what `mini` adds, in silico knock-outs, gene sets.

    python benchmarks/perturbation.py ../shared/data benchmarks/results docs/images

Writes results/perturbation.md and results/genes.md, and a picture of each part. `--only` for one of: response, in_silico, genes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

import scfm
import scfm.data
from scfm.perturbation import gene_screen, hold_out_conditions, simulation_split

TARGET_SUM = 200.0  # a condition's cells have about 20,000 counts together in these 500 genes
SHOWN = ["pds_cosine", "expression_error", "direction_fidelity", "direction_reach", "jaccard", "r2_delta"]
SHOWN += ["pearson_delta", "pearson_calibrated", "pearson_delta_de20", "mse_de20", "auroc_de"]
MARKERS = [
    "CD3E",
    "CD3D",
    "IL32",
    "LTB",
    "NKG7",
    "GNLY",
    "CST3",
    "LYZ",
    "CD79A",
    "CD74",
    "B2M",
    "ACTB",
    "RPL13",
    "MALAT1",
]


def norman(folder: Path, encoder: scfm.CellEncoder) -> AnnData:
    """K562 cells whose perturbed genes `mini` knows."""
    cells = read_h5ad(folder / "perturb_norman_mcfaline" / "perturb_500genes.h5ad")
    cells = cells[cells.obs["dataset"] == "norman19"].copy()
    names = cells.obs["condition"].astype(str)
    known = {n for n in set(names) if n == "control" or (encoder.vocabulary.lookup(n.split("+")) >= 0).all()}
    return cells[names.isin(known).to_numpy()].copy()


def fine_tuned(encoder: scfm.CellEncoder, cells: AnnData, train: Sequence[str]) -> Any:
    """`mini` fine-tuned to predict the training responses; the last epoch's weights."""
    screen = gene_screen(cells, control="control", target_sum=TARGET_SUM)
    keys = [key for key in screen.keys if key[1] in set(train)]
    run: dict[str, Any] = dict(valid=None, epochs=30, batch_size=6, learning_rate=5e-3, progress=False, seed=0)
    made = scfm.finetune(
        encoder, screen.examples(keys), scfm.GeneResponse(screen, interaction=0), method="drug_conditional", **run
    )
    response = made.predict_response(
        cells[cells.obs["condition"] == "control"].copy(), sorted(set(cells.obs["condition"]) - {"control"})
    )
    response.uns["scfm_response"]["predictor"] = "mini, fine-tuned"
    return response


def responses(folder: Path, pictures: Path) -> list[str]:
    encoder = scfm.load("mini", device="cpu").with_options(context=1200)
    cells = norman(folder, encoder)
    conditions = sorted(set(cells.obs["condition"].astype(str)))
    pairs = [c for c in conditions if "+" in c]
    lines = [
        f"{cells.n_obs:,} cells, {len(conditions) - 1} conditions, {len(pairs)} of them pairs, without those of genes that `mini` does not "
        f"know. Profiles scaled to {TARGET_SUM:g} counts. In brackets: 0 is the mean of the training perturbations, 1 the replicates."
    ]
    splits = {
        "GEARS simulation, seed 1": simulation_split(conditions, control="control", seed=1),
        "trained on singles, tested on pairs": hold_out_conditions(conditions, pairs, control="control"),
    }
    for title, split in splits.items():
        result = scfm.tasks.evaluate_perturbation(
            cells,
            split,
            [fine_tuned(encoder, cells, split.train)],
            embeddings=[encoder],
            effect="activation",
            target_sum=TARGET_SUM,
        )
        sizes = ", ".join(f"{name} {len(members)}" for name, members in split.subgroups.items() if members)
        lines += [
            "",
            f"### {title}",
            "",
            f"{len(split.train) - 1} training, {len(split.test)} test conditions ({sizes}).",
            "",
        ]
        lines += table(result)
        lines += ["", *(f"- {name}: {why}" for name, why in result.skipped.items())]
        if title.startswith("GEARS"):
            result.plot(save=pictures / "perturb_norman.png")
    return lines


def table(result: Any) -> list[str]:
    """Values with scaled ones, predictors in rows."""
    values, scale = result.wide(), result.wide("scaled")
    low, high = result.wide("low"), result.wide("high")
    lines = ["| predictor | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name in values.index:
        row = []
        for m in SHOWN:
            v, s = values.loc[name, m], scale.loc[name, m]
            span = f" [{low.loc[name, m]:.2f}, {high.loc[name, m]:.2f}]"
            row.append("" if np.isnan(v) else f"{v:.3f}{span}" + ("" if np.isnan(s) else f" ({s:+.2f})"))
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return lines


def frame(data: pd.DataFrame) -> list[str]:
    """A DataFrame as a table of Markdown."""
    lines = ["| " + " | ".join(map(str, data)) + " |", "|---" * data.shape[1] + "|"]
    for row in data.itertuples(index=False):
        lines.append("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row) + " |")
    return lines


def in_silico(pictures: Path) -> list[str]:
    encoder = scfm.load("mini", device="cpu").with_options(context=400)
    cells = scfm.data.pbmc_demo()
    cells = cells[np.random.default_rng(0).permutation(cells.n_obs)[:16]].copy()
    result = scfm.tasks.perturb(encoder, cells, MARKERS, null=19, progress=False)
    result.plot(save=pictures / "perturb_mini.png")
    return [
        f"{cells.n_obs} cells of the PBMC demo, `mini` with a context of 400 genes; 19 random genes of similar expression for each.",
        "",
        *frame(result.table.drop(columns="kind")),
    ]


def programmes(folder: Path, pictures: Path) -> list[str]:
    cells = scfm.data.pbmc_demo()
    edges = pd.read_csv(folder / "tf_targets" / "dorothea_human_ABCD.tsv.gz", sep="\t")
    source, target = list(edges.columns)[:2]
    confidence = next(c for c in edges.columns if edges[c].isin(list("ABCD")).all())
    edges = edges[edges[confidence] == "A"]
    names = set(cells.var_names)
    sets = {str(tf): sorted(set(part[target]) & names) for tf, part in edges.groupby(source)}
    sets = {f"{tf} targets": genes for tf, genes in sets.items() if len(genes) >= 40}
    sets = dict(sorted(sets.items(), key=lambda item: -len(item[1]))[:8])
    sets["ribosomal proteins"] = [n for n in names if n.startswith(("RPL", "RPS"))]
    sets["MHC class II"] = [n for n in names if n.startswith("HLA-D")]
    result = scfm.tasks.genes(
        scfm.load("mini", device="cpu"), cells, sets=sets, query=["CD3E", "LYZ", "NKG7"], draws=50
    )
    result.plot(save=pictures / "genes_mini.png")
    shown = result.table
    lines = [
        f"{len(result.programmes):,} genes of highest variance in the PBMC demo; sets: DoRothEA A, the eight largest."
    ]
    for metric, part in shown.groupby("metric", sort=False):
        lines += ["", f"### {metric}", "", *frame(part.drop(columns="metric"))]
    near = (
        result.neighbours[result.neighbours["rank"] <= 8]
        .groupby(["gene", "space"], sort=False)
        .neighbour.agg(", ".join)
    )
    return [*lines, "", "### neighbours", "", *frame(near.reset_index())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--only", choices=["response", "in_silico", "genes"])
    given = parser.parse_args()
    parts = {
        "response": (
            "perturbation.md",
            "Responses: Norman et al. 2019, K562, CRISPRa",
            lambda: responses(given.data, given.pictures),
        ),
        "in_silico": ("in_silico.md", "In silico knock-outs of PBMC", lambda: in_silico(given.pictures)),
        "genes": ("genes.md", "Genes of mini beside expression", lambda: programmes(given.data, given.pictures)),
    }
    for name, (file, title, run) in parts.items():
        if given.only in (None, name):
            text = [
                f"## {title}",
                "",
                f"Written by `python benchmarks/perturbation.py ../shared/data benchmarks/results docs/images --only {name}`.",
                "",
            ]
            (given.results / file).write_text("\n".join([*text, *run(), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
