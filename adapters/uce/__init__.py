"""UCE: a cell as a bag of sampled protein tokens, ordered by chromosome."""

from scfm.adapters.uce.adapter import UCE

__all__ = ["UCE"]
