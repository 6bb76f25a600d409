"""A checkpoint: files of the authors, and a full account of their tensors.

`Checkpoint.load_into` never loads "what matches": every tensor of the file and every parameter of the network is accounted for,
or the load fails and lists what is left over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import CheckpointError, listing
from scfm.tensors import read_tensors, read_values

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scfm.cards import ModelCard

__all__ = ["FINETUNED", "SAVED", "WEIGHTS", "Checkpoint", "KeyMap"]

SAVED = "scfm.json"
"""File that marks a folder written by `CellEncoder.save`."""
FINETUNED = "finetuned.json"
"""File that marks a folder written by `FineTuned.save`."""
WEIGHTS = "model.safetensors"

_NO_ROWS: Mapping[str, np.ndarray] = {}
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".torch")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


@dataclass(frozen=True)
class KeyMap:
    """The authors' tensor names -> ours.

    Parameters
    ----------
    names
        Left the authors' name, right ours. ``{i}`` (any word in braces) stands for one name part and may stand on both sides. A tuple on
        the right is several of ours stacked along the first axis in one of theirs. None: known and not needed.
    strip
        Prefixes taken off the authors' names, e.g. ``module.`` left by data-parallel training.
    """

    names: Mapping[str, str | tuple[str, ...] | None]
    strip: Sequence[str] = ()

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str | tuple[str, ...] | None]]:
        compiled = []
        for theirs, ours in self.names.items():
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(theirs))
            compiled.append((re.compile(pattern), ours))
        return compiled

    def stripped(self, name: str) -> str:
        """The name without the first prefix of `strip` that it carries."""
        for prefix in self.strip:
            if name.startswith(prefix):
                return name[len(prefix) :]
        return name

    def ours(self, name: str) -> tuple[str, ...] | None:
        """Our names for one of theirs; an empty tuple when known and not needed, None when unknown."""
        name = self.stripped(name)
        for pattern, targets in self._patterns:
            if match := pattern.fullmatch(name):
                if targets is None:
                    return ()
                several = (targets,) if isinstance(targets, str) else targets
                return tuple(target.format(**match.groupdict()) for target in several)
        return None


@dataclass
class Checkpoint:
    """A folder with a model's files.

    Parameters
    ----------
    folder
        Where the files are.
    card
        The card the folder was downloaded for, if any.
    weights_file
        Which file holds the tensors; found by its ending when it is the only one.
    revision
        Commit of the hub repository the files came from.
    """

    folder: Path
    card: ModelCard | None = None
    weights_file: str | None = None
    revision: str | None = None
    inner: str | None = None
    """Where the tensors are in a nested file, e.g. "cell.state_dict"; set it before reading `tensors`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Choices an adapter offers at load time (`scfm.load(..., key=value)`); the adapter refuses unknown ones."""

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is not a folder.", "Give the folder that holds the model's files.")

    def files(self) -> list[str]:
        """Names of the files in the folder, sorted."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def has(self, *names: str) -> bool:
        """Whether all these files exist."""
        return all((self.folder / name).is_file() for name in names)

    def path(self, name: str) -> Path:
        """Path of a file that must exist."""
        if not self.has(name):
            raise CheckpointError(f"{self.folder} has no {name} (files: {listing(self.files())}).")
        return self.folder / name

    def json(self, name: str) -> Any:
        """Content of a JSON file."""
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{self.folder / name} is not valid JSON: {error}") from error

    @cached_property
    def saved_by(self) -> str | None:
        """Adapter family that wrote the folder with `CellEncoder.save`, None for authors' folders."""
        return self.json(SAVED)["adapter"] if self.has(SAVED) else None

    @cached_property
    def weights_path(self) -> Path:
        """The file with the tensors."""
        if self.weights_file is not None:
            return self.path(self.weights_file)
        found = [name for name in self.files() if name.endswith(_ENDINGS) and name not in _NOT_WEIGHTS]
        preferred = [name for name in found if name.endswith(".safetensors")] or found
        if len(preferred) == 1:
            return self.folder / preferred[0]
        if not found:
            raise CheckpointError(f"{self.folder} has no weights (files: {listing(self.files())}).")
        raise CheckpointError(
            f"{self.folder} has {len(preferred)} files that could be the weights: {listing(preferred)}.",
            f"Say which: scfm.load(folder, weights={preferred[0]!r}).",
        )

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the weights file, by the authors' names."""
        return read_tensors(self.weights_path, self.inner)

    @cached_property
    def values(self) -> Any:
        """What the weights file holds beside tensors (settings, label lists); tensors are None."""
        return read_values(self.weights_path)

    def keys(self, strip: Sequence[str] = ()) -> set[str]:
        """Names of the tensors, without the prefixes in `strip`; empty when the folder has no single weights file."""
        try:
            names = self.tensors
        except CheckpointError:
            return set()
        bare = KeyMap({}, strip)
        return {bare.stripped(name) for name in names}

    def tensor(self, name: str, strip: Sequence[str] = ()) -> Tensor | None:
        """One tensor by its name without prefix, None when absent."""
        bare = KeyMap({}, strip)
        return next((tensor for key, tensor in self.tensors.items() if bare.stripped(key) == name), None)

    def load_into(
        self,
        network: nn.Module,
        keys: KeyMap,
        *,
        optional: Sequence[str] = (),
        rows: Mapping[str, np.ndarray] = _NO_ROWS,
    ) -> None:
        """Copy the tensors into a network; every one on both sides is accounted for.

        Parameters
        ----------
        network
            Has the sizes the checkpoint's configuration states.
        keys
            The authors' names -> ours.
        optional
            Our names (or prefixes ending in ".") that a checkpoint may lack; they keep their initial values.
        rows
            Our name -> rows of the authors' tensor that are kept, e.g. those of one species; others are not read from disk.

        Raises
        ------
        CheckpointError
            A tensor belongs to no parameter, a parameter has no tensor, or shapes differ; all of them are listed.
        """
        import torch

        slots = network.state_dict(keep_vars=True)
        filled: dict[str, str] = {}  # ours -> theirs
        unknown, misfits, twice = [], [], []
        for name, tensor in self.tensors.items():
            targets = keys.ours(name)
            if targets is None or any(target not in slots for target in targets):
                unknown.append(f"{name} {tuple(tensor.shape)}")
                continue
            parts = tensor.chunk(len(targets)) if len(targets) > 1 else (tensor,)
            for target, part in zip(targets, parts, strict=False):
                slot = slots[target]
                if target in filled:
                    twice.append(f"{filled[target]} and {name} -> {target}")
                    continue
                filled[target] = name
                if target in rows:
                    if len(rows[target]) and rows[target].max() >= len(part):
                        misfits.append(f"{name} {tuple(tensor.shape)} has no row {rows[target].max()}")
                        continue
                    part = part[torch.from_numpy(rows[target])]
                if slot.shape != part.shape:
                    misfits.append(f"{name} {tuple(tensor.shape)} -> {target} {tuple(slot.shape)}")
                    continue
                with torch.no_grad():
                    slot.copy_(part)
        missing = [
            name
            for name in slots
            if name not in filled and not any(name == o or (o.endswith(".") and name.startswith(o)) for o in optional)
        ]
        problems = []
        if misfits:
            problems.append(
                f"{len(misfits)} tensors have another shape than the configuration states: {listing(misfits)}"
            )
        if unknown:
            problems.append(
                f"{len(unknown)} tensors belong to no parameter of {type(network).__name__}: {listing(unknown)}"
            )
        if twice:
            problems.append(f"{len(twice)} parameters have two tensors: {listing(twice)}")
        if missing:
            problems.append(f"{len(missing)} parameters have no tensor in the file: {listing(missing)}")
        if problems:
            raise CheckpointError(f"{self.weights_path}: " + "; ".join(problems) + ".")
