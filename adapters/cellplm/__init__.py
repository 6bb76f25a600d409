"""CellPLM: cells are the tokens; those of a group see each other."""

from scfm.adapters.cellplm.adapter import CellPLM

__all__ = ["CellPLM"]
