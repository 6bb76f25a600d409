"""CellPatch: what the adapter gives for each recorded array."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import scfm

TOLERANCE = {"gene_token": 0, "input_ids": 0, "values": 0, "*": 1e-4}
NOT_COMPARED = {"batch_padded_len": "follows from input_ids: the longest cell of each batch of 6"}

DATA = {"empty_cells": "embed"}
AS_RECORDED = {"padding": "upstream", "group_size": 6, "unknown": "upstream"}


def load(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        return scfm.load(folder, **options)


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    pretrained = load(folder / "checkpoint")
    raw = pretrained.with_options(**AS_RECORDED)
    encoder = raw.with_options(**pretrained.FINE_TUNING)
    yield "gene_token", tokens_of_columns(encoder, data)
    unpadded = encoder.with_options(padding="masked")
    (found,) = unpadded.tokenize(data)
    yield "input_ids", found.padded("ids", expected["input_ids"].shape[1])
    yield "values", found.padded("values")
    yield "cell_embedding", encoder.embed(data, **DATA)
    yield "patch_embedding", encoder.output(data, "patches")
    yield "patch_embedding_projected", encoder.output(data, "projected_patches")
    yield "batch1_cell_embedding", unpadded.embed(data, **DATA)  # masked padding is no padding
    yield "raw_cell_embedding", raw.embed(data, **DATA)
    first = data[:6]
    yield "b0_attention_encoder_cross_extract_blocks", encoder.output(first, "gene_attention")
    for i in range(2):
        yield f"b0_attention_encoder_self_extract_blocks_{i}", encoder.output(first, f"patch_attention_{i}")
    wanted = encoder.with_options(targets=tuple(data.var_names[:40]))
    yield "b0_gene_prediction", wanted.output(first, "expression")
    tuned = load(folder / "checkpoint", weights="cache_best.pth").with_options(**AS_RECORDED)
    yield "finetuned_patch_embedding", tuned.output(data, "patches")[: len(expected["finetuned_patch_embedding"])]
    yield "finetuned_logits", tuned.output(data, "logits")


def tokens_of_columns(encoder: Any, data: Any) -> np.ndarray:
    """The id of every column, read off cells that express one gene each."""
    one = ad.AnnData(np.eye(data.n_vars, dtype=np.float32), var=data.var)
    encoder = encoder.with_options(padding="masked")
    return np.concatenate([tokens.fields["ids"] for tokens in encoder.tokenize(one, values="any")])
