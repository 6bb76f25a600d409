"""A run's folder and its process: which run a folder holds, what one of several processes does for all, and nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from scfm._lazy import optional
from scfm.errors import ResumeError
from scfm.files import write_whole
from scfm.provenance import fingerprint, plain

__all__ = ["STATE", "claim", "guest", "on_first", "processes"]

STATE = "trainer_state.json"
RUN = "run.json"

T = TypeVar("T")


@contextmanager
def guest(device: torch.device, seed: int) -> Iterator[None]:
    """Random generators at a seed; they, the environment and transformers' logging are afterwards as before."""
    transformers = optional("transformers", extra="finetune", purpose="fine-tuning")
    optional("accelerate", extra="finetune", purpose="fine-tuning")
    python, environment = random.getstate(), dict(os.environ)
    legacy = np.random.get_state()  # noqa: NPY002, Trainer seeds it
    log = logging.getLogger("accelerate")
    levels = transformers.utils.logging.get_verbosity(), log.level
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            transformers.utils.logging.set_verbosity_error()
            log.setLevel(logging.ERROR)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            transformers.utils.logging.set_verbosity(levels[0])
            log.setLevel(levels[1])
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)


# Several processes, as torchrun and accelerate launch start them


def processes() -> tuple[int, int]:
    """This process' number, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def on_first(device: torch.device, work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; its error too."""
    _, count = processes()
    if count == 1:
        return work()
    accelerate = optional("accelerate", extra="finetune", purpose="fine-tuning")
    state = accelerate.PartialState(cpu=device.type == "cpu")
    box: list[Any] = [None]
    if state.is_main_process:
        try:
            box = [(work(), None)]
        except Exception as error:  # raised in every process, or the others would wait for this one
            box = [(None, error)]
    accelerate.utils.broadcast_object_list(box)
    found, failed = box[0]
    if failed is not None:
        raise failed
    result: T = found
    return result


# Checkpoints


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; Trainer writes its state last. Parts of a killed run's last one are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            whole.append(path)
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def claim(folder: Path, record: Mapping[str, Any], *, resume: bool) -> Path | None:
    """The newest checkpoint that the same run left in a folder, None for a new run.

    Raises
    ------
    ResumeError
        The folder holds another run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / RUN
    content = json.dumps({"fingerprint": fingerprint(record), "record": plain(record)}, indent=1)
    if mark.exists() and resume:
        begun = json.loads(mark.read_text(encoding="utf-8"))
        found = _checkpoints(folder)
        if begun["fingerprint"] != fingerprint(record) and found:
            now = plain(record)
            other = [key for key in now if now[key] != begun["record"].get(key)]
            raise ResumeError(
                f"{folder} holds another run: it differs in {', '.join(other)}.",
                "Pass another checkpoints= folder, or resume=False to begin anew.",
            )
        if found:
            return found[-1]
    if not mark.exists() and any(folder.iterdir()):
        raise ResumeError(f"{folder} is not empty and holds no run.", "Pass a new or empty folder as checkpoints=.")
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    write_whole(mark, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return None
