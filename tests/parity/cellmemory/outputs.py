"""CellMemory: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import scfm

TOLERANCE = {"*input_tokens": 0, "gene_ids": 0, "*pred": 0, "*": 1e-4}
NOT_COMPARED = {"subset_rows": "input: which cells"}

PASSES = 3


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    width = expected["input_tokens"].shape[1]
    fast = scfm.load(folder / "checkpoint_cm", passes=PASSES).with_options(pad_to=width)  # the longest cell of the data
    yield from generated("", fast, data)
    (tokens,) = fast.tokenize(data)
    yield "gene_ids", tokens.padded("ids")
    yield from generated("full_", scfm.load(folder / "checkpoint_cmfull", passes=PASSES), data)
    topk = scfm.load(folder / "checkpoint_cm", passes=PASSES, topk=10).with_options(pad_to=width)
    yield "topk_cell_embedding", topk.embed(data)
    yield "topk_logits", topk.output(data, "logits")
    subset = data[expected["subset_rows"]]
    longest = int((subset.X != 0).sum(axis=1).max())
    yield "subset_cell_embedding", fast.with_options(pad_to=longest).embed(subset)


def generated(prefix: str, encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    (tokens,) = encoder.tokenize(data)
    yield f"{prefix}input_tokens", tokens.padded("bins")
    yield f"{prefix}cell_embedding", encoder.embed(data)
    yield f"{prefix}logits", encoder.output(data, "logits")
    types = encoder.classify(data)
    yield f"{prefix}pred", types["label"].to_numpy(dtype=str)
    yield f"{prefix}pred_prob", types["probability"].to_numpy()
    yield f"{prefix}memory_score", encoder.memory_scores(data, shifted=True).to_numpy()
    yield f"{prefix}memory_mlp", encoder.output(data, "memory_mlp")
    yield from passes(f"{prefix}b0_", encoder, data[:2])


def passes(prefix: str, encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{prefix}attention_in", encoder.output(data, "written")
    yield f"{prefix}attention_out", encoder.output(data, "attended")
    yield f"{prefix}embedding", encoder.output(data, "embedded")
    for i in range(1, PASSES + 1):
        found = encoder.encode(data, outputs=("cells", "tokens", "memory"), hidden_layer=i, batch_size=2)
        cells, _, encoded = next(found)
        order = np.argsort(cells)
        tokens, memory = encoded.tokens.numpy()[order], encoded.heads["memory"].numpy()[order]
        yield f"{prefix}hidden_{i - 1}", np.concatenate([encoded.cells.numpy()[order][:, None], tokens], axis=1)
        yield f"{prefix}memory_{i - 1}", memory
