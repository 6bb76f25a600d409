"""CellMemory: genes written to and read from a small memory, several times by one shared layer."""

from scfm.adapters.cellmemory.adapter import CellMemory

__all__ = ["CellMemory"]
