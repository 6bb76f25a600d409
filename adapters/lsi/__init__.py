"""LSI, TF-IDF and truncated SVD: the plain rival of every model of chromatin accessibility."""

from scfm.adapters.lsi.adapter import LSI

__all__ = ["LSI"]
