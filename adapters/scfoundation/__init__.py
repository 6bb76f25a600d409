"""scFoundation: continuous values of the expressed genes, two tokens for read depth."""

from scfm.adapters.scfoundation.adapter import ScFoundation

__all__ = ["ScFoundation"]
