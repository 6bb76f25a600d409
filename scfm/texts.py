"""The only loop over texts: descriptions in words -> vectors in the space of the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from scfm.engine import plan_batches

if TYPE_CHECKING:
    from scfm.encoder import CellEncoder

__all__ = ["embed_text"]

_TOKEN_BUDGET = 16_384


def embed_text(encoder: CellEncoder, texts: Sequence[str]) -> np.ndarray:
    """Vectors of texts (n_texts, dim) float32, in order."""
    tokens = encoder.text_tokens(texts)
    out = np.zeros((len(tokens), encoder.dim), dtype=np.float32)
    with torch.inference_mode():
        for rows in plan_batches(tokens.lengths, budget=_TOKEN_BUDGET, most_cells=512):
            out[rows] = encoder.text_vectors(tokens.collate(rows).to(encoder.device)).float().cpu().numpy()
    return out
