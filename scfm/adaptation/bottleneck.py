"""The small network of two Linears that adapters are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from scfm.adaptation.base import Added

__all__ = ["Bottleneck"]


class Bottleneck(Added):
    """x + up(gelu(down(x))) (Houlsby et al. 2019, arXiv:1902.00751). `up` starts at zero, so that nothing is changed at first."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return x + self.up(F.gelu(self.down(x)))
