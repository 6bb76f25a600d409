"""Nicheformer: ranked genes behind tokens for species, technology and modality; dissociated and spatial cells."""

from scfm.adapters.nicheformer.adapter import Nicheformer

__all__ = ["Nicheformer"]
