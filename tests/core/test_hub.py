"""scfm.hub: downloads from a hub on this machine (conftest.py), tensors without pickles, dictionaries without code."""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scfm import files as scfm_files
from scfm import tensors as scfm_tensors
from scfm.errors import CheckpointError, DownloadError
from scfm.files import cache_dir, sha256
from scfm.hub import RemoteFile, download, resolved_revision
from scfm.tensors import read_tensors
from scfm.unpickle import safe_unpickle

REPO = "lab/model"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {"model.pt": WEIGHTS, "vocab.json": b'{"CD3E": 1}'}


def remote(name: str, content: bytes, optional: bool = False) -> RemoteFile:
    return RemoteFile(name, hashlib.sha256(content).hexdigest(), optional)


WANTED = [remote(name, content) for name, content in FILES.items()]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCFM_CACHE", str(tmp_path / "scfm-cache"))


@pytest.fixture
def offline(monkeypatch):
    def switch() -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return switch


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


# ---------------------------------------------------------------------------------------------------- download


def test_download_returns_the_folder_with_the_files(hub):
    commit = hub.add(REPO, FILES)
    folder = download(REPO, WANTED)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert resolved_revision(folder) == commit


def test_a_second_download_fetches_nothing(hub):
    hub.add(REPO, FILES)
    first = download(REPO, WANTED)
    hub.requests.clear()
    assert download(REPO, WANTED) == first
    assert {request.method for request in hub.requests} == {"HEAD"}  # has the branch moved?


def test_a_pinned_commit_in_the_cache_asks_the_hub_nothing(hub):
    commit = hub.add(REPO, FILES)
    wanted = [*WANTED, RemoteFile("extra.json", None, optional=True)]
    first = download(REPO, wanted, revision=commit)
    hub.requests.clear()
    assert download(REPO, wanted, revision=commit) == first
    assert hub.requests == []


def test_a_pinned_revision_is_what_comes_although_the_branch_moved_on(hub):
    old = hub.add(REPO, FILES)
    hub.add(REPO, FILES | {"vocab.json": b"{}"})
    folder = download(REPO, WANTED, revision=old)
    assert resolved_revision(folder) == old
    assert (folder / "vocab.json").read_bytes() == FILES["vocab.json"]


def test_all_files_come_from_one_commit_although_the_branch_moves_meanwhile(hub, monkeypatch):
    import huggingface_hub

    old = hub.add(REPO, FILES)
    fetch = huggingface_hub.hf_hub_download

    def fetch_and_push(*args, **kwargs):
        path = fetch(*args, **kwargs)
        hub.add(REPO, FILES | {"vocab.json": b"{}"})
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_and_push)
    folder = download(REPO, WANTED)
    assert resolved_revision(folder) == old
    assert (folder / "vocab.json").read_bytes() == FILES["vocab.json"]


def test_a_cut_connection_is_taken_up_where_it_broke(hub, monkeypatch):
    chunk = 1 << 16
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", chunk)  # the client writes by chunks of 10 MB
    hub.add(REPO, FILES)
    hub.cut["model.pt"] = 10 * chunk
    folder = download(REPO, WANTED)
    assert (folder / "model.pt").read_bytes() == WEIGHTS
    first, second = hub.gets("model.pt")
    assert (first.range, first.sent) == (None, 10 * chunk)
    assert second.range == f"bytes={10 * chunk}-"
    assert first.sent + second.sent == len(WEIGHTS)


def test_files_in_folders_of_the_repository(hub):
    files = {"V2/dictionaries/tokens.json": b"{}", "V2/model.pt": WEIGHTS}
    hub.add(REPO, files)
    folder = download(REPO, [remote(name, content) for name, content in files.items()])
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert resolved_revision(folder)


def test_without_a_list_all_checkpoint_files_come_and_no_others(hub):
    hub.add(REPO, FILES | {"figure.png": b"png", "sub/config.json": b"{}"})
    folder = download(REPO, None)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"model.pt", "vocab.json", "sub/config.json"}


