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
from scfm.perturbation.drug_splits import DrugSplit, few_shot, unseen_cell_lines, unseen_drugs, unseen_pairs
from scfm.perturbation.drugs import DrugCondition, DrugScreen, condition_name, drug_screen, read_condition
from scfm.perturbation.networks import latent_additive, simple_affine
from scfm.perturbation.pseudobulk import TARGET_SUM, Profiles, jackknife_variance, log_profiles, profiles_of, pseudobulk
from scfm.perturbation.response import ResponsePredictor, linear_response, response
from scfm.perturbation.screen import Screen, gene_screen
from scfm.perturbation.screen_scores import ScreenScores, mean_effect, predict_keys, score_responses
from scfm.perturbation.splits import PerturbationSplit, hold_out_conditions, simulation_split

__all__ = [
    "Baseline",
    "DE",
    "DrugCondition",
    "DrugScreen",
    "DrugSplit",
    "Key",
    "PerturbationSplit",
    "Profiles",
    "ResponsePredictor",
    "Screen",
    "ScreenScores",
    "TARGET_SUM",
    "additive",
    "bilinear_response",
    "condition_name",
    "context_mean",
    "cpm",
    "crispr_informed",
    "differential_expression",
    "drug_screen",
    "few_shot",
    "gene_screen",
    "genes_of",
    "hold_out_conditions",
    "jackknife_variance",
    "latent_additive",
    "linear_additive",
    "linear_response",
    "log_profiles",
    "mean_effect",
    "mean_response",
    "no_change",
    "order_of",
    "panel_genes",
    "perturbation_mean",
    "predict_keys",
    "profiles_of",
    "pseudobulk",
    "read_condition",
    "response",
    "score_responses",
    "simple_affine",
    "simulation_split",
    "top_non_dropout",
    "unseen_cell_lines",
    "unseen_drugs",
    "unseen_pairs",
    "welch_scores",
    "wilcoxon",
]
