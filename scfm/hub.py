"""Where a checkpoint comes from: the Hugging Face hub, its cache, a file on disk.

Three promises. A file is the one its card names, or it is not used (`download`). Tensors are read without running
code (`read_tensors`): pickled weights go through torch's `weights_only` reader once, and are kept as safetensors.
Dictionaries are read without running code (`safe_unpickle`): plain containers, numbers, text and numpy, nothing else.

Nothing here is written outside the hub's cache and `cache_dir()`, and neither folder is made before it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal
from urllib.parse import quote

from scfm.errors import CheckpointError, DownloadError, listing

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["RemoteFile", "cache_dir", "download", "read_tensors", "resolved_revision", "safe_unpickle", "sha256"]

logger = logging.getLogger(__name__)

# what a whole-repository download fetches: weights, settings and vocabularies, not notebooks, figures or data
CHECKPOINT_FILES = [
    *("*.json", "*.toml", "*.txt", "*.csv", "*.tsv", "vocab*"),
    *("*.safetensors", "*.pt", "*.bin", "*.ckpt", "*.torch", "*.pkl"),
]
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".torch")
WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys under which authors store the state dict
LONE = "tensor"  # name of the only tensor of a file that holds no dictionary
COMMIT = re.compile(r"[0-9a-f]{40}")
SMALL = 1 << 20  # bytes; a smaller file is hashed anew each time, in a millisecond


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository, as a model card lists it."""

    name: str  # path inside the repository, with "/"
    sha256: str | None  # 64 hex digits, "sha256:" before them or not; None: not checked
    optional: bool = False  # may be absent from the repository


def cache_dir() -> Path:
    """Folder for what scfm keeps between runs: `$SCFM_CACHE`, else `$XDG_CACHE_HOME/scfm`, else `~/.cache/scfm`.

    The folder is not created here but by what writes to it. It may be deleted at any time; all of it can be rebuilt.
    """
    if chosen := os.environ.get("SCFM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scfm"


# ---------------------------------------------------------------------------------------------------- the hub


def download(
    repo: str,
    files: Sequence[RemoteFile] | None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Fetch a checkpoint from the Hugging Face hub and return the folder that holds its files.

    Files already in the hub's cache are not fetched again; with a full commit hash as `revision` the hub is not even
    asked. A connection that breaks during the call is taken up where it broke; a killed process starts the
    file it was at anew. `HF_HUB_OFFLINE=1` uses the cache alone.

    Parameters
    ----------
    repo
        Repository on the hub, ``"owner/name"``.
    files
        The files wanted. None: all that look like part of a checkpoint (`CHECKPOINT_FILES`), unchecked.
    revision
        Branch, tag or commit hash; None is the main branch. All files come from one and the same commit.
    cache_dir
        The hub's cache, if not the one of `HF_HOME`.

    Raises
    ------
    DownloadError
        Repository, revision or file does not exist, may not be read, or cannot be reached; or a file's SHA-256 is not
        the expected one, in which case it is also removed from the cache.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    # Xet's client raises RuntimeError
    failures = (HTTPError, EntryNotFoundError, OSError, ValueError, RuntimeError)
    if files is None:
        try:
            return Path(
                snapshot_download(repo, revision=revision, cache_dir=cache_dir, allow_patterns=CHECKPOINT_FILES)
            )
        except failures as error:
            raise _explained(error, repo, None, revision) from error

    folder = None
    for file in files:
        commit = folder.name if folder else revision  # a branch that moves meanwhile must not mix two versions
        if file.optional and COMMIT.fullmatch(commit or "") and _known_absent(repo, file, commit, cache_dir):
            continue
        try:
            path = Path(hf_hub_download(repo, file.name, revision=commit, cache_dir=cache_dir))
        except failures as error:
            if file.optional and _is_absent(error, repo, file, commit, cache_dir):
                continue
            raise _explained(error, repo, file.name, commit) from error
        folder = path.parents[file.name.count("/")]
        _verify(path, file, folder)
    if folder is None:
        raise DownloadError(f"{repo} has none of the files {listing(file.name for file in files)}.")
    return folder


def resolved_revision(folder: Path) -> str | None:
    """Commit hash of a folder that `download` returned; None for any other folder."""
    folder = Path(folder)
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def _is_absent(
    error: Exception, repo: str, file: RemoteFile, revision: str | None, cache_dir: str | Path | None
) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):  # offline: absent only if the hub once said so
        return _known_absent(repo, file, revision, cache_dir)
    return isinstance(error, RemoteEntryNotFoundError)


def _known_absent(repo: str, file: RemoteFile, revision: str | None, cache_dir: str | Path | None) -> bool:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repo, file.name, cache_dir=cache_dir, revision=revision) is _CACHED_NO_EXIST


