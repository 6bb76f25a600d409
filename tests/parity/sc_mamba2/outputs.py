"""SC-MAMBA2: what the adapter gives for each recorded array."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm

TOLERANCE = {"input_ids": 0, "values": 0, "*cell_embedding": 1e-5, "gene_embedding": 1e-5, "*": 1e-4}
NOT_COMPARED: dict[str, str] = {}

READING: dict[str, Any] = {"gene_column": "feature_name"}
HEADS = {
    "expression": "mlm_output",
    "expression_probability": "mlm_zero_probs",
    "expression_from_cell": "mvc_output",
    "expression_from_cell_probability": "mvc_zero_probs",
    "logits": "cls_output",
}


def first_batch(encoder: Any, data: Any, outputs: tuple[str, ...], **options: Any) -> dict[str, np.ndarray]:
    """Outputs of the first five cells in one batch, padded to its longest cell: as recorded, padding included."""
    (found,) = encoder.encode(data[:5], outputs=outputs, batch_size=5, **READING, **options)
    cells, _, encoded = found
    order = np.argsort(cells)
    heads = {name: value.numpy()[order] for name, value in encoded.heads.items()}
    return heads if encoded.tokens is None else {**heads, "tokens": encoded.tokens.numpy()[order]}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        encoder = scfm.load(folder / "checkpoint")
    (found,) = encoder.tokenize(data, **READING)
    width = expected["input_ids"].shape[1]
    yield "input_ids", found.padded("ids", width)
    yield "values", found.padded("values", width)
    yield "cell_embedding", encoder.embed(data, **READING)
    yield "batch1_cell_embedding", encoder.embed(data, batch_size=1, **READING)
    states = [first_batch(encoder, data, ("tokens",), hidden_layer=i)["tokens"][:3] for i in range(4)]
    yield "b0_encoder_input", states[0]
    for i in range(3):
        yield f"b0_hidden_{i}", states[i + 1]
    with torch.inference_mode():
        yield "b0_layer0_forward_only", encoder.network.layers[0].one_way(torch.from_numpy(states[0])).numpy()
    heads = first_batch(encoder, data, tuple(HEADS))
    for ours, theirs in HEADS.items():
        yield f"b0_{theirs}", heads[ours]
    with torch.inference_mode():
        yield "gene_embedding", encoder.gene_vectors("normed").numpy()