def test_a_file_with_another_hash_is_refused_and_forgotten(hub):
    commit = hub.add(REPO, FILES)
    hub.corrupted.add("model.pt")
    with pytest.raises(DownloadError) as failure:
        download(REPO, WANTED, revision=commit)
    found = hashlib.sha256(b"\x01" + WEIGHTS[1:]).hexdigest()
    assert all(part in str(failure.value) for part in ("model.pt", found, WANTED[0].sha256, "Try again"))
    cached = [path for path in (hub.folder / "hub").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert cached == []

    hub.corrupted.clear()
    assert (download(REPO, WANTED, revision=commit) / "model.pt").read_bytes() == WEIGHTS


def test_a_file_that_went_bad_in_the_cache_is_refused(hub, offline):
    hub.add(REPO, FILES)
    path = download(REPO, WANTED) / "model.pt"
    path.write_bytes(WEIGHTS[:-1] + b"x")
    offline()
    with pytest.raises(DownloadError, match=r"model\.pt is not the file"):
        download(REPO, WANTED)


def test_a_hash_may_be_written_as_cards_write_it(hub):
    hub.add(REPO, FILES)
    assert download(REPO, [RemoteFile("model.pt", f"sha256:{WANTED[0].sha256.upper()}")])


def test_an_optional_file_may_be_absent(hub, offline):
    hub.add(REPO, FILES)
    wanted = [RemoteFile("extra.json", None, optional=True), *WANTED]
    assert sorted(path.name for path in download(REPO, wanted).iterdir()) == sorted(FILES)
    offline()
    assert sorted(path.name for path in download(REPO, wanted).iterdir()) == sorted(FILES)


def test_an_optional_file_that_was_never_asked_for_is_not_taken_for_absent_when_offline(hub, offline):
    hub.add(REPO, FILES | {"extra.json": b"{}"})
    download(REPO, WANTED)
    offline()
    with pytest.raises(DownloadError, match=r"extra\.json .* offline"):
        download(REPO, [*WANTED, RemoteFile("extra.json", None, optional=True)])


def test_a_repository_with_none_of_the_optional_files(hub):
    hub.add(REPO, FILES)
    with pytest.raises(DownloadError, match=r"none of the files 'extra\.json'"):
        download(REPO, [RemoteFile("extra.json", None, optional=True)])


def failure_of(*args, **kwargs) -> DownloadError:
    with pytest.raises(DownloadError) as failure:
        download(*args, **kwargs)
    assert failure.value.__cause__ is not None
    assert failure.value.fix
    return failure.value


@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_a_missing_repository(hub, files):
    error = failure_of("lab/modle", files)
    assert "no repository 'lab/modle'" in error.found
    assert f"{hub.url}/lab/modle" in error.fix


@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_a_missing_revision(hub, files):
    hub.add(REPO, FILES)
    error = failure_of(REPO, files, revision="v9")
    assert "'v9'" in error.found
    assert "commits" in error.fix


def test_a_missing_file(hub):
    hub.add(REPO, FILES)
    error = failure_of(REPO, [RemoteFile("modle.pt", None)])
    assert "modle.pt of lab/model" in error.found
    assert f"{hub.url}/{REPO}/tree/main" in error.fix


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_a_gated_repository(hub, status, files):
    hub.add(REPO, FILES)
    hub.gated[REPO] = status
    error = failure_of(REPO, files)
    assert "gated" in error.found
    assert str(status) in error.found
    assert all(part in error.fix for part in (f"{hub.url}/{REPO}", "hf auth login", "HF_TOKEN"))


@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_a_refused_token(hub, files):
    hub.add(REPO, FILES)
    hub.broken[REPO] = 403
    error = failure_of(REPO, files)
    assert "refused" in error.found
    assert "settings/tokens" in error.fix


def test_a_hub_in_trouble(hub):
    hub.add(REPO, FILES)
    hub.broken[REPO] = 500
    assert "500" in failure_of(REPO, WANTED).found


def test_a_name_that_is_no_repository(hub):
    assert '"owner/name"' in failure_of("a/b/c", WANTED).fix


@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_offline_with_the_files_in_the_cache(hub, offline, files):
    hub.add(REPO, FILES)
    folder = download(REPO, files)
    offline()
    hub.requests.clear()
    assert download(REPO, files) == folder
    assert hub.requests == []


@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_offline_without_the_files(hub, offline, files):
    hub.add(REPO, FILES)
    offline()
    error = failure_of(REPO, files)
    assert "offline mode is on" in error.found
    assert "HF_HUB_OFFLINE" in error.fix
    assert hub.requests == []


@pytest.mark.parametrize("files", [WANTED, None], ids=["files", "all"])
def test_no_connection(hub, monkeypatch, files):
    hub.add(REPO, FILES)
    folder = download(REPO, files)
    nowhere = "http://127.0.0.1:9"  # discard: nobody listens
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    assert download(REPO, files) == folder  # what is in the cache stays usable
    error = failure_of("lab/other", files)
    assert f"No connection to {nowhere}" in error.found


def test_the_environment_chooses_hub_and_offline_mode(hub):
    """The same in a process of its own, where nothing is patched."""
    hub.add(REPO, FILES)
    script = f"""
from scfm.hub import RemoteFile, download
print(download({REPO!r}, [RemoteFile("vocab.json", {WANTED[1].sha256!r})]))
"""

    def run(**extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script], env=hub.env() | extra, capture_output=True, text=True
        )

    refused = run(HF_HUB_OFFLINE="1")
    assert "scfm.errors.DownloadError: vocab.json of lab/model is not in the cache" in refused.stderr
    online = run()
    assert (Path(online.stdout.strip()) / "vocab.json").read_bytes() == FILES["vocab.json"], online.stderr
    assert run(HF_HUB_OFFLINE="1").stdout == online.stdout


