"""EpiAgent's network: region + rank embeddings, a post-norm BERT, and the heads of its checkpoint kinds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.nn import TransformerLayer, TransformerStack
from scfm.tokenizers import Batch

CLS = 1  # token id
FIRST_REGION = 4  # token id of the first row of cCRE.bed


@dataclass(frozen=True)
class EpiAgentConfig:
    """Sizes and parts, as found in the tensors; the number of heads is not in the file."""

    tokens: int  # rows of the region table: 4 special tokens, the regions, then perturbations
    regions: int
    dim: int = 512
    heads: int = 8
    hidden: int = 2048
    layers: int = 18
    context: int = 8192
    signals: int = 0  # outputs of the signal decoder
    openness: int = 0  # hidden width of the head on tokens (RLM)
    membership: int = 0  # hidden width of the head on (cell, region) pairs (CCA)
    classes: tuple[str, ...] = ()  # cell types in the order of the logits
    batches: int = 0
    edges: int = 0  # of the graph between perturbations


class TokenScore(nn.Module):
    """fc2(LayerNorm(gelu(fc1(x)))) to one logit."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (...)."""
        return self.fc2(self.norm(F.gelu(self.fc1(x)))).squeeze(-1)


class Classifier(nn.Module):
    """Three layers; nothing between the first and its norm, and the second norm stands behind the activation, as in the original."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(dim, 256), nn.LayerNorm(256)
        self.fc2, self.norm2 = nn.Linear(256, 128), nn.LayerNorm(128)
        self.fc3 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim) -> (b, classes)."""
        return self.fc3(self.norm2(F.gelu(self.fc2(self.norm1(self.fc1(x))))))


class PerturbationGraph(nn.Module):
    """One simplified graph convolution (Wu et al. 2019, arXiv:1902.07153) over the embeddings of the perturbations, then LayerNorm."""

    edges: Tensor
    weights: Tensor

    def __init__(self, dim: int, edges: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.register_buffer("edges", torch.zeros(2, edges, dtype=torch.long))  # source, target
        self.register_buffer("weights", torch.zeros(edges))

    def forward(self, x: Tensor) -> Tensor:
        """(n_perturbations, dim) -> the same."""
        n = len(x)
        adjacency = x.new_zeros(n, n)
        source, target = self.edges
        adjacency.index_put_((target, source), self.weights.to(x.dtype), accumulate=True)
        loops = torch.diagonal(adjacency) == 0
        adjacency = adjacency + torch.diag(loops.to(x.dtype))
        scale = adjacency.sum(dim=1).rsqrt()
        return self.norm(self.linear(scale[:, None] * adjacency * scale @ x))


class EpiAgentNetwork(Network):
    """x = region + rank; transformer; the cell is the state of ``[CLS]``, not normalised."""

    token_embedding = "regions"

    def __init__(self, config: EpiAgentConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.regions = nn.Embedding(c.tokens, c.dim, padding_idx=0)
        self.ranks = nn.Embedding(c.context, c.dim)
        self.layers = TransformerStack(
            TransformerLayer(c.dim, c.heads, c.hidden, activation="gelu", dropout=0.1, eps=1e-12)
            for _ in range(c.layers)
        )
        self.openness = TokenScore(c.dim, c.openness) if c.openness else None
        self.membership = TokenScore(2 * c.dim, c.membership) if c.membership else None
        self.signal = nn.Linear(c.dim, c.signals) if c.signals else None
        self.classifier = Classifier(c.dim, len(c.classes)) if c.classes else None
        self.batches = nn.Embedding(c.batches, c.dim) if c.batches else None
        self.graph = PerturbationGraph(c.dim, c.edges) if c.edges else None

    @property
    def decoded(self) -> str:
        """Name of the signal decoder's output."""
        return "accessibility" if self.config.signals == self.config.regions else "signal"

    @property
    def heads(self) -> frozenset[str]:  # type: ignore[override]
        """Outputs beyond the cells and tokens, all logits.

        "accessibility" (b, n_regions), or "signal" (b, n) where the decoder is of a data set's own regions (PT checkpoints);
        "membership" (b, n_regions), "openness" (b, t), "logits" (b, classes).
        """
        parts = {
            self.decoded: self.signal,
            "openness": self.openness,
            "membership": self.membership,
            "logits": self.classifier,
        }
        return frozenset(name for name, part in parts.items() if part is not None)

    def embed_tokens(self, batch: Batch) -> Tensor:
        """The transformer's input (b, t, dim)."""
        ids = batch["ids"]
        x = self.regions(ids)
        first = x[:, 0]
        if self.batches is not None and "batch" in batch.cells:
            first = first + self.batches(batch.cells["batch"])
        if self.graph is not None:
            end = FIRST_REGION + self.config.regions
            perturbed = ids[:, 0] >= end
            smoothed = self.graph(self.regions.weight[end:])
            first = torch.where(perturbed[:, None], smoothed[(ids[:, 0] - end).clamp(min=0)], first)
        x = torch.cat([first[:, None], x[:, 1:]], dim=1)
        return x + self.ranks(torch.arange(ids.shape[1], device=ids.device))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for."""
        attention = request.attended(self.depth)
        only_attention = request.only_attention and bool(attention)
        depth = request.depth(self.depth)
        per_token = request.wants("tokens", "openness") or bool(attention)
        run = self.layers.run(
            self.embed_tokens(batch),
            batch.pad,
            layers=max(attention) + 1 if only_attention else depth,
            rows=None if per_token else 1,
            attention=attention,
        )
        x = run.states
        if only_attention:
            return Encoded(attention=run.attention)
        cell = x[:, 0]
        out = Encoded(cells=cell, tokens=x if request.wants("tokens") else None, attention=run.attention)
        if self.signal is not None and request.wants(self.decoded):
            out.heads[self.decoded] = self.signal(cell)
        if self.openness is not None and request.wants("openness"):
            out.heads["openness"] = self.openness(x)
        if self.membership is not None and request.wants("membership"):
            regions = torch.arange(FIRST_REGION, FIRST_REGION + self.config.regions, device=x.device)
            out.heads["membership"] = self.member(cell, regions.expand(len(cell), -1))
        if self.classifier is not None and request.wants("logits"):
            out.heads["logits"] = self.classifier(cell)
        return out

    def member(self, cells: Tensor, ids: Tensor) -> Tensor:
        """Logits that regions are open in cells: cells (b, dim), token ids (b, k) -> (b, k)."""
        assert self.membership is not None
        pairs = torch.cat([cells[:, None].expand(-1, ids.shape[1], -1), self.regions(ids)], dim=-1)
        return self.membership(pairs)
