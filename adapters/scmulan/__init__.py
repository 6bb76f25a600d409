"""scMulan: a cell as a sentence of genes with expression levels, read and continued by a generative network."""

from scfm.adapters.scmulan.adapter import ScMulan

__all__ = ["ScMulan"]
