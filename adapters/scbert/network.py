"""scBERT's network: level + gene2vec embeddings, a pre-norm Performer, and the heads of its two kinds of checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Recovery, Request
from scfm.nn import PerformerAttention, TransformerLayer, TransformerStack
from scfm.tokenizers import Batch


@dataclass(frozen=True)
class ScBERTConfig:
    """Sizes, as found in the tensors."""

    genes: int = 16_906
    levels: int = 7  # rows of the level table: 0 .. 5, and 6 for masked genes in pre-training
    dim: int = 200
    layers: int = 6
    heads: int = 10
    head_dim: int = 64
    features: int = 266  # rows of the Performer's projection
    hidden: int = 800  # of the feed-forward block
    level_head: bool = True  # the pre-training head
    classes: tuple[str, ...] = ()  # of a fine-tuned checkpoint
    class_widths: tuple[int, int] = (512, 128)  # hidden layers of the classifier
    key_maximum: Literal["cell", "batch"] = "cell"  # "batch": cells of a batch depend on each other, as in the original


class CellClassifier(nn.Module):
    """One number a token, then a perceptron over all tokens."""

    def __init__(self, dim: int, tokens: int, widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, (1, dim))
        self.fc1 = nn.Linear(tokens, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, dim) -> (b, classes)."""
        y = F.relu(self.conv1(x.unsqueeze(1))).flatten(1)  # (b, t)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(y)))))


class ScBERTNetwork(Network):
    """Performer over all genes and one last token."""

    token_embedding = "levels"
    recovery = Recovery("level_logits")

    def __init__(self, config: ScBERTConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.heads = frozenset(
            {*(["level_logits"] if c.level_head else []), *(["logits"] if c.classes else [])},
        )
        self.levels = nn.Embedding(c.levels, c.dim)
        self.genes = nn.Embedding(c.genes + 1, c.dim)  # gene2vec; 0 for the last token
        self.genes.weight.requires_grad_(False)  # frozen by the authors
        self.layers = TransformerStack(self._layer() for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.dim)
        self.level_head = nn.Linear(c.dim, c.levels) if c.level_head else None
        self.classifier = CellClassifier(c.dim, c.genes + 1, c.class_widths, len(c.classes)) if c.classes else None

    def _layer(self) -> TransformerLayer:
        c = self.config
        attention = PerformerAttention(
            c.dim, c.heads, head_dim=c.head_dim, features=c.features, key_maximum=c.key_maximum
        )
        return TransformerLayer(c.dim, c.heads, c.hidden, activation="gelu", norm="pre", attention=attention)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for: "level_logits" (b, t, levels), "logits" (b, classes). Cells have the same genes: no padding."""
        attention = request.attended(self.depth)
        only_attention = request.only_attention
        depth = request.depth(self.depth)
        run = self.layers.run(
            self.levels(batch["levels"]) + self.genes(batch["ids"]),  # (b, t, dim)
            layers=max(attention, default=-1) + 1 if only_attention else depth,
            attention=attention,
        )
        out = Encoded(attention=run.attention)
        if only_attention:
            return out
        x = self.norm(run.states) if depth == self.depth else run.states
        out.tokens = x if request.wants("tokens") else None
        if request.wants("cells"):
            out.cells = self._pool(x, request.pooling)
        if self.level_head is not None and request.wants("level_logits"):
            out.heads["level_logits"] = self.level_head(x)
        if self.classifier is not None and request.wants("logits"):
            out.heads["logits"] = self.classifier(x)
        return out

    def _pool(self, x: Tensor, pooling: str | None) -> Tensor:
        """ "mean", "max", "sum" over the genes; "last": the token behind them."""
        if pooling == "last":
            return x[:, -1]
        genes = x[:, :-1]
        if pooling == "max":
            return genes.amax(dim=1)
        return genes.sum(dim=1) if pooling == "sum" else genes.mean(dim=1)
