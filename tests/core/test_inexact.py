"""What is faster and not exact: near the exact result, refused where it can't be, and said in the provenance."""

import json

import numpy as np
import pytest
from anndata import AnnData

import scfm
from scfm.data import pbmc_demo
from scfm.errors import CapabilityError, InputError, ResumeError
from scfm.inexact import shortened
from scfm.tokenizers.base import Tokens


@pytest.fixture(scope="module")
def encoder() -> scfm.CellEncoder:
    return scfm.load("mini", device="cpu")


@pytest.fixture(scope="module")
def data() -> AnnData:
    return pbmc_demo()[:40].copy()


@pytest.fixture(scope="module")
def exact(encoder, data) -> np.ndarray:
    return encoder.embed(data)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_eight_bits_are_near_and_leave_the_encoder_as_it_was(encoder, data, exact):
    found = encoder.embed(data, precision="int8")
    assert not np.array_equal(found, exact)
    assert cosine(found, exact).min() > 0.99
    np.testing.assert_array_equal(encoder.embed(data), exact)


def test_fewer_tokens_are_the_highest_ranked_ones(encoder, data, exact):
    short = encoder.embed(data, max_tokens=64)
    assert not np.allclose(short, exact)
    longest = max(int(tokens.lengths.max()) for tokens in encoder.tokenize(data))
    np.testing.assert_array_equal(encoder.embed(data, max_tokens=longest), exact)
    kept = [tokens for _, tokens, _ in encoder.encode(data)]
    for tokens in kept:
        cut = shortened(tokens, 64, encoder)
        assert cut.lengths.max() <= 64
        priority = encoder.tokenizer.priority(tokens)
        for row in range(len(tokens)):
            span = slice(tokens.offsets[row], tokens.offsets[row + 1])
            best = np.sort(priority[span])[::-1][:64]
            np.testing.assert_array_equal(np.sort(encoder.tokenizer.priority(cut.select(np.array([row]))))[::-1], best)


def test_special_tokens_stay_whatever_the_limit(encoder, data):
    special = sorted(encoder.vocabulary.special_ids)
    tokens = next(iter(encoder.tokenize(data)))
    before = np.isin(tokens.fields["ids"], special).sum()
    assert before > 0
    assert np.isin(shortened(tokens, 2, encoder).fields["ids"], special).sum() == before


def test_what_cannot_be_shortened_is_refused(encoder, monkeypatch):
    tokens = Tokens({"ids": np.arange(4), "values": np.ones(4)}, np.array([0, 4]), np.array([4]))

    monkeypatch.setattr(type(encoder.tokenizer), "priority", lambda self, tokens: None)
    with pytest.raises(CapabilityError, match="max_tokens= can't shorten"):
        shortened(tokens, 2, encoder)


def test_provenance_says_so_and_another_choice_does_not_continue(encoder, data, tmp_path):
    encoder.embed(data, out=tmp_path / "z.npy", precision="int8", max_tokens=50)
    record = json.loads((tmp_path / "z.npy.journal").read_text().splitlines()[0])["record"]
    assert (record["precision"], record["max_tokens"]) == ("int8", 50)
    with pytest.raises(ResumeError, match=r"\(max_tokens\)"):
        encoder.embed(data, out=tmp_path / "z.npy", precision="int8", max_tokens=40)


def test_wrong_values_are_refused(encoder, data):
    for wrong, message in (({"precision": "int4"}, "'int8'"), ({"max_tokens": 0}, "from 1 up")):
        with pytest.raises(InputError, match=message):
            encoder.embed(data, **wrong)
    with pytest.raises(CapabilityError, match="no Linear"):
        scfm.load("pca", device="cpu", components=3, top_genes=20).fit(data).embed(data, precision="int8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_network_gives_nearly_the_same(encoder, data, exact):
    np.testing.assert_allclose(encoder.embed(data[:6], compile=True), exact[:6], atol=1e-4)
