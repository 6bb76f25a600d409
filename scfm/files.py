"""Files on disk: what scfm keeps between runs, hashes, and whole writes.

Nothing is written outside `cache_dir()`, and the folder is not made before it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from scfm.errors import CheckpointError, InputError

__all__ = ["cache_dir", "is_gzip", "require_content", "sha256", "write_whole"]

logger = logging.getLogger(__name__)

SMALL = 1 << 20  # bytes; a smaller file is hashed anew each time, in a millisecond


def cache_dir() -> Path:
    """Folder for what scfm keeps between runs: `$SCFM_CACHE`, else `$XDG_CACHE_HOME/scfm`, else `~/.cache/scfm`.

    The folder is not created here but by what writes to it. It may be deleted at any time; all of it can be rebuilt.
    """
    if chosen := os.environ.get("SCFM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scfm"


# ---------------------------------------------------------------------------------------------------- the hub


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
            write_whole(note, lambda temporary: temporary.write_text(text))
        except OSError as error:
            logger.info("The hash of %s cannot be remembered: %s", path, error)
    return digest


def _identity(path: Path) -> list[str | int]:
    stat = path.stat()
    return [str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
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


def require_content(path: Path) -> None:
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


def is_gzip(path: Path) -> bool:
    """Whether a file begins like a gzipped one, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