def _verify(path: Path, file: RemoteFile, folder: Path) -> None:
    """Compare a downloaded file with its card's hash; remove it from the hub's cache if it is another file."""
    if file.sha256 is None:
        return
    expected, found = file.sha256.removeprefix("sha256:").lower(), sha256(path)
    if found == expected:
        return
    hub_cache = folder.parents[2].resolve()  # <hub_cache>/models--owner--name/snapshots/<commit>
    link: Path | None = path
    while link is not None and link.parent.resolve().is_relative_to(hub_cache):  # snapshot -> blob -> shared blob
        target = link.parent / os.readlink(link) if link.is_symlink() else None
        link.unlink(missing_ok=True)
        link = target
    raise DownloadError(
        f"{file.name} is not the file that was asked for: its SHA-256 is {found}, expected {expected}. "
        "It was removed from the cache.",
        "Try again to download it anew. If the hash stays the same, the file has changed on the hub: "
        "pass the revision the card was written for, or report it.",
    )


def _explained(error: Exception, repo: str, name: str | None, revision: str | None) -> DownloadError:
    """What went wrong on the way to the hub, and what to type."""
    from huggingface_hub import constants, errors

    what = f"{name} of {repo}" if name else repo
    what += f" at revision {revision!r}" if revision else ""
    page = f"{constants.ENDPOINT}/{repo}"
    log_in = "`hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "not in the cache either": the cause says why the hub did not answer
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None

    if isinstance(error, errors.GatedRepoError):  # before its base class RepositoryNotFoundError
        return DownloadError(
            f"{repo} is gated: the hub gives its files only to accounts that accepted its terms ({status}).",
            f"Accept the terms at {page}, then {log_in} of that account.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"The hub has no repository {repo!r}, or it is private and your account may not read it ({status}).",
            f"Check the name at {page}; for a private repository {log_in}.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{repo} has no revision {revision!r}.", f"Pick a commit of {page}/commits/main.")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return DownloadError(f"There is no {what}.", f"See the files at {page}/tree/{revision or 'main'}.")
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return DownloadError(
            f"{what} is not in the cache, or not all of it, and offline mode is on.",
            "Unset HF_HUB_OFFLINE and load once with a connection, or point HF_HOME to a cache that has it.",
        )
    if status in (401, 403):
        return DownloadError(
            f"The hub refused {what} ({status}): your token is invalid or may not read it.",
            f"Get a token at {constants.ENDPOINT}/settings/tokens, then {log_in}.",
        )
    if status is not None:
        return DownloadError(f"The hub answered {status} for {what}: {error}", "Try again later.")
    if isinstance(error, errors.HFValidationError):
        return DownloadError(f"{repo!r} cannot be a repository of the hub: {error}", 'Write it as "owner/name".')
    if isinstance(error, errors.HTTPError):
        return DownloadError(
            f"No connection to {constants.ENDPOINT} to fetch {what}, which is not in the cache: {error}",
            "Try again with a connection, or copy the cache of another machine and set HF_HOME to it.",
        )
    return DownloadError(f"{what} could not be downloaded: {error}")


# ------------------------------------------------------------------------------------------------- the hashes


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as 64 hex digits.

    The hash of a large file is remembered in `cache_dir()` for as long as its path, inode, size and time of
    modification stay the same.
    """
    path = Path(path).resolve()
    before = _identity(path)
    if path.stat().st_size < SMALL:
        return _hashed(path)
    note = cache_dir() / "sha256" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    try:
        remembered = json.loads(note.read_text())
        if remembered["file"] == before:
            return remembered["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not remembered, or not in a form we wrote
    digest = _hashed(path)
    if _identity(path) == before:
        text = json.dumps({"file": before, "sha256": digest})
        try:
            _write(note, lambda temporary: temporary.write_text(text))
        except OSError as error:
            logger.info("The hash of %s cannot be remembered: %s", path, error)
    return digest


def _identity(path: Path) -> list[str | int]:
    stat = path.stat()
    return [str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Have `path` written at once or not at all, also when several processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner can read; a cache may be shared
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ the tensors


def read_tensors(path: str | os.PathLike[str], inner: str | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint file by name, without running any code it may contain.

    A ``.safetensors`` file is mapped into memory. A file of `torch.save` is read with ``weights_only=True``, kept as
    safetensors in `cache_dir()` under its SHA-256, and from then on mapped too. Changing a tensor changes no file.

    Parameters
    ----------
    path
        ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.torch``.
    inner
        Where the tensors are in a nested file of `torch.save`, e.g. ``"cell.state_dict"``. None: at the top, or under
        one of the usual keys (`WRAPPERS`).

    Returns
    -------
    dict
        Name -> tensor on the CPU, contiguous, with the dtype and shape it was saved with. Tensors that shared memory
        are separate ones. A file that is one tensor and no dictionary gives ``{"tensor": ...}``.

    Raises
    ------
    CheckpointError
        No such file, not the file itself (git-LFS pointer, web page), damaged, no tensors where they should be, or
        its pickle asks for more than tensors and plain containers.
    """
    path = Path(path)
    _require_content(path)
    if path.suffix == ".safetensors":
        if inner is not None:
            raise CheckpointError(f"{path} has no {inner!r}: safetensors files are not nested.", "Leave out inner=.")
        return _map(path)
    if path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(f"{path} is none of {listing(('.safetensors', *TORCH_SUFFIXES))}.")

    place = "" if inner is None else f".{quote(inner, safe='')}"
    converted = cache_dir() / "tensors" / f"{sha256(path)}{place}.safetensors"
    if not _is_intact(converted):
        tensors = _state_dict(_torch_load(path), path, inner)
        if not _convert(tensors, converted):
            return tensors
    return _map(converted)