def test_importing_the_module_imports_nothing_heavy_and_writes_nothing(tmp_path):
    script = "import sys, scfm.hub; print({'torch', 'numpy', 'safetensors', 'huggingface_hub'} & set(sys.modules))"
    env = os.environ | {"SCFM_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------------ hashes


def test_the_cache_folder_follows_the_environment(monkeypatch):
    assert cache_dir() == Path(os.environ["SCFM_CACHE"])
    monkeypatch.delenv("SCFM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_dir() == Path("/caches/scfm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "scfm"


def test_a_large_file_is_hashed_once_for_as_long_as_it_stays_the_same(tmp_path, monkeypatch):
    path = tmp_path / "weights.bin"
    path.write_bytes(WEIGHTS)
    hashed = []
    original = scfm_files._hashed
    monkeypatch.setattr(scfm_files, "_hashed", lambda path: hashed.append(path) or original(path))
    assert sha256(path) == sha256(path) == hashlib.sha256(WEIGHTS).hexdigest()
    assert len(hashed) == 1

    other = tmp_path / "other.bin"
    other.write_bytes(WEIGHTS[::-1])
    os.utime(other, ns=(0, path.stat().st_mtime_ns))  # even the same age and size
    other.replace(path)
    assert sha256(path) == hashlib.sha256(WEIGHTS[::-1]).hexdigest()
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"file": 1'])
def test_a_damaged_memory_of_hashes_is_ignored(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(WEIGHTS)
    sha256(path)
    (note,) = (cache_dir() / "sha256").iterdir()
    note.write_text(content)
    assert sha256(path) == hashlib.sha256(WEIGHTS).hexdigest()


# ----------------------------------------------------------------------------------------------------- tensors


def converted() -> list[Path]:
    return sorted((cache_dir() / "tensors").glob("*.safetensors"))


def assert_same(torch, found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert found[key].is_contiguous()
        assert torch.equal(found[key], tensor), key


@pytest.fixture
def state(torch):
    """Every shape and kind of tensor that checkpoints hold."""
    weight = torch.arange(12.0).reshape(3, 4)
    return {
        "tied": weight,
        "tied_too": weight,
        "view": weight[:, 1:],
        "one_row": torch.arange(8.0).reshape(2, 4)[1],  # contiguous, in a larger memory
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "empty_too": torch.empty(0, 5),
        "ids": torch.arange(5, dtype=torch.int32),
        "mask": torch.tensor([True, False]),
        "half": torch.arange(3).to(torch.bfloat16),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize("suffix", scfm_tensors.TORCH_SUFFIXES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_torch_file_is_read_as_saved(torch, state, tmp_path, suffix, zipped):
    path = tmp_path / f"model{suffix}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_same(torch, read_tensors(path), state)
    assert_same(torch, read_tensors(path), state)


def test_a_torch_file_is_converted_once(torch, state, tmp_path, monkeypatch):
    path, copy = tmp_path / "model.pt", tmp_path / "copy.ckpt"
    torch.save(state, path)
    copy.write_bytes(path.read_bytes())
    read_tensors(path)
    assert len(converted()) == 1
    monkeypatch.setattr(torch, "load", None)
    assert_same(torch, read_tensors(path), state)
    assert_same(torch, read_tensors(copy), state)  # the content counts, not the name


def test_a_changed_file_is_converted_anew(torch, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(3)}, path)
    read_tensors(path)
    torch.save({"w": torch.ones(3)}, path)
    assert torch.equal(read_tensors(path)["w"], torch.ones(3))


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: data[:-1] + b"\xff"])
def test_a_damaged_conversion_is_made_again(torch, state, tmp_path, damage):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    read_tensors(path)
    (kept,) = converted()
    good = kept.read_bytes()
    kept.write_bytes(damage(good))
    assert_same(torch, read_tensors(path), state)
    assert kept.read_bytes() == good


def test_many_readers_convert_at_the_same_time(torch, state, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read_tensors, [path] * 16):
            assert_same(torch, found, state)
    assert len(converted()) == 1
    assert [entry for entry in (cache_dir() / "tensors").iterdir() if entry.name.startswith(".")] == []


def test_a_conversion_can_be_read_by_whom_the_source_can(torch, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path)
    read_tensors(path)
    assert {entry.stat().st_mode for entry in (cache_dir() / "tensors").iterdir()} == {path.stat().st_mode}


def test_tensors_are_read_although_the_conversion_cannot_be_kept(torch, state, tmp_path, monkeypatch, caplog):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCFM_CACHE", str(tmp_path / "file"))  # a file where a folder should be
    with caplog.at_level(logging.WARNING, "scfm"):
        assert_same(torch, read_tensors(path), state)
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_changing_a_tensor_changes_no_file(torch, tmp_path, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"w": torch.zeros(4)}, path)
    read_tensors(path)["w"] += 1
    assert torch.equal(read_tensors(path)["w"], torch.zeros(4))


@pytest.mark.parametrize("key", scfm_tensors.WRAPPERS)
def test_the_usual_wrappers_are_taken_off(torch, tmp_path, key):
    path = tmp_path / "model.pt"
    optimizer = {"state": {0: {"step": torch.ones(1)}}}
    torch.save({"epoch": 3, key: OrderedDict(w=torch.ones(2)), "optimizer": optimizer, "losses": [0.5]}, path)
    assert_same(torch, read_tensors(path), {"w": torch.ones(2)})


def test_nested_tensors_are_named_by_inner(torch, tmp_path):
    path = tmp_path / "models.ckpt"
    parts = {
        name: {"config": {"dim": 2}, "state_dict": {"w": torch.full((2,), i)}}
        for i, name in enumerate(["gene", "cell"])
    }
    torch.save(parts, path)
    with pytest.raises(CheckpointError, match=r"inner= one of 'gene\.state_dict', 'cell\.state_dict'"):
        read_tensors(path)
    for name, part in parts.items():
        assert_same(torch, read_tensors(path, inner=f"{name}.state_dict"), part["state_dict"])
    with pytest.raises(CheckpointError, match=r"under 'rde\.state_dict'"):
        read_tensors(path, inner="rde.state_dict")
    with pytest.raises(CheckpointError, match="under 'gene'"):
        read_tensors(path, inner="gene")


def test_two_usual_wrappers_are_not_chosen_between(torch, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": {"w": torch.ones(2)}, "state_dict": {"w": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="inner= one of 'model', 'state_dict'"):
        read_tensors(path)


def test_a_lone_tensor_gets_a_name(torch, tmp_path):
    path = tmp_path / "tokens.torch"
    torch.save(torch.arange(3), path)
    assert_same(torch, read_tensors(path), {"tensor": torch.arange(3)})


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2], 3])
def test_a_file_without_tensors(torch, tmp_path, content):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no tensors"):
        read_tensors(path)


