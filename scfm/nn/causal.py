"""Causal attention of generative models, with the keys and values of earlier tokens kept for the tokens that follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scfm.nn.attention import SelfAttention, take_rows

__all__ = ["CausalAttention", "KeyValues"]


@dataclass
class KeyValues:
    """Keys and values of the tokens of one layer so far; a new one is empty.

    Parameters
    ----------
    keys, values
        (b, heads, t, d_head).
    pad
        (b, t) bool, True at padding; None when there is none.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    pad: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor, pad: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Put tokens behind those so far, and return all."""
        if self.keys is not None and self.values is not None:
            if self.pad is not None:
                pad = torch.cat([self.pad, self.pad.new_zeros(len(keys), keys.shape[2])], dim=1)
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values, self.pad = keys, values, pad
        return keys, values


class CausalAttention(SelfAttention):
    """Each token attends to itself and to those before it. Padding stands behind a cell's tokens, where none of them sees it."""

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        *,
        rows: int | Tensor | None = None,
        weights: bool = False,
        source: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `SelfAttention`.

        Parameters
        ----------
        x
            (b, t, dim); with a filled `cache`, the next token of each cell (b, 1, dim).
        cache
            Filled with the keys and values of `x`, or lengthened by them. Positions play no role in it: with padding, the next token stands
            behind the padding.
        """
        if source is not None:
            raise ValueError("causal attention is among a cell's own tokens; it has no other source")
        follows = cache is not None and cache.keys is not None
        q = self._split(self.q(take_rows(x, rows)))  # (b, h, r, d)
        k, v = self._split(self.k(x)), self._split(self.v(x))  # (b, h, t, d)
        if cache is not None:
            k, v = cache.append(k, v, pad)
        plain = rows is None and not follows
        seen = None if plain and not weights else self._seen(x, rows, cache if follows else None)  # (b or 1, r, t)
        probabilities = None
        if weights:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            if seen is not None:
                scores = scores.masked_fill(~seen.unsqueeze(1), float("-inf"))
            probabilities = scores.softmax(dim=-1)
            out = probabilities @ v
        else:
            mask = None if seen is None else seen.unsqueeze(1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plain)
        return self.o(out.transpose(1, 2).flatten(2)), probabilities

    @staticmethod
    def _seen(x: Tensor, rows: int | Tensor | None, past: KeyValues | None) -> Tensor | None:
        """True where a query may look (b or 1, r, t); None: everywhere."""
        if past is not None:
            return None if past.pad is None else ~past.pad.unsqueeze(1)
        place = torch.arange(x.shape[1], device=x.device)
        queries = rows if isinstance(rows, Tensor) else place[None, :rows]
        return place <= queries.unsqueeze(-1)
