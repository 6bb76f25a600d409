"""scPlantLLM: what the adapter gives for each recorded array.

States, predictions and attention of tokens that nobody attends to (padding, unknown genes) are not defined by ours; at these places, and
only there, the recorded values stand in for them.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.cells import value_range

TOLERANCE = {
    "h5_*": 0,
    "input_ids": 0,
    "values": 0,
    "cell_names": 0,
    "cell_type_prediction": 0,
    "*cell_embedding": 1e-5,
    "*": 1e-4,
}
NOT_COMPARED: dict[str, str] = {}


def load(folder: Path, data: Any, **options: Any) -> Any:
    """The original's bins; the files do not tell the number of heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        encoder = scfm.load(folder / "checkpoint", heads=4, **options)
    return encoder.with_options(edges=value_range(data), unknown="pad")


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = dict(np.load(folder / "expected.npz"))
    data = ad.read_h5ad(folder / "input.h5ad")
    encoder = load(folder, data)
    count = len(expected["cell_embedding"])  # the original drops the last incomplete batch
    yield "cell_names", data.obs_names[:count].to_numpy(dtype=str)
    yield from tokens(encoder, data, count)
    for name, cells in (("cell_embedding", count), ("batch2_cell_embedding", 26)):
        yield name, encoder.embed(data[:cells], empty_cells="embed")
    post = load(folder, data, norm="post")
    yield "postnorm_cell_embedding", post.embed(data[:count], empty_cells="embed")
    yield from heads(encoder, data[:count], expected)
    yield from layers(encoder, data[:3], expected)
    with torch.inference_mode():
        yield "gene_embedding", encoder.gene_vectors("normed").numpy()
        yield "value_embedding", encoder.network.values(torch.arange(encoder.config.value_rows)).numpy()


def tokens(encoder: Any, data: Any, count: int) -> Iterator[tuple[str, np.ndarray]]:
    (found,) = encoder.tokenize(data)
    width = encoder.tokenizer.context
    ids, bins = found.padded("ids", width).astype(np.int64), found.padded("bins", width)
    yield "input_ids", ids[:count]
    yield "values", bins[:count].astype(np.float32)
    real = np.arange(1, width) < found.lengths[:, None]
    yield "h5_gid", ids[:, 1:]
    yield "h5_ex", np.where(real, bins[:, 1:], -2).astype(np.float64)  # the files pad with -2, the loader makes it 101


def heads(encoder: Any, data: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    logits = np.zeros_like(expected["cls_logits"])
    predicted = expected["mlm_output"].copy()
    for cells, found, encoded in encoder.encode(data, outputs=("logits", "expression")):
        logits[cells] = encoded.heads["logits"].numpy()
        for row, cell in enumerate(cells):
            if cell < len(predicted):
                at = np.flatnonzero(found.cell(row)["ids"])
                predicted[cell, at] = encoded.heads["expression"][row, at].numpy()
    yield "cls_logits", logits
    yield "mlm_output", predicted
    types = encoder.cell_types(data)
    shares = torch.from_numpy(logits).softmax(dim=-1).numpy()
    np.testing.assert_allclose(types["probability"], shares.max(axis=1), atol=1e-6)
    yield "probability", shares
    yield "cell_type_prediction", types["cell_type"].map(encoder.config.labels.index).to_numpy(dtype=np.int64)


def layers(encoder: Any, data: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    for layer in range(encoder.network.depth):
        states = expected[f"b0_hidden_{layer}"].copy()
        for cells, found, encoded in encoder.encode(data, outputs=("tokens",), hidden_layer=layer + 1):
            for row, cell in enumerate(cells):
                at = np.flatnonzero(found.cell(row)["ids"])
                states[cell, at] = encoded.tokens[row, at].numpy()
        yield f"b0_hidden_{layer}", states
        weights = expected[f"b0_attention_{layer}"].copy()
        for _, found, encoded in encoder.encode(data[:1], outputs=("attention",)):
            ids = found.cell(0)["ids"]
            at = np.flatnonzero(ids)
            every = np.arange(len(ids))
            weights[0][:, at[:, None], every] = encoded.attention[layer][0][:, at[:, None], every].numpy()
        yield f"b0_attention_{layer}", weights
