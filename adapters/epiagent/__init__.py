"""EpiAgent: open regions ranked by TF-IDF."""

from scfm.adapters.epiagent.adapter import EpiAgent

__all__ = ["EpiAgent"]
