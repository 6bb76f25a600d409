"""FAVOR+ attention against its formula, written out head by head in float64."""

import numpy as np
import pytest
import torch

from scfm.nn import PerformerAttention, TransformerLayer
from scfm.nn.performer import orthogonal_features

DIM, HEADS, HEAD_DIM, CELLS, TOKENS = 12, 3, 8, 4, 17


@pytest.fixture
def attention() -> PerformerAttention:
    torch.manual_seed(0)
    return PerformerAttention(DIM, HEADS, head_dim=HEAD_DIM, bias=True).eval()


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(CELLS, TOKENS, DIM, generator=torch.Generator().manual_seed(1)) * 2


def formula(attention: PerformerAttention, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Output (b, t, dim) and implied attention (b, h, t, t), the maximum of the keys over all that is passed."""

    def linear(module: torch.nn.Linear, y: np.ndarray) -> np.ndarray:
        bias = 0 if module.bias is None else module.bias.detach().double().numpy()
        return y @ module.weight.detach().double().numpy().T + bias

    y = x.double().numpy()
    projection = attention.projection.double().numpy()
    m, d = projection.shape
    q, k, v = (linear(module, y).reshape(len(y), -1, HEADS, d) for module in (attention.q, attention.k, attention.v))
    c = d**-0.25
    exponent = np.einsum("bthd,md->bhtm", k * c, projection)
    out, weights = np.zeros_like(v), np.zeros((len(y), HEADS, y.shape[1], y.shape[1]))
    for b in range(len(y)):
        for h in range(HEADS):
            keys = m**-0.5 * (
                np.exp(exponent[b, h] - (c**2 * k[b, :, h] ** 2).sum(-1, keepdims=True) / 2 - exponent.max()) + 1e-4
            )
            asked = (q[b, :, h] * c) @ projection.T
            best = asked.max(axis=-1, keepdims=True)
            queries = m**-0.5 * (np.exp(asked - (c**2 * q[b, :, h] ** 2).sum(-1, keepdims=True) / 2 - best) + 1e-4)
            scores = queries @ keys.T
            weights[b, h] = scores / scores.sum(axis=-1, keepdims=True)
            out[b, :, h] = weights[b, h] @ v[b, :, h]
    return linear(attention.o, out.reshape(len(y), -1, HEADS * d)), weights


def test_equals_the_formula_for_each_cell(attention: PerformerAttention, states: torch.Tensor) -> None:
    with torch.inference_mode():
        out, weights = attention(states, weights=True)
    for row in range(CELLS):
        expected, implied = formula(attention, states[row : row + 1])
        np.testing.assert_allclose(out[row], expected[0], atol=2e-6)
        np.testing.assert_allclose(weights[row], implied[0], atol=2e-6)


def test_batch_maximum_equals_the_formula_for_the_joint_batch(
    attention: PerformerAttention, states: torch.Tensor
) -> None:
    attention.key_maximum = "batch"
    with torch.inference_mode():
        out, _ = attention(states)
    np.testing.assert_allclose(out, formula(attention, states)[0], atol=2e-6)


def test_gradient_path_equals_the_inference_path(attention: PerformerAttention, states: torch.Tensor) -> None:
    out, _ = attention(states)
    out.sum().backward()
    assert attention.k.weight.grad is not None
    with torch.inference_mode():
        again, _ = attention(states)
    torch.testing.assert_close(out.detach(), again, atol=1e-6, rtol=0)


def test_padding_changes_nothing(attention: PerformerAttention, states: torch.Tensor) -> None:
    padded = torch.cat([states, torch.full((CELLS, 3, DIM), 9.0)], dim=1)
    pad = torch.zeros(CELLS, TOKENS + 3, dtype=torch.bool)
    pad[:, TOKENS:] = True
    with torch.inference_mode():
        torch.testing.assert_close(attention(padded, pad)[0][:, :TOKENS], attention(states)[0], atol=1e-6, rtol=0)


def test_first_rows_alone(attention: PerformerAttention, states: torch.Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(attention(states, rows=2)[0], attention(states)[0][:, :2], atol=1e-6, rtol=0)


def test_projection_rows_are_orthogonal_within_blocks() -> None:
    projection = orthogonal_features(21, 8, torch.Generator().manual_seed(0)).double()
    gram = (projection[:8] / projection[:8].norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(gram @ gram.T, np.eye(8), atol=1e-5)
    assert projection.shape == (21, 8)


def test_is_a_drop_in_for_softmax_attention(states: torch.Tensor) -> None:
    layer = TransformerLayer(
        DIM, HEADS, 24, norm="pre", activation="gelu", attention=PerformerAttention(DIM, HEADS, head_dim=HEAD_DIM)
    ).eval()
    with torch.inference_mode():
        out, weights = layer(states, rows=1, weights=True)
    assert out.shape == (CELLS, 1, DIM)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(CELLS, HEADS, 1))
