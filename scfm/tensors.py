"""Tensors of a checkpoint file, read without running code.

Pickled weights go through torch's `weights_only` reader once, and are kept as safetensors in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from scfm.errors import CheckpointError, listing
from scfm.files import cache_dir, require_content, sha256, write_whole
from scfm.unpickle import unpickle_without_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["TORCH_SUFFIXES", "WRAPPERS", "fingerprint_of", "kept_tensors", "read_tensors", "read_values"]

logger = logging.getLogger(__name__)

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".torch")
WRAPPERS = ("model_state_dict", "state_dict", "model", "net")  # keys under which authors store the state dict
LONE = "tensor"  # name of the only tensor of a file that holds no dictionary


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
    require_content(path)
    if path.suffix == ".safetensors":
        if inner is not None:
            raise CheckpointError(f"{path} has no {inner!r}: safetensors files are not nested.", "Leave out inner=.")
        return _map(path)
    if path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(f"{path} is none of {listing(('.safetensors', *TORCH_SUFFIXES))}.")

    place = "" if inner is None else f".{quote(inner, safe='')}"
    converted = cache_dir() / "tensors" / f"{sha256(path)}{place}.safetensors"
    return kept_tensors(converted, lambda: _state_dict(_torch_load(path), path, inner))


def kept_tensors(converted: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors made once, kept in the safetensors file `converted` of the cache, and mapped into memory from then on."""
    if not _is_intact(converted):
        tensors = make()
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
        write_whole(converted, lambda temporary: save_file(tensors, temporary))
        seal = sha256(converted)
        write_whole(_seal(converted), lambda temporary: temporary.write_text(seal))
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


def read_values(path: str | os.PathLike[str]) -> Any:
    """Everything in a file of `torch.save` that is not a tensor, e.g. its configuration; tensors are None.

    What torch's `weights_only` reader refuses (numpy numbers, say) is read by `scfm.unpickle`, which admits plain data only.

    Raises
    ------
    CheckpointError
        The file asks for anything but tensors and plain data, or is damaged.
    """
    from zipfile import is_zipfile

    path = Path(path)
    require_content(path)
    return _bare(_torch_load(path)) if not is_zipfile(path) else unpickle_without_tensors(path)


def _bare(content: Any) -> Any:
    import torch

    if isinstance(content, Mapping):
        return {key: _bare(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_bare(value) for value in content)
    return None if isinstance(content, torch.Tensor) else content


def fingerprint_of(network: torch.nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all tensors of a network."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
