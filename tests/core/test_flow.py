"""Flow attention against its formula, written with loops over tokens."""

import pytest
import torch

from scfm.nn import FlowAttention

EPS = 1e-6


@pytest.fixture
def attention() -> FlowAttention:
    torch.manual_seed(0)
    return FlowAttention(8, 2).double().eval()


def by_hand(attention: FlowAttention, x: torch.Tensor) -> torch.Tensor:
    """(t, dim) -> (t, dim), one head and one token at a time."""
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        q, k = attention.q(x)[:, part].sigmoid(), attention.k(x)[:, part].sigmoid()
        v = attention.v(x)[:, part]
        incoming = torch.stack([1 / ((qn + EPS) @ (k.sum(0) + EPS)) for qn in q])
        outgoing = torch.stack([1 / ((km + EPS) @ (q.sum(0) + EPS)) for km in k])
        sink = torch.stack([(qn + EPS) @ (sum(o * km for o, km in zip(outgoing, k, strict=True)) + EPS) for qn in q])
        source = torch.stack([(km + EPS) @ (sum(i * qn for i, qn in zip(incoming, q, strict=True)) + EPS) for km in k])
        competition = source.clamp(-1, 1).softmax(0) * len(x)
        flow = sum(torch.outer(km, vm * c) for km, vm, c in zip(k, v, competition, strict=True))
        heads.append(torch.stack([(qn * i) @ flow * s.sigmoid() for qn, i, s in zip(q, incoming, sink, strict=True)]))
    return attention.o(torch.cat(heads, dim=1))


def test_equals_the_formula(attention):
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    found, weights = attention(x)
    assert weights is None
    torch.testing.assert_close(found, torch.stack([by_hand(attention, one) for one in x]))


def test_padding_changes_nothing(attention):
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    pad = torch.zeros(2, 6, dtype=torch.bool)
    pad[0, 4:] = True
    found, _ = attention(x, pad)
    torch.testing.assert_close(found[0, :4], attention(x[:1, :4])[0][0])
    torch.testing.assert_close(found[1], attention(x[1:])[0][0])


def test_rows_are_the_first_ones(attention):
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(attention(x, rows=2)[0], attention(x)[0][:, :2])


def test_weights_and_uneven_heads_are_refused(attention):
    with pytest.raises(ValueError, match="no matrix"):
        attention(torch.randn(1, 2, 8, dtype=torch.float64), weights=True)
    with pytest.raises(ValueError, match="multiple"):
        FlowAttention(8, 3)
