"""Predicted expression after a perturbation, and the interface of everything that predicts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from scipy import sparse

from scfm.errors import InputError, listing

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["RESPONSE", "ResponsePredictor", "linear_response", "response"]

RESPONSE = "scfm_response"
"""Key of `uns` that says what a response holds."""
Kind = Literal["counts", "lognorm"]


@runtime_checkable
class ResponsePredictor(Protocol):
    """Anything that predicts expression under a condition: a perturbation generator, a drug-response model, a baseline.

    Attributes
    ----------
    name
        How tables call it.
    """

    @property
    def name(self) -> str: ...

    def predict_response(self, control: AnnData, conditions: Sequence[str]) -> AnnData:
        """Expression of control cells under each condition.

        Parameters
        ----------
        control
            Unperturbed cells, raw counts in `X`, with the `obs` columns that the predictor reads; not changed.
        conditions
            Names as in the data the predictor learnt from, e.g. "KLF1+MAP2K6", or a drug and its dose.

        Returns
        -------
        AnnData
            As `response` makes it: `obs["condition"]`, all other columns of the control's `obs`; layers "predicted" and "control".
        """
        ...


def response(
    predicted: Any,
    control: Any,
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    values: Kind,
    predictor: str,
    target_sum: float | None = None,
    level: Literal["cells", "mean"] = "cells",
    provenance: dict[str, Any] | None = None,
) -> AnnData:
    """A prediction as an AnnData whose layers say what they are; `X` stays empty, so that nobody takes one for the other.

    Parameters
    ----------
    predicted, control
        (n_rows, n_genes) expression under the condition, and of the same cells before it; both in `values`.
    obs
        (n_rows) with a column "condition". Where its names are repeated, since the same cells are predicted under several conditions,
        the condition is added to them.
    var
        (n_genes).
    values
        "counts", or "lognorm": log1p of counts scaled to `target_sum`.
    predictor
        Its name.
    target_sum
        Of "lognorm".
    level
        "cells": a row is a cell. "mean": a row is the mean profile of a condition (in a context).
    provenance
        How it was made; plain values.

    Raises
    ------
    InputError
        Shapes differ, a value is missing, counts are negative, or there is no "condition".
    """
    import anndata

    shape = (len(obs), len(var))
    if predicted.shape != shape or control.shape != shape:
        raise InputError(f"predicted {predicted.shape} and control {control.shape} are to be {shape}.")
    if "condition" not in obs:
        raise InputError(f"obs has no 'condition' (columns: {listing(map(str, obs.columns))}).")
    if (values == "lognorm") != (target_sum is not None):
        raise InputError(
            f"values={values!r} with target_sum={target_sum}.", "Give target_sum for lognorm, and only then."
        )
    data = predicted.data if sparse.issparse(predicted) else np.asarray(predicted)
    if not np.isfinite(data).all():
        raise InputError(f"{predictor} predicts missing or infinite values.")
    if values == "counts" and (data < 0).any():
        raise InputError(f"{predictor} predicts negative counts.", "Pass values='lognorm' for log expression.")
    if not obs.index.is_unique:
        obs = obs.set_axis([f"{name} {c}" for name, c in zip(obs.index, obs["condition"], strict=True)])
    what = {"predictor": predictor, "values": values, "level": level, "target_sum": target_sum or 0.0}
    made = anndata.AnnData(
        obs=obs.copy(),
        var=var.copy(),
        layers={"predicted": predicted, "control": control},
        uns={RESPONSE: {**what, "provenance": provenance or {}}},
    )
    made.strings_to_categoricals()
    return made


def linear_response(adata: AnnData, layer: Literal["predicted", "control"] = "predicted") -> tuple[Any, int]:
    """Expression of a response on the linear scale.

    Returns
    -------
    matrix
        (n_rows, n_genes) counts, or counts scaled to the response's target sum.
    clipped
        Predicted log values below 0, which no counts have; they are taken as 0.

    Raises
    ------
    InputError
        It is no response.
    """
    if RESPONSE not in adata.uns or layer not in adata.layers:
        raise InputError(
            f"the AnnData is no predicted response (uns: {listing(map(str, adata.uns))}, layers: {listing(adata.layers)}).",
            "Make one with scfm.perturbation.response(...).",
        )
    matrix = adata.layers[layer]
    if adata.uns[RESPONSE]["values"] == "counts":
        return matrix, 0
    if sparse.issparse(matrix):
        matrix = matrix.copy()
        clipped = int((matrix.data < 0).sum())
        matrix.data = np.expm1(matrix.data.astype(np.float64).clip(min=0))
        return matrix, clipped
    dense = np.asarray(matrix, dtype=np.float64)
    return np.expm1(dense.clip(min=0)), int((dense < 0).sum())
