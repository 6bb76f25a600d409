"""TranscriptFormer: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request

TOLERANCE = {
    "*input_ids": 0,
    "counts": 0,
    "aux_ids": 0,
    "*vocab_tokens": 0,
    "cge_gene_names": 0,
    "cge_cell_indices": 0,
    "cge_n_per_cell": 0,
    "*": 1e-4,
}
NOT_COMPARED = {"detail_cells": "input: which cells"}

READING: dict[str, Any] = {"gene_column": "ensembl_id", "map_genes": True}  # some ids carry a version
S = 127  # the fixture's seq_len


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    encoder = scfm.load(folder / "checkpoint")
    yield "vocab_tokens", np.array(encoder.vocabulary.tokens[: encoder.config.tokens])
    (tokens,) = encoder.tokenize(data, **READING)
    yield "input_ids", after_aux(tokens.padded("targets", S + 1))
    yield "counts", after_aux(tokens.padded("target_counts", S + 1))
    yield "aux_ids", tokens.cells["aux"]
    with torch.inference_mode():
        yield "gene_embedding", encoder.gene_vectors("projected").numpy()
    yield "cell_embedding", encoder.embed(data, empty_cells="embed", **READING)
    yield "esm2ce_cell_embedding", encoder.embed(data, empty_cells="embed", pooling="protein", **READING)
    yield "llh", encoder.output(data, "llh", **READING)
    yield from details(encoder, data[expected["detail_cells"]])
    yield from contextual_genes(encoder, data)
    yield from new_species(folder, data)


def after_aux(padded: np.ndarray) -> np.ndarray:
    """Without the position of the assay."""
    return padded[:, 1:]


def heads(encoder: Any, data: Any, *names: str) -> list[dict[str, np.ndarray]]:
    """Outputs of each cell, in order."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for cells, _, encoded in encoder.encode(data, outputs=names, **READING):
        for row, cell in enumerate(cells):
            found[int(cell)] = {name: encoded.heads[name][row].numpy() for name in names}
    return [found[cell] for cell in sorted(found)]


def filled(values: list[np.ndarray]) -> np.ndarray:
    """Rows of positions, without the assay's; those behind a cell's last are 0, or NaN where all are."""
    out = np.zeros((len(values), S), np.float32)
    for row, own in enumerate(values):
        out[row, : len(own) - 1] = own[1:]
        out[row] += np.nan if np.isnan(own).all() else 0
    return out


def details(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    # recorded with rows of padding, so the batch is filled up to the longest possible cell
    (tokens,) = encoder.tokenize(data, **READING)
    assert tokens.lengths.max() == S + 1
    batch = tokens.collate(np.arange(len(tokens)))
    with torch.inference_mode():
        states = [
            encoder.network(batch, Request(frozenset({"tokens"}), hidden_layer=i)).tokens.numpy() for i in range(4)
        ]
        attention = encoder.network(batch, Request(frozenset({"attention"}))).attention
    yield "detail_encoder_input", states[0]
    for i in range(3):
        yield f"detail_hidden_{i}", states[i + 1]
        yield f"detail_attention_{i}_cell0", attention[i][0].numpy()
    yield "detail_mu", filled([row["expression"] for row in heads(encoder, data, "expression")])
    with torch.inference_mode():
        logits = encoder.network(batch, Request(frozenset({"gene_logits"}))).heads["gene_logits"]
    yield "detail_gene_logit_cell0", logits[0, 1:].numpy()
    training = type(encoder).build(replace(encoder.config, own_count=False), encoder.vocabulary, encoder.card)
    training.network.load_state_dict(encoder.network.state_dict())
    training.tokenizer = encoder.tokenizer
    yield "detail_mu_noembed", filled([row["expression"] for row in heads(training, data, "expression")])


def contextual_genes(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    cells = {cell: (genes, vectors) for cell, genes, vectors in encoder.contextual_genes(data, **READING)}
    yield "cge_n_per_cell", np.array([len(cells[i][0]) for i in range(len(cells))])
    yield "cge_embeddings_cells_0_7", np.concatenate([cells[i][1] for i in (0, 7)])
    yield "cge_gene_names", np.concatenate([cells[i][0] for i in (0, 7)]).astype(str)
    yield "cge_cell_indices", np.concatenate([np.full(len(cells[i][0]), i) for i in (0, 7)])


def new_species(folder: Path, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    encoder = scfm.load(folder / "checkpoint", proteins="ood_species_gene.h5", species="human", upstream=True)
    yield "ood_vocab_tokens", np.array(encoder.vocabulary.tokens[: encoder.config.tokens])
    (tokens,) = encoder.tokenize(data, **READING)
    yield "ood_input_ids", after_aux(tokens.padded("targets", S + 1))
    yield "ood_cell_embedding", encoder.embed(data, empty_cells="embed", **READING)
