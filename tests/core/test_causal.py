"""Causal attention: padding behind a cell is not seen, and tokens that follow with a cache equal the whole sentence."""

import pytest
import torch

from scfm.nn import CausalAttention, KeyValues, TransformerLayer, TransformerStack

DIM, HEADS, LENGTHS = 16, 4, torch.tensor([7, 5, 3])


@pytest.fixture
def stack() -> TransformerStack:
    torch.manual_seed(0)
    layers = (TransformerLayer(DIM, HEADS, 32, norm="pre", attention=CausalAttention(DIM, HEADS)) for _ in range(3))
    return TransformerStack(layers).double().eval()


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(3, 9, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=0, atol=1e-12))


def test_equals_torchs_own_layers(states: torch.Tensor) -> None:
    torch.manual_seed(0)
    ours = CausalAttention(DIM, HEADS).double()
    theirs = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]).detach()
    theirs.out_proj.load_state_dict(ours.o.state_dict())
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected, weights = theirs(states, states, states, attn_mask=hidden, average_attn_weights=False)
    assert close(ours(states)[0], expected)
    found, probabilities = ours(states, weights=True)
    assert close(found, expected)
    assert close(probabilities, weights)


def test_a_token_does_not_see_what_follows(stack: TransformerStack, states: torch.Tensor) -> None:
    changed = states.clone()
    changed[:, 5:] = 0
    assert close(stack.run(changed).states[:, :5], stack.run(states).states[:, :5])
    assert not close(stack.run(changed).states[:, 5:], stack.run(states).states[:, 5:])


def test_rows_of_each_cell(stack: TransformerStack, states: torch.Tensor) -> None:
    rows = torch.stack([LENGTHS - 2, LENGTHS - 1], dim=1)
    whole = stack.run(states).states
    assert close(stack.run(states, rows=rows).states, torch.stack([whole[i, rows[i]] for i in range(3)]))
    assert close(stack.run(states, rows=rows, layers=0).states, torch.stack([states[i, rows[i]] for i in range(3)]))


def test_tokens_that_follow_with_a_cache(stack: TransformerStack, states: torch.Tensor) -> None:
    pad = torch.arange(7) >= LENGTHS.unsqueeze(1)
    cache = [KeyValues() for _ in stack]
    stack.run(states[:, :7], pad, rows=LENGTHS.unsqueeze(1) - 1, cache=cache)
    found = [stack.run(states[:, i : i + 1], cache=cache).states[:, 0] for i in (7, 8)]
    for cell, length in enumerate(LENGTHS.tolist()):
        whole = stack.run(torch.cat([states[cell, :length], states[cell, 7:]])[None]).states[0]
        assert close(torch.stack([f[cell] for f in found]), whole[-2:])
