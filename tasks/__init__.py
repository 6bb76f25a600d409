"""Downstream tasks: one file a task."""

if __name__ != "scfm.tasks":
    raise ImportError(f"this package is scfm.tasks; it was imported as {__name__!r}")
