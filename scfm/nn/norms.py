"""Batch normalisation with statistics of its own for every domain (batch, study, platform)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DomainNorm"]


class DomainNorm(nn.Module):
    """Domain-specific batch normalisation over channels (Chang et al. 2019, arXiv:1906.03950), without affine weights.

    In eval mode every cell is normalised with the running statistics of its own domain, so batches may mix domains. In training
    mode the cells of each domain update that domain's statistics.
    """

    def __init__(self, domains: int, dim: int, *, eps: float = 6.1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.bns = nn.ModuleList(nn.BatchNorm1d(dim, eps=eps, affine=False) for _ in range(domains))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """x (b, t, dim), domain (b,) int64 -> (b, t, dim)."""
        if not self.training:
            mean = torch.stack([bn.get_buffer("running_mean") for bn in self.bns])[domain][:, None]  # (b, 1, dim)
            var = torch.stack([bn.get_buffer("running_var") for bn in self.bns])[domain][:, None]
            return (x - mean) * torch.rsqrt(var + self.eps)
        out = torch.empty_like(x)
        for d in domain.unique().tolist():
            cells = domain == d
            out[cells] = self.bns[d](x[cells].flatten(0, 1)).view_as(x[cells])
        return out
