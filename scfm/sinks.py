"""Where embeddings go: an array in memory, or a `.npy`, `.zarr` or `.h5ad` on disk, written block by block and resumable.

Rows not yet written are NaN. Beside a file on disk lies a journal (`scfm.journal`): which blocks are done, with their hashes, and the
run's whole record. The same run continues what is done and right; another one does not.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scfm.cells import BLOCK_ROWS
from scfm.errors import InputError
from scfm.files import write_whole
from scfm.journal import Journal, digest, not_ours, refuse_another_run
from scfm.provenance import UNS_KEY, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ArraySink", "H5adSink", "NpySink", "Sink", "ZarrSink", "open_sink"]

Positions = slice | np.ndarray
"""Where the cells of a block are in the data."""
MOST_CHUNKS = 20_000
"""Files of a `.zarr`, about; chunks of larger data hold several blocks."""


class Sink(Protocol):
    """Takes the rows of blocks, by the blocks' numbers; each block once."""

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the blocks already written."""

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write the rows (n, dim) float32 of a block; afterwards they are safe."""

    def finish(self) -> np.ndarray:
        """Close the output; all rows (n_cells, dim), memory-mapped where they are on disk."""


class ArraySink:
    """An array in memory."""

    done: frozenset[int] = frozenset()

    def __init__(self, shape: tuple[int, int], blocks: Sequence[Positions]) -> None:
        self._array = np.full(shape, np.nan, dtype=np.float32)
        self._blocks = blocks

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write the rows of a block."""
        self._array[self._blocks[block]] = rows

    def finish(self) -> np.ndarray:
        """The array."""
        return self._array


class _DiskSink:
    """An array on disk and its journal. What the journal notes is compared with what is there; blocks that differ are done again."""

    _array: Any

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        record: Mapping[str, Any],
        blocks: Sequence[Positions],
        *,
        resume: bool,
    ) -> None:
        self.path, self._blocks = path, blocks
        self._journal = Journal(path, {**record, "shape": list(shape)}, resume=resume)
        if not self._journal.blocks or not self._opened():
            self._journal.blocks.clear()
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._create(shape)
        noted = self._journal.blocks
        self._done = {number for number, mark in noted.items() if digest(self._get(blocks[number])) == mark}

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the blocks already written."""
        return frozenset(self._done)

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write the rows of a block and note it."""
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        self._put(self._blocks[block], rows)
        self._journal.note(block, rows)
        self._done.add(block)

    @abstractmethod
    def _create(self, shape: tuple[int, int]) -> None:
        """Make the output, all rows NaN; at once or not at all."""

    @abstractmethod
    def _opened(self) -> bool:
        """Open what is there; False if it is gone."""

    @abstractmethod
    def _put(self, cells: Positions, rows: np.ndarray) -> None: ...

    @abstractmethod
    def _get(self, cells: Positions) -> np.ndarray: ...


class NpySink(_DiskSink):
    """A `.npy` file."""

    def _create(self, shape: tuple[int, int]) -> None:
        def fill(path: Path) -> None:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, shape[0], BLOCK_ROWS):
                array[start : start + BLOCK_ROWS] = np.nan

        write_whole(self.path, fill)
        self._opened()

    def _opened(self) -> bool:
        if self.path.exists():
            self._array = np.lib.format.open_memmap(self.path, mode="r+")
        return self.path.exists()

    def _put(self, cells: Positions, rows: np.ndarray) -> None:
        self._array[cells] = rows
        self._array.flush()

    def _get(self, cells: Positions) -> np.ndarray:
        return np.asarray(self._array[cells])

    def finish(self) -> np.ndarray:
        """The file, memory-mapped."""
        return self._array

    def remove(self) -> None:
        """Delete the file and its journal."""
        self.path.unlink()
        self._journal.remove()


class ZarrSink(_DiskSink):
    """A `.zarr` that `anndata.read_zarr` reads: `obs`, and the embedding in `obsm[key]`, in chunks of whole blocks."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        record: Mapping[str, Any],
        blocks: Sequence[Positions],
        *,
        key: str,
        obs: pd.DataFrame,
        resume: bool,
    ) -> None:
        self._key, self._obs, self._record = key, obs, record
        super().__init__(path, shape, record, blocks, resume=resume)

    def _create(self, shape: tuple[int, int]) -> None:
        import zarr

        whole = self.path.with_name(f".{self.path.name}.part")  # renamed when it is complete
        shutil.rmtree(whole, ignore_errors=True)
        group: Any = zarr.open_group(whole, mode="w", zarr_format=3)
        _write_annotations(group, self._obs, {UNS_KEY: {self._key: json.dumps(plain(self._record), indent=1)}})
        rows = BLOCK_ROWS * max(1, round(shape[0] / BLOCK_ROWS / MOST_CHUNKS))
        chunks = (min(rows, max(shape[0], 1)), shape[1])
        array = group["obsm"].create_array(self._key, shape=shape, dtype="float32", chunks=chunks, fill_value=np.nan)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        os.replace(whole, self.path)
        self._opened()

    def _opened(self) -> bool:
        import zarr

        if not self.path.exists():
            return False
        self._array = zarr.open_group(self.path, mode="r+")[f"obsm/{self._key}"]
        return True

    def _put(self, cells: Positions, rows: np.ndarray) -> None:
        self._array.oindex[cells, slice(None)] = rows

    def _get(self, cells: Positions) -> np.ndarray:
        return np.asarray(self._array.oindex[cells, slice(None)])

    def finish(self) -> np.ndarray:
        """All rows, read into memory."""
        return np.asarray(self._array[:])


