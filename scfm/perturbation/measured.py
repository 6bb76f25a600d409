"""Cells of a screen by condition, with what scoring needs of them: profiles, sampling noise, differential expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scfm.errors import InputError, listing
from scfm.perturbation.conditions import Key, genes_of, panel_genes
from scfm.perturbation.de import DE, cpm, differential_expression, top_non_dropout, welch_scores
from scfm.perturbation.pseudobulk import (
    TARGET_SUM,
    Profiles,
    jackknife_variance,
    log_profiles,
    profiles_of,
    screen_cells,
)
from scfm.perturbation.response import RESPONSE, linear_response

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Measured", "Predicted", "measured_cells", "predicted_cells"]

LEAST_CELLS = 4
"""Below so many cells a condition can't be halved and tested."""


@dataclass(frozen=True)
class Measured:
    """Measured cells of conditions and controls.

    Parameters
    ----------
    matrix
        (n_cells, n_genes) counts, CSR.
    keys
        (context, condition) of every cell.
    genes
        (n_genes,) names.
    control
        Name of the control condition.
    target_sum
        Counts a profile is scaled to.
    """

    matrix: sparse.csr_matrix
    keys: tuple[Key, ...]
    genes: np.ndarray
    control: str
    target_sum: float = TARGET_SUM

    @cached_property
    def profiles(self) -> Profiles:
        """One profile a condition."""
        return profiles_of(self.matrix, self.keys, self.genes, control=self.control, target_sum=self.target_sum)

    @cached_property
    def rows(self) -> dict[Key, np.ndarray]:
        """Rows of each key's cells."""
        rows: dict[Key, list[int]] = {}
        for row, key in enumerate(self.keys):
            rows.setdefault(key, []).append(row)
        return {key: np.array(at) for key, at in rows.items()}

    @cached_property
    def _cpm(self) -> dict[Key, np.ndarray]:
        return {}

    @cached_property
    def _de(self) -> dict[Key, DE]:
        return {}

    @cached_property
    def _noise(self) -> dict[Key, float]:
        return {}

    def cells(self, key: Key) -> sparse.csr_matrix:
        """Counts of a key's cells.

        Raises
        ------
        InputError
            There are none.
        """
        if key not in self.rows:
            raise InputError(f"there are no cells of {key}.")
        return self.matrix[self.rows[key]]

    def control_cpm(self, context: str) -> np.ndarray:
        """CPM of a context's control cells (n, n_genes)."""
        key = (context, self.control)
        if key not in self._cpm:
            self._cpm[key] = cpm(self.cells(key))
        return self._cpm[key]

    def de(self, key: Key) -> DE:
        """Differential expression of a key's cells against its control."""
        if key not in self._de:
            self._de[key] = differential_expression(cpm(self.cells(key)), self.control_cpm(key[0]))
        return self._de[key]

    def noise(self, key: Key) -> float:
        """Sampling variance of a key's profile, summed over genes."""
        if key not in self._noise:
            self._noise[key] = jackknife_variance(self.cells(key), self.target_sum)
        return self._noise[key]

    def log_cells(self, key: Key) -> np.ndarray:
        """log1p of every cell's expression scaled to the target sum (n, n_genes)."""
        return np.log1p(cpm(self.cells(key)) * (self.target_sum / 1e6))

    def top_de(self, key: Key, k: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """GEARS's top genes of a condition (up to k columns), and the scores of all genes (n_genes,)."""
        mine, control = self.log_cells(key), self.log_cells((key[0], self.control))
        scores = welch_scores(mine, control)
        return top_non_dropout(scores, mine.mean(axis=0), control.mean(axis=0), k), scores

    def own_genes(self, condition: str) -> np.ndarray:
        """(n_genes,) bool: the genes that a condition perturbs."""
        return np.isin(self.genes, genes_of(condition, self.control))

    @property
    def targets(self) -> np.ndarray:
        """(n_genes,) bool: the genes that any condition perturbs."""
        return np.isin(self.genes, panel_genes({condition for _, condition in self.rows}, self.control))

    def halves(self, keys: Sequence[Key], rng: np.random.Generator) -> tuple[Measured, Measured]:
        """Two screens with half of the cells of these conditions each, and all control cells.

        Raises
        ------
        InputError
            A condition has fewer than four cells.
        """
        if few := [key for key in keys if len(self.rows[key]) < LEAST_CELLS]:
            raise InputError(f"{listing(few)} has fewer than {LEAST_CELLS} cells.", "Leave these conditions out.")
        control = [self.rows[key] for key in self.rows if key[1] == self.control]
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([*control], [*control])
        for key in keys:
            order = rng.permutation(self.rows[key])
            half = len(order) // 2
            sides[0].append(order[:half])
            sides[1].append(order[half : 2 * half])
        first, second = (self._subset(np.concatenate(side)) for side in sides)
        return first, second

    def select(self, keys: Sequence[Key]) -> Measured:
        """The cells of these conditions and all controls."""
        wanted = {*keys, *(key for key in self.rows if key[1] == self.control)}
        return self._subset(np.array([row for row, key in enumerate(self.keys) if key in wanted]))

    def _subset(self, rows: np.ndarray) -> Measured:
        keys = tuple(self.keys[row] for row in rows)
        return Measured(self.matrix[rows], keys, self.genes, self.control, self.target_sum)


@dataclass(frozen=True)
class Predicted:
    """A prediction of some conditions, in the terms of `Measured`.

    Parameters
    ----------
    name
        How tables call it.
    values
        (n_keys, n_genes) log profiles, float64.
    noise
        (n_keys,) sampling variance of each; 0 for predicted means.
    cells
        Cells of each, linear.
    clipped
        Predicted log values below 0, taken as 0.
    """

    name: str
    values: np.ndarray
    noise: np.ndarray
    cells: tuple[Any, ...]
    clipped: int = 0


def measured_cells(
    adata: AnnData,
    *,
    condition: str = "condition",
    control: str = "ctrl",
    context: str | None = None,
    layer: str | None = None,
    target_sum: float = TARGET_SUM,
) -> Measured:
    """Cells of an AnnData of counts; the arguments are those of `pseudobulk`."""
    matrix, keys, genes = screen_cells(adata, condition, control, context, layer, "the evaluation")
    filled = np.asarray(matrix.sum(axis=1)).reshape(-1) > 0  # a cell without counts has no profile
    kept = tuple(key for key, full in zip(keys, filled, strict=True) if full)
    return Measured(matrix[filled], kept, genes, control, target_sum)


def predicted_cells(
    prediction: AnnData, measured: Measured, keys: Sequence[Key], *, context: str | None = None, seed: int = 0
) -> Predicted:
    """A response in the terms of the measured cells.

    Cells are summed as they are. A predicted mean becomes cells too, since scores of differential expression need some: control cells drawn
    with replacement, as many as were measured, each gene's counts multiplied by predicted mean / control mean and rounded at random
    (cell-eval2's emission of its baseline). A gene that no control cell expresses stays 0 in these cells; profiles are exact.

    Parameters
    ----------
    prediction
        As `response` makes it; genes in the order of the measured ones.
    measured
        The truth.
    keys
        Conditions to score.
    context
        Column of the prediction's `obs` with the contexts; None: one.
    seed
        Of the emission.

    Raises
    ------
    InputError
        The prediction lacks a condition, or has other genes.
    """
    linear, clipped = linear_response(prediction)
    what = prediction.uns[RESPONSE]
    if list(prediction.var_names) != list(measured.genes):
        raise InputError(
            f"{what['predictor']} predicts {prediction.n_vars} genes; the data have {len(measured.genes)}, or another order.",
            "Pass prediction[:, adata.var_names].",
        )
    if context and context not in prediction.obs:
        raise InputError(f"the prediction of {what['predictor']} has no obs[{context!r}].", "Keep the control's obs.")
    conditions = prediction.obs["condition"].astype(str)
    contexts = prediction.obs[context].astype(str) if context else [""] * len(conditions)
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(zip(contexts, conditions, strict=True)):
        rows.setdefault(key, []).append(row)
    if missing := [key for key in keys if key not in rows]:
        raise InputError(f"{what['predictor']} predicts nothing for {listing(missing)}.")
    linear = sparse.csr_matrix(linear) if sparse.issparse(linear) else np.asarray(linear)
    parts = [linear[rows[key]] for key in keys]
    sums = np.stack([np.asarray(part.sum(axis=0), dtype=np.float64).reshape(-1) for part in parts])
    values = log_profiles(sums, measured.target_sum)
    if what["level"] == "mean":
        if (
            what["target_sum"] == measured.target_sum
        ):  # a mean of log profiles does not sum to the target; it is left as it is
            values = np.log1p(sums)
        rng = np.random.default_rng(seed)
        cells = tuple(_emitted(value, key, measured, rng) for value, key in zip(values, keys, strict=True))
        return Predicted(what["predictor"], values, np.zeros(len(keys)), cells, clipped)
    noise = np.array([jackknife_variance(part, measured.target_sum) for part in parts])
    return Predicted(what["predictor"], values, noise, tuple(parts), clipped)


def _emitted(profile: np.ndarray, key: Key, measured: Measured, rng: np.random.Generator) -> np.ndarray:
    """Cells (n, n_genes) whose expected mean is a log profile."""
    control = measured.cells((key[0], measured.control))
    base = np.expm1(measured.profiles.control_of([key])[0])
    factor = np.divide(np.expm1(profile), base, out=np.ones_like(base), where=base > 0)
    drawn = control[rng.integers(0, control.shape[0], len(measured.rows[key]))].toarray().astype(np.float64) * factor
    return np.floor(drawn + rng.random(drawn.shape))
