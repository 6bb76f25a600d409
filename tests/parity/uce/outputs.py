"""UCE: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request

TOLERANCE = {
    "*input_ids": 0,
    "*attention_mask": 0,
    "*batch_padded_len": 0,
    "*_names": 0,
    "pe_idx": 0,
    "chrom_code": 0,
    "start": 0,
    "*cell_embedding": 1e-5,
    "*": 1e-4,
}
NOT_COMPARED: dict[str, str] = {}

BATCH = 7
N_CHROMOSOMES = {"human": 62, "mouse": 62, "chicken": 10}  # of the table, at the end of the authors' token rows
TOKEN_ROWS = {"human": 448, "mouse": 448, "chicken": 134}


def load(folder: Path, species: str) -> Any:
    """The fixture's network has 4 heads of 8, which no file states."""
    return scfm.load(folder / "checkpoint", species=species, heads=4).with_options(sample=64)


def rows(encoder: Any, ids: np.ndarray) -> np.ndarray:
    """Token ids as rows of the authors' token table."""
    return encoder.vocabulary.columns["row"].astype(np.int64)[ids]


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    human = load(folder, "human")
    filtered = authors_filter(data)
    yield "obs_names", filtered.obs_names.to_numpy(dtype=str)
    yield from vocabulary(human, filtered)
    yield from run("", human, filtered)
    yield "batch1_cell_embedding", human.with_options(sampling="upstream").embed(filtered)
    yield from network(human, filtered, expected["pe_idx"][:25])
    expressed = data[np.asarray(data.X.sum(axis=1)).reshape(-1) > 0]
    yield "nofilter_obs_names", expressed.obs_names.to_numpy(dtype=str)
    known = human.vocabulary.lookup(expressed.var_names) >= 0
    yield "nofilter_var_names", expressed.var_names[known].to_numpy(dtype=str)
    yield from run("nofilter_", human, expressed)
    yield from run("mouse_", load(folder, "mouse"), ad.read_h5ad(folder / "input_mouse.h5ad"))
    yield from run("chicken_", load(folder, "chicken"), expressed)


def authors_filter(data: Any) -> Any:
    """The authors' preprocessing: genes of at least 10 cells, then cells of at least 25 genes."""
    data = data[:, np.asarray((data.X > 0).sum(axis=0)).reshape(-1) >= 10]
    return data[np.asarray((data.X > 0).sum(axis=1)).reshape(-1) >= 25]


def vocabulary(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    ids = encoder.vocabulary.lookup(data.var_names)
    known = ids >= 0
    columns = encoder.vocabulary.columns
    yield "var_names", data.var_names[known].to_numpy(dtype=str)
    yield "pe_idx", rows(encoder, ids[known])
    chromosome = columns["chromosome"][ids[known]].astype(np.int64)
    yield "chrom_code", rows(encoder, chromosome) - (TOKEN_ROWS["human"] - N_CHROMOSOMES["human"])
    yield "start", columns["start"][ids[known]].astype(np.int64)


def run(prefix: str, encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    upstream = encoder.with_options(sampling="upstream", group_size=BATCH)
    blocks = list(upstream.tokenize(data))
    widths = np.concatenate([block.lengths for block in blocks])
    ids = np.concatenate([block.padded("ids", int(widths.max())) for block in blocks])
    yield f"{prefix}input_ids", rows(encoder, ids)
    yield f"{prefix}attention_mask", (ids != 0).astype(np.int8)
    yield f"{prefix}batch_padded_len", widths
    yield f"{prefix}cell_embedding", upstream.embed(data)


def network(encoder: Any, data: Any, genes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    upstream = encoder.with_options(sampling="upstream", group_size=BATCH)
    first = data[:BATCH]
    options = dict(outputs=("tokens", "attention", "gene_output"))
    ((_, _, encoded),) = upstream.encode(first, **options)
    with torch.inference_mode():
        (tokens,) = upstream.tokenize(first)
        batch = tokens.collate(np.arange(BATCH))
        yield "b0_encoder_input", upstream.network.embed_tokens(batch["ids"])[:3].numpy()
        for layer in range(3):
            request = Request(frozenset({"tokens"}), hidden_layer=layer + 1)
            yield f"b0_hidden_{layer}", upstream.network(batch, request).tokens[:3].numpy()
    for layer, weights in encoded.attention.items():
        yield f"b0_attention_{layer}", weights[:1].numpy()
    yield "b0_gene_output", encoded.heads["gene_output"][:3].numpy()
    names = data.var_names[encoder.vocabulary.lookup(data.var_names) >= 0][:25]
    assert (rows(encoder, encoder.vocabulary.lookup(names)) == genes).all()
    yield "gene_embedding", encoder.gene_embeddings(names).to_numpy()
    yield "predict_logits", encoder.predict_expressed(upstream.embed(data)[:4], names)