def test_values_among_the_tensors_are_named(torch, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2), "version": 3}, path)
    with pytest.raises(CheckpointError, match="other values: 'version'"):
        read_tensors(path)


def test_a_sparse_tensor_is_refused(torch, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.eye(3).to_sparse()}, path)
    with pytest.raises(CheckpointError, match="'w' is not a plain named tensor"):
        read_tensors(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_checkpoint_is_refused_and_not_run(torch, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "x": Evil()}, "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"weights_only reader refused '(posix|nt)\.system'") as failure:
        read_tensors("model.pt")
    assert failure.value.__cause__ is not None
    assert not Path("pwned").exists()


def test_a_checkpoint_with_objects_is_refused(torch, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(CheckpointError, match=r"refused 'argparse\.Namespace'"):
        read_tensors(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_is_not_a_checkpoint(torch, tmp_path, protocol):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"w": Evil()}, protocol=protocol))
    with pytest.raises(CheckpointError):
        read_tensors(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file(torch, tmp_path, kind, kept):
    from safetensors.torch import save

    buffer = io.BytesIO()
    if kind == "safetensors":
        buffer.write(save({"w": torch.ones(100)}))
    else:
        torch.save({"w": torch.ones(100)}, buffer, _use_new_zipfile_serialization=kind == "zip")
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * kept)])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "tokens.pkl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 205520896\n", "git-LFS .* 205520896 bytes"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning", "a web page"),
        (None, "cannot be read: No such file"),
        (b"not a checkpoint at all, but some text", "damaged|not a pickle"),
    ],
    ids=["empty", "lfs", "html", "missing", "text"],
)
def test_what_is_not_the_file_itself(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        (safe_unpickle if name.endswith(".pkl") else read_tensors)(path)


def test_unknown_suffixes_and_nesting_in_safetensors(tmp_path):
    for name in ("model.h5", "model.safetensors"):
        (tmp_path / name).write_bytes(b"content")
    with pytest.raises(CheckpointError, match=r"none of '\.safetensors', '\.pt'"):
        read_tensors(tmp_path / "model.h5")
    with pytest.raises(CheckpointError, match="not nested"):
        read_tensors(tmp_path / "model.safetensors", inner="model")


# ------------------------------------------------------------------------------------------------ dictionaries

PLAIN = {
    "text": "CD3E",
    "unicode": "β-actin",
    "int": 2**70,
    "negative": -3,
    "float": 0.1,
    "complex": 1 + 2j,
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "bytearray": bytearray(b"ab"),
    "none": None,
    "bool": True,
    "list": [1, [2]],
    "tuple": (1, "a", ()),
    "set": {1, 2},
    "frozenset": frozenset({"a"}),
    "ordered": OrderedDict(b=1, a=2),
    "default": defaultdict(int, a=1),
    "lists": defaultdict(list, a=[1]),
    "texts": defaultdict(str),
}
NUMPY = {
    "int16": np.int16(-7),
    "int64": np.int64(7),
    "float32": np.float32(0.1),
    "float64": np.float64(0.1),
    "bool": np.True_,
    "str": np.str_("ENSG"),
    "no str": np.str_(""),
    "bytes": np.bytes_(b"ab"),
    "dtype": np.dtype(">f4"),
    "ints": np.arange(6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(6)[::2],
    "big endian": np.arange(3, dtype=">i4"),
    "names": np.array(["a", "bcd"]),
    "objects": np.array(["a", None, 3], dtype=object),
    "empty": np.empty((0, 3), np.float32),
    "zero-dimensional": np.array(3.5),
    "complex": np.array([1j]),
    "mask": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_are_unpickled_as_they_were(tmp_path, protocol):
    path = tmp_path / "tokens.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    found = safe_unpickle(path)
    assert found == PLAIN
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in PLAIN.items()}
    assert found["default"].default_factory is int


@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", NUMPY)
def test_numpy_values_are_unpickled_as_pickle_does(tmp_path, key, protocol, core):
    data = pickle.dumps(NUMPY[key], protocol=protocol)
    expected = pickle.loads(data)
    path = tmp_path / "medians.pkl"
    path.write_bytes(as_numpy_1_wrote_it(data) if core == b"numpy.core" else data)
    found = safe_unpickle(path)
    assert type(found) is type(expected)
    if isinstance(expected, np.dtype):
        assert found == expected
    else:
        assert (found.dtype, found.shape, found.flags.f_contiguous) == (
            expected.dtype,
            expected.shape,
            expected.flags.f_contiguous,
        )
        np.testing.assert_array_equal(found, expected)


def as_numpy_1_wrote_it(data: bytes) -> bytes:
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(b"c" + new, b"c" + old)  # GLOBAL
        data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)  # SHORT_BINUNICODE
    if data[2:3] == b"\x95":  # FRAME: its length is another now; frames are not obligatory
        data = data[:2] + data[11:]
    return data


def test_the_interpreter_is_unharmed_by_byte_orders(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.arange(3, dtype=">i4"), protocol=2))
    safe_unpickle(path)
    assert np.dtype("i4").isnative


