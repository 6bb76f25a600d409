"""Pushing to the hub and pulling from it: the real client, a hub on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import scfm
from scfm.data import pbmc_demo
from scfm.errors import CheckpointError, DownloadError
from scfm.hub import upload

pytest.importorskip("peft")

# huggingface_hub 2.4 hands a file to httpx in a way that httpx is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_of_somebody_who_may_write"
REPO = "lab/cell-types"


@pytest.fixture(scope="module")
def cells():
    adata = pbmc_demo()[:24].copy()
    adata.obs["kind"] = ["a", "b"] * 12
    return adata


@pytest.fixture(scope="module")
def tuned(cells) -> scfm.FineTuned:
    encoder = scfm.load("mini", device="cpu").with_options(context=24)
    return scfm.finetune(encoder, cells, "kind", method=scfm.LoRA(rank=2), epochs=1, valid=None, progress=False)


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def test_what_was_pushed_is_pulled_and_predicts_the_same(logged_in, tuned, cells):
    commit = tuned.push_to_hub(REPO)
    assert logged_in.private == {REPO: True}
    assert logged_in.branches[REPO, "main"] == commit
    again = scfm.load(REPO, device="cpu")
    assert again.predict(cells, progress=False).equals(tuned.predict(cells, progress=False))
    pinned = scfm.load(REPO, revision=commit, device="cpu")
    assert pinned.origin["tensors_sha256"] == tuned.origin["tensors_sha256"]


def test_the_base_comes_from_its_own_repository(logged_in, tuned, cells, tmp_path, monkeypatch):
    base = scfm.load("mini", device="cpu")
    base.save(tmp_path / "base")
    upload(tmp_path / "base", "lab/base")
    encoder = scfm.load("lab/base", device="cpu").with_options(context=24)
    encoder.origin = {"source": "lab/base", "revision": logged_in.branches["lab/base", "main"]}
    other = scfm.finetune(encoder, cells, "kind", method="head", epochs=1, valid=None, progress=False)
    other.push_to_hub(REPO, private=False)
    assert logged_in.private[REPO] is False
    assert 'base_model: "lab/base"' in logged_in.content(REPO)["README.md"].decode()
    logged_in.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another machine"))
    again = scfm.load(REPO, device="cpu")
    assert any("lab/base" in request.path for request in logged_in.requests)
    assert again.predict(cells, progress=False).equals(other.predict(cells, progress=False))


def test_a_push_replaces_the_model_and_keeps_other_files(logged_in, tuned, cells):
    tuned.push_to_hub(REPO)
    logged_in.add(REPO, {**logged_in.content(REPO), "notes.md": b"ours"})
    encoder = scfm.load("mini", device="cpu").with_options(context=24)
    scfm.finetune(encoder, cells, "kind", method="head", epochs=1, valid=None, progress=False).push_to_hub(REPO)
    content = logged_in.content(REPO)
    assert "adapter_model.safetensors" not in content
    assert content["notes.md"] == b"ours"
    assert scfm.load(REPO, device="cpu").record["method"]["kind"] == "head"


def test_a_branch_is_made_where_it_is_missing(logged_in, tuned):
    tuned.push_to_hub(REPO, revision="trial")
    assert "head.safetensors" in logged_in.content(REPO, "trial")
    assert "head.safetensors" not in logged_in.content(REPO, "main")
    tuned.push_to_hub(REPO, revision="trial")
    assert scfm.load(REPO, revision="trial", device="cpu").name == tuned.name


def test_without_a_token_nothing_is_written(hub, tuned):
    with pytest.raises(DownloadError, match="did not let you write") as caught:
        tuned.push_to_hub(REPO)
    assert "hf auth login" in caught.value.fix
    assert not hub.commits


@pytest.mark.parametrize("repo", ["model", "a/b/c", "lab/with space"])
def test_names_that_cannot_be_are_refused(logged_in, tuned, repo):
    with pytest.raises(DownloadError, match="cannot be a repository"):
        tuned.push_to_hub(repo)


def test_another_base_is_refused_after_a_pull(logged_in, tuned, cells):
    from copy import copy, deepcopy

    import torch

    tuned.push_to_hub(REPO)
    other = copy(scfm.load("mini", device="cpu"))
    other.network = deepcopy(other.network)
    with torch.no_grad():
        other.network.norm.bias[0] += 1
    with pytest.raises(CheckpointError, match="base has other weights"):
        scfm.load(REPO, base=other)


def test_a_saved_folder_is_pushed_from_the_shell(logged_in, tuned, tmp_path: Path):
    from scfm.cli import app

    tuned.save(tmp_path / "tuned")
    result = CliRunner().invoke(app, ["push", str(tmp_path / "tuned"), REPO, "--public"])
    assert result.exit_code == 0, result.output
    assert logged_in.private == {REPO: False}
    assert logged_in.branches[REPO, "main"][:12] in result.output
