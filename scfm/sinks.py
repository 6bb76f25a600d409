"""Where embeddings go: an array in memory, or a `.npy`, `.zarr` or `.h5ad` on disk, written block by block and resumable.

Rows not yet written are NaN. A file on disk carries how many rows are done and the fingerprint of the run; a run with another
fingerprint does not continue it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scfm.cells import BLOCK_ROWS
from scfm.errors import InputError, ResumeError
from scfm.provenance import UNS_KEY, fingerprint, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ArraySink", "H5adSink", "NpySink", "Sink", "ZarrSink", "open_sink"]


class Sink(Protocol):
    """Takes blocks of rows, each row once."""

    @property
    def done(self) -> int:
        """Rows already written."""

    def write(self, cells: np.ndarray, rows: np.ndarray) -> None:
        """Write rows (n, dim) float32 at the positions `cells` (n,); afterwards they are safe."""

    def finish(self) -> np.ndarray:
        """Close the output; all rows (n_cells, dim), memory-mapped where they are on disk."""


class ArraySink:
    """An array in memory."""

    done = 0

    def __init__(self, shape: tuple[int, int]) -> None:
        self._array = np.full(shape, np.nan, dtype=np.float32)

    def write(self, cells: np.ndarray, rows: np.ndarray) -> None:
        """Write rows at the positions `cells`."""
        self._array[_span(cells)] = rows

    def finish(self) -> np.ndarray:
        """The array."""
        return self._array


class NpySink:
    """A `.npy` file, with its provenance and progress in ``<name>.npy.json`` beside it."""

    def __init__(self, path: Path, shape: tuple[int, int], record: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._journal = path, path.with_name(path.name + ".json")
        self._record = {"fingerprint": fingerprint(record), "rows": shape[0], "provenance": plain(record)}
        self.done = 0
        if resume and path.exists():
            try:
                before = json.loads(self._journal.read_text(encoding="utf-8"))
                mark, rows_done = before["fingerprint"], before["rows_done"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise _not_ours(path, f"no record of a run of scfm in {self._journal.name}") from error
            _same_run(path, mark, self._record["fingerprint"])
            self.done = rows_done
            self._array = np.lib.format.open_memmap(path, mode="r+")
            return
        self._array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        self._array[:] = np.nan
        self._note()

    def _note(self) -> None:
        temporary = self._journal.with_suffix(".json.part")
        temporary.write_text(json.dumps(self._record | {"rows_done": self.done}, indent=1), encoding="utf-8")
        os.replace(temporary, self._journal)

    def write(self, cells: np.ndarray, rows: np.ndarray) -> None:
        """Write rows at the positions `cells` and note it."""
        self._array[_span(cells)] = rows
        self._array.flush()
        self.done += len(rows)
        self._note()

    def finish(self) -> np.ndarray:
        """The file, memory-mapped."""
        return self._array

    def remove(self) -> None:
        """Delete the file and its journal."""
        self.path.unlink()
        self._journal.unlink()


class ZarrSink:
    """A `.zarr` that `anndata.read_zarr` reads: `obs`, and the embedding in `obsm[key]`, written in chunks of one block."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        record: Mapping[str, Any],
        *,
        key: str,
        obs: pd.DataFrame,
        resume: bool,
    ) -> None:
        import zarr

        mark = fingerprint(record)
        if resume and path.exists():
            try:
                group: Any = zarr.open_group(path, mode="r+")
            except (OSError, ValueError) as error:
                raise _not_ours(path, "no zarr group") from error
            if f"obsm/{key}" not in group or "rows_done" not in group[f"obsm/{key}"].attrs:
                raise _not_ours(path, f"no obsm/{key} of scfm")
            self._array = group[f"obsm/{key}"]
            _same_run(path, self._array.attrs["fingerprint"], mark)
            self.done = int(self._array.attrs["rows_done"])
            return
        group = zarr.open_group(path, mode="w", zarr_format=3)
        _write_annotations(group, obs, {UNS_KEY: {key: json.dumps(plain(record), indent=1)}})
        chunks = (min(BLOCK_ROWS, max(shape[0], 1)), shape[1])
        self._array = group["obsm"].create_array(key, shape=shape, dtype="float32", chunks=chunks, fill_value=np.nan)
        notes = {"encoding-type": "array", "encoding-version": "0.2.0", "fingerprint": mark, "rows_done": 0}
        self._array.attrs.update(notes)
        self.done = 0

    def write(self, cells: np.ndarray, rows: np.ndarray) -> None:
        """Write rows at the positions `cells` and note it."""
        self._array.oindex[_span(cells), slice(None)] = rows
        self.done += len(rows)
        self._array.attrs["rows_done"] = self.done

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
        *,
        key: str,
        obs: pd.DataFrame,
        copied: Path | None,
        resume: bool,
    ) -> None:
        self.path, self._key, self._obs, self._copied, self._record = path, key, obs, copied, record
        self._rows = NpySink(path.with_name(path.name + ".part.npy"), shape, record, resume=resume)

    @property
    def done(self) -> int:
        """Rows already written."""
        return self._rows.done

    def write(self, cells: np.ndarray, rows: np.ndarray) -> None:
        """Write rows at the positions `cells` and note it."""
        self._rows.write(cells, rows)

    def finish(self) -> np.ndarray:
        """Write the `.h5ad`, remove the gathered rows, and return them."""
        import h5py
        from anndata import AnnData
        from anndata.io import read_elem, write_elem

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


def _span(cells: np.ndarray) -> slice | np.ndarray:
    """Consecutive positions as a slice, which is written in one piece."""
    start = int(cells[0]) if len(cells) else 0
    return slice(start, start + len(cells)) if (cells == np.arange(start, start + len(cells))).all() else cells


def _not_ours(path: Path, lacking: str) -> ResumeError:
    return ResumeError(
        f"{path} exists, with {lacking}.",
        "Choose another out=, remove it, or pass resume=False (--no-resume) to overwrite it.",
    )


def _same_run(path: Path, before: str | None, now: str) -> None:
    if before != now:
        raise ResumeError(
            f"{path} was begun by another run: data, model or settings differ.",
            "Choose another out=, remove it, or pass resume=False (--no-resume) to overwrite it.",
        )


def open_sink(
    out: str | os.PathLike[str] | None,
    shape: tuple[int, int],
    record: Mapping[str, Any],
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
    key
        Name of the embedding in `obsm`, for `.zarr` and `.h5ad`.
    obs
        Index of the cells.
    copied
        The `.h5ad` whose content an `.h5ad` output keeps, if the data are one such file.
    """
    if out is None:
        return ArraySink(shape)
    path = Path(out)
    if path.suffix not in (".npy", ".zarr", ".h5ad"):
        raise InputError(f"out={str(out)!r} ends neither in .npy, .zarr nor .h5ad.", "Name it e.g. embedding.zarr.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of out={str(out)!r} does not exist.", f"mkdir -p {path.parent}")
    if path.suffix == ".npy":
        return NpySink(path, shape, record, resume=resume)
    if path.suffix == ".zarr":
        return ZarrSink(path, shape, record, key=key, obs=obs, resume=resume)
    if copied is not None and path.exists() and path.samefile(copied):
        raise InputError(f"out={str(out)!r} is the input itself.", "Choose another name; the input is never changed.")
    return H5adSink(path, shape, record, key=key, obs=obs, copied=copied, resume=resume)
