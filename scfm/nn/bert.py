"""The parts of BERT (Devlin et al. 2019, arXiv:1810.04805) that rank and text encoders share, and its tensors' names in files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BertEmbedding", "bert_keys"]


class BertEmbedding(nn.Module):
    """LayerNorm(words[id] + positions[0..t] + types[0]).

    Parameters
    ----------
    count
        Tokens.
    dim
        Length of a state.
    positions
        Most tokens of a sequence.
    types
        Rows of the token-type table, of which only the first is used; 0: there is none.
    """

    def __init__(
        self, count: int, dim: int, positions: int, *, types: int = 2, eps: float = 1e-12, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(count, dim, padding_idx=0)
        self.positions = nn.Embedding(positions, dim)
        self.types = nn.Embedding(types, dim) if types else None
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, t) int64 -> (b, t, dim)."""
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.positions(place)
        if self.types is not None:
            x = x + self.types(torch.zeros_like(place))
        return self.dropout(self.norm(x))


def bert_keys(theirs: str = "", ours: str = "") -> dict[str, str | None]:
    """Tensor names of Hugging Face's `BertModel` -> those of a `BertEmbedding` called "embedding" and a `TransformerStack` called "layers".

    Parameters
    ----------
    theirs, ours
        Prefixes, e.g. "bert." and "text.".
    """
    embedding, layer, mine = f"{theirs}embeddings", f"{theirs}encoder.layer.{{i}}", f"{ours}layers.{{i}}"
    return {
        f"{embedding}.word_embeddings.weight": f"{ours}embedding.words.weight",  # (n_tokens, dim)
        f"{embedding}.position_embeddings.weight": f"{ours}embedding.positions.weight",  # (context, dim)
        f"{embedding}.token_type_embeddings.weight": f"{ours}embedding.types.weight",  # (2, dim)
        f"{embedding}.LayerNorm.{{p}}": f"{ours}embedding.norm.{{p}}",
        f"{embedding}.position_ids": None,  # 0 .. context-1, written by older versions
        f"{layer}.attention.self.query.{{p}}": f"{mine}.attention.q.{{p}}",
        f"{layer}.attention.self.key.{{p}}": f"{mine}.attention.k.{{p}}",
        f"{layer}.attention.self.value.{{p}}": f"{mine}.attention.v.{{p}}",
        f"{layer}.attention.output.dense.{{p}}": f"{mine}.attention.o.{{p}}",
        f"{layer}.attention.output.LayerNorm.{{p}}": f"{mine}.norm1.{{p}}",
        f"{layer}.intermediate.dense.{{p}}": f"{mine}.ff1.{{p}}",
        f"{layer}.output.dense.{{p}}": f"{mine}.ff2.{{p}}",
        f"{layer}.output.LayerNorm.{{p}}": f"{mine}.norm2.{{p}}",
    }
