"""A small network that was trained to give another encoder's embeddings."""

from scfm.adapters.student.adapter import Student

__all__ = ["Student"]
