"""Downstream tasks, found through the entry points `scfm.tasks`; built-in tasks and plugins come through the same door.

A task is one module with a plain function that returns a `TaskResult`, a function for the shell, and a `Task` that names both::

    def annotate(encoder, reference, query, *, labels, ...) -> Annotation: ...

    def command(model: Model, reference: File, query: File, labels: Annotated[str, typer.Option(...)], ...) -> None:
        \"\"\"Carry cell types from a reference to query cells.\"\"\"

    TASK = Task("annotate", run=annotate, command=command, needs=frozenset({"embed"}))

and one line where the package is described::

    [project.entry-points."scfm.tasks"]
    annotate = "scfm.tasks.annotation:TASK"

Then `scfm.tasks.annotate(...)` and `scfm annotate ...` exist. The module is named otherwise than its function (an imported module would
hide it), and imports nothing heavy at its top, since `scfm --help` imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from scfm.errors import CapabilityError, ScfmError, listing

if TYPE_CHECKING:
    from scfm.encoder import CellEncoder

__all__ = ["GROUP", "Task", "find_task", "require_capabilities", "tasks"]

GROUP = "scfm.tasks"


@dataclass(frozen=True)
class Task:
    """One downstream task.

    Parameters
    ----------
    name
        Name of the function in `scfm.tasks`, and of the verb in the shell (with hyphens); that of the entry point.
    run
        The function for Python.
    command
        The function for the shell, with typer's annotations; the first line of its docstring is shown by ``scfm --help``.
    needs
        Capabilities (values of `scfm.Capability`) without which no encoder can do the task.
    """

    name: str
    run: Callable[..., Any]
    command: Callable[..., None]
    needs: frozenset[str] = frozenset({"embed"})


@cache
def tasks() -> dict[str, EntryPoint]:
    """Installed tasks by name, none imported.

    Raises
    ------
    ScfmError
        Two packages claim one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in found and found[entry.name].value != entry.value:
            packages = [e.dist.name if e.dist else "?" for e in (found[entry.name], entry)]
            raise ScfmError(
                f"two packages provide a task {entry.name!r}: {listing(packages)}.", "Uninstall one of them."
            )
        found[entry.name] = entry
    return found


def find_task(name: str) -> Task:
    """Import a task.

    Raises
    ------
    ScfmError
        There is none of this name, or its package can't be imported.
    """
    known = tasks()
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f" Did you mean {listing(near)}?" if near else ""
        raise ScfmError(f"no task {name!r} is installed.{hint}", f"Installed: {listing(known, 30)}.")
    entry = known[name]
    package = entry.dist.name if entry.dist else "?"
    try:
        task = entry.load()
    except Exception as error:  # a plugin's code may fail in any way
        raise ScfmError(
            f"task {name!r} of the package {package!r} can't be imported: {type(error).__name__}: {error}",
            f"Repair or remove it: pip install --upgrade {package}",
        ) from error
    if not isinstance(task, Task) or task.name != name:
        raise ScfmError(f"the entry point {name!r} of the package {package!r} names no Task({name!r}, ...).")
    return task


def require_capabilities(encoder: CellEncoder, task: Task) -> None:
    """Raise `CapabilityError` unless the encoder can do the task; the message names the task and the encoders that can."""
    from scfm.encoder import Capability

    for need in sorted(task.needs):
        try:
            encoder.require(Capability(need))
        except CapabilityError as error:
            raise CapabilityError(f"{task.name} needs {need}: {error.found}", error.fix) from None
