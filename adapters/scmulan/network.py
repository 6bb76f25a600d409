"""scMulan's network: a GPT without positions, over genes with expression levels, and the greedy continuation of a cell's sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scfm.encoder import Encoded, Network, Request
from scfm.nn import CausalAttention, KeyValues, TransformerLayer, TransformerStack
from scfm.nn.attention import take_rows
from scfm.tokenizers import Batch

STEPS = 3
"""Tokens the authors let the network add to a cell: coarse type, type, and one more."""


@dataclass(frozen=True)
class ScMulanConfig:
    """Sizes, as found in `model_args`, and the tokens of `meta_info.pt` that are cell types."""

    tokens: int = 2222
    levels: int = 10  # expression levels of a gene; 0 is for tokens that are no genes
    dim: int = 1120
    layers: int = 24
    heads: int = 20
    bias: bool = False  # of Linears and LayerNorms
    dropout: float = 0.0
    end: int = 0  # id of <E>
    cell_types: tuple[str, ...] = ()  # sorted; the authors' fine and coarse types
    coarse_types: tuple[str, ...] = ()


class ScMulanNetwork(Network):
    """x = tokens + levels; causal pre-norm layers; LayerNorm; the cell is the state of the first token that the network adds."""

    token_embedding = "levels"
    token_cost = 4  # keys and values of all layers are kept
    heads = frozenset({"next_token", "next_expression", "generated", "generated_expression"})

    def __init__(self, config: ScMulanConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.dim, self.depth = c.dim, c.layers
        self.tokens = nn.Embedding(c.tokens, c.dim)
        self.levels = nn.Embedding(c.levels + 1, c.dim)
        self.layers = TransformerStack(
            TransformerLayer(
                c.dim,
                c.heads,
                4 * c.dim,
                activation="gelu_tanh",
                norm="pre",
                dropout=c.dropout,
                bias=c.bias,
                norm_bias=c.bias,
                attention=CausalAttention(c.dim, c.heads, bias=c.bias),
            )
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.dim, bias=c.bias)
        self.next_token = nn.Linear(c.dim, c.tokens, bias=False)
        self.next_expression = nn.Linear(c.dim, c.tokens, bias=False)

    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """What `request` asks for.

        Heads: "next_token" and "next_expression" (b, n_tokens), scores and predicted levels of what follows the cell's sentence;
        "generated" and "generated_expression" (b, 3) int64, ids and levels of the tokens added, -1 behind ``<E>``.
        """
        ids, pad = batch["ids"], batch.pad
        x = self.tokens(ids) + self.levels(batch["bins"])  # (b, t, dim)
        attention = request.attended(self.depth)
        if request.only_attention:
            return Encoded(attention=self.layers.run(x, pad, layers=max(attention) + 1, attention=attention).attention)
        passes = self._passes(request)
        depth = request.depth(self.depth)
        lengths = torch.full(ids.shape[:1], ids.shape[1], device=ids.device) if pad is None else (~pad).sum(dim=1)
        ends = torch.stack([lengths - 2, lengths - 1], dim=1).clamp(min=0)  # (b, 2): the last gene, <PCT>
        every = bool(attention) or request.wants("tokens")
        states = self._states(
            x,
            pad,
            depth,
            top=passes > 0 or any(i >= depth for i in attention) or request.wants("next_token", "next_expression"),
            rows=None if every else ends,
            attention=attention,
            cache=[KeyValues() for _ in self.layers] if passes > 1 else None,
        )
        out = Encoded(tokens=states.read if request.wants("tokens") else None, attention=states.attention)
        if every:
            states = states.at(ends)
        if request.wants("cells") and request.pooling == "prompt":
            out.cells = states.read[:, 1]
        if states.last is not None and request.wants("next_token"):
            out.heads["next_token"] = self.next_token(states.last[:, 1])
        if states.last is not None and request.wants("next_expression"):
            out.heads["next_expression"] = self.next_expression(states.last[:, 1])
        if passes:
            self._continue(out, request, ids, lengths, states, depth, passes)
        return out

    @staticmethod
    def _passes(request: Request) -> int:
        """How often the network must run: for a cell's vector up to the scores behind the first token added."""
        if request.wants("generated", "generated_expression"):
            return STEPS
        return STEPS - 1 if request.wants("cells") and request.pooling != "prompt" else 0

    def _states(
        self,
        x: Tensor,
        pad: Tensor | None,
        depth: int,
        *,
        top: bool,
        rows: Tensor | None = None,
        attention: Sequence[int] = (),
        cache: list[KeyValues] | None = None,
    ) -> _States:
        """States after `depth` layers and, if `top`, after all; at `rows`, or all."""
        if depth == self.depth:
            run = self.layers.run(x, pad, rows=rows, attention=attention, cache=cache)
            read = self.norm(run.states)
            return _States(read, read, run.attention, cache)
        lower = self.layers.run(x, pad, layers=depth, attention=attention, cache=cache)
        found = _States(lower.states, None, lower.attention, cache)
        if top:
            upper = self.layers.run(lower.states, pad, start=depth, rows=rows, attention=attention, cache=cache)
            found.last = self.norm(upper.states)
            found.attention.update(upper.attention)
        if rows is not None:
            found.read = take_rows(found.read, rows)
        return found

    def _continue(
        self, out: Encoded, request: Request, ids: Tensor, lengths: Tensor, states: _States, depth: int, passes: int
    ) -> None:
        """The authors' generation: the best token each time, never one that stands before the last, until ``<E>`` or after three.

        The authors read the state before the last in the last pass: that of the first token added or, where ``<E>`` comes second or
        first, of ``<PCT>`` or the last gene.
        """
        c = self.config
        earlier = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1) - 1  # (b, t)
        refused = ids.new_zeros(len(ids), c.tokens).scatter_add_(1, ids, earlier.long()) > 0  # (b, n_tokens)
        token = ids.gather(1, lengths.unsqueeze(1) - 1)  # (b, 1)
        assert states.last is not None
        first, last = states.read, states.last[:, 1]  # (b, 2, dim), (b, dim)
        added, levels = [], []
        for step in range(passes):
            best = self.next_token(last).masked_fill(refused, float("-inf")).argmax(dim=1, keepdim=True)  # (b, 1)
            level = self.next_expression(last).gather(1, best).round().clamp(0, c.levels).long()
            added.append(best)
            levels.append(level)
            if step == passes - 1:
                break
            refused = refused.scatter(1, token, True)
            token = best
            after = self._states(self.tokens(best) + self.levels(level), None, depth, top=True, cache=states.cache)
            assert after.last is not None
            last = after.last[:, 0]
            if step == 0:
                first = torch.cat([first, after.read], dim=1)  # (b, 3, dim): last gene, <PCT>, first token added
        tokens = torch.cat(added, dim=1)  # (b, passes)
        ended = (tokens == c.end).cumsum(dim=1) > 0
        if request.wants("cells") and request.pooling != "prompt":
            which = 2 - ended[:, :2].sum(dim=1)  # 2 passes or more without <E>, ...
            out.cells = first[torch.arange(len(ids), device=ids.device), which]
        behind = ended.roll(1, dims=1)
        behind[:, 0] = False
        if request.wants("generated"):
            out.heads["generated"] = tokens.masked_fill(behind, -1)
        if request.wants("generated_expression"):
            out.heads["generated_expression"] = torch.cat(levels, dim=1).masked_fill(behind, -1)


@dataclass
class _States:
    """States after the layer that is read (b, r, dim), normalised ones after all layers, and what came with them."""

    read: Tensor
    last: Tensor | None
    attention: dict[int, Tensor]
    cache: list[KeyValues] | None

    def at(self, rows: Tensor) -> _States:
        """The same at some positions (b, r) int64."""
        last = None if self.last is None else take_rows(self.last, rows)
        return _States(take_rows(self.read, rows), last, self.attention, self.cache)
