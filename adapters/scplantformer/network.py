"""scPlantFormer's network: patches and positions through causal attention without softmax, rectified at every step, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import SelfAttention, TransformerLayer, TransformerStack
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class ScPlantFormerConfig:
    """Sizes, as found in the tensors."""

    genes: int = 8000
    patches: int = 63
    dim: int = 128  # genes of a patch, and length of a state
    layers: int = 1
    heads: int = 32
    hidden: int = 256  # of the feed-forward block
    dtype: Literal["float64", "float32"] = "float64"


class RectifiedAttention(SelfAttention):
    """A v with A = ReLU(q kᵀ / sqrt(d_head)) for keys up to the query's place, 0 beyond; q, k and v rectified too. No softmax."""

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        *,
        rows: int | Tensor | None = None,
        weights: bool = False,
        source: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(b, t, dim) -> (b, t, dim) and, on request, A (b, heads, t, t). All cells have as many patches: there is no padding."""
        q, k, v = (self._split(F.relu(part(x))) for part in (self.q, self.k, self.v))  # (b, h, t, d)
        a = F.relu(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).tril()
        return self.o((a @ v).transpose(1, 2).flatten(2)), a if weights else None


class ScPlantFormerNetwork(Network):
    """x = ReLU(patches + positions); layers; ReLU, LayerNorm, ReLU; the cell is the mean over the patches."""

    recovery = Recovery("expression", "patch")
    heads = frozenset({"expression", "patch_attention"})

    def __init__(self, config: ScPlantFormerConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.positions = nn.Embedding(c.patches, c.dim)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, norm="pre", attention=RectifiedAttention(c.dim, c.heads))
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.dim)
        self.decoder = nn.Linear(c.dim, c.genes)
        self.to(getattr(torch, c.dtype))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for: "expression" (b, genes), reconstructed; "patch_attention" (b, layers, heads, t, t), not normalised."""
        patches = batch["patches"].to(self.positions.weight.dtype)  # (b, t, dim)
        depth = request.depth(self.depth)
        whole = request.wants("expression", "patch_attention")
        run = self.layers.run(
            F.relu(patches + self.positions.weight),
            layers=self.depth if whole else depth,
            attention=range(self.depth) if request.wants("patch_attention") else (),
        )
        out = Encoded()
        if request.wants("patch_attention"):
            out.heads["patch_attention"] = torch.stack([run.attention[i] for i in range(self.depth)], dim=1)
        if request.wants("expression"):
            out.heads["expression"] = F.relu(self.decoder(self._read(run.states)))
        if request.wants("cells", "tokens"):
            x = run.states
            if whole and depth < self.depth:
                x = self.layers.run(F.relu(patches + self.positions.weight), layers=depth).states
            out.tokens = x if request.wants("tokens") else None
            out.cells = self._read(x) if depth == self.depth else x.mean(dim=1)
        return out

    def _read(self, x: Tensor) -> Tensor:
        """The authors' cell embedding of the last states (b, t, dim) -> (b, dim)."""
        return F.relu(self.norm(F.relu(x))).mean(dim=1)
