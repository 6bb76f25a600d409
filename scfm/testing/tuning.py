"""Fine-tuning reaches the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from scfm.encoder import Capability, CellEncoder, Request
from scfm.errors import listing
from scfm.testing.compare import cells_of, fail, one_batch, replica, scale
from scfm.testing.kit import TOLERANCE, check
from scfm.tokenizers.base import Batch

if TYPE_CHECKING:
    from anndata import AnnData


class _LowRank(nn.Module):
    """A Linear with a random low-rank addition, as LoRA's (Hu et al. 2021, arXiv:2106.09685); `weight` is the frozen one, as peft's."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(base.in_features)
        self.base = base
        self.a = torch.randn(rank, base.in_features, generator=generator).to(base.weight) * base.in_features**-0.5
        self.b = torch.randn(base.out_features, rank, generator=generator).to(base.weight)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


def _called(encoder: CellEncoder, run: Callable[[CellEncoder], object]) -> set[str]:
    """Names of the Linears that are called as modules."""
    other = replica(encoder)
    called: set[str] = set()
    for name, module in other.network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    run(other)
    return called


def _all_outputs(encoder: CellEncoder, batch: Batch) -> None:
    outputs = {"cells", "tokens", *encoder.network.heads}
    if Capability.ATTENTION in encoder.capabilities:
        outputs.add("attention")
    encoder.network.eval()
    for pooling in encoder.poolings or (None,):
        cells_of(encoder.network, batch, Request(frozenset(outputs), pooling=pooling))
    if Capability.GENE_EMBEDDINGS in encoder.capabilities:
        for kind in encoder.gene_kinds:
            encoder.gene_vectors(kind)


@check
def low_rank_weights(encoder: CellEncoder, data: AnnData) -> None:
    """Every Linear is called as a module by some output, and random LoRA weights on any that the embedding uses change it in eval mode.

    A network that reads ``linear.weight`` itself, as torch's own fused transformer layers do, ignores LoRA without a word.
    """
    fused = [
        n
        for n, m in encoder.network.named_modules()
        if isinstance(m, nn.MultiheadAttention | nn.TransformerEncoderLayer)
    ]
    if fused:
        fail(f"torch's fused layers read raw weights and ignore LoRA in eval mode: {listing(fused)}; use scfm.nn")
    batch = one_batch(encoder, data[:2])
    linears = {name for name, module in encoder.network.named_modules() if isinstance(module, nn.Linear)}
    if never := sorted(linears - _called(encoder, lambda e: _all_outputs(e, batch))):
        fail(f"never called as a module by any declared output: {listing(never, 100)}")
    used = sorted(_called(encoder, lambda e: cells_of(e.network.eval(), batch)))
    network = replica(encoder).network.eval()
    before = cells_of(network, batch)
    ignored = []
    for name in used:
        parent, _, child = name.rpartition(".")
        place = network.get_submodule(parent)
        linear = network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(place, child, _LowRank(linear))
        if np.abs(cells_of(network, batch) - before).max() <= TOLERANCE * scale(before):
            ignored.append(name)
        setattr(place, child, linear)
    if ignored:
        fail(f"computed for the embedding, which LoRA weights on them do not change: {listing(ignored, 100)}")
