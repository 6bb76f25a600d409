"""scPlantFormer: what the adapter gives for each recorded array. The original computes in float64; ours come back as float32."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np

import scfm

TOLERANCE = {
    "X": 0,
    "patches": 0,
    "*": 1e-6,  # the network is exact; this is float32 of values below 10
}
NOT_COMPARED = {"loss": "of training: the recorded rmse times 50"}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    data = ad.read_h5ad(folder / "input.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scfm.LicenceWarning)
        encoder = scfm.load(folder / "checkpoint")
    (tokens,) = encoder.tokenize(data)
    patches = tokens.padded("patches")
    yield "patches", patches
    genes, size = len(encoder.vocabulary), patches.shape[2]
    x = np.zeros((len(patches), genes), np.float32)
    for i in range(patches.shape[1]):
        start = min(i * size, genes - size)
        x[:, start : start + size] = patches[:, i]
    yield "X", x
    yield "cell_embedding", encoder.embed(data, empty_cells="embed")
    yield "block_input", encoder.output(data, "tokens", hidden_layer=0)
    yield "hidden_0", encoder.output(data, "tokens")
    yield "attention_0", encoder.output(data[:4], "patch_attention")[:, 0]
    reconstruction = encoder.output(data, "expression")
    yield "reconstruction", reconstruction
    yield "rmse", np.sqrt(((reconstruction.astype(np.float64) - x) ** 2).mean())
