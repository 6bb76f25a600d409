"""scGPT: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request
from scfm.tokenizers import Batch

TOLERANCE = {
    "*input_ids*": 0,
    "*values*": 0,
    "prep/X_binned*": 0,
    "prep/X_log1p": 1e-5,
    "*cell_embedding": 1e-5,
    "*": 1e-4,
}
NOT_COMPARED = {
    "*/rows": "input: which cells",
    "attn/cells": "input: which cells",
    "*/batch_id": "input",
    "tie_free/attention_mask": "follows from the lengths, which input_ids compares",
    "*loss_ecs*": "a training loss; belongs to fine-tuning",
    "prep/bin_edges*": "intermediate of the bins, which X_binned compares",
    "prep/nonzero/values_masked_0.4": "random masking of training; belongs to fine-tuning",
    "perturbation/log1p": "input",
    "perturbation/pert_flags": "input",
    "perturbation/gene_ids": "input",
    "grn/*": "rank-normalised attention read-out; compared in tests/tasks/test_grn_readout.py",
}

TIE_FREE: dict[str, Any] = {"gene_column": "feature_name", "layer": "tie_free", "values": "any"}


def padded(encoder: Any, data: Any, width: int, outputs: tuple[str, ...], **options: Any) -> dict[str, np.ndarray]:
    """Outputs of all cells in order; per-token ones padded with 0, as recorded."""
    found: dict[str, dict[int, np.ndarray]] = {name: {} for name in outputs}
    for cells, tokens, encoded in encoder.encode(data, outputs=outputs, **options):
        for row, cell in enumerate(cells):
            length = tokens.lengths[row]
            for name in outputs:
                value = (getattr(encoded, name) if name in ("cells", "tokens") else encoded.heads[name])[row].numpy()
                if name == "tokens" or name.startswith("expression"):
                    value = np.concatenate([value[:length], np.zeros((width - length, *value.shape[1:]), np.float32)])
                found[name][int(cell)] = value
    return {name: np.stack([rows[cell] for cell in sorted(rows)]) for name, rows in found.items()}


def tokens(encoder: Any, data: Any, **options: Any) -> Any:
    (block,) = encoder.tokenize(data, **options)
    return block


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    encoder = scfm.load(folder / "checkpoint")
    upstream = encoder.with_options(ties="upstream")
    yield from embedding(upstream, data)
    tie_free = data[expected["tie_free/rows"]]
    yield from without_ties(encoder, tie_free)
    attended = data[expected["attn/cells"]]
    yield from attention(encoder, attended)
    prepared = data[expected["prep/rows"]].copy()
    fine_tuning = encoder.with_options(**encoder.FINE_TUNING)
    yield from preparation(fine_tuning, prepared, data)
    yield from annotation(scfm.load(folder / "checkpoint_annotation"), prepared)
    prepared.obs["batch"] = expected["integration/batch_id"].astype(str)
    yield from integration(scfm.load(folder / "checkpoint_integration"), prepared)
    yield from perturbation(scfm.load(folder / "checkpoint_perturbation"), expected)


def embedding(upstream: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    for prefix, encoder in (("", upstream), ("sampled/", upstream.with_options(context=40))):
        found = tokens(encoder, data, gene_column="feature_name")
        yield f"{prefix}input_ids", found.padded("ids")
        yield f"{prefix}values", found.padded("values")
        yield f"{prefix}cell_embedding", encoder.embed(data, gene_column="feature_name")
    yield "gene_embedding_normed", upstream.gene_vectors("normed").detach().numpy()
    yield "gene_embedding_raw", upstream.gene_vectors("raw").detach().numpy()


def without_ties(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    found = tokens(encoder, data, **TIE_FREE)
    yield "tie_free/input_ids", found.padded("ids")
    yield "tie_free/values", found.padded("values")
    yield "tie_free/cell_embedding", encoder.embed(data, **TIE_FREE)
    out = padded(encoder, data, int(found.lengths.max()), ("tokens", "expression", "expression_from_cell"), **TIE_FREE)
    yield "tie_free/last_hidden_state", out["tokens"]
    yield "tie_free/mlm_output", out["expression"]
    yield "tie_free/mvc_output", out["expression_from_cell"]


def attention(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    found = tokens(encoder, data, **TIE_FREE)
    width = int(found.lengths.max())
    yield "attn/input_ids", found.padded("ids")
    yield "attn/values", found.padded("values")
    weights = np.zeros((3, len(found), 4, width, width), np.float32)
    batch = found.collate(np.arange(len(found)))  # recorded with padding, whose rows attend to real keys too
    with torch.inference_mode():
        encoded = encoder.network(batch, Request(frozenset({"attention"})))
    for layer, layer_weights in encoded.attention.items():
        weights[layer] = layer_weights.numpy()
    yield "attn/probabilities", weights
    with torch.inference_mode():
        states = [
            encoder.network(batch, Request(frozenset({"tokens"}), hidden_layer=i)).tokens.numpy() for i in range(4)
        ]
    yield "attn/hidden_states", np.stack(states)


def preparation(encoder: Any, data: Any, all_cells: Any) -> Iterator[tuple[str, np.ndarray]]:
    unbinned = encoder.with_options(bins=None, zeros=True, cls_value=None)
    yield "prep/X_log1p", tokens(unbinned, data, **TIE_FREE).padded("values")
    yield (
        "prep/X_binned",
        tokens(encoder.with_options(zeros=True, cls_value=None), data, **TIE_FREE).padded("values").astype(np.int32),
    )
    seeded = encoder.with_options(zeros=True, cls_value=None, ties="upstream")
    yield (
        "prep/X_binned_counts_seeded",
        tokens(seeded, all_cells, gene_column="feature_name").padded("values").astype(np.int32),
    )
    found = tokens(encoder, data, **TIE_FREE)
    yield "prep/nonzero/input_ids", found.padded("ids")
    yield "prep/nonzero/values", found.padded("values")
    with_zeros = tokens(encoder.with_options(zeros=True), data, **TIE_FREE)
    yield "prep/zero/input_ids_row0", with_zeros.cell(0)["ids"]
    yield "prep/zero/values", with_zeros.padded("values")


def annotation(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    out = padded(encoder.with_options(**encoder.FINE_TUNING), data, 0, ("logits", "cell_state"), **TIE_FREE)
    yield "annotation/logits", out["logits"]
    yield "annotation/cell_emb", out["cell_state"]


def integration(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    encoder = encoder.with_options(**encoder.FINE_TUNING, zeros=True)
    heads = ("expression", "expression_probability", "expression_from_cell", "expression_from_cell_probability")
    out = padded(encoder, data, 152, (*heads, "batch_logits", "cell_state", "cells"), **TIE_FREE)
    names = ("mlm_output", "mlm_zero_probs", "mvc_output", "mvc_zero_probs")
    for head, name in zip(heads, names, strict=True):
        yield f"integration/{name}", out[head][:8]  # the first 8 rows were recorded
    yield "integration/dab_output", out["batch_logits"]
    yield "integration/cell_emb", out["cell_state"]
    yield "integration/cell_embedding", out["cells"]


def perturbation(encoder: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    values, flags, ids = (expected[f"perturbation/{name}"] for name in ("log1p", "pert_flags", "gene_ids"))
    yield "perturbation/pred_all", encoder.predict_perturbation(values, flags, ids)
    yield "perturbation/pred_batchwise", encoder.predict_perturbation(values, flags, ids, genes="expressed")
    fields = {
        "ids": torch.from_numpy(np.tile(ids.astype(np.int64), (len(values), 1))),
        "values": torch.from_numpy(values),
        "flags": torch.from_numpy(flags.astype(np.int64)),
    }
    with torch.inference_mode():
        encoded = encoder.network(Batch(fields, {}, None), Request(frozenset({"logits", "expression_from_cell"})))
    yield "perturbation/cls_output", encoded.heads["logits"].numpy()
    yield "perturbation/mvc_output", encoded.heads["expression_from_cell"].numpy()
