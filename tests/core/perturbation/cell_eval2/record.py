"""Makes panel.npz, a toy screen, and values.json, what cell-eval2 0.20.0 says of it. Run in an environment of its own:

python3.11 -m venv /tmp/cell_eval2 && /tmp/cell_eval2/bin/pip install cell-eval2==0.20.0 && /tmp/cell_eval2/bin/python record.py
"""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from cell_eval2.de import prepare_de, resolve_target_genes
from cell_eval2.de_compute import compute_de
from cell_eval2.metrics import de, delta, direction
from cell_eval2.metrics.discrimination import discrimination_score
from cell_eval2.prep import pseudobulk_bulk_lognorm_with_moments

HERE = Path(__file__).parent
GENES = np.array([f"g{i:02d}" for i in range(60)])
CONDITIONS = ["ctrl", *GENES[:6]]


def panel() -> dict[str, np.ndarray]:
    """Six knock-downs of 40 cells each, and predictions of 30 cells whose effects are off by a log-normal factor."""
    rng = np.random.default_rng(3)
    base = rng.gamma(1.2, 2.0, 60) + 0.2
    effects = {c: np.exp(rng.normal(0, 0.7, 60) * (rng.random(60) < 0.35)) for c in CONDITIONS}
    effects["ctrl"] = np.ones(60)
    for condition in CONDITIONS[1:]:
        effects[condition][int(condition[1:])] = 0.1
    found = {}
    for side, noise, size in (("real", 0.0, 40), ("pred", 0.9, 30)):
        counts, labels = [], []
        for condition in CONDITIONS:
            effect = effects[condition]
            if noise and condition != "ctrl":
                effect = effect * np.exp(rng.normal(0, noise, 60))
            n = 60 if condition == "ctrl" else size
            mean = base * effect * rng.gamma(8, 1 / 8, (n, 1))
            counts.append(rng.poisson(rng.gamma(3, mean / 3)))
            labels += [condition] * n
        found[f"{side}_X"] = np.vstack(counts).astype(np.uint16)
        found[f"{side}_labels"] = np.array(labels)
    return found


def values(data: dict[str, np.ndarray]) -> dict:
    def side(name: str) -> ad.AnnData:
        labels = data[f"{name}_labels"]
        obs = pd.DataFrame({"target": labels}, index=[f"{name}{i}" for i in range(len(labels))])
        return ad.AnnData(data[f"{name}_X"].astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))

    real, pred = side("real"), side("pred")
    names, profiles, moments = pseudobulk_bulk_lognorm_with_moments(real, "target", bulk_target_sum=5e4)
    pred_names, pred_profiles, pred_moments = pseudobulk_bulk_lognorm_with_moments(pred, "target", bulk_target_sum=5e4)
    bulks = {
        "pred_bulk": (pred_names, pred_profiles),
        "real_bulk": (names, profiles),
        "control": "ctrl",
        "genes": GENES,
    }
    found = {
        "profile_real_g00": profiles[list(names).index("g00")].tolist(),
        "jackknife_real": dict(zip(map(str, names), moments.jk.tolist(), strict=True)),
        "pds_cosine": discrimination_score(
            **bulks,
            exclude_target_gene=True,
            exclusion_scope="panel",
            distance="cosine",
            rank_denominator="n-1",
            tie_policy="midrank",
            control_source="real",
        ),
        "mse_unbiased": delta.mse_unbiased(
            **bulks, comparator="bulk_lognorm", pred_moments=pred_moments, real_moments=moments
        ),
        "distance_unbiased": delta.distance_unbiased(
            comparator="bulk_lognorm", real_bulk=(names, profiles), real_moments=moments, control="ctrl", genes=GENES
        ),
    }
    options = dict(groupby="target", reference="ctrl", mean_calc="arithmetic", epsilon=1e-9, input_type="counts")
    options |= dict(backend="scanpy", filter_gene_min_cpm_cell=5.0)
    true = compute_de(real, **options)
    called = compute_de(ad.concat([pred[pred.obs.target != "ctrl"], real[real.obs.target == "ctrl"]]), **options)
    found["de_g01"] = {
        row["feature"]: [row["log2_fold_change"], row["p_value"], row["p_adj"]]
        for row in true.iter_rows(named=True)
        if row["target"] == "g01"
    }
    targets = resolve_target_genes(true, [str(name) for name in names if name != "ctrl"])
    prepared = prepare_de(called, true, control="ctrl", target_resolution=targets)
    return found | {
        "fidelity": direction.de_direction_fidelity_yield_raw(prepared),
        "reach": direction.de_direction_reach(prepared, corrected=False),
        "jaccard": de.de_sig_jaccard(prepared),
        "lfc_error": de.de_lfc_nmae(prepared),
    }


if __name__ == "__main__":
    made = panel()
    np.savez_compressed(HERE / "panel.npz", **made)
    (HERE / "values.json").write_text(json.dumps(values(made)))
