"""The state-space block against its recurrence, step by step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scfm.nn.mamba import Mamba2, scan


def inputs(cells: int = 2, length: int = 70, heads: int = 3, width: int = 5, states: int = 4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(cells, length, heads, width, generator=generator, dtype=torch.float64)
    log_decay = -torch.rand(cells, length, heads, generator=generator, dtype=torch.float64)
    b, c = torch.randn(2, cells, length, states, generator=generator, dtype=torch.float64)
    return x, log_decay, b, c


def recurrence(x, log_decay, b, c):
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], b.shape[-1])
    steps = []
    for t in range(x.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None] + x[:, t, :, :, None] * b[:, t, None, None]
        steps.append((state * c[:, t, None, None]).sum(dim=-1))
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("chunk", [1, 7, 64, 70, 1000])
def test_scan_in_chunks_is_the_recurrence(chunk):
    arguments = inputs()
    torch.testing.assert_close(scan(*arguments, chunk=chunk), recurrence(*arguments), rtol=1e-10, atol=1e-10)


def test_scan_of_no_tokens():
    assert scan(*inputs(length=0)).shape == (2, 0, 3, 5)


def test_scan_of_strong_decay_is_finite():
    x, log_decay, b, c = (t.float() for t in inputs(length=200))
    found = scan(x, log_decay * 500, b, c)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, recurrence(x, log_decay * 500, b, c), rtol=1e-5, atol=1e-4)


def test_the_block_is_its_formula():
    torch.manual_seed(0)
    block = Mamba2(64).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    u = torch.randn(2, 9, 64, dtype=torch.float64)
    z, x, b, c, dt = block.in_proj(u).split([128, 128, 64, 64, 2], dim=-1)
    mixed = torch.cat([x, b, c], dim=-1)
    convolved = torch.zeros_like(mixed)
    for t in range(9):
        for k in range(4):
            if t - 3 + k >= 0:
                convolved[:, t] += mixed[:, t - 3 + k] * block.conv.weight[:, 0, k]
    x, b, c = F.silu(convolved + block.conv.bias).split([128, 64, 64], dim=-1)
    x, dt = x.unflatten(-1, (2, 64)), F.softplus(dt + block.dt_bias)
    y = recurrence(x * dt[..., None], -block.log_a.exp() * dt, b, c) + x * block.skip[:, None]
    y = y.flatten(2) * F.silu(z)
    y = y / (y.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
    torch.testing.assert_close(block(u), y @ block.out_proj.weight.T)


def test_later_tokens_are_not_seen():
    torch.manual_seed(0)
    block = Mamba2(32).eval()
    u = torch.randn(1, 150, 32)
    changed = u.clone()
    changed[:, 100:] += 1
    with torch.inference_mode():
        before, after = block(u), block(changed)
    np.testing.assert_array_equal(before[:, :100].numpy(), after[:, :100].numpy())
    assert (before[:, 100:] - after[:, 100:]).abs().max() > 0.01


def test_gradients_reach_every_parameter():
    block = Mamba2(32)
    block(torch.randn(1, 70, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
