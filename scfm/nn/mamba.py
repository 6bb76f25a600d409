"""Mamba-2: a gated state-space layer in time linear in the tokens (Dao & Gu 2024, arXiv:2405.21060), in plain torch.

Per head, with state S (width, states), S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_tᵀ and y_t = S_t C_t + D x_t. The recurrence is computed in
chunks: within a chunk as a masked product C Bᵀ, between chunks by carrying S; the same numbers as step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Mamba2", "scan"]

CHUNK = 64


class Mamba2(nn.Module):
    """One Mamba-2 mixer, without the norm and the residual that blocks usually put around it.

    Parameters
    ----------
    dim
        Length of a token's state.
    expand
        The inner width is expand x dim.
    head_dim
        Width of a head.
    states
        Length N of B and C, shared by all heads.
    kernel
        Tokens the causal convolution sees.
    eps
        Of the gated RMSNorm.
    """

    def __init__(
        self, dim: int, *, expand: int = 2, head_dim: int = 64, states: int = 64, kernel: int = 4, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.inner = expand * dim
        if self.inner % head_dim:
            raise ValueError(f"inner width {self.inner} is not a multiple of head_dim {head_dim}")
        self.heads, self.states, self.kernel = self.inner // head_dim, states, kernel
        channels = self.inner + 2 * states
        self.in_proj = nn.Linear(dim, self.inner + channels + self.heads, bias=False)  # z, x, B, C, dt
        self.conv = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.log_a = nn.Parameter(torch.arange(1, self.heads + 1).float().log())  # A = -exp(log_a)
        self.skip = nn.Parameter(torch.ones(self.heads))  # D
        self.norm = nn.RMSNorm(self.inner, eps=eps)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """(b, t, dim) -> (b, t, dim); position t sees positions up to t."""
        z, mixed, dt = self.in_proj(u).split([self.inner, self.inner + 2 * self.states, self.heads], dim=-1)
        mixed = F.silu(self.conv(F.pad(mixed.transpose(1, 2), (self.kernel - 1, 0)))).transpose(1, 2)
        x, b, c = mixed.split([self.inner, self.states, self.states], dim=-1)
        x = x.unflatten(-1, (self.heads, -1))  # (b, t, h, p)
        dt = F.softplus(dt + self.dt_bias)  # (b, t, h)
        y = scan(x * dt.unsqueeze(-1), -self.log_a.exp() * dt, b, c) + x * self.skip.unsqueeze(-1)
        return self.out_proj(self.norm(y.flatten(2) * F.silu(z)))


def scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """y_t = Σ_{s<=t} exp(log_decay_{s+1} + ... + log_decay_t) (c_t . b_s) x_s.

    Parameters
    ----------
    x
        (b, t, heads, width).
    log_decay
        (b, t, heads), not positive.
    b, c
        (b, t, states), shared by the heads.
    chunk
        Tokens computed at once; any number gives the same result.

    Returns
    -------
    Tensor
        (b, t, heads, width).
    """
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], b.shape[-1])  # (b, h, p, n)
    parts = []
    for at in range(0, x.shape[1], chunk):
        here = slice(at, at + chunk)
        xs, bs, cs = x[:, here].transpose(1, 2), b[:, here], c[:, here]  # (b, h, l, p), (b, l, n) twice
        steps = log_decay[:, here].transpose(1, 2)  # (b, h, l)
        total = steps.cumsum(dim=-1)  # from before the chunk
        decay = _sums_between(steps).exp()  # (b, h, l, l)
        within = ((cs @ bs.transpose(1, 2)).unsqueeze(1) * decay) @ xs
        carried = torch.einsum("bln,bhpn->bhlp", cs, state) * total.exp().unsqueeze(-1)
        parts.append((within + carried).transpose(1, 2))
        left = decay[..., -1, :]  # (b, h, l): what remains of each token at the chunk's end
        state = state * total[..., -1].exp()[..., None, None] + torch.einsum("bhlp,bhl,bln->bhpn", xs, left, bs)
    return torch.cat(parts, dim=1) if parts else x


def _sums_between(steps: Tensor) -> Tensor:
    """steps_{s+1} + ... + steps_t in row t, column s (..., l, l); -inf where s > t.

    Each is summed by itself: a difference of two cumulative sums would lose what is small beside them.
    """
    length = steps.shape[-1]
    row, column = torch.arange(length, device=steps.device)[:, None], torch.arange(length, device=steps.device)
    sums = steps.unsqueeze(-1).expand(*steps.shape, length).masked_fill(row <= column, 0).cumsum(dim=-2)
    return sums.masked_fill(row < column, float("-inf"))
