"""`scfm.load` from names, folders and hub repositories, against the hub of this machine."""

import hashlib
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm import registry
from scfm.cards import Weights
from scfm.checkpoint import Checkpoint
from scfm.errors import DownloadError, InputError, UnknownModelError
from scfm.loading import LicenceWarning, _finish

FIXTURE = Path(__file__).parents[1] / "parity" / "scgpt"
FILES = {name: (FIXTURE / "checkpoint" / name).read_bytes() for name in ("args.json", "vocab.json", "best_model.pt")}


@pytest.fixture
def expected() -> np.ndarray:
    return scfm.load(FIXTURE / "checkpoint").embed(ad.read_h5ad(FIXTURE / "input.h5ad"), gene_column="feature_name")


def embed(encoder) -> np.ndarray:
    return encoder.embed(ad.read_h5ad(FIXTURE / "input.h5ad"), gene_column="feature_name")


def with_weights(monkeypatch: pytest.MonkeyPatch, weights: Weights, **changes) -> None:
    """Let the card of scgpt name other weights."""
    adapter, card = registry.find("scgpt")
    other = card.model_copy(update={"weights": weights, **changes})
    monkeypatch.setattr(registry, "find", lambda name: (adapter, other))


def test_a_repository_is_recognised_and_its_commit_recorded(hub, expected):
    commit = hub.add("org/model", FILES)
    encoder = scfm.load("org/model")
    np.testing.assert_array_equal(embed(encoder), expected)
    assert encoder.origin["revision"] == commit
    assert encoder.origin["weights_sha256"] == hashlib.sha256(FILES["best_model.pt"]).hexdigest()


def test_a_revision_is_loaded_as_asked(hub, expected):
    old = hub.add("org/model", FILES)
    hub.add("org/model", {"README.md": b"emptied"})
    np.testing.assert_array_equal(embed(scfm.load("org/model", revision=old)), expected)
    with pytest.raises(DownloadError, match="no files that could be a checkpoint"):
        scfm.load("org/model")
    hub.add("org/other", {"notes.txt": b"not a model"})
    with pytest.raises(UnknownModelError, match="no installed adapter recognises"):
        scfm.load("org/other")


def test_a_named_model_comes_from_the_repository_and_revision_of_its_card(hub, expected, monkeypatch):
    commit = hub.add("lab/weights", FILES)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    with_weights(monkeypatch, Weights(repo="lab/weights", revision=commit, files=digests))
    encoder = scfm.load("scgpt")
    np.testing.assert_array_equal(embed(encoder), expected)
    assert encoder.card.name == "scgpt"
    before = len(hub.requests)
    scfm.load("scgpt")
    assert len(hub.requests) == before  # a pinned commit in the cache needs no connection


def test_files_that_are_not_those_of_the_card_are_not_loaded(hub, monkeypatch):
    commit = hub.add("lab/weights", FILES)
    with_weights(monkeypatch, Weights(repo="lab/weights", revision=commit, files={"best_model.pt": "0" * 64}))
    with pytest.raises(DownloadError, match=r"best_model\.pt"):
        scfm.load("scgpt")


def test_a_gated_repository_says_how_to_get_in(hub):
    hub.add("org/model", FILES)
    hub.gated["org/model"] = 403
    with pytest.raises(DownloadError, match="hf auth login"):
        scfm.load("org/model")


def test_weights_on_no_hub_say_where_they_are():
    with pytest.raises(DownloadError, match=r"Google Drive.*\n.*scfm\.load\('\./folder'\)"):
        scfm.load("scgpt/brain")


def test_a_restricting_licence_is_shown():
    adapter, card = registry.find("scgpt")
    restricted = card.model_copy(update={"restricted": "weights for non-commercial use only"})
    with pytest.warns(LicenceWarning, match="non-commercial"):
        _finish(adapter, Checkpoint(FIXTURE / "checkpoint", card=restricted), "cpu")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("scgtp", UnknownModelError, "Did you mean 'scgpt'"),
        ("./nowhere", UnknownModelError, "there is no folder"),
    ],
)
def test_what_is_not_there_is_named(name, error, words):
    with pytest.raises(error, match=words):
        scfm.load(name)


def test_unknown_load_options_are_refused():
    with pytest.raises(InputError, match="no load option 'colour'"):
        scfm.load(FIXTURE / "checkpoint", colour="red")


def test_saved_encoders_load_exactly_and_remember_where_they_came_from(tmp_path, expected):
    encoder = scfm.load(FIXTURE / "checkpoint").with_options(context=30)
    encoder.save(tmp_path / "saved")
    again = scfm.load(tmp_path / "saved")
    np.testing.assert_array_equal(embed(again), embed(encoder))
    assert again.tokenizer.settings() == encoder.tokenizer.settings()
    assert again.origin == encoder.origin
    assert not np.array_equal(embed(again), expected)


def test_meta_device_and_low_precision_are_handled_in_one_place():
    encoder = scfm.load(FIXTURE / "checkpoint")
    data = ad.read_h5ad(FIXTURE / "input.h5ad")
    exact = embed(encoder)
    low = encoder.embed(data, gene_column="feature_name", precision="bfloat16")
    assert low.dtype == np.float32
    assert 0 < np.abs(low - exact).max() < 0.02
    assert encoder.to("meta").device.type == "meta"