class Call:
    """Pickles as a call of `function`, followed by a state if there is one."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def numpy_array(dtype: object, data: object) -> Call:
    return Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), dtype, False, data))


def disguised() -> Call:
    """An object dtype that claims its items are plain bytes: numpy would take 8 bytes of the file for an address."""
    return Call(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))


FORBIDDEN = {
    "os.system": (Evil(), r"(posix|nt)\.system"),
    "eval": (Call(eval, "1"), r"builtins\.eval|__builtin__\.eval"),
    "getattr": (Call(getattr, "a", "upper"), "getattr"),
    "path": (Path("a"), "pathlib"),
    "namespace": (argparse.Namespace(a=1), r"argparse\.Namespace"),
    "numpy load": (Call(np.load, "a"), r"numpy.*\.load"),
    "structured": (np.zeros(1, [("a", "i4")]), "the numpy dtype 'V4'"),
    "datetime": (np.datetime64("2020-01-01"), "the numpy dtype 'M8'"),
    "disguised dtype": (disguised(), "a numpy dtype with the state"),
    "disguised array": (numpy_array(disguised(), b"\x10" * 8), "a numpy dtype with the state"),
    "widened dtype": (Call(np.dtype, "U1", False, True, state=(3, "<", None, None, None, 999, 4, 8)), "with the state"),
    "codec": (Call(__import__("_codecs").encode, "a", "idna"), r"_codecs\.encode to 'idna'"),
    "state on a container": (Call(OrderedDict, state={"a": 1}), "a state for an object of OrderedDict"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("case", FORBIDDEN)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, case, protocol):
    monkeypatch.chdir(tmp_path)
    value, message = FORBIDDEN[case]
    Path("tokens.pkl").write_bytes(pickle.dumps({"a": 1, "b": value}, protocol=protocol))
    with pytest.raises(CheckpointError, match=message):
        safe_unpickle("tokens.pkl")
    assert not Path("pwned").exists()


def test_numpy_classes_cannot_be_called(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Call(np.ndarray, (4,), "f8"), protocol=4))
    with pytest.raises(CheckpointError):
        safe_unpickle(path)


def test_a_data_frame_is_refused(tmp_path):
    pd = pytest.importorskip("pandas")
    path = tmp_path / "table.pkl"
    pd.DataFrame({"a": [1]}).to_pickle(path)
    with pytest.raises(CheckpointError, match=r"asks for pandas\."):
        safe_unpickle(path)


@pytest.mark.parametrize("kept", [1, 2, 20, -1])
def test_a_truncated_pickle(tmp_path, kept):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({f"gene{i}": i for i in range(100)})[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        safe_unpickle(path)
