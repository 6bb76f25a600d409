"""Geneformer, V1 and V2: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request

TOLERANCE = {
    "kept_cells": 0,
    "lengths": 0,
    "input_ids": 0,
    "attention_mask": 0,
    "n_expressed_in_vocab": 0,
    "gene_embedding_ids": 0,
    "gene_median": 0,
    "counts": 1e-4,  # counts per 10,000, from float32 counts
    "mlm_logits_first2": 1e-4,
    "*": 1e-5,
}
NOT_COMPARED = {"isp_*": "in-silico perturbation; belongs to the perturbation task"}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    everything = ad.read_h5ad(folder / "input.h5ad")
    encoder = scfm.load(folder / "checkpoint")
    (tokens,) = encoder.with_options(keep_values=True).tokenize(everything, gene_column="ensembl_id")
    kept = np.flatnonzero(tokens.expressed > 0)  # the original drops cells without a known gene
    yield "kept_cells", kept
    tokens, data = tokens.select(kept), everything[kept].copy()
    yield "lengths", tokens.lengths
    yield "n_expressed_in_vocab", tokens.expressed
    yield "input_ids", tokens.padded("ids")
    yield "attention_mask", np.arange(tokens.lengths.max()) < tokens.lengths[:, None]
    yield "counts", tokens.padded("values") / data.obs["n_counts"].to_numpy()[:, None] * 1e4
    yield "gene_median", encoder.vocabulary.columns["median"]
    yield from embeddings(encoder, data)
    yield from genes(encoder, data, [str(name) for name in expected["gene_embedding_ids"]])
    yield from states(encoder, tokens)
    cells = scfm.load(folder / "checkpoint_cell_classifier", dictionaries=folder / "checkpoint")
    yield "cell_classifier_embedding", cells.embed(data, gene_column="ensembl_id")
    batch = tokens.collate(np.arange(len(tokens)))  # recorded with padding, whose states are recorded too
    with torch.inference_mode():
        yield "cell_classifier_logits", cells.network(batch, Request(frozenset({"logits"}))).heads["logits"].numpy()
    by_gene = scfm.load(folder / "checkpoint_gene_classifier", dictionaries=folder / "checkpoint")
    with torch.inference_mode():
        encoded = by_gene.network(batch, Request(frozenset({"class_logits"})))
    yield "gene_classifier_logits_first4", encoded.heads["class_logits"][:4].numpy()


def embeddings(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    cells = encoder.embed(data, gene_column="ensembl_id")
    yield "cell_embedding", cells
    for state in ("start", "goal", "alt"):
        yield f"state_emb_{state}", cells[(data.obs["state"] == state).to_numpy()].mean(axis=0)
    for pooling in encoder.poolings:
        name = {"mean": "cell", "cls": "cls"}[pooling]
        yield f"{name}_second_to_last", encoder.embed(data, gene_column="ensembl_id", pooling=pooling)
        depth = encoder.network.depth
        yield f"{name}_last", encoder.embed(data, gene_column="ensembl_id", pooling=pooling, hidden_layer=depth)


def genes(encoder: Any, data: Any, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Mean of a token's states over the cells that have it; rows in the recorded order."""
    for suffix, layer in (("", None), ("_last", encoder.network.depth)):
        total = np.zeros((len(encoder.vocabulary), encoder.dim))
        count = np.zeros(len(encoder.vocabulary), dtype=int)
        for _, tokens, encoded in encoder.encode(
            data, outputs=("tokens",), gene_column="ensembl_id", hidden_layer=layer
        ):
            for row, cell in enumerate(tokens):
                np.add.at(total, cell["ids"], encoded.tokens[row, : len(cell["ids"])].numpy())
                np.add.at(count, cell["ids"], 1)
        if not suffix:
            assert {encoder.vocabulary.tokens[i] for i in np.flatnonzero(count)} == set(names)
            yield "gene_embedding_ids", np.array(names)
        rows = np.array([encoder.vocabulary.index[name.upper()] for name in names])
        yield f"gene_embedding{suffix}", total[rows] / count[rows, None]


def states(encoder: Any, tokens: Any) -> Iterator[tuple[str, np.ndarray]]:
    batch = tokens.collate(np.arange(len(tokens)))
    depth = encoder.network.depth
    with torch.inference_mode():
        hidden = [
            encoder.network(batch, Request(frozenset({"tokens"}), hidden_layer=i)).tokens for i in range(depth + 1)
        ]
        yield "hidden_states_first4", np.stack([layer[:4].numpy() for layer in hidden])
        encoded = encoder.network(batch, Request(frozenset({"gene_logits", "attention"})))
    yield "mlm_logits_first2", encoded.heads["gene_logits"][:2].numpy()
    yield "attentions_first1", np.stack([encoded.attention[i][:1].numpy() for i in range(depth)])
