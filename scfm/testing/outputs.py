"""Any kind of output: embeddings, heads, genes, attention, files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scfm.encoder import Capability, CellAttention, CellEncoder, Request
from scfm.errors import CapabilityError, GeneMatchError, InputError, listing
from scfm.provenance import UNS_KEY
from scfm.testing.compare import (
    cell_tokens,
    csr,
    embedded,
    fail,
    quiet,
    refused,
    rows_of,
    same,
    scale,
    temporary_folder,
    with_x,
)
from scfm.testing.kit import TOLERANCE, check
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    from anndata import AnnData


@check
def save_and_load(encoder: CellEncoder, data: AnnData) -> None:
    """`scfm.load` of a saved encoder gives the same bits, settings and capabilities."""
    from scfm.loading import load

    with temporary_folder() as folder, quiet():
        encoder.save(folder / "saved")
        loaded = load(folder / "saved", device=str(encoder.device))
        same(embedded(loaded, data), embedded(encoder, data), "the loaded encoder", exact=True)
        for name in ("config", "card", "capabilities", "dim"):
            if getattr(loaded, name) != getattr(encoder, name):
                fail(f"{name} is {getattr(loaded, name)!r} after loading instead of {getattr(encoder, name)!r}")
        if loaded.tokenizer.settings() != encoder.tokenizer.settings():
            fail("the tokenizer's settings differ after loading")
        if type(loaded) is not type(encoder):
            fail(f"load gives a {type(loaded).__name__} instead of a {type(encoder).__name__}")


@check
def out_files(encoder: CellEncoder, data: AnnData) -> None:
    """`out=` writes what is returned without it; `key_added=` stores it with its provenance."""
    import anndata

    expected, key = embedded(encoder, data), f"X_{encoder.card.family}"
    with temporary_folder() as folder, quiet():
        same(embedded(encoder, data, out=folder / "z.npy"), expected, "out='z.npy'", exact=True)
        same(np.load(folder / "z.npy"), expected, "the content of z.npy", exact=True)
        same(embedded(encoder, data, out=folder / "z.zarr"), expected, "out='z.zarr'", exact=True)
        stored = np.asarray(anndata.read_zarr(folder / "z.zarr").obsm[key])
        same(stored, expected, f"obsm[{key!r}] of z.zarr", exact=True)
    own = with_x(data, csr(data))
    embedded(encoder, own, key_added="X_mine")
    same(np.asarray(own.obsm["X_mine"]), expected, "obsm['X_mine']", exact=True)
    if "X_mine" not in own.uns.get(UNS_KEY, {}):
        fail(f"key_added stores no provenance in uns[{UNS_KEY!r}]")


@check
def embedding_form(encoder: CellEncoder, data: AnnData) -> None:
    """(n_cells, dim) float32, finite, and not all cells alike; in every pooling and after every layer."""
    ways: list[dict[str, Any]] = [{}, *({"pooling": pooling} for pooling in encoder.poolings)]
    ways += [{"hidden_layer": layer} for layer in range(encoder.network.depth + 1)]
    for way in ways:
        found = embedded(encoder, data, **way)
        shape = (data.n_obs, encoder.network.width(Request(**way)))
        if found.shape != shape or found.dtype != np.float32:
            fail(f"{way or 'embed'}: {found.shape} {found.dtype} instead of {shape} float32")
        if not np.isfinite(found).all():
            fail(f"{way or 'embed'}: not finite in cells {rows_of(~np.isfinite(found))}")
        if not way and np.ptp(found, axis=0).max() <= TOLERANCE * scale(found):
            fail("all cells have the same embedding")
    refused(InputError, "an unknown pooling", lambda: embedded(encoder, data, pooling="no such pooling"))
    refused(InputError, "a layer too many", lambda: embedded(encoder, data, hidden_layer=encoder.network.depth + 1))


@check
def network_outputs(encoder: CellEncoder, data: AnnData) -> None:
    """`encode` gives tokens (b, t, ...) and every declared head (b, ...), finite; unknown outputs are refused."""
    outputs = ("cells", "tokens", *sorted(encoder.network.heads))
    for cells, tokens, encoded in encoder.encode(data, outputs=outputs, progress=False):
        found = {"cells": encoded.cells, "tokens": encoded.tokens, **encoded.heads}
        missing = [name for name in outputs if found.get(name) is None]
        if missing:
            fail(f"the network declares {listing(missing)} and does not give it")
        for name in outputs:
            _finite_output(found[name], tokens, len(cells), name)
    expected = embedded(encoder, data)
    found_cells = np.full_like(expected, np.nan)
    for cells, _, encoded in encoder.encode(data, outputs=outputs, progress=False):
        assert encoded.cells is not None
        found_cells[cells] = encoded.cells.numpy()
    same(found_cells, expected, "the cells beside other outputs")
    refused(CapabilityError, "an unknown output", lambda: list(encoder.encode(data, outputs=("no such output",))))


def _finite_output(values: Any, tokens: Tokens, cells: int, name: str) -> None:
    if len(values) != cells:
        fail(f"{name!r} has {len(values)} rows for {cells} cells")
    per_token = values.ndim > 1 and values.shape[1] == int(tokens.lengths.max())
    for row, length in enumerate(tokens.lengths):
        own = values[row, :length] if per_token else values[row]
        if not bool(torch.isfinite(own).all()):
            fail(f"{name!r} is not finite")


@check
def gene_embeddings(encoder: CellEncoder, data: AnnData) -> None:
    """Where declared: (n_genes, ...) finite, of every kind; asked-for genes are rows of it; unknown ones are refused."""
    if Capability.GENE_EMBEDDINGS not in encoder.capabilities:
        return
    for kind in encoder.gene_kinds:
        table = encoder.gene_embeddings(kind=kind)
        if len(table) != len(encoder.vocabulary.genes) or not np.isfinite(table.to_numpy()).all():
            fail(f"kind={kind!r}: {table.shape}, not one finite row for each of {len(encoder.vocabulary.genes)} genes")
        some = list(table.index[[-1, 0]])
        same(
            encoder.gene_embeddings(some, kind=kind).to_numpy(), table.loc[some].to_numpy(), "chosen genes", exact=True
        )
    refused(GeneMatchError, "an unknown gene", lambda: encoder.gene_embeddings(["no such gene"]))
    refused(InputError, "an unknown kind", lambda: encoder.gene_embeddings(kind="no such kind"))


@check
def attention(encoder: CellEncoder, data: AnnData) -> None:
    """Where declared: (layers, heads, t, t) whose rows sum to 1, for every cell in order; and a genes x genes mean."""
    if Capability.ATTENTION not in encoder.capabilities:
        return
    expected = list(range(encoder.network.depth))
    cells = encoder.attention(data, reduce="none", progress=False)
    lengths = [len(next(iter(cell.values()))) for cell in cell_tokens(encoder, data)]
    for i, (cell, length) in enumerate(zip(cells, lengths, strict=True)):
        assert isinstance(cell, CellAttention)
        if (
            cell.weights.ndim != 4
            or cell.weights.shape[0] != len(expected)
            or cell.weights.shape[2:] != (length, length)
        ):
            fail(f"cell {i} of {length} tokens has attention {cell.weights.shape}")
        if (worst := np.abs(cell.weights.sum(axis=-1) - 1).max()) > 1e-4:
            fail(f"rows of cell {i} sum to 1 only within {worst:.3g}: is padding attended to?")
    mean = encoder.attention(data, layers=expected[-1:], progress=False)
    if mean.shape[0] != mean.shape[1] or not mean.notna().to_numpy().any():  # type: ignore[union-attr]
        fail(f"the mean attention has shape {mean.shape}")  # type: ignore[union-attr]
    refused(InputError, "a layer too many", lambda: encoder.attention(data, layers=[encoder.network.depth]))


@check
def undeclared_capabilities(encoder: CellEncoder, data: AnnData) -> None:
    """What the encoder does not declare is refused with `CapabilityError`; "expression" comes with a head of this name."""
    calls: dict[Capability, Callable[[], object]] = {
        Capability.GENE_EMBEDDINGS: encoder.gene_embeddings,
        Capability.ATTENTION: lambda: encoder.attention(data),
        Capability.EXPRESSION: lambda: list(encoder.encode(data, outputs=("expression",))),
        Capability.ACCESSIBILITY: lambda: list(encoder.encode(data, outputs=("accessibility",))),
    }
    if Capability.EMBED not in encoder.capabilities:
        fail("'embed' is not declared")
    for capability in Capability:
        if capability not in encoder.capabilities:
            required = partial(encoder.require, capability)
            refused(CapabilityError, f"require({capability.value!r})", required)
            refused(CapabilityError, capability.value, calls.get(capability, required))
