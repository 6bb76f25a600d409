"""Expression generated from flags of perturbed genes: the adapter's own generator, cell by cell through the core."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.errors import CapabilityError, GeneMatchError, InputError
from scfm.in_silico import ExpressionGenerator
from scfm.perturbation import ResponsePredictor, linear_response

PARITY = Path(__file__).parents[2] / "parity" / "scgpt"


@pytest.fixture(scope="module")
def cells():
    data = ad.read_h5ad(PARITY / "input.h5ad")[3:9].copy()
    data.var_names = data.var["feature_name"].astype(str).to_numpy()
    data.var_names_make_unique()
    return data


def test_numbers_are_those_of_the_authors_generator(cells):
    encoder = scfm.load(PARITY / "checkpoint_perturbation")
    generator = ExpressionGenerator(encoder)
    assert isinstance(generator, ResponsePredictor)
    known = [str(g) for g in cells.var_names if encoder.vocabulary.lookup([g])[0] >= 0]
    pair = f"{known[3]}+{known[10]}"
    made = generator.predict_response(cells, [pair, f"{known[5]}+ctrl"])
    assert made.X is None
    assert list(made.obs["condition"]) == [pair] * 6 + [f"{known[5]}+ctrl"] * 6
    counts = cells.X.toarray().astype(float)
    values = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    tokens = encoder.vocabulary.lookup(cells.var_names)
    tokens[tokens < 0] = encoder.vocabulary.id("pad")
    for rows, genes in ((slice(0, 6), pair.split("+")), (slice(6, 12), [known[5]])):
        flags = np.tile(np.isin(cells.var_names, genes).astype(int), (6, 1))
        expected = encoder.predict_perturbation(values, flags, tokens)  # compared with the authors' in tests/parity
        np.testing.assert_allclose(made.layers["predicted"][rows], expected, atol=1e-5)
    np.testing.assert_allclose(made.layers["control"][:6], values, atol=1e-6)
    assert np.abs(made.layers["predicted"] - made.layers["control"]).max() > 1e-3  # not the input
    assert np.isfinite(linear_response(made)[0]).all()


def test_what_cannot_be_generated_is_refused(cells):
    generator = ExpressionGenerator(scfm.load(PARITY / "checkpoint_perturbation"))
    with pytest.raises(GeneMatchError, match="no 'NOSUCH'"):
        generator.predict_response(cells, ["NOSUCH"])
    with pytest.raises(InputError, match="list of names"):
        generator.predict_response(cells, "CD3E")
    logged = cells.copy()
    logged.X = logged.X / 3
    with pytest.raises(InputError, match="reads raw counts"):
        generator.predict_response(logged, [str(cells.var_names[0])])
    with pytest.raises(CapabilityError, match="does not read which genes are perturbed"):
        ExpressionGenerator(scfm.load(PARITY / "checkpoint"))
    with pytest.raises(CapabilityError, match="has no expression"):
        ExpressionGenerator(scfm.load("mini"))
