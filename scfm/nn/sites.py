"""Places in a network where fine-tuning puts modules, without touching the names of its weights."""

from __future__ import annotations

from torch import nn

__all__ = ["Site"]


class Site(nn.Identity):
    """A place in the residual stream, (b, t, dim) -> (b, t, dim), that a method of fine-tuning replaces by a module of its own."""
