"""scGPT: binned expression values, one ``<cls>`` token."""

from scfm.adapters.scgpt.adapter import ScGPT

__all__ = ["ScGPT"]
