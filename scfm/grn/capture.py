"""Queries and keys of a network's attention, caught as the network computes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from scfm.encoder import CellEncoder, Encoded
from scfm.errors import CapabilityError

__all__ = ["QueriesKeys", "queries_and_keys"]

TOLERANCE = 1e-3
"""Largest difference between the network's probabilities and softmax(q kᵀ / sqrt(d_head)); rounding gives 1e-6."""


class QueriesKeys:
    """What the attention modules of a network computed last, in the calling thread."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._thread = threading.local()
        self._checked = False

    def catch(self, module: nn.Module, part: str, x: Tensor) -> None:
        """Keep (b, t, heads * d_head) of a module's `part`, "q" or "k"."""
        self._caught().setdefault(id(module), {"heads": module.heads})[part] = x

    def _caught(self) -> dict[int, dict]:
        if not hasattr(self._thread, "caught"):
            self._thread.caught = {}
        return self._thread.caught

    def take(self, encoded: Encoded, length: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> queries and keys (b, heads, t, d_head) each, of the batch that gave `encoded`; forgotten afterwards.

        Tokens at the end that have no key, because nobody may attend to them, are left out of both.

        Parameters
        ----------
        encoded
            With the attention of the layers asked for.
        length
            Tokens of the first cell, on which the first batch is checked.

        Raises
        ------
        CapabilityError
            The network's attention is not the softmax of these queries and keys.
        """
        caught = list(self._caught().values())
        found = {}
        for layer in encoded.attention:
            if layer >= len(caught) or not {"q", "k"} <= set(caught[layer]):
                raise self._other("it has no queries and keys of its own")
            q, k = (caught[layer][name].unflatten(-1, (caught[layer]["heads"], -1)).transpose(1, 2) for name in "qk")
            found[layer] = (q[:, :, : k.shape[2]], k)
        if not self._checked:
            for layer, (q, k) in found.items():
                length = min(length, k.shape[2])
                self._check(q[0, :, :length], k[0, :, :length], encoded.attention[layer][0, :, :length, :length])
            self._checked = True
        self._caught().clear()
        return found

    def _check(self, q: Tensor, k: Tensor, probabilities: Tensor) -> None:
        implied = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        if implied.shape != probabilities.shape:
            raise self._other("its queries and keys are not those of the tokens")
        implied = implied.masked_fill(probabilities.sum(dim=(0, 1)) == 0, float("-inf"))  # keys that are masked for all
        if float((implied.softmax(dim=-1) - probabilities).abs().max()) > TOLERANCE:
            raise self._other("a mask, a bias, a rotation or a kernel changes it")

    def _other(self, why: str) -> CapabilityError:
        return CapabilityError(
            f"{self._model}'s attention is not the softmax of queries and keys among a cell's genes: {why}.",
            "Use the method 'attention', the mean of its probabilities, which every encoder with attention has.",
        )


@contextmanager
def queries_and_keys(encoder: CellEncoder) -> Iterator[QueriesKeys]:
    """Catch the queries and keys of the attention modules, i.e. those with Linears `q` and `k` and a number `heads`.

    Layers are numbered in the order in which they are called. Works for whatever is built on `scfm.nn.SelfAttention`, wrapped by LoRA or
    not; that the attention really is the softmax of what was caught is checked on the first batch.
    """
    catching = QueriesKeys(encoder.name)
    handles = []
    for module in encoder.network.modules():
        if isinstance(getattr(module, "heads", None), int) and all(hasattr(module, part) for part in "qk"):
            for part in "qk":
                handles.append(getattr(module, part).register_forward_hook(_hook(catching, module, part)))
    try:
        yield catching
    finally:
        for handle in handles:
            handle.remove()


def _hook(catching: QueriesKeys, module: nn.Module, part: str):  # type: ignore[no-untyped-def]
    def hook(_: nn.Module, __: Sequence[Tensor], output: Tensor) -> None:
        catching.catch(module, part, output.detach())

    return hook
