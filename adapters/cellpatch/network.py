"""CellPatch's network: learned patches read the genes by cross-attention, then attend to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import TransformerLayer, TransformerStack
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class CellPatchConfig:
    """Sizes and parts, as found in the tensors."""

    genes: int = 70_000  # rows of the gene table; id 0 is padding, the last ones are spare
    dim: int = 32
    patches: int = 64
    heads: int = 2
    hidden: int = 64  # of the MLPs
    layers: int = 2  # self-attention among patches
    projection: int = 10
    decoder_layers: int = 1  # self-attention among genes; 0: no decoder
    classes: int = 0
    classifier_hidden: tuple[int, int] = (512, 100)
    project_out: bool = False  # the classifier reads the projected patches


class ReadingLayer(TransformerLayer):
    """A post-norm layer whose queries read another sequence: x = norm1(x + attention(x, source)); x = norm2(x + MLP(x))."""

    def read(self, x: Tensor, source: Tensor, pad: Tensor | None, *, weights: bool) -> tuple[Tensor, Tensor | None]:
        """Queries (b, n, dim), source (b, t, dim), pad (b, t) -> (b, n, dim) and, on request, attention (b, heads, n, t)."""
        attended, probabilities = self.attention(x, pad, weights=weights, source=source)
        if self.prefix is not None:
            attended = attended + self.prefix(x, self.attention)
        x = self.after_attention(self.norm1(x + attended))
        return self.after_feed_forward(self.norm2(x + self._feed_forward(x))), probabilities


class Decoder(nn.Module):
    """Values of wanted genes from the projected patches; the wanted genes attend to each other."""

    def __init__(self, c: CellPatchConfig) -> None:
        super().__init__()
        self.unproject = nn.Linear(c.projection, c.dim)
        self.read = ReadingLayer(c.dim, c.heads, c.hidden, activation="gelu")
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, activation="gelu") for _ in range(c.decoder_layers)
        )
        self.out = nn.Linear(c.dim, 1)

    def forward(self, projected: Tensor, genes: Tensor, pad: Tensor | None) -> Tensor:
        """Projected patches (b, n, projection), vectors of wanted genes (b, m, dim) -> values (b, m)."""
        x, _ = self.read.read(genes, self.unproject(projected), None, weights=False)
        return self.out(self.layers.run(x, pad).states).squeeze(-1)


class Classifier(nn.Module):
    """Three Linears on the flattened patches."""

    def __init__(self, c: CellPatchConfig) -> None:
        super().__init__()
        first, second = c.classifier_hidden
        self.unproject = nn.Linear(c.projection, c.dim) if c.project_out else None
        self.norm = nn.LayerNorm(c.dim) if c.project_out else None
        self.fc1 = nn.Linear(c.patches * c.dim, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, c.classes)

    def forward(self, patches: Tensor, projected: Tensor) -> Tensor:
        """Patches (b, n, dim) and projected ones (b, n, projection) -> logits (b, classes)."""
        if self.unproject is not None and self.norm is not None:
            patches = self.norm(self.unproject(projected))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(patches.flatten(1))))))


class CellPatchNetwork(Network):
    """The cell is its patches, flattened: (patches x dim), or (patches x projection)."""

    token_embedding = "values"
    recovery = Recovery("expression")

    def __init__(self, config: CellPatchConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.patches * c.dim, 1 + c.layers
        self.patches = nn.Parameter(torch.randn(1, c.patches, c.dim))
        self.values = nn.Linear(1, c.dim)
        self.genes = nn.Embedding(c.genes, c.dim)
        self.read = ReadingLayer(c.dim, c.heads, c.hidden, activation="gelu")
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, activation="gelu") for _ in range(c.layers)
        )
        self.project = nn.Linear(c.dim, c.projection)
        self.decoder = Decoder(c) if c.decoder_layers else None
        self.classifier = Classifier(c) if c.classes else None

    @property
    def heads(self) -> frozenset[str]:  # type: ignore[override]
        """Patches, attention of patches to genes and to each other, expression, classes."""
        names = {"patches", "projected_patches", "gene_attention", *self._patch_attention}
        if self.decoder is not None:
            names.add("expression")
        if self.classifier is not None:
            names.add("logits")
        return frozenset(names)

    @property
    def _patch_attention(self) -> list[str]:
        return [f"patch_attention_{i}" for i in range(self.config.layers)]

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.config.dim

    def width(self, request: Request) -> int:
        """Length of a cell embedding: flattened patches, projected or not."""
        return self.config.patches * (self.config.projection if request.pooling == "projected" else self.config.dim)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for; attention is averaged over the heads."""
        genes = self.genes(batch["ids"]) + self.values(batch["values"].unsqueeze(-1))  # (b, t, dim)
        out = Encoded(tokens=genes if request.wants("tokens") else None)
        if request.outputs <= {"tokens"}:
            return out
        depth = request.depth(self.depth)
        x = self.patches.expand(len(genes), -1, -1)  # (b, n, dim)
        found: dict[str, Tensor] = {}
        if depth > 0:
            x, read = self.read.read(x, genes, batch.pad, weights=request.wants("gene_attention"))
            if read is not None:
                found["gene_attention"] = read.mean(dim=1)  # (b, n, t)
        among = [i for i, name in enumerate(self._patch_attention) if request.wants(name)]
        run = self.layers.run(x, layers=max(depth - 1, 0), attention=among)
        found |= {f"patch_attention_{i}": weights.mean(dim=1) for i, weights in run.attention.items()}  # (b, n, n)
        x = run.states
        found["patches"] = x
        if request.pooling == "projected" or request.wants("projected_patches", "expression", "logits"):
            found["projected_patches"] = self.project(x)  # (b, n, projection)
        out.cells = found["projected_patches" if request.pooling == "projected" else "patches"].flatten(1)
        if self.decoder is not None and request.wants("expression"):
            wanted, pad = (batch.cells["targets"], None) if "targets" in batch.cells else (batch["ids"], batch.pad)
            found["expression"] = self.decoder(found["projected_patches"], self.genes(wanted), pad)
        if self.classifier is not None and request.wants("logits"):
            found["logits"] = self.classifier(x, found["projected_patches"])
        out.heads = {name: value for name, value in found.items() if request.wants(name)}
        return out
