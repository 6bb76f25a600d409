"""Nicheformer: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request

TOLERANCE = {"*input_ids*": 0, "padding_mask": 0, "tokens_before_context": 0, "*embedding*": 1e-5, "*": 1e-4}
NOT_COMPARED = {
    "input_ids_raw_nan_xenium_mean": "a defect of the original: genes whose mean is NaN, measured or not, come first in every cell",
}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    data = ad.read_h5ad(folder / "input.h5ad")
    trained = scfm.load(folder / "checkpoint")
    encoder = trained.with_options(means="dissociated", rounding="none")
    tokens = encode(encoder, data)
    ids = tokens.padded("ids")
    yield "input_ids", ids
    yield "padding_mask", ids == 1
    longer = encode(encoder.with_options(context=75), data).padded(
        "ids"
    )  # recorded before the context tokens push three genes out
    yield "tokens_before_context", np.where(longer == 1, 0, longer)[:, 3:]
    yield "cell_embedding", embed(encoder, data)
    for layer in range(encoder.network.depth):
        yield f"embedding_layer{layer}", embed(encoder, data, hidden_layer=layer + 1)
    yield "embedding_with_context", embed(encoder, data, pooling="all")
    yield "reference_mean_excluding_padding", embed(encoder, data, pooling="genes")
    for name, means in (("rounded", "dissociated"), ("rounded_xenium", "xenium")):
        rounded = trained.with_options(means=means, ties="upstream")
        yield f"input_ids_{name}_mean", encode(rounded, data).padded("ids")
        yield f"embedding_{name}_mean", embed(rounded, data)
    with torch.inference_mode():
        encoded = encoder.network(tokens.collate([0, 1]), Request(frozenset({"tokens", "gene_logits", "attention"})))
    yield "transformer_output_first2", encoded.tokens.numpy()
    yield "mlm_logits_first2", encoded.heads["gene_logits"].numpy()
    yield "attentions_first1", np.stack([encoded.attention[i][:1].numpy() for i in range(encoder.network.depth)])


def encode(encoder: Any, data: Any) -> Any:
    (tokens,) = encoder.tokenize(data)
    return tokens


def embed(encoder: Any, data: Any, **options: Any) -> np.ndarray:
    return encoder.embed(data, empty_cells="embed", **options)
