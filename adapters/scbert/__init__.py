"""scBERT: coarse expression bins of 16,906 genes, Performer attention."""

from scfm.adapters.scbert.adapter import ScBERT

__all__ = ["ScBERT"]
