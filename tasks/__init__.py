"""Downstream tasks: one file a task, found through entry points, so that those of other packages are here too."""

from __future__ import annotations

from typing import Any

if __name__ != "scfm.tasks":
    raise ImportError(f"this package is scfm.tasks; it was imported as {__name__!r}")


def __getattr__(name: str) -> Any:
    """The function of an installed task, e.g. ``scfm.tasks.annotate``."""
    from scfm.task import find_task, tasks

    if name not in tasks():
        raise AttributeError(f"module 'scfm.tasks' has no attribute {name!r}; installed tasks: {', '.join(tasks())}")
    return find_task(name).run


def __dir__() -> list[str]:
    from scfm.task import tasks

    return sorted(tasks())
