"""Cells measured in several ways at once: one encoder a modality, and plain baselines that join their embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.fusion import CanonicalCorrelation, WeightedNeighbours, concatenated, weighted_neighbours

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MultiEmbedding", "embed_multi"]

Fusion = Literal["concat", "wnn", "cca"]
_FUSIONS = ("concat", "wnn", "cca")


@dataclass(frozen=True)
class MultiEmbedding:
    """Embeddings of the same cells by several modalities.

    Parameters
    ----------
    cells
        (n_cells,) names.
    modalities
        Modality -> (n_cells, dim) float32: its encoder's embedding.
    fused
        "concat" -> (n_cells, sum of dim) float32; "cca" -> (n_cells, components) float32, the mean of both modalities' variates.
    variates
        Modality -> (n_cells, components) float32 in the joint space of the CCA, e.g. for retrieval; empty without "cca".
    cca
        The fitted CCA: ``cca.transform(x, y)`` maps other cells.
    wnn
        Weights of the modalities in each cell, joint neighbours and their graph; None without "wnn".
    """

    cells: np.ndarray
    modalities: dict[str, np.ndarray]
    fused: dict[str, np.ndarray] = field(default_factory=dict)
    variates: dict[str, np.ndarray] = field(default_factory=dict)
    cca: CanonicalCorrelation | None = None
    wnn: WeightedNeighbours | None = None


def embed_multi(
    encoders: Mapping[str, CellEncoder],
    data: Any,
    *,
    fusion: Sequence[Fusion] = ("concat", "wnn", "cca"),
    components: int = 20,
    k: int = 20,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> MultiEmbedding:
    """Embed the same cells with one encoder a modality, and join the embeddings.

    Parameters
    ----------
    encoders
        Modality -> encoder, e.g. ``{"rna": scfm.load("scgpt"), "atac": scfm.load("epiagent")}``. Other modalities of the data are not read.
    data
        MuData, the path of an `.h5mu` (the modalities with an encoder are read into memory), or a dict modality -> AnnData, all with
        the same obs_names in the same order.
    fusion
        Which joint results are computed: "concat" (each embedding scaled to a total variance of 1), "wnn" (weighted nearest
        neighbours), "cca" (canonical correlation, of two modalities). An empty one gives the embeddings alone.
    components
        Of the CCA.
    k
        Neighbours of the WNN.
    options
        Modality -> arguments of `CellEncoder.embed`, e.g. ``{"rna": {"layer": "counts"}}``.
    seed
        As for `embed`.

    Returns
    -------
    MultiEmbedding

    Raises
    ------
    InputError
        A modality is missing, the cells of two modalities differ, or (where embeddings are joined) a cell has no feature that an encoder
        knows.
    """
    if unknown := sorted(set(fusion) - set(_FUSIONS)):
        raise InputError(f"fusion {listing(unknown)} is not known.", f"Choose among {listing(_FUSIONS)}.")
    if fusion and len(encoders) < 2:
        raise InputError(f"{len(encoders)} encoders leave nothing to join.", "Pass two or more, or fusion=().")
    if "cca" in fusion and len(encoders) != 2:
        raise InputError(f"CCA joins two modalities, not {len(encoders)}.", "Pass fusion=('concat', 'wnn').")
    if stray := sorted(set(options or {}) - set(encoders)):
        raise InputError(f"options= names {listing(stray)}; there are encoders for {listing(encoders)}.")
    parts = _modalities(data, list(encoders))
    cells = _same_cells(parts)
    embeddings = {
        name: np.asarray(encoder.embed(parts[name], **{"seed": seed, **(options or {}).get(name, {})}))
        for name, encoder in encoders.items()
    }
    result: dict[str, Any] = {"fused": {}}
    if "concat" in fusion:
        result["fused"]["concat"] = concatenated(embeddings)
    if "cca" in fusion:
        x, y = embeddings.values()
        result["cca"] = CanonicalCorrelation.fit(x, y, components=components)
        both = result["cca"].transform(x, y)
        result["variates"] = dict(zip(embeddings, both, strict=True))
        result["fused"]["cca"] = (both[0] + both[1]) / 2
    if "wnn" in fusion:
        result["wnn"] = weighted_neighbours(embeddings, k=k)
    return MultiEmbedding(cells, embeddings, **result)


def _modalities(data: Any, names: list[str]) -> dict[str, AnnData]:
    """The AnnData of each modality, in this order."""
    with ExitStack() as stack:
        if isinstance(data, str | PathLike):
            path = Path(data)
            if path.suffix != ".h5mu" or not path.is_file():
                what = "is not .h5mu" if path.is_file() else "does not exist"
                raise InputError(f"{path} {what}.", "Give the path of an .h5mu, a MuData, or a dict of AnnData.")
            import h5py
            from anndata.io import read_elem

            try:
                file = stack.enter_context(h5py.File(path, "r"))
            except OSError as error:
                raise InputError(f"{path} is not a readable HDF5 file: {error}", "Was it copied completely?") from error
            have: Mapping[str, Any] = file.get("mod", {})
            label = str(path)
        else:
            have = data if isinstance(data, Mapping) else getattr(data, "mod", {})
            label = "data" if isinstance(data, Mapping) else type(data).__name__
        if missing := [name for name in names if name not in have]:
            raise InputError(
                f"{label} has no modality {listing(missing)} (modalities: {listing(have) or 'none'}).",
                "Name the encoders as the modalities: embed_multi({'rna': ..., 'atac': ...}, data).",
            )
        if isinstance(data, str | PathLike):
            return {name: read_elem(have[name]) for name in names}
        return {name: have[name] for name in names}


def _same_cells(parts: Mapping[str, AnnData]) -> np.ndarray:
    """Names of the cells, which all modalities must share.

    Raises
    ------
    InputError
        Saying which cells differ, or that only the order does.
    """
    first, *others = parts
    cells = parts[first].obs_names
    for name in others:
        found = parts[name].obs_names
        if found.equals(cells):
            continue
        here, there = found.difference(cells), cells.difference(found)
        if not len(here) and not len(there) and len(found) == len(cells):
            at = int(np.flatnonzero(np.asarray(found) != np.asarray(cells))[0])
            raise InputError(
                f"{first!r} and {name!r} have the same cells in another order, first at row {at}: {cells[at]!r} and {found[at]!r}.",
                f"Order them: {name} = {name}[{first}.obs_names].copy().",
            )
        raise InputError(
            f"{first!r} has {len(cells):,} cells and {name!r} {len(found):,}: "
            f"{len(there):,} only in {first!r} ({listing(there, 2) or 'none'}), "
            f"{len(here):,} only in {name!r} ({listing(here, 2) or 'none'}).",
            "Keep the cells they share in one order: shared = a.obs_names.intersection(b.obs_names); a[shared].copy(), b[shared].copy().",
        )
    return np.asarray(cells, dtype=object)
