"""The document frequency that ranks a cell's regions, counted in the user's data where the checkpoint's is missing or of other cells."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from scfm.cells import Data
from scfm.encoder import CellEncoder
from scfm.errors import InputError
from scfm.tokenizers.regions import RegionTokenizer

__all__ = ["counted_in"]


def counted_in(encoder: CellEncoder, data: Data, **reading: Any) -> CellEncoder:
    """The same encoder, whose regions are ranked by their document frequency in these data.

    The frequency of a region is the share of the cells (those with any open region) in which it is open. Regions that are closed in all of
    them get the frequency of the rarest open one. The checkpoint's own frequency, of its training corpus, is what its network was trained
    with: prefer it where you have it.

    Parameters
    ----------
    encoder
        One that ranks regions by TF-IDF.
    data
        Cells to count in, e.g. the reference; use one and the same encoder for all data that are compared.
    reading
        Arguments of `CellEncoder.embed` that say how data are read: layer, gene_column, map_genes, values.

    Returns
    -------
    CellEncoder
        A new one that shares the network; its provenance says what was counted.

    Raises
    ------
    InputError
        The encoder ranks no regions, or no cell has an open one.
    """
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, RegionTokenizer) or tokenizer.scale is None:
        raise InputError(f"{encoder.name} does not rank regions by their document frequency.")
    vocabulary = encoder.vocabulary
    room = len(vocabulary) + len(tokenizer.prefix) + len(tokenizer.suffix)
    plain = encoder.with_options(scale=None, context=room, truncation="first")
    opened, cells = np.zeros(len(vocabulary), dtype=np.int64), 0
    for tokens in plain.tokenize(data, **reading):
        opened += np.bincount(tokens.fields["ids"], minlength=len(vocabulary))
        cells += int((tokens.expressed > 0).sum())
    found = opened[vocabulary.genes]
    if not cells:
        raise InputError(f"no cell has an open region that {encoder.name} knows.")
    column = np.full(len(vocabulary), np.nan)
    column[vocabulary.genes] = np.where(found > 0, found, found[found > 0].min()) / cells
    counted = replace(vocabulary, columns={**vocabulary.columns, tokenizer.scale: column})
    other = copy(encoder)
    source = f" of {Path(data).name}" if isinstance(data, str | PathLike) else ""
    other.tokenizer = replace(tokenizer, vocabulary=counted, frequency_of=f"data: {cells} cells{source}")
    return other