def _write_annotations(group: Any, obs: pd.DataFrame, uns: dict[str, Any]) -> None:
    """All that makes a zarr group an AnnData without X."""
    import pandas as pd
    from anndata import settings
    from anndata.io import write_elem

    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    empty: dict[str, Any] = {}
    parts = {"obs": obs, "var": pd.DataFrame(index=pd.Index([], dtype=object)), "uns": uns}
    with settings.override(auto_shard_zarr_v3=False):
        for name, part in (parts | dict.fromkeys(("layers", "obsm", "obsp", "varm", "varp"), empty)).items():
            write_elem(group, name, part)


class H5adSink:
    """An `.h5ad` with the embedding in `obsm[key]`: the input file copied where there is one, else its `obs` alone.

    Rows are gathered in ``<name>.part.npy``, which a killed run continues from; the `.h5ad` appears whole, at the end.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        record: Mapping[str, Any],
        blocks: Sequence[Positions],
        *,
        key: str,
        obs: pd.DataFrame,
        copied: Path | None,
        resume: bool,
    ) -> None:
        self.path, self._key, self._obs, self._copied, self._record = path, key, obs, copied, record
        rows = path.with_name(path.name + ".part.npy")
        self._finished = resume and path.exists() and not rows.exists() and self._same_run()
        if not self._finished:
            self._rows = NpySink(rows, shape, record, blocks, resume=resume)
        self._count = len(blocks)

    def _same_run(self) -> bool:
        """Whether the finished file there is this run's; a foreign one is refused."""
        import h5py
        from anndata.io import read_elem

        try:
            with h5py.File(self.path, "r") as file:
                note = json.loads(read_elem(file[f"uns/{UNS_KEY}/{self._key}"]))
        except (OSError, KeyError, ValueError) as error:
            raise not_ours(self.path, f"no obsm[{self._key!r}] of a run of scfm in it") from error
        refuse_another_run(self.path, note, self._record)
        return True

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the blocks already written."""
        return frozenset(range(self._count)) if self._finished else self._rows.done

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write the rows of a block and note it."""
        self._rows.write(block, rows)

    def finish(self) -> np.ndarray:
        """Write the `.h5ad`, remove the gathered rows, and return them."""
        import h5py
        from anndata import AnnData
        from anndata.io import read_elem, write_elem

        if self._finished:
            with h5py.File(self.path, "r") as file:
                return np.asarray(read_elem(file[f"obsm/{self._key}"]))
        embedding = np.array(self._rows.finish())
        part = self.path.with_name(self.path.name + ".part")
        if self._copied is not None:
            shutil.copyfile(self._copied, part)
        else:
            AnnData(obs=self._obs).write_h5ad(part)
        with h5py.File(part, "r+") as file:
            write_elem(file, f"obsm/{self._key}", embedding)
            notes = read_elem(file[f"uns/{UNS_KEY}"]) if f"uns/{UNS_KEY}" in file else {}
            write_elem(file, f"uns/{UNS_KEY}", {**notes, self._key: json.dumps(plain(self._record), indent=1)})
        os.replace(part, self.path)
        self._rows.remove()
        return embedding


def open_sink(
    out: str | os.PathLike[str] | None,
    shape: tuple[int, int],
    record: Mapping[str, Any],
    blocks: Sequence[Positions],
    *,
    key: str,
    obs: pd.DataFrame,
    copied: Path | None,
    resume: bool,
) -> Sink:
    """The sink for `out`: None is memory; else by the ending, `.npy`, `.zarr` or `.h5ad`.

    Parameters
    ----------
    out
        Path to write.
    shape
        (n_cells, dim).
    record
        Everything that decides the rows; a run continues an `out` only if its record is the same.
    blocks
        Positions of the cells of each block: consecutive ones as a slice.
    key
        Name of the embedding in `obsm`, for `.zarr` and `.h5ad`.
    obs
        Index of the cells.
    copied
        The `.h5ad` whose content an `.h5ad` output keeps, if the data are one such file.
    """
    if out is None:
        return ArraySink(shape, blocks)
    path = Path(out)
    if path.suffix not in (".npy", ".zarr", ".h5ad"):
        raise InputError(f"out={str(out)!r} ends neither in .npy, .zarr nor .h5ad.", "Name it e.g. embedding.zarr.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of out={str(out)!r} does not exist.", f"mkdir -p {path.parent}")
    if path.suffix == ".npy":
        return NpySink(path, shape, record, blocks, resume=resume)
    if path.suffix == ".zarr":
        return ZarrSink(path, shape, record, blocks, key=key, obs=obs, resume=resume)
    if copied is not None and path.exists() and path.samefile(copied):
        raise InputError(f"out={str(out)!r} is the input itself.", "Choose another name; the input is never changed.")
    return H5adSink(path, shape, record, blocks, key=key, obs=obs, copied=copied, resume=resume)
