"""Protein embeddings of genes: files with one vector a gene, made by a protein language model.

Authors ship them as HDF5 (`keys`, and `arrays` with one data set a gene), as dictionaries in `torch.save` or pickle files, or as
safetensors. Names are read without the vectors. Vectors are converted once, to a safetensors file in the cache, which is mapped into
memory from then on: only the rows asked for are read from disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfm.errors import CheckpointError, GeneMatchError, listing
from scfm.files import cache_dir, require_content, sha256
from scfm.tensors import kept_tensors, read_tensors, read_values
from scfm.unpickle import safe_unpickle

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["protein_genes", "protein_vectors"]

_HDF5 = (".h5", ".hdf5")
_PICKLES = (".pkl", ".pickle")


def protein_genes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Genes of a file of protein embeddings, in its order; no vector is read.

    Raises
    ------
    CheckpointError
        The file is not there, or not one of protein embeddings.
    """
    path = Path(path)
    require_content(path)
    if path.suffix in _HDF5:
        return tuple(_hdf5(path)[0])
    if path.suffix in _PICKLES:
        return tuple(_pickled(path))
    if path.suffix == ".safetensors":
        return tuple(read_tensors(path))
    names = read_values(path)
    if not isinstance(names, Mapping):
        raise CheckpointError(f"{path} holds a {type(names).__name__}, not a dictionary from genes to vectors.")
    return tuple(map(str, names))


def protein_vectors(path: str | os.PathLike[str], genes: Sequence[str] | None = None) -> Tensor:
    """Vectors of some genes of a file, or of all of them in its order.

    Parameters
    ----------
    path
        ``.h5``, ``.pt`` (and the other endings of `torch.save`), ``.pkl`` or ``.safetensors``.
    genes
        Names as `protein_genes` gives them.

    Returns
    -------
    Tensor
        (n_genes, dim) float32.

    Raises
    ------
    CheckpointError
        The file is not there, or not one of protein embeddings.
    GeneMatchError
        The file has no such gene.
    """
    import torch

    path = Path(path)
    require_content(path)
    if path.suffix not in (*_HDF5, *_PICKLES):
        tensors = read_tensors(path)
        genes = protein_genes(path) if genes is None else genes  # the cache's safetensors file has another order
        _known(genes, tensors, path)
        return torch.stack([tensors[gene] for gene in genes]).float()
    table = kept_tensors(cache_dir() / "proteins" / f"{sha256(path)}.safetensors", lambda: _table(path))["vectors"]
    if genes is None:
        return table
    place = {gene: row for row, gene in enumerate(protein_genes(path))}
    _known(genes, place, path)
    return table[[place[gene] for gene in genes]]


def _known(genes: Sequence[str], table: Mapping[str, object], path: Path) -> None:
    if unknown := [gene for gene in genes if gene not in table]:
        raise GeneMatchError(f"{path} has no vector of {len(unknown)} of {len(genes)} genes: {listing(unknown)}.")


def _table(path: Path) -> dict[str, Tensor]:
    import torch

    if path.suffix in _HDF5:
        names, arrays = _hdf5(path, vectors=True)
        rows = [arrays[name] for name in names]
    else:
        rows = list(_pickled(path).values())
    return {"vectors": torch.from_numpy(np.stack(rows).astype(np.float32))}


def _hdf5(path: Path, *, vectors: bool = False) -> tuple[list[str], dict[str, np.ndarray]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = [key.decode() if isinstance(key, bytes) else str(key) for key in file["keys"][:]]
            return names, {name: file["arrays"][name][:] for name in names} if vectors else {}
    except (OSError, KeyError) as error:
        raise CheckpointError(f"{path} is not a file of protein embeddings (keys, arrays): {error}") from error


def _pickled(path: Path) -> dict[str, np.ndarray]:
    content = safe_unpickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary from genes to vectors.")
    return {str(gene): np.asarray(vector) for gene, vector in content.items()}
