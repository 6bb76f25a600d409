"""Geneformer: genes ranked by median-scaled expression."""

from scfm.adapters.geneformer.adapter import Geneformer

__all__ = ["Geneformer"]
