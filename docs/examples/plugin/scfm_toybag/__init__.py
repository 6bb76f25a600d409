"""ToyBag for scfm."""

from scfm_toybag.adapter import ToyBag

__all__ = ["ToyBag"]
