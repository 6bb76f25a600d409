"""The plain predictors that a model has to beat: no change, means, additive, CRISPR-informed mean.

Each is a pure function: training profiles and the (context, condition) pairs to predict in, log profiles (n_keys, n_genes) out.
The controls of all contexts are known; of a test condition nothing is. `Baseline` makes a predictor of any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.errors import InputError, listing
from scfm.perturbation.conditions import Key, genes_of
from scfm.perturbation.pseudobulk import Profiles
from scfm.perturbation.response import response

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Baseline",
    "additive",
    "context_mean",
    "crispr_informed",
    "gene_effects",
    "mean_response",
    "no_change",
    "perturbation_mean",
]

Crispr = Literal["interference", "activation"]


def no_change(train: Profiles, keys: Sequence[Key]) -> np.ndarray:
    """The context's control."""
    return train.control_of(keys)


def mean_response(
    train: Profiles, keys: Sequence[Key], *, weight: Literal["perturbation", "cell"] = "perturbation"
) -> np.ndarray:
    """The mean profile of the context's training perturbations.

    Parameters
    ----------
    train, keys
        As all baselines.
    weight
        "perturbation": each counts once. "cell": each as often as it has cells.

    Notes
    -----
    In a context without training perturbations: its control plus the mean effect in all others.
    """
    known = train.perturbed
    if not known:
        raise InputError("there are no perturbed cells to train on.")
    rows = train.rows(known)
    weights = train.cells[rows].astype(np.float64) if weight == "cell" else np.ones(len(rows))
    contexts = np.array([context for context, _ in known])
    everywhere = np.average(train.deltas(), axis=0, weights=weights)
    means = {}
    for context in {context for context, _ in keys}:
        here = contexts == context
        if here.any():
            means[context] = np.average(train.values[rows[here]], axis=0, weights=weights[here])
        else:
            means[context] = train.control_of([(context, "")])[0] + everywhere
    return np.stack([means[context] for context, _ in keys])


def context_mean(train: Profiles, keys: Sequence[Key]) -> np.ndarray:
    """State's context mean: the mean of the context's other training perturbations; NaN where it has none."""
    rows = train.rows(train.perturbed)
    contexts, conditions = (np.array([key[i] for key in train.perturbed], dtype=object) for i in (0, 1))
    out = np.full((len(keys), len(train.genes)), np.nan)
    for i, (context, condition) in enumerate(keys):
        others = (contexts == context) & (conditions != condition)
        if others.any():
            out[i] = train.values[rows[others]].mean(axis=0)
    return out


def perturbation_mean(train: Profiles, keys: Sequence[Key]) -> np.ndarray:
    """State's perturbation mean: control plus the mean effect of the same perturbation in the other contexts.

    Where it was seen in none: control plus the mean effect of all.
    """
    effects = train.deltas()
    contexts, conditions = (np.array([key[i] for key in train.perturbed], dtype=object) for i in (0, 1))
    out = train.control_of(keys)
    for i, (context, condition) in enumerate(keys):
        same = (conditions == condition) & (contexts != context)
        out[i] += (effects[same] if same.any() else effects).mean(axis=0)
    return out


def gene_effects(train: Profiles, context: str) -> dict[str, np.ndarray]:
    """Effect (n_genes,) of every gene that was perturbed alone: in this context, else the mean of the others."""
    found: dict[str, list[tuple[bool, np.ndarray]]] = {}
    for (where, condition), effect in zip(train.perturbed, train.deltas(), strict=True):
        own = genes_of(condition, train.control)
        if len(own) == 1:
            found.setdefault(own[0], []).append((where == context, effect))
    return {
        gene: np.mean([e for here, e in effects if here] or [e for _, e in effects], axis=0)
        for gene, effects in found.items()
    }


def additive(train: Profiles, keys: Sequence[Key]) -> np.ndarray:
    """y0 + (yA - y0) + (yB - y0): the sum of the single effects, on the log scale.

    A gene that was not perturbed alone in training counts with the mean single effect of its context; so do the parts of a condition none
    of which was seen.
    """
    effects = {context: gene_effects(train, context) for context in {context for context, _ in keys}}
    fallback = mean_response(train, keys) - train.control_of(keys)
    out = train.control_of(keys)
    for i, (context, condition) in enumerate(keys):
        known = effects[context]
        typical = np.mean(list(known.values()), axis=0) if known else fallback[i]
        for gene in genes_of(condition, train.control):
            out[i] += known.get(gene, typical)
    return out


def crispr_informed(train: Profiles, keys: Sequence[Key], *, effect: Crispr = "activation") -> np.ndarray:
    """The mean response, but the perturbed gene itself is silent (interference) or doubled (activation) (Wong et al.).

    Doubled is the context's mean response on the linear scale.
    """
    if effect not in ("interference", "activation"):
        raise InputError(
            f"effect={effect!r} is not known.", "Pass 'interference' (CRISPRi, knock-out) or 'activation'."
        )
    out = mean_response(train, keys)
    column = {gene: i for i, gene in enumerate(train.genes)}
    for i, (_, condition) in enumerate(keys):
        at = [column[gene] for gene in genes_of(condition, train.control) if gene in column]
        out[i, at] = 0.0 if effect == "interference" else np.log1p(2 * np.expm1(out[i, at]))
    return out


@dataclass(frozen=True)
class Baseline:
    """A baseline as a `ResponsePredictor`: mean profiles, one row a context and condition.

    Parameters
    ----------
    name
        How tables call it.
    train
        Profiles of the training conditions and all controls.
    predict
        One of the functions of this module, `bilinear` or `networks`: (train, keys) -> (n_keys, n_genes).
    context
        Column of `obs` with the contexts; None: one.
    """

    name: str
    train: Profiles
    predict: Callable[[Profiles, Sequence[Key]], np.ndarray]
    context: str | None = None

    def predict_response(self, control: AnnData, conditions: Sequence[str]) -> AnnData:
        """Mean profiles of each condition in each context of the control cells, log1p of expression scaled to the training's target sum."""
        import pandas as pd

        if list(control.var_names) != list(self.train.genes):
            raise InputError(
                f"{self.name} was trained on {len(self.train.genes)} genes, the control has {control.n_vars} others or another order.",
                "Pass control[:, genes].",
            )
        contexts = sorted(set(control.obs[self.context].astype(str))) if self.context else [""]
        keys = [(context, condition) for context in contexts for condition in conditions]
        if unknown := set(contexts) - {context for context, _ in self.train.keys}:
            raise InputError(f"{self.name} knows no control of context {listing(sorted(unknown))}.")
        values = self.predict(self.train, keys)
        if lacking := sorted({key[0] for key, row in zip(keys, values, strict=True) if np.isnan(row).all()}):
            raise InputError(f"{self.name} has nothing to learn from in context {listing(lacking)}.")
        obs: dict[str, Any] = {"condition": [condition for _, condition in keys]}
        if self.context:
            obs[self.context] = [context for context, _ in keys]
        return response(
            values,
            self.train.control_of(keys),
            obs=pd.DataFrame(obs, index=[" ".join(filter(None, key)) for key in keys]),
            var=pd.DataFrame(index=control.var_names),
            values="lognorm",
            predictor=self.name,
            target_sum=self.train.target_sum,
            level="mean",
        )