def _map(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}", "Download or copy it again.") from error


def _convert(tensors: dict[str, torch.Tensor], converted: Path) -> bool:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        _write(converted, lambda temporary: save_file(tensors, temporary))
        seal = sha256(converted)
        _write(_seal(converted), lambda temporary: temporary.write_text(seal))
    except (
        OSError,
        SafetensorError,
    ) as error:  # a full or read-only disk: the tensors are as good, only slower to read
        logger.warning("Weights cannot be kept as %s, so they will be converted again: %s", converted, error)
        return False
    return True


def _is_intact(converted: Path) -> bool:
    try:
        return _seal(converted).read_text() == sha256(converted)
    except (OSError, ValueError):
        return False


def _seal(converted: Path) -> Path:
    return converted.with_suffix(".sha256")


def _torch_load(path: Path) -> object:
    from zipfile import is_zipfile

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} holds more than tensors: torch's weights_only reader refused {refused[1]!r}, because "
                "building it could run any code. scfm never unpickles such files.",
                "Ask its authors for safetensors; or, if you trust them, save its state dict alone with torch.save.",
            ) from error
        reason = re.search(r"Unsupported .*", str(error))
        raise CheckpointError(
            f"{path} is not a file of torch.save, or is damaged: {reason[0] if reason else error}",
            "Download or copy it again; a pickle of another kind must be saved anew, with torch.save.",
        ) from error
    except Exception as error:  # garbage can make an unpickler raise anything
        line = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {line}", "Download or copy it again.") from error


def _state_dict(content: object, path: Path, inner: str | None) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save, each with memory of its own."""
    import torch

    if isinstance(content, torch.Tensor):
        content = {LONE: content}
    places = list(_places(content))
    if inner is None:
        usual = [key for key in WRAPPERS if key in places]
        inner = usual[0] if "" not in places and len(usual) == 1 else ""
    advice = f"Pass inner= one of {listing(places)}." if places else None
    found = content
    for key in inner.split(".") if inner else ():
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or inner not in places:
        raise CheckpointError(f"{path} has no tensors {f'under {inner!r}' if inner else 'at its top'}.", advice)

    others = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{path} mixes tensors with other values: {listing(others)}.", advice)
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for key, value in found.items():
        if value.layout is not torch.strided or value.is_quantized or not isinstance(key, str):
            raise CheckpointError(f"{path}: {key!r} is not a plain named tensor ({value.layout}, {value.dtype}).")
        tensor = value.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    return tensors


def _places(content: object, path: str = "", depth: int = 4) -> Iterator[str]:
    """Dotted paths of the dictionaries that hold tensors directly; "" is the top."""
    import torch

    if isinstance(content, Mapping) and depth:
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            yield path
        for key, value in content.items():
            yield from _places(value, f"{path}.{key}" if path else str(key), depth - 1)


def _require_content(path: Path) -> None:
    """Refuse what only looks like a checkpoint file."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty.", "Download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"^size (\d+)", head, re.MULTILINE)
        raise CheckpointError(
            f"{path} is a git-LFS pointer, not the file of {int(size[1]) if size else '?'} bytes it stands for.",
            f"git lfs pull   (in {path.parent})",
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint.", "Download the file behind the page.")


# ------------------------------------------------------------------------------------------- the dictionaries


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
    _require_content(path)
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file).load()
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
