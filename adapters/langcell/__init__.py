"""LangCell: ranked genes and descriptions of cells in words, in one space."""

from scfm.adapters.langcell.adapter import LangCell, TextTyping

__all__ = ["LangCell", "TextTyping"]
