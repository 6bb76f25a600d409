"""Synthetic cells for any encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["example_data"]


def example_data(encoder: CellEncoder, n_cells: int = 8, seed: int = 0) -> AnnData:
    """Synthetic cells for an encoder.

    Parameters
    ----------
    encoder
        Its vocabulary gives the features, three more are unknown to it; its card the unit; its tokenizer the columns of `obs`.
    n_cells
        How many; they express from a tenth to nine tenths of the features, so that their numbers of tokens differ.
    seed
        Of the random counts.

    Returns
    -------
    AnnData
        (n_cells, at most 203) float32 CSR in `X`.
    """
    import pandas as pd
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    vocabulary = encoder.vocabulary
    genes = np.sort(rng.permutation(vocabulary.genes)[:200])
    names = [vocabulary.tokens[i] for i in genes]
    names[len(names) // 2 : len(names) // 2] = [f"unknown feature {i}" for i in range(3)]
    shares = np.linspace(0.1, 0.9, n_cells)[rng.permutation(n_cells)]
    counts = (rng.poisson(rng.gamma(0.8, 3.0, (n_cells, len(names)))) + 1.0) * (
        rng.random((n_cells, len(names))) < shares[:, None]
    )
    counts[np.arange(n_cells), np.arange(n_cells) % max(len(genes) // 2, 1)] += 1  # a known feature: no cell is empty
    x = sparse.csr_matrix(counts, dtype=np.float32)
    if encoder.card.input.values == "lognorm":
        x = sparse.csr_matrix(x.multiply(1e4 / x.sum(axis=1)).log1p(), dtype=np.float32)
    obs = pd.DataFrame(index=pd.Index([f"cell {i}" for i in range(n_cells)], dtype=object))
    if (key := getattr(encoder.tokenizer, "batch_key", None)) is not None:
        batches = encoder.tokenizer.batches  # type: ignore[attr-defined]
        obs[key] = pd.Categorical([batches[i % len(batches)] for i in range(n_cells)])
    if (key := encoder.tokenizer.group_key) is not None:
        obs[key] = pd.Categorical([f"group {i % 2}" for i in range(n_cells)])
    for key, values in encoder.tokenizer.obs_values.items():
        obs[key] = pd.Categorical([values[i % len(values)] for i in range(n_cells)])
    if missing := sorted(set(encoder.tokenizer.obs_columns) - set(obs)):
        raise InputError(f"the tokenizer reads obs {listing(missing)}, which has no example.", "Pass data=.")
    return AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))
