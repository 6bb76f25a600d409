"""Attention maps of many cells, as matrices between genes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scfm.encoder import CellAttention, CellEncoder, Encoded, Request
from scfm.engine import BatchSize, Precision, Run
from scfm.inference import encode
from scfm.reading import read

if TYPE_CHECKING:
    import pandas as pd

    from scfm.cells import Data
    from scfm.genes import Vocabulary
    from scfm.tokenizers.base import Tokens

__all__ = ["cell_attention", "mean_attention"]

_Batches = Iterable[tuple[np.ndarray, "Tokens", Encoded]]


def _stacked(encoded: Encoded, row: int, length: int, layers: Sequence[int], heads: Sequence[int] | None) -> np.ndarray:
    """(layers, heads, length, length) of one cell."""
    weights = torch.stack([encoded.attention[layer][row, :, :length, :length] for layer in layers])
    return (weights if heads is None else weights[:, list(heads)]).numpy()


def cell_attention(
    batches: _Batches, vocabulary: Vocabulary, layers: Sequence[int], heads: Sequence[int] | None
) -> list[CellAttention]:
    """Each cell's own attention, in the order of the data."""
    names = np.array(vocabulary.tokens, dtype=object)
    found = {}
    for cells, tokens, encoded in batches:
        for row, cell in enumerate(cells):
            ids = tokens.cell(row)["ids"]
            found[int(cell)] = CellAttention(names[ids], _stacked(encoded, row, len(ids), layers, heads))
    return [found[cell] for cell in sorted(found)]


def mean_attention(
    encoder: CellEncoder,
    data: Data,
    layers: Sequence[int],
    heads: Sequence[int] | None,
    *,
    batch_size: BatchSize = "auto",
    precision: Precision = "float32",
    progress: bool | None = None,
    seed: int = 0,
    **reading: Any,
) -> pd.DataFrame:
    """Attention averaged over layers, heads and the cells in which both genes have tokens; a cell's own is dropped once it is added."""
    import pandas as pd

    vocabulary = encoder.vocabulary
    place: dict[int, int] = {}
    total = np.zeros((0, 0))
    met = np.zeros((0, 0))
    adding = threading.Lock()

    def add(cells: np.ndarray, tokens: Tokens, encoded: Encoded) -> Encoded:
        nonlocal total, met
        encoded = encoded.cpu()
        for row in range(len(cells)):
            ids = tokens.cell(row)["ids"]
            gene = np.array([i not in vocabulary.special_ids for i in ids.tolist()])
            weights = _stacked(encoded, row, len(ids), layers, heads).mean(axis=(0, 1))[np.ix_(gene, gene)]
            with adding:
                for token in ids[gene].tolist():
                    place.setdefault(token, len(place))
                if len(place) > len(total):
                    grow = (0, max(len(place), 2 * len(total)) - len(total))
                    total, met = np.pad(total, (grow, grow)), np.pad(met, (grow, grow))
                at = np.array([place[token] for token in ids[gene].tolist()], dtype=np.int64)
                np.add.at(total, np.ix_(at, at), weights)
                np.add.at(met, np.ix_(at, at), 1)
        return Encoded()

    request = Request(frozenset({"attention"}), attention_layers=tuple(layers))
    run = Run(request, batch_size, precision, reduce=add)
    run.check(encoder)
    for _ in encode(encoder, read(encoder, data, **reading), run, progress=progress, seed=seed):
        pass
    n = len(place)
    order = sorted(place)  # threads may meet the genes in any order
    at = np.array([place[token] for token in order], dtype=np.int64)
    total, met = total[np.ix_(at, at)], met[np.ix_(at, at)]
    mean = np.divide(total, met, out=np.full((n, n), np.nan), where=met > 0).astype(np.float32)
    genes = pd.Index([vocabulary.tokens[token] for token in order], dtype=object)
    return pd.DataFrame(mean, index=genes, columns=genes)
