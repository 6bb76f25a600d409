"""Where embeddings go: an array in memory, or a `.npy` or `.zarr` on disk, written block by block and resumable.

Rows not yet written are NaN. A file on disk carries how many rows are done and the fingerprint of the run; a run with another
fingerprint does not continue it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scfm.cells import BLOCK_ROWS
from scfm.errors import InputError, ResumeError
from scfm.provenance import UNS_KEY, fingerprint, plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ArraySink", "NpySink", "Sink", "ZarrSink", "open_sink"]


class Sink(Protocol):
    """Takes blocks of rows in order."""

    done: int
    """Rows already written."""

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows (n, dim) float32 at `start`; afterwards they are safe."""

    def result(self) -> np.ndarray:
        """All rows (n_cells, dim), memory-mapped where they are on disk."""


class ArraySink:
    """An array in memory."""

    done = 0

    def __init__(self, shape: tuple[int, int]) -> None:
        self._array = np.full(shape, np.nan, dtype=np.float32)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows at `start`."""
        self._array[start : start + len(rows)] = rows

    def result(self) -> np.ndarray:
        """The array."""
        return self._array


class NpySink:
    """A `.npy` file, with its provenance and progress in ``<name>.npy.json`` beside it."""

    def __init__(self, path: Path, shape: tuple[int, int], record: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._journal = path, path.with_name(path.name + ".json")
        self._record = {"fingerprint": fingerprint(record), "rows": shape[0], "provenance": plain(record)}
        self.done = 0
        if resume and path.exists() and self._journal.exists():
            before = json.loads(self._journal.read_text(encoding="utf-8"))
            _same_run(path, before["fingerprint"], self._record["fingerprint"])
            self.done = before["rows_done"]
            self._array = np.lib.format.open_memmap(path, mode="r+")
            return
        self._array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        self._array[:] = np.nan
        self._note()

    def _note(self) -> None:
        temporary = self._journal.with_suffix(".json.part")
        temporary.write_text(json.dumps(self._record | {"rows_done": self.done}, indent=1), encoding="utf-8")
        os.replace(temporary, self._journal)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows at `start` and note it."""
        self._array[start : start + len(rows)] = rows
        self._array.flush()
        self.done = start + len(rows)
        self._note()

    def result(self) -> np.ndarray:
        """The file, memory-mapped."""
        return self._array


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
        from anndata.io import write_elem

        mark = fingerprint(record)
        self.path = path
        if resume and path.exists():
            group: Any = zarr.open_group(path, mode="r+")
            if f"obsm/{key}" not in group:
                raise ResumeError(
                    f"{path} exists and holds no obsm/{key} of scfm.", "Choose another out=, or remove it."
                )
            self._array = group[f"obsm/{key}"]
            _same_run(path, self._array.attrs.get("fingerprint"), mark)
            self.done = int(self._array.attrs["rows_done"])
            return
        group = zarr.open_group(path, mode="w", zarr_format=3)
        group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(group, "obs", obs)
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(group, name, {})
        import pandas as pd

        write_elem(group, "var", pd.DataFrame(index=pd.Index([], dtype=object)))
        write_elem(group, "uns", {UNS_KEY: {key: json.dumps(plain(record), indent=1)}})
        self._array = group["obsm"].create_array(
            key, shape=shape, dtype="float32", chunks=(min(BLOCK_ROWS, max(shape[0], 1)), shape[1]), fill_value=np.nan
        )
        self._array.attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0", "fingerprint": mark, "rows_done": 0}
        )
        self.done = 0

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows at `start` and note it."""
        self._array[start : start + len(rows)] = rows
        self.done = start + len(rows)
        self._array.attrs["rows_done"] = self.done

    def result(self) -> np.ndarray:
        """All rows, read into memory."""
        return np.asarray(self._array[:])


def _same_run(path: Path, before: str | None, now: str) -> None:
    if before != now:
        raise ResumeError(
            f"{path} was begun by another run: data, model or settings differ.",
            "Choose another out=, remove the file, or pass resume=False to overwrite it.",
        )


def open_sink(
    out: str | os.PathLike[str] | None,
    shape: tuple[int, int],
    record: Mapping[str, Any],
    *,
    key: str,
    obs: pd.DataFrame,
    resume: bool,
) -> Sink:
    """The sink for `out`: None is memory; else by the ending, `.npy` or `.zarr`."""
    if out is None:
        return ArraySink(shape)
    path = Path(out)
    if path.suffix not in (".npy", ".zarr"):
        raise InputError(
            f"out={str(out)!r} ends neither in .npy nor in .zarr.", "Name it e.g. embedding.npy or embedding.zarr."
        )
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of out={str(out)!r} does not exist.", f"mkdir -p {path.parent}")
    if path.suffix == ".npy":
        return NpySink(path, shape, record, resume=resume)
    return ZarrSink(path, shape, record, key=key, obs=obs, resume=resume)
