"""PCA on highly variable genes: the plain rival of every model."""

from scfm.adapters.pca.adapter import PCA

__all__ = ["PCA"]
