"""One cell's embedding is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scfm.cells import BLOCK_ROWS
from scfm.encoder import CellEncoder
from scfm.testing.compare import cell_tokens, cells_of, embedded, fail, replica, same, same_tokens
from scfm.testing.kit import check, check_of_cells_alone
from scfm.tokenizers.base import Batch

if TYPE_CHECKING:
    from anndata import AnnData


@check
def determinism(encoder: CellEncoder, data: AnnData) -> None:
    """Twice the same call gives twice the same bits."""
    same(embedded(encoder, data), embedded(encoder, data), "the second of two equal calls", exact=True)


@check_of_cells_alone
def batch_mates(encoder: CellEncoder, data: AnnData) -> None:
    """A cell computed alone equals itself among others; its tokens are the same ones."""
    together, tokens = embedded(encoder, data), cell_tokens(encoder, data)
    for i in range(data.n_obs):
        same_tokens(cell_tokens(encoder, data[i : i + 1])[0], tokens[i], f"tokens of cell {i} alone")
        same(embedded(encoder, data[i : i + 1]), together[i : i + 1], f"cell {i} alone")


@check_of_cells_alone
def cell_order(encoder: CellEncoder, data: AnnData) -> None:
    """Permuted cells have permuted embeddings."""
    order = np.random.default_rng(0).permutation(data.n_obs)
    same(embedded(encoder, data[order]), embedded(encoder, data)[order], "cells in another order")


@check_of_cells_alone
def chunking(encoder: CellEncoder, data: AnnData) -> None:
    """Where the data are cut into blocks does not matter."""
    half = data.n_obs // 2
    same(embedded(encoder, data[half:]), embedded(encoder, data)[half:], "the second half of the cells alone")
    expected = cell_tokens(encoder, data)
    many = np.arange(BLOCK_ROWS + half) % data.n_obs  # the second block begins elsewhere in the data
    for at, found in enumerate(cell_tokens(encoder, data[many])):
        if at < data.n_obs or at >= BLOCK_ROWS:
            same_tokens(found, expected[at % data.n_obs], f"tokens of a cell at row {at} of {len(many)}")


@check_of_cells_alone
def batch_size(encoder: CellEncoder, data: AnnData) -> None:
    """Batches of 1, 3, all cells, and those of "auto", give the same."""
    expected = embedded(encoder, data)
    for size in (1, 3, data.n_obs):
        same(embedded(encoder, data, batch_size=size), expected, f"batch_size={size}")


@check_of_cells_alone
def padding(encoder: CellEncoder, data: AnnData) -> None:
    """Padding behind the shortest cell, up to the longest one's length, changes nothing, whatever it holds."""
    (tokens,) = encoder.tokenize(data)
    short, width = int(tokens.lengths.argmin()), int(tokens.lengths.max())
    length = int(tokens.lengths[short])
    if length == width:
        return  # all cells have as many tokens: never padded
    alone = tokens.collate([short])
    network = replica(encoder).network.eval()
    expected = cells_of(network, alone.to(encoder.device))
    long = tokens.select(np.array([int(tokens.lengths.argmax())])).collate([0])
    for what, filling in (("padding values", None), ("another cell's tokens as padding", long)):
        fields = {
            name: _filled(field, width, tokens.padding.get(name, 0), None if filling is None else filling[name])
            for name, field in alone.fields.items()
        }
        pad = torch.arange(width)[None] >= length
        same(cells_of(network, Batch(fields, alone.cells, pad).to(encoder.device)), expected, what)


def _filled(field: Tensor, width: int, value: float, filling: Tensor | None) -> Tensor:
    """(1, t, ...) -> (1, width, ...)."""
    missing = width - field.shape[1]
    end = field.new_full((1, missing, *field.shape[2:]), value) if filling is None else filling[:, -missing:]
    return torch.cat([field, end], dim=1)


@check
def group_mates(encoder: CellEncoder, data: AnnData) -> None:
    """Where cells see each other: those of one group only, in any order, whatever the batch size."""
    key, tokenizer = encoder.tokenizer.group_key, encoder.tokenizer
    if not tokenizer.grouped:
        fail("the card says that cells see each other, and the tokenizer has no groups (Tokenizer.grouped)")
    expected = embedded(encoder, data)
    for size in (1, data.n_obs):
        same(embedded(encoder, data, batch_size=size), expected, f"batch_size={size}")
    if tokenizer.group_size is None:
        order = np.random.default_rng(0).permutation(data.n_obs)
        same(embedded(encoder, data[order]), expected[order], "cells in another order")
    if key is None or key not in data.obs:
        return  # all cells are one group
    for group, rows in data.obs.groupby(key, observed=True).indices.items():
        same(embedded(encoder, data[rows]), expected[rows], f"the cells of {key}={group!r} alone")


@check
def seed(encoder: CellEncoder, data: AnnData) -> None:
    """The seed matters only to tokenizers that say so (`Tokenizer.random`)."""
    if not encoder.tokenizer.random:
        same(embedded(encoder, data, seed=1), embedded(encoder, data), "seed=1 (the tokenizer's `random` is False)")
