"""CellPatch: expressed genes with their values, read by a fixed number of learned patches."""

from scfm.adapters.cellpatch.adapter import CellPatch

__all__ = ["CellPatch"]
