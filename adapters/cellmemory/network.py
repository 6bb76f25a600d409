"""CellMemory's network: one layer, applied several times, that writes all tokens to a memory of a few slots and reads it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.tokenizers import Batch

HEAD_DIM = 32  # of queries and keys, whatever the width


@dataclass(frozen=True)
class CellMemoryConfig:
    """Sizes and parts, as found in the tensors and the text files."""

    genes: int  # of the reference
    mode: Literal["fast", "full"] = "fast"  # expressed genes, or all of them with positions
    dim: int = 256
    hidden: int = 512
    heads: int = 4
    passes: int = 4  # through the one layer
    slots: int = 8
    bins: int = 50
    topk: int = 0  # tokens that a head writes to a slot; 0: all
    dropout: float = 0.1
    labels: tuple[str, ...] = ()  # cell types, in the order of the classifier


class SlotLinear(nn.Module):
    """A Linear of its own for every slot."""

    def __init__(self, slots: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(slots, inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(slots, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, slots, inputs) -> (b, slots, outputs)."""
        return torch.einsum("bsi,sio->bso", x, self.weight) + self.bias


class Memory(nn.Module):
    """Slots that compete for what is written to them (Goyal et al. 2022, arXiv:2103.01197), gated as an LSTM's cell."""

    def __init__(self, c: CellMemoryConfig) -> None:
        super().__init__()
        self.heads, self.topk = c.heads, c.topk
        self.project = nn.Linear(c.dim, c.dim)
        self.q = nn.Linear(c.dim, c.heads * HEAD_DIM)
        self.k = nn.Linear(c.dim, c.heads * HEAD_DIM)
        self.v = nn.Linear(c.dim, c.dim)
        self.mlp = nn.Linear(c.dim, c.dim)
        self.norm1, self.norm2 = nn.LayerNorm(c.dim), nn.LayerNorm(c.dim)
        self.gate_weight = nn.Parameter(torch.randn(c.dim))
        self.gate = nn.Linear(c.dim, 2 * c.dim)
        self.slot_gate = SlotLinear(c.slots, c.dim, 2 * c.dim)
        self.input_bias = nn.Parameter(torch.tensor(0.0))
        self.forget_bias = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, memory: Tensor, pad: Tensor | None, rows: int | None) -> tuple[Tensor, ...]:
        """Write, then read.

        Parameters
        ----------
        x
            (b, t, dim) normalised states.
        memory
            (b, slots, dim).
        pad
            (b, t) bool, True at tokens that are neither written nor counted.
        rows
            Read for the first `rows` tokens only.

        Returns
        -------
        read
            (b, rows or t, dim).
        memory
            (b, slots, dim).
        written, attended
            Attention of slots to tokens (b, slots, t) and of tokens to slots (b, rows or t, slots), mean over the heads.
        """
        u = self.project(x)
        written, update = self._write(u, memory, pad)
        active = F.relu(u * self.gate_weight)  # (b, t, dim)
        if pad is None:
            mean = active.mean(dim=1, keepdim=True)
        else:
            real = ~pad.unsqueeze(-1)
            mean = (active * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
        gates = self.gate(mean) + self.slot_gate(memory.tanh())  # (b, slots, 2 dim)
        enter, keep = gates.chunk(2, dim=-1)
        memory = (enter + self.input_bias).sigmoid() * update.tanh() + (keep + self.forget_bias).sigmoid() * memory
        queries = self._split(self.q(u if rows is None else u[:, :rows]))
        attended = (queries @ self._split(self.k(memory)).transpose(-1, -2)).softmax(dim=-1)  # (b, h, rows, slots)
        read = (attended @ self._split(self.v(memory))).transpose(1, 2).flatten(2)
        return read, memory, written.mean(dim=1), attended.mean(dim=1)

    def _write(self, u: Tensor, memory: Tensor, pad: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention of the slots (b, heads, slots, t), not scaled, and what they become (b, slots, dim)."""
        scores = self._split(self.q(memory)) @ self._split(self.k(u)).transpose(-1, -2)
        if pad is not None:
            scores = scores.masked_fill(pad[:, None, None], float("-inf"))
        weights = scores.softmax(dim=-1)
        if self.topk:  # the others' share is not given to these
            kept, at = weights.topk(min(self.topk, weights.shape[-1]), dim=-1)
            weights = torch.zeros_like(weights).scatter(-1, at, kept)
        m = self.norm1(memory + (weights @ self._split(self.v(u))).transpose(1, 2).flatten(2))
        return weights, self.norm2(m + F.relu(self.mlp(m)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Positions(nn.Module):
    """table * sigmoid(weight), added to the tokens in full mode."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", torch.zeros(1, length, dim))
        self.weight = nn.Parameter(torch.zeros(1, length, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b, length, dim) -> (b, length, dim)."""
        return x + self.table * self.weight.sigmoid()


class CellMemoryNetwork(Network):
    """The cell is the state of a class token in front of the genes after the last pass, not normalised."""

    token_embedding = "bins"
    heads = frozenset({"embedded", "logits", "memory", "memory_mlp", "written", "attended", "gene_scores", "cls_score"})

    def __init__(self, config: CellMemoryConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.passes
        fast = c.mode == "fast"
        self.cls = nn.Parameter(torch.randn(1, 1, c.dim))
        self.bins = nn.Embedding(c.bins + (1 if fast else 2), c.dim)
        self.genes = nn.Embedding(c.genes + (2 if fast else 1), c.dim)
        self.norm = nn.LayerNorm(c.dim)
        self.positions = None if fast else Positions(c.genes + 1, c.dim)
        self.memory = Memory(c)
        self.norm_memory, self.norm_ff = nn.LayerNorm(c.dim), nn.LayerNorm(c.dim)
        self.ff1, self.ff2 = nn.Linear(c.dim, c.hidden), nn.Linear(c.hidden, c.dim)
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(c.dim, len(c.labels))
        self.memory_mlp = nn.Linear(c.slots * c.dim, c.dim)

    def embed_tokens(self, batch: Batch) -> Tensor:
        """Genes with their bins, before positions (b, t, dim)."""
        return self.norm(self.bins(batch["bins"]) + self.genes(batch["ids"]))

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for. Tokens are those of the genes; `written` (b, slots, 1 + t) and `attended` (b, 1 + t, slots) have the
        class token first; a gene's score is attended[cls] @ written. `embedded` (b, t, dim) are the genes before positions."""
        embedded = self.embed_tokens(batch)
        x = torch.cat([self.cls.expand(len(embedded), -1, -1), embedded], dim=1)
        if self.positions is not None:
            x = self.positions(x)
        pad = None if batch.pad is None else F.pad(batch.pad, (1, 0), value=False)
        memory = torch.eye(self.config.slots, self.dim, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        passes = request.depth(self.depth)
        written, attended = (
            x.new_zeros(len(x), self.config.slots, x.shape[1]),
            x.new_zeros(*x.shape[:2], self.config.slots),
        )
        for i in range(passes):
            rows = None if i < passes - 1 or request.wants("tokens", "attended") else 1
            read, memory, written, attended = self.memory(self.norm_memory(x), memory, pad, rows)
            x = (x if rows is None else x[:, :rows]) + self.dropout(read)
            x = x + self.dropout(self.ff2(self.dropout(F.relu(self.ff1(self.norm_ff(x))))))
        out = Encoded(cells=x[:, 0], tokens=x[:, 1:] if request.wants("tokens") else None)
        scores = (attended[:, :1] @ written).squeeze(1)  # (b, 1 + t)
        found = {
            "embedded": embedded,
            "memory": memory,
            "written": written,
            "attended": attended,
            "gene_scores": scores[:, 1:],
            "cls_score": scores[:, 0],
        }
        if request.wants("logits"):
            found["logits"] = self.classifier(x[:, 0])
        if request.wants("memory_mlp"):
            found["memory_mlp"] = self.memory_mlp(memory.flatten(1))
        out.heads = {name: value for name, value in found.items() if request.wants(name)}
        return out
