"""AIDO.Cell: what the adapter gives for each recorded array."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np

import scfm
from scfm.cells import Block
from scfm.reading import read

TOLERANCE = {
    "aligned_counts": 0,
    "gene_mask": 0,
    "*input_values": 0,
    "gene_position_embedding": 0,
    "*": 1e-4,  # the original itself differs by 6e-5 between float32 and float64
}
NOT_COMPARED: dict[str, str] = {}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    data = ad.read_h5ad(folder / "input.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        encoder = scfm.load(folder / "checkpoint")
    genes = len(encoder.vocabulary.genes)
    (part,) = read(encoder, data).parts
    block = Block(part.source.take(slice(0, data.n_obs)), part.alignment, data.obs)
    yield "aligned_counts", encoder.tokenizer.counts(block)
    (tokens,) = encoder.tokenize(data)
    yield "gene_mask", tokens.cell(0)["present"][:genes].astype(np.float64)
    yield "input_values", tokens.padded("values")
    yield "cell_embedding", encoder.embed(data)
    yield "cell_embedding_mean_genes", encoder.embed(data, pooling="genes")
    yield "cell_embedding_max_genes", encoder.embed(data, pooling="max")
    yield "last_hidden_state_first", encoder.output(data[:6], "tokens")
    depth = encoder.network.depth
    yield (
        "hidden_states_first",
        np.stack([encoder.output(data[:2], "tokens", hidden_layer=layer) for layer in range(depth + 1)]),
    )
    yield "reconstruction", encoder.output(data, "expression")
    every_seventh = [encoder.vocabulary.tokens[i] for i in range(0, genes, 7)]
    hidden = encoder.with_options(masked=tuple(every_seventh))
    (tokens,) = hidden.tokenize(data[:4])
    yield "masked_input_values", tokens.padded("values")
    yield "masked_reconstruction", hidden.output(data[:4], "expression")
    (cell,) = encoder.attention(data[:1], reduce="none")
    yield "attentions", cell.weights[:, None]
    yield "gene_position_embedding", encoder.gene_embeddings().to_numpy()
