import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

import scfm
from scfm.errors import InputError


def test_scores_are_those_of_scikit_learn_when_all_genes_are_taken():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (600, 40)) + 0.01)
    counts[0, :] = 1  # every gene is expressed, every cell is not empty
    counts[:, 0] += 1
    data = AnnData(
        sparse.csr_matrix(counts, dtype=np.float32), var=pd.DataFrame(index=[f"gene {i}" for i in range(40)])
    )
    encoder = scfm.load("pca", device="cpu", components=5).fit(data)
    genes = data.var_names.get_indexer(list(encoder.vocabulary.tokens))
    x = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, genes]
    expected = PCA(5, svd_solver="full").fit_transform(x)
    found = encoder.embed(data)
    np.testing.assert_allclose(found * np.sign((found * expected).sum(axis=0)), expected, atol=1e-3)
    assert encoder.origin == {"source": "fitted on adata", "cells": "600"}


def test_more_components_than_cells_are_refused():
    data = AnnData(np.ones((4, 9), np.float32), var=pd.DataFrame(index=[f"gene {i}" for i in range(9)]))
    with pytest.raises(
        InputError, match=r"4 cells with 9 features do not determine 50 components(.|\n)*'pca', components=<fewer>"
    ):
        scfm.load("pca", device="cpu").embed(data)


def test_an_unfitted_encoder_needs_no_mapping_of_names():
    from scfm.data import pbmc_demo

    cells = pbmc_demo()[:100].copy()
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    encoder = scfm.load("pca", device="cpu", components=5, top_genes=100)
    np.testing.assert_array_equal(encoder.embed(cells, map_genes=True), encoder.embed(cells))
