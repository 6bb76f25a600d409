"""A small network that was trained to give another encoder's embeddings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm.adapters.student.adapter import Student

__all__ = ["Student"]


def __getattr__(name: str) -> Any:
    """The class on first use: the task `distill` lies here too, and is imported without torch."""
    if name != "Student":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scfm.adapters.student.adapter import Student

    return Student
