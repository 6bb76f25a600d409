"""CellPLM: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import scfm

TOLERANCE = {
    "gene_index": 0,
    "*gene_embedding": 0,
    "gmvae/y": 0,
    "imputation/pred": 1e-4,
    "*": 1e-5,
}
NOT_COMPARED = {
    "imputation/rows": "input: which cells",
    "input/var_names_kept": "input: names of the columns that gene_index compares",
}

DATA = {"empty_cells": "embed"}  # the all-zero cell is part of its group and has a row in the original


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")

    def load(name: str) -> Any:
        return scfm.load(folder / "checkpoint", weights=f"fixture_{name}.best.ckpt")

    vae, performer, gmvae, annotation = (load(name) for name in ("vae", "performer_vae", "gmvae", "annotation"))
    for prefix, encoder in (("vae", vae), ("performer", performer), ("gmvae", gmvae)):
        yield from states(prefix, encoder, data)
    yield "vae/gene_embedding", vae.gene_embeddings().to_numpy()
    yield "gene_index", vae.vocabulary.lookup(expected["input/var_names_kept"])
    yield "vae/cell_embedding", vae.embed(data, **DATA)
    ungrouped = vae.with_options(group_key=None)
    yield "vae/cell_embedding_no_batch_column", ungrouped.embed(data, **DATA)
    yield "vae/cell_embedding_batch_size_5", vae.with_options(group_size=5).embed(data, **DATA)
    yield "performer/cell_embedding", performer.embed(data, **DATA)
    yield from mixture(gmvae, data)
    yield "annotation/logits", annotation.output(data, "logits")
    yield "annotation/latent", annotation.embed(data, **DATA)
    yield "imputation/pred", vae.impute(data[expected["imputation/rows"]])


def states(prefix: str, encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{prefix}/embedder", encoder.output(data, "state", hidden_layer=0)
    for layer in range(encoder.network.depth):
        yield f"{prefix}/layer{layer}", encoder.output(data, "state", hidden_layer=layer + 1)
    yield f"{prefix}/pre_latent", encoder.output(data, "normed_state")


def mixture(gmvae: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    upstream = gmvae.with_options(clusters="upstream")  # torch was seeded with 0 before `predict`
    yield "gmvae/cell_embedding", upstream.embed(data, seed=0, **DATA)
    yield "gmvae/y", upstream.output(data, "cluster")
    yield "gmvae/logits", gmvae.output(data, "cluster_logits")
    yield "gmvae/probabilities", gmvae.output(data, "cluster_probabilities")
    yield "gmvae/cell_embedding_argmax_cluster", gmvae.embed(data, **DATA)
    yield "gmvae/posterior_var_argmax_cluster", gmvae.output(data, "variance")
    yield "gmvae/prior_mean", gmvae.output(data, "prior_mean")
    yield "gmvae/prior_var", gmvae.output(data, "prior_variance")
