"""What a perturbation does to expression: splits, baselines, scores, and the interface of predictors. Arrays in, numbers out.

Definitions: GEARS (splits, classic scores), cell-eval2 and the 2026 virtual cell competition (calibrated scores), Ahlmann-Eltze et al.,
Wong et al., PerturBench and State (baselines). The task `scfm.tasks.perturb` puts them together.
"""

from scfm.perturbation.baselines import (
    Baseline,
    additive,
    context_mean,
    crispr_informed,
    mean_response,
    no_change,
    perturbation_mean,
)
from scfm.perturbation.bilinear import bilinear_response, linear_additive
from scfm.perturbation.conditions import Key, genes_of, order_of, panel_genes
from scfm.perturbation.de import DE, cpm, differential_expression, top_non_dropout, welch_scores, wilcoxon
from scfm.perturbation.pseudobulk import TARGET_SUM, Profiles, jackknife_variance, log_profiles, profiles_of, pseudobulk
from scfm.perturbation.response import ResponsePredictor, linear_response, response
from scfm.perturbation.splits import PerturbationSplit, hold_out_conditions, simulation_split

__all__ = [
    "DE",
    "TARGET_SUM",
    "Baseline",
    "Key",
    "PerturbationSplit",
    "Profiles",
    "ResponsePredictor",
    "additive",
    "bilinear_response",
    "context_mean",
    "cpm",
    "crispr_informed",
    "differential_expression",
    "genes_of",
    "hold_out_conditions",
    "jackknife_variance",
    "linear_additive",
    "linear_response",
    "log_profiles",
    "mean_response",
    "no_change",
    "order_of",
    "panel_genes",
    "perturbation_mean",
    "profiles_of",
    "pseudobulk",
    "response",
    "simulation_split",
    "top_non_dropout",
    "welch_scores",
    "wilcoxon",
]
