"""scPlantFormer: what the adapter gives for each recorded array. The original computes in float64; ours come back as float32."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import scfm

TOLERANCE = {
    "X": 0,
    "patches": 0,
    "*": 1e-6,  # the network is exact; this is float32 of values below 10
}
NOT_COMPARED = {"loss": "of training: the recorded rmse times 50"}


def read(encoder: Any, data: Any, *outputs: str, **options: Any) -> dict[str, np.ndarray]:
    """Outputs of all cells, in their order."""
    rows: dict[str, dict[int, np.ndarray]] = {name: {} for name in outputs}
    for cells, _, encoded in encoder.encode(data, outputs=outputs, **options):
        for name, found in rows.items():
            values = encoded.tokens if name == "tokens" else encoded.heads[name]
            found.update(zip(cells.tolist(), values.numpy(), strict=True))
    return {name: np.stack([found[cell] for cell in sorted(found)]) for name, found in rows.items()}


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
    yield "block_input", read(encoder, data, "tokens", hidden_layer=0)["tokens"]
    yield "hidden_0", read(encoder, data, "tokens")["tokens"]
    yield "attention_0", read(encoder, data[:4], "patch_attention")["patch_attention"][:, 0]
    reconstruction = read(encoder, data, "expression")["expression"]
    yield "reconstruction", reconstruction
    yield "rmse", np.sqrt(((reconstruction.astype(np.float64) - x) ** 2).mean())
