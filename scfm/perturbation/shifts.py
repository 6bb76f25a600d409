"""Statistics of in silico perturbations: which genes move cells more than others, or towards a state.

The first three are Geneformer's (`InSilicoPerturberStats`), compared with its own tables in the tests. Values are one a perturbed cell;
cosines fall, and shifts are cosines after minus before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import InputError
from scfm.perturbation.de import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["POOL", "goal_state_shift", "impact_mixture", "matched_genes", "permutation_p", "versus_null"]

POOL = 100_000
"""Most shifts that a gene's are compared with."""


def goal_state_shift(
    shifts: Mapping[str, np.ndarray], perturbation: np.ndarray, *, alpha: float = 0.05, seed: int = 42
) -> pd.DataFrame:
    """How far each perturbation moves cells towards goal and alternative states, against the shifts of all perturbations.

    The p-value is of a Wilcoxon rank-sum test of a perturbation's shifts against those of all, itself included.

    Parameters
    ----------
    shifts
        State -> (n,) shifts; the goal first.
    perturbation
        (n,) label of each.
    alpha
        False discovery rate below which the goal's shift is significant.
    seed
        Of the draw of the pool, where there are more than 100,000 shifts.

    Returns
    -------
    pd.DataFrame
        Indexed by perturbation, columns shift, p and fdr of each state (named "goal shift", ...), n and significant; significant first,
        then by falling shift to the goal.
    """
    import pandas as pd
    from scipy.stats import ranksums

    labels, code = np.unique(perturbation, return_inverse=True)
    table = pd.DataFrame(index=pd.Index(labels, name="perturbation"))
    for state, values in shifts.items():
        if not np.isfinite(values).all():
            raise InputError(f"{int((~np.isfinite(values)).sum())} shifts to {state!r} are not defined.")
        pool = values
        if len(values) > POOL:
            pool = np.random.default_rng(seed).choice(values, POOL, replace=False)
        p = np.array([ranksums(values[code == i], pool).pvalue for i in range(len(labels))])
        table[f"{state} shift"] = np.bincount(code, weights=values) / np.bincount(code)
        table[f"{state} p"] = p
        table[f"{state} fdr"] = benjamini_hochberg(p)
    table["n"] = np.bincount(code)
    goal = next(iter(shifts))
    table["significant"] = table[f"{goal} fdr"] < alpha
    return table.sort_values(["significant", f"{goal} shift", f"{goal} fdr"], ascending=[False, False, True])


def versus_null(
    test: np.ndarray, test_of: np.ndarray, null: np.ndarray, null_of: np.ndarray, *, alpha: float = 0.05
) -> pd.DataFrame:
    """Each perturbation's effects in test cells against its effects in null cells (rank-sum test; no p-value is 1).

    Parameters
    ----------
    test, null
        (n,) and (m,) effects.
    test_of, null_of
        Their perturbations. One without null cells has no null mean, and p = 1.

    Returns
    -------
    pd.DataFrame
        Indexed by perturbation: test, null, difference, p, fdr, n_test, n_null, significant; by falling difference.
    """
    import pandas as pd
    from scipy.stats import ranksums

    rows = {}
    for label in np.unique(test_of):
        a, b = test[test_of == label], null[null_of == label]
        mean = b.mean() if len(b) else np.nan
        rows[label] = {
            "test": a.mean(),
            "null": mean,
            "difference": a.mean() - mean,
            "p": float(ranksums(a, b).pvalue) if len(b) else 1.0,
            "n_test": len(a),
            "n_null": len(b),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("perturbation")
    table.insert(4, "fdr", benjamini_hochberg(table["p"].to_numpy()))
    table["significant"] = table["fdr"] < alpha
    return table.sort_values(["significant", "difference", "fdr"], ascending=[False, False, True])


def impact_mixture(values: np.ndarray, perturbation: np.ndarray) -> pd.DataFrame:
    """Perturbations with impact and without, by a mixture of two normals over their mean cosines.

    A value is of impact below the lower component's mean, not above the upper one's, and in between where the lower is more likely. The
    original takes scikit-learn's first component for the lower one, which it need not be; here they are ordered.

    Returns
    -------
    pd.DataFrame
        Indexed by perturbation: mean, impact (bool, of the mean), impact_share (of its single values), n; impact first, then by falling
        share and rising mean. `attrs["components"]` holds the two means.
    """
    import pandas as pd
    from sklearn.mixture import GaussianMixture

    labels, code = np.unique(perturbation, return_inverse=True)
    means = np.bincount(code, weights=values) / np.bincount(code)
    if len(labels) < 2:
        raise InputError("a mixture needs two perturbations or more.")
    mixture = GaussianMixture(n_components=2, random_state=0).fit(means[:, None])
    centres = mixture.means_[:, 0]
    low, high = float(centres.min()), float(centres.max())

    def impact(x: np.ndarray) -> np.ndarray:
        likely: np.ndarray = mixture.predict(x[:, None]) == centres.argmin()
        return (x < low) | ((x <= high) & likely)

    table = pd.DataFrame(
        {
            "mean": means,
            "impact": impact(means),
            "impact_share": np.bincount(code, weights=impact(values)) / np.bincount(code),
            "n": np.bincount(code),
        },
        index=pd.Index(labels, name="perturbation"),
    )
    table.attrs["components"] = (low, high)
    return table.sort_values(["impact", "impact_share", "mean"], ascending=[False, False, True])


def matched_genes(
    expression: np.ndarray, gene: int, draws: int, rng: np.random.Generator, *, near: int = 50, but: Any = ()
) -> np.ndarray:
    """Random genes of similar mean expression.

    Parameters
    ----------
    expression
        (n_genes,) means; genes of 0 are never drawn.
    gene
        The one to match.
    draws
        How many, without replacement.
    rng
        Random numbers.
    near
        Drawn from so many genes of the closest means.
    but
        Genes that are never drawn.

    Returns
    -------
    np.ndarray
        Up to `draws` genes.
    """
    allowed = expression > 0
    allowed[[gene, *but]] = False
    candidates = np.flatnonzero(allowed)
    distance = np.abs(np.log(expression[candidates]) - np.log(max(expression[gene], 1e-12)))
    nearest = candidates[np.argsort(distance, kind="stable")[: max(near, draws)]]
    return rng.permutation(nearest)[:draws]


def permutation_p(effect: float, null: np.ndarray) -> float:
    """(1 + effects of the null at least as large) / (1 + their number); NaN without a null (Phipson & Smyth 2010)."""
    null = null[np.isfinite(null)]
    return float((1 + (null >= effect).sum()) / (1 + len(null))) if len(null) and np.isfinite(effect) else float("nan")
