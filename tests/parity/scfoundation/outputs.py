"""scFoundation: what the adapter gives for each recorded array."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

import scfm

TOLERANCE = {
    "position_ids": 0,
    "attention_mask": 0,
    "input_values": 0,
    "value_matrix": 0,
    "gene_position_embedding": 0,
    "*": 1e-5,
}
NOT_COMPARED = {"gene_cells": "input: which cells"}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        encoder = scfm.load(folder / "checkpoint")
        rde = scfm.load(folder / "checkpoint", part="rde")
        gene = scfm.load(folder / "checkpoint", part="gene")
        joint = scfm.load(folder / "checkpoint", part="gene", key_maximum="batch")
    yield from tokens(encoder, data)
    yield "cell_embedding", encoder.embed(data)
    yield "cell_embedding_max", encoder.embed(data, pooling="max")
    yield "cell_embedding_rde_a5", rde.with_options(depth="a5").embed(data)
    yield "cell_embedding_f1.5", encoder.with_options(depth="f1.5").embed(data)
    yield from normalised(encoder, data)
    yield from bulk(encoder, data)
    yield from genes(gene, joint, data[expected["gene_cells"]])
    yield from states(encoder, data)
    yield "gene_position_embedding", encoder.gene_embeddings().to_numpy()


def tokens(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    (found,) = encoder.tokenize(data)
    mask = np.arange(found.lengths.max()) < found.lengths[:, None]
    ids = found.padded("ids").astype(np.int64)
    yield "position_ids", np.where(mask, ids, -1)
    yield "attention_mask", mask
    yield "input_values", found.padded("values")
    full = np.zeros((len(found), len(encoder.vocabulary) - 1), np.float32)
    for row, cell in enumerate(found):
        full[row, cell["ids"]] = cell["values"]
    yield "value_matrix", full


def aligned(encoder: Any, data: Any) -> Any:
    """ln(1 + 1e4 x / N) of the listed genes and N, as recorded from a csv: float64."""
    genes = [gene for gene in data.var_names if gene in encoder.vocabulary]
    counts = data[:, genes].X.toarray().astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    made = ad.AnnData(sparse.csr_matrix(np.log1p(1e4 * counts / total)), obs=data.obs.copy())
    made.var_names = genes
    made.obs["total"] = total[:, 0]
    return made


def normalised(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    made = aligned(encoder, data)
    reading = encoder.with_options(reads="lognorm")
    yield "cell_embedding_prenorm_T", reading.embed(made, values="lognorm")
    deeper = reading.with_options(total_key="total", depth="f2")
    yield "cell_embedding_prenorm_A", deeper.embed(made, values="lognorm")


def bulk(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    made = aligned(encoder, data)
    median = float(np.median(made.obs["total"]))  # the authors' normalize_total over the file
    yield "bulk_embedding_F", encoder.with_options(reads="bulk", target_sum=median).embed(data)
    yield "bulk_embedding_T", encoder.with_options(reads="bulk_log").embed(made, values="lognorm", pooling="max")


def decoded(encoder: Any, data: Any, batch_size: int) -> dict[str, np.ndarray]:
    """Decoder outputs in the order of the cells."""
    found: dict[str, dict[int, np.ndarray]] = {"gene_states": {}, "expression": {}}
    for cells, _, encoded in encoder.encode(data, outputs=tuple(found), batch_size=batch_size):
        for row, cell in enumerate(cells):
            for name, rows in found.items():
                rows[int(cell)] = encoded.heads[name][row].numpy()
    return {name: np.stack([rows[cell] for cell in sorted(rows)]) for name, rows in found.items()}


def genes(gene: Any, joint: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    one = decoded(gene.with_options(depth="f1"), data, 1)
    yield "gene_embedding", one["gene_states"]
    yield "gene_expression", one["expression"]
    yield "gene_embedding_batch", decoded(joint.with_options(depth="f1"), data, len(data))["gene_states"]


def states(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    (found,) = encoder.tokenize(data)
    width = int(found.lengths.max())
    depth = encoder.network.depth
    hidden = np.zeros((6, depth + 1, width, encoder.config.dim), np.float32)
    for layer in range(depth + 1):
        for cells, _, encoded in encoder.encode(data[:6], outputs=("tokens",), hidden_layer=layer, batch_size=1):
            hidden[cells[0], layer, : encoded.tokens.shape[1]] = encoded.tokens[0].numpy()
    yield "encoder_hidden_states", hidden
    weights = np.zeros((3, depth, encoder.config.heads, width, width), np.float32)
    for row, cell in enumerate(encoder.attention(data[:3], reduce="none")):
        length = len(cell.genes)
        weights[row, :, :, :length, :length] = cell.weights
    yield "encoder_attentions", weights
    shares = np.zeros((6, width, encoder.config.bins), np.float32)
    with torch.inference_mode():
        for row, cell in enumerate(found.select(np.arange(6))):
            values = torch.from_numpy(cell["values"])
            shares[row, : len(values)] = encoder.network.values.weights(values).numpy()
    yield "bin_weights", shares
