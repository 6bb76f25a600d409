"""SC-MAMBA2: binned expression values read in both directions by state-space layers."""

from scfm.adapters.sc_mamba2.adapter import SCMamba2

__all__ = ["SCMamba2"]
