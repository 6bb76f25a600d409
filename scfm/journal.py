"""What of an output is done: a line a block, with the hash of its rows, behind a first line with the run's whole record.

Lines are appended, so that a process can die at any moment: what is noted is on disk, and a line cut short is not counted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scfm.errors import ResumeError
from scfm.files import write_whole
from scfm.provenance import plain

__all__ = ["Journal", "digest", "noted_record", "not_ours", "refuse_another_run"]

FORMAT = 1


def digest(rows: np.ndarray) -> str:
    """Hash of the bytes of some rows."""
    return hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=16).hexdigest()


class Journal:
    """The journal of the output `path`, in ``<path>.journal``.

    Parameters
    ----------
    path
        The output.
    record
        Everything that decides the rows.
    resume
        Continue what the same run noted; False begins anew.

    Attributes
    ----------
    blocks
        Number of each block that is done -> hash of its rows.

    Raises
    ------
    ResumeError
        The output is there without a journal, or another run's.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path.with_name(path.name + ".journal")
        self.blocks: dict[int, str] = {}
        head = {"format": FORMAT, "record": plain(record)}
        if resume and self.path.exists():
            self._continue(path, head)
        elif resume and path.exists():
            raise not_ours(path, f"no {self.path.name} of a run of scfm beside it")
        else:
            write_whole(self.path, lambda file: file.write_text(json.dumps(head) + "\n", encoding="utf-8"))

    def _continue(self, path: Path, head: Mapping[str, Any]) -> None:
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]  # a killed run may have left half a line
        try:
            begun, *lines = [json.loads(line) for line in whole.splitlines()]
            before = begun["record"]
            self.blocks = {int(line["block"]): str(line["hash"]) for line in lines}
        except (ValueError, LookupError, TypeError) as error:
            raise not_ours(path, f"a {self.path.name} that scfm can't read") from error
        refuse_another_run(path, before, head["record"])
        if len(whole) < len(text):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def note(self, block: int, rows: np.ndarray) -> None:
        """A block's rows are in the output: say so on disk."""
        self.blocks[block] = digest(rows)
        with self.path.open("ab") as file:
            file.write(json.dumps({"block": block, "hash": self.blocks[block]}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the journal."""
        self.path.unlink()


def noted_record(path: Path) -> dict[str, Any]:
    """The run's record that the journal of the output `path` begins with."""
    with path.with_name(path.name + ".journal").open(encoding="utf-8") as file:
        return json.loads(file.readline())["record"]


def not_ours(path: Path, what: str) -> ResumeError:
    """The error for an output that no run of scfm left, e.g. with "no journal"."""
    return ResumeError(
        f"{path} exists, with {what}.",
        "Choose another out=, remove it, or pass resume=False (--no-resume) to overwrite it.",
    )


def refuse_another_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ResumeError` unless two records are the same, naming what differs."""
    before, now = json.loads(json.dumps(plain(before))), json.loads(json.dumps(plain(now)))
    if other := sorted(key for key in {*now, *before} if now.get(key) != before.get(key)):
        raise ResumeError(
            f"{path} was begun by another run: data, model or settings differ ({', '.join(other)}).",
            "Choose another out=, remove it, or pass resume=False (--no-resume) to overwrite it.",
        )
