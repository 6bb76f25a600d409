"""Responses of new contexts or to new perturbations, by an encoder that was fine-tuned for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scfm.errors import CapabilityError, InputError, listing
from scfm.examples import tensors_of
from scfm.genes import feature_names
from scfm.inference import evaluating
from scfm.objectives.response import ResponseTarget
from scfm.perturbation.pseudobulk import group_sums, log_profiles
from scfm.perturbation.response import response
from scfm.reading import read, tokenized
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.finetuned import FineTuned

__all__ = ["predict_response"]


def predict_response(
    tuned: FineTuned,
    control: AnnData,
    conditions: Sequence[str],
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> AnnData:
    """Mean expression of each context of the control cells under each condition; see `FineTuned.predict_response`."""
    import anndata
    import pandas as pd

    from scfm.cells import Source, check_values

    target = tuned.target
    if not isinstance(target, ResponseTarget):
        raise CapabilityError(
            f"{tuned.name} was fine-tuned for {target.kind}; it predicts no response.",
            "Fine-tune with scfm.DrugResponse(screen) or scfm.GeneResponse(screen).",
        )
    if isinstance(conditions, str) or not conditions:
        raise InputError("conditions must be a list of names.", "Pass ['drug 100 nM'] or ['KLF1+MAP2K6'].")
    source = Source(control, layer)
    if source.shape[0] == 0:
        raise InputError("there are no control cells.", "Pass the unperturbed cells of the contexts to predict in.")
    names = feature_names(source.var, gene_column)
    column = {name: i for i, name in reversed(list(enumerate(names)))}
    if missing := [gene for gene in target.genes if gene not in column]:
        raise InputError(
            f"the control has no {listing(missing)}, of the {len(target.genes):,} genes that {tuned.name} predicts.",
            "Pass control cells with all of these genes, in counts.",
        )
    matrix = source.take(slice(0, source.shape[0]))
    check_values(matrix, "counts", source, slice(0, source.shape[0]), tuned.name)
    contexts, codes = _contexts(source, target.context)
    sums = group_sums(matrix[:, [column[gene] for gene in target.genes]], codes, len(contexts))
    profiles = log_profiles(sums, target.target_sum)
    at = np.repeat(np.arange(len(contexts)), len(conditions))
    wanted = list(conditions) * len(contexts)
    obs = pd.DataFrame(
        {"condition": wanted, target.context: [contexts[i] for i in at], **target.describe(wanted)},
        index=[" | ".join(filter(None, (contexts[i], name))) for i, name in zip(at, wanted, strict=True)],
    )
    var = pd.DataFrame(index=pd.Index(target.genes))
    examples = anndata.AnnData(X=sums[at].astype(np.float32), obs=obs, var=var)
    tokens = _tokens(tuned, examples, {"map_genes": map_genes}, seed)
    tokens = target.with_conditions(tuned.base, tokens, wanted, profiles[at])
    return response(
        _predicted(tuned, target, tokens, batch_size),
        profiles[at].astype(np.float32),
        obs=obs,
        var=var,
        values="lognorm",
        predictor=tuned.name,
        target_sum=target.target_sum,
        level="mean",
        provenance={key: str(value) for key, value in tuned.origin.items()},
    )


def _contexts(source: Any, context: str) -> tuple[list[str], np.ndarray]:
    """Names of the contexts, and the number of each cell's."""
    if context not in source.obs and context == "context":  # of a screen with one
        return [""], np.zeros(source.shape[0], dtype=np.int64)
    source.require_obs([context], "The contexts (cell lines, donors) are in this column, as in training.")
    values = source.obs[context]
    if values.isna().any():
        raise InputError(f"obs[{context!r}] has missing values.", "Fill or drop these cells.")
    distinct, codes = np.unique(values.astype(str).to_numpy(dtype=str), return_inverse=True)
    return distinct.tolist(), codes


def _tokens(tuned: FineTuned, examples: AnnData, reading: dict[str, Any], seed: int) -> Tokens:
    with closing(read(tuned.base, examples, **reading)) as opened:
        blocks = list(tokenized(tuned.base, opened, seed))
    order = np.argsort(np.concatenate([block.cells for block in blocks]))
    return Tokens.joined([block.tokens for block in blocks]).select(order)


def _predicted(tuned: FineTuned, target: ResponseTarget, tokens: Tokens, batch_size: int) -> np.ndarray:
    """(n, genes) float32."""
    out = np.empty((len(tokens), len(target.genes)), dtype=np.float32)
    order = np.argsort(-tokens.lengths, kind="stable")
    with evaluating(tuned.network), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = tensors_of(tokens.collate(rows).to(tuned.device))
            after, _ = target.predicted(tuned.network.base, tuned.network.head, inputs)
            out[rows] = after.float().cpu().numpy()
    return out
