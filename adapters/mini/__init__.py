"""mini: the small encoder that ships with scfm."""

from scfm.adapters.mini.adapter import Mini
from scfm.adapters.mini.network import MiniConfig

__all__ = ["Mini", "MiniConfig"]
