"""Embeddings to compare: of encoders, of models by name, from `obsm`, or arrays, for the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.fitted import FittedEncoder
from scfm.loading import load

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EmbeddingSource", "Embeddings", "embeddings_of", "named_on", "named_sources", "obs_values"]

EmbeddingSource = CellEncoder | str | np.ndarray
"""An encoder, a key of `obsm`, the name of a model, or (n_cells, dim) numbers."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the same cells.

    Parameters
    ----------
    arrays
        Name -> (n_kept, dim) float32 or float64.
    rows
        (n_kept,) ascending rows of the data that have a finite embedding in all of them.
    left_out
        Name -> number of cells without one.
    encoders
        Those that were used.
    """

    arrays: dict[str, np.ndarray]
    rows: np.ndarray
    left_out: dict[str, int]
    encoders: tuple[CellEncoder, ...]


def embeddings_of(
    sources: EmbeddingSource | Sequence[EmbeddingSource] | Mapping[str, EmbeddingSource],
    adata: AnnData,
    *,
    options: Mapping[str, Any] | None = None,
    keep: np.ndarray | None = None,
    seed: int = 0,
) -> Embeddings:
    """Embed cells by each of the sources.

    Parameters
    ----------
    sources
        One, several, or several by the names they are to have. Text is a key of ``adata.obsm``, else the name of a model.
    adata
        Cells; never changed.
    options
        Of `CellEncoder.embed`, e.g. ``{"layer": "counts"}``; for all encoders.
    keep
        (n_cells,) bool: cells to embed; None is all.
    seed
        Of the encoders.

    Raises
    ------
    InputError
        Two have one name, an array is of other cells, or no cell has all embeddings.
    """
    named = named_sources(sources)
    keep = np.ones(adata.n_obs, dtype=bool) if keep is None else keep
    cells = adata if keep.all() else adata[keep].copy()
    arrays: dict[str, np.ndarray] = {}
    encoders: list[CellEncoder] = []
    for name, source in named.items():
        if isinstance(source, str):
            source = np.asarray(adata.obsm[source]) if source in adata.obsm else _loaded(source, adata)
        if isinstance(source, CellEncoder):
            encoders.append(source)
            arrays[name] = source.embed(cells, seed=seed, **_options_of(source, options))
        else:
            if source.ndim != 2 or len(source) != adata.n_obs:
                raise InputError(
                    f"the embedding {name!r} has shape {source.shape}; there are {adata.n_obs} cells.",
                    "Pass one row a cell, in the order of adata.",
                )
            arrays[name] = np.asarray(source)[keep]
    finite = {name: np.isfinite(z).all(axis=1) for name, z in arrays.items()}
    whole = np.all(list(finite.values()), axis=0)
    if not whole.any():
        raise InputError(
            f"no cell has an embedding by all of {listing(arrays)}.", "Embed other cells or leave one out."
        )
    return Embeddings(
        {name: z[whole] for name, z in arrays.items()},
        np.flatnonzero(keep)[whole],
        {name: int((~ok).sum()) for name, ok in finite.items() if not ok.all()},
        tuple(encoders),
    )


def _options_of(encoder: CellEncoder, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of `embed`; an encoder that is fitted on the cells takes their features by whatever name."""
    fresh = isinstance(encoder, FittedEncoder) and not encoder.fitted
    return {name: value for name, value in (options or {}).items() if not (fresh and name == "map_genes")}


def named_sources(
    sources: EmbeddingSource | Sequence[EmbeddingSource] | Mapping[str, EmbeddingSource],
) -> dict[str, EmbeddingSource]:
    """The sources by name: that of the encoder, the model or the key; "embedding" for an array.

    Raises
    ------
    InputError
        There are none, or two have one name.
    """
    if isinstance(sources, Mapping):
        return {str(name): source for name, source in sources.items()}
    several = [sources] if isinstance(sources, CellEncoder | str | np.ndarray) else list(sources)
    if not several:
        raise InputError("no embedding is given.", "Pass an encoder, the name of a model, a key of obsm or an array.")
    named: dict[str, EmbeddingSource] = {}
    for source in several:
        name = source if isinstance(source, str) else source.name if isinstance(source, CellEncoder) else "embedding"
        if name in named:
            raise InputError(f"two embeddings would be called {name!r}.", "Pass a dict: {'first': ..., 'second': ...}.")
        named[name] = source
    return named


def named_on(names: Sequence[str], adata: AnnData, *, device: str = "auto") -> dict[str, EmbeddingSource]:
    """What names in a shell stand for: keys of ``adata.obsm``, else models, loaded on a device."""
    return {
        str(name): source if source in adata.obsm else _loaded(str(source), adata).to(device)
        for name, source in named_sources(names).items()
    }


def _loaded(name: str, adata: AnnData) -> CellEncoder:
    try:
        return load(name)
    except LookupError as error:
        raise InputError(
            f"{name!r} is neither a key of adata.obsm ({listing(adata.obsm) or 'empty'}) nor an installed model: {error}"
        ) from error


def obs_values(adata: AnnData, key: str, *, rows: np.ndarray | None = None, purpose: str) -> np.ndarray:
    """A column of `obs` as text (n_cells,) of some rows, none missing.

    Raises
    ------
    InputError
        There is no such column, or cells have no value in it.
    """
    if key not in adata.obs:
        raise InputError(
            f"obs has no column {key!r} (columns: {listing(map(str, adata.obs.columns)) or 'none'}).",
            f"Name the column with {purpose}.",
        )
    column = adata.obs[key] if rows is None else adata.obs[key].iloc[rows]
    if missing := int(column.isna().sum()):
        raise InputError(
            f"obs[{key!r}] has no value for {missing} of {len(column)} cells.",
            "Fill it, or leave these cells out: adata[adata.obs[...].notna()].",
        )
    return column.astype(str).to_numpy(dtype=str)
