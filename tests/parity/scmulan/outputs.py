"""scMulan: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np

import scfm

TOLERANCE = {
    "input_ids": 0,
    "expression_bins": 0,
    "prompt_length": 0,
    "generat*": 0,
    "cell_type": 0,
    "token_embedding": 0,
    "*": 5e-5,  # the fixture's own recommendation: float64 and float32 of the original differ by 2.5e-5
}
NOT_COMPARED: dict[str, str] = {}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    data = ad.read_h5ad(folder / "input.h5ad")
    encoder = scfm.load(folder / "checkpoint")
    (tokens,) = encoder.tokenize(data)
    lengths, width = tokens.lengths, int(tokens.lengths.max())
    yield "prompt_length", lengths
    real = np.arange(width) < lengths[:, None]
    for name, field in (("input_ids", "ids"), ("expression_bins", "bins")):
        yield name, np.where(real, tokens.padded(field), -1)
    yield "cell_embedding", encoder.embed(data)
    yield "cell_type", encoder.cell_types(data)["cell_type"].to_numpy(dtype=str)
    names = ("next_token", "next_expression", "generated", "generated_expression")
    found = {name: encoder.output(data, name) for name in names}
    yield "logits_token_first_step", found["next_token"]
    yield "logits_expression_first_step", found["next_expression"]
    yield "generated_ids", found["generated"]
    yield "generated_bins", found["generated_expression"]
    yield "generation_steps", (found["generated"] >= 0).sum(axis=1)
    states = np.zeros((6, width, encoder.dim), np.float32)
    for cells, part, encoded in encoder.encode(data[:6], outputs=("tokens",)):
        for row, cell in enumerate(cells):
            states[cell, : part.lengths[row]] = encoded.tokens[row, : part.lengths[row]].numpy()
    yield "hidden_state_prompt_first", states
    yield "token_embedding", encoder.gene_vectors("raw").detach().numpy()
