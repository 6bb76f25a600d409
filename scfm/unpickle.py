"""Pickled dictionaries, read without running code: plain containers, numbers, text and numpy, nothing else."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

from scfm.errors import CheckpointError
from scfm.files import require_content

if TYPE_CHECKING:
    import numpy as np

__all__ = ["safe_unpickle", "unpickle_without_tensors"]


def safe_unpickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickled dictionary (token ids, gene medians, offsets) without running any code it may contain.

    Admits lists, tuples, dicts, sets, OrderedDict, defaultdict, text, bytes, numbers, and numpy's scalars, dtypes and
    arrays of numbers, text or admitted objects.

    Raises
    ------
    CheckpointError
        The pickle asks for anything else (the message names it), or is not a whole pickle.
    """
    path = Path(path)
    require_content(path)
    with path.open("rb") as file:
        return _load(_PlainUnpickler(file), path)


def unpickle_without_tensors(path: str | os.PathLike[str]) -> Any:
    """The content of a `torch.save` file with None in place of every tensor; plain data only, as in `safe_unpickle`."""
    from zipfile import ZipFile

    path = Path(path)
    with ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"), None)
        if name is None:
            raise CheckpointError(f"{path} is a zip file, but not one of torch.save: it has no data.pkl.")
        with archive.open(name) as file:
            return _load(_TensorlessUnpickler(io.BytesIO(file.read())), path)


def _load(unpickler: _PlainUnpickler, path: Path) -> Any:
    try:
        return unpickler.load()
    except _RefusedError as error:
        raise CheckpointError(
            f"{path} asks for {error}; scfm unpickles plain containers, numbers, text and numpy arrays only, "
            "because anything else could run code.",
            "If you trust the file, load it yourself and save its content as JSON or as a plain dict.",
        ) from error
    except Exception as error:  # garbage can make an unpickler raise anything
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is truncated, or not a pickle: {reason}") from error


class _RefusedError(pickle.UnpicklingError):
    """A pickle asked for something that is not plain data."""


class _PlainUnpickler(pickle._Unpickler):
    """An unpickler whose vocabulary is `_plain_globals`, and that sets the state of numpy's objects alone.

    It is pickle's Python twin because the C one does not let us look at a state before it is set: numpy believes
    whatever state a dtype is given, and an object dtype disguised as bytes makes addresses of a file's content.
    """

    stack: list[Any]

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.plain = _plain_globals()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.plain[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def load_build(self) -> None:
        import numpy as np

        state = self.stack.pop()
        target = self.stack[-1]
        set_state: Any = getattr(target, "__setstate__", None)
        if isinstance(target, np.dtype):
            usual = target.__reduce__()[2]
            if state[1] not in ("<", ">", "=", "|") or (state[0], *state[2:]) != (usual[0], *usual[2:]):
                raise _RefusedError(f"a numpy dtype with the state {state!r}")
            set_state(state)
        elif isinstance(target, np.ndarray) and target.size == 0 and isinstance(state[2], np.dtype):
            set_state(state)
        else:
            raise _RefusedError(f"a state for an object of {type(target).__name__}")

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


class _TensorlessUnpickler(_PlainUnpickler):
    """Also meets torch's tensors and storages, and gives None for them."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _nothing
        if module in ("torch", "torch.storage"):
            return None  # a storage class or dtype, only ever handed to _rebuild_*
        return super().find_class(module, name)

    def load_build(self) -> None:
        if isinstance(self.stack[-2], OrderedDict):  # a state dict's version numbers
            self.stack.pop()
        else:
            super().load_build()

    dispatch: ClassVar[dict[int, Any]] = {**_PlainUnpickler.dispatch, pickle.BUILD[0]: load_build}

    def persistent_load(self, pid: object) -> None:
        """A tensor's storage, left where it is."""


def _nothing(*args: object) -> None:
    """Stands for torch's functions that rebuild a tensor."""


def _plain_globals() -> dict[tuple[str, str], Any]:
    """What a plain pickle may name, and what we give for it: never numpy's own functions, which trust their input."""
    plain: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
    }
    for kind in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple):
        plain["builtins", kind.__name__] = plain["__builtin__", kind.__name__] = kind
    plain["__builtin__", "long"], plain["__builtin__", "unicode"] = int, str  # their names in protocols 0 to 2
    plain["_codecs", "encode"] = _encode
    plain["numpy", "dtype"] = _dtype
    plain["numpy", "ndarray"] = _NDARRAY
    for core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        plain[f"{core}.multiarray", "scalar"] = _scalar
        plain[f"{core}.multiarray", "_reconstruct"] = _empty_array
        plain[f"{core}.numeric", "_frombuffer"] = _array_from_buffer
    return plain


_NDARRAY = "numpy.ndarray"  # stands for the class where a pickle names it; cannot be called


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":  # protocol 2 writes bytes as text in this encoding
        raise _RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _dtype(name: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:
    import numpy as np

    if not (isinstance(name, str) and re.fullmatch(r"[biufcSUO]\d+", name)):
        raise _RefusedError(f"the numpy dtype {name!r}")
    return np.dtype(name, copy=True)  # a copy, because its byte order is set afterwards


def _scalar(dtype: np.dtype[Any], raw: bytes) -> Any:
    import numpy as np

    # numpy refuses buffers for object dtypes; text of length 0 has no bytes to read
    return np.frombuffer(raw, dtype, count=1)[0] if raw else np.zeros(1, dtype)[0]


def _empty_array(subtype: object, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    import numpy as np

    if subtype is not _NDARRAY:
        raise _RefusedError(f"a numpy array of the type {subtype!r}")
    return np.empty(0, np.int8)  # its content follows as a state


def _array_from_buffer(
    buffer: bytes | bytearray,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    order: Literal["C", "F", "K"],
    axes: tuple[int, ...] | None = None,
) -> np.ndarray:
    import numpy as np

    if not isinstance(buffer, bytes | bytearray):
        raise _RefusedError(f"a numpy array in the memory of an object of {type(buffer).__name__}")
    array = np.frombuffer(buffer, dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order="F" if order == "F" else "C")
