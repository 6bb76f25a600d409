"""Where a checkpoint comes from: the Hugging Face hub and its cache. A file is the one its card names, or it is not used."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scfm.errors import DownloadError, listing
from scfm.files import sha256

__all__ = ["RemoteFile", "download", "resolved_revision", "upload"]

logger = logging.getLogger(__name__)

# what a whole-repository download fetches: weights, settings and vocabularies, not notebooks, figures or data
CHECKPOINT_FILES = [
    *("*.json", "*.toml", "*.txt", "*.csv", "*.tsv", "vocab*"),
    *("*.safetensors", "*.pt", "*.bin", "*.ckpt", "*.torch", "*.pkl"),
]
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository, as a model card lists it."""

    name: str  # path inside the repository, with "/"
    sha256: str | None  # 64 hex digits, "sha256:" before them or not; None: not checked
    optional: bool = False  # may be absent from the repository


def download(
    repo: str,
    files: Sequence[RemoteFile] | None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Fetch a checkpoint from the Hugging Face hub and return the folder that holds its files.

    Files already in the hub's cache are not fetched again; with a full commit hash as `revision` the hub is not even
    asked. A connection that breaks during the call is taken up where it broke; a killed process starts the
    file it was at anew. `HF_HUB_OFFLINE=1` uses the cache alone.

    Parameters
    ----------
    repo
        Repository on the hub, ``"owner/name"``.
    files
        The files wanted. None: all that look like part of a checkpoint (`CHECKPOINT_FILES`), unchecked.
    revision
        Branch, tag or commit hash; None is the main branch. All files come from one and the same commit.
    cache_dir
        The hub's cache, if not the one of `HF_HOME`.

    Raises
    ------
    DownloadError
        Repository, revision or file does not exist, may not be read, or cannot be reached; or a file's SHA-256 is not
        the expected one, in which case it is also removed from the cache.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    # Xet's client raises RuntimeError
    failures = (HTTPError, EntryNotFoundError, OSError, ValueError, RuntimeError)
    if files is None:
        try:
            whole = snapshot_download(repo, revision=revision, cache_dir=cache_dir, allow_patterns=CHECKPOINT_FILES)
        except failures as error:
            raise _explained(error, repo, None, revision) from error
        if not Path(whole).is_dir():
            raise DownloadError(
                f"{repo} at revision {revision or 'main'!r} has no files that could be a checkpoint.",
                f"Look at https://huggingface.co/{repo}; is it the right repository?",
            )
        return Path(whole)

    folder = None
    for file in files:
        commit = folder.name if folder else revision  # a branch that moves meanwhile must not mix two versions
        if file.optional and COMMIT.fullmatch(commit or "") and _known_absent(repo, file, commit, cache_dir):
            continue
        try:
            path = Path(hf_hub_download(repo, file.name, revision=commit, cache_dir=cache_dir))
        except failures as error:
            if file.optional and _is_absent(error, repo, file, commit, cache_dir):
                continue
            raise _explained(error, repo, file.name, commit) from error
        folder = path.parents[file.name.count("/")]
        _verify(path, file, folder)
    if folder is None:
        raise DownloadError(f"{repo} has none of the files {listing(file.name for file in files)}.")
    return folder


def upload(folder: Path, repo: str, *, private: bool = True, revision: str | None = None, message: str = "") -> str:
    """Put a saved model onto the Hugging Face hub, in one commit that replaces the model that was there.

    Parameters
    ----------
    folder
        What `save` wrote.
    repo
        ``"owner/name"``; made if it does not exist.
    private
        Whether a new repository is private; an existing one stays as it is.
    revision
        Branch, made if it does not exist; None is the main branch.
    message
        Of the commit.

    Returns
    -------
    str
        Hash of the commit: what `revision=` of `scfm.load` takes.

    Raises
    ------
    DownloadError
        The name cannot be one, you are not logged in or may not write there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if repo.count("/") != 1:
        raise DownloadError(f"{repo!r} cannot be a repository of the hub.", 'Write it as "owner/name".')
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"Upload {Path(folder).name} with scfm",
            delete_patterns=["*.safetensors", "*.json"],  # of another model, pushed here before
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _not_uploaded(error, repo) from error
    return str(done.oid)


def _not_uploaded(error: Exception, repo: str) -> DownloadError:
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return DownloadError(
            f"The hub did not let you write to {repo} ({status}): you are not logged in, or may not.",
            f"Get a token that may write at {constants.ENDPOINT}/settings/tokens, then `hf auth login`, or set HF_TOKEN.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return DownloadError(f"{repo} cannot be written to: offline mode is on.", "Unset HF_HUB_OFFLINE.")
    if isinstance(error, errors.HFValidationError):
        return DownloadError(f"{repo!r} cannot be a repository of the hub: {error}", 'Write it as "owner/name".')
    return DownloadError(f"{repo} could not be written to: {error}", "Try again; what is there already is kept.")


def resolved_revision(folder: Path) -> str | None:
    """Commit hash of a folder that `download` returned; None for any other folder."""
    folder = Path(folder)
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def _is_absent(
    error: Exception, repo: str, file: RemoteFile, revision: str | None, cache_dir: str | Path | None
) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):  # offline: absent only if the hub once said so
        return _known_absent(repo, file, revision, cache_dir)
    return isinstance(error, RemoteEntryNotFoundError)


def _known_absent(repo: str, file: RemoteFile, revision: str | None, cache_dir: str | Path | None) -> bool:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repo, file.name, cache_dir=cache_dir, revision=revision) is _CACHED_NO_EXIST


def _verify(path: Path, file: RemoteFile, folder: Path) -> None:
    """Compare a downloaded file with its card's hash; remove it from the hub's cache if it is another file."""
    if file.sha256 is None:
        return
    expected, found = file.sha256.removeprefix("sha256:").lower(), sha256(path)
    if found == expected:
        return
    hub_cache = folder.parents[2].resolve()  # <hub_cache>/models--owner--name/snapshots/<commit>
    link: Path | None = path
    while link is not None and link.parent.resolve().is_relative_to(hub_cache):  # snapshot -> blob -> shared blob
        target = link.parent / os.readlink(link) if link.is_symlink() else None
        link.unlink(missing_ok=True)
        link = target
    raise DownloadError(
        f"{file.name} is not the file that was asked for: its SHA-256 is {found}, expected {expected}. "
        "It was removed from the cache.",
        "Try again to download it anew. If the hash stays the same, the file has changed on the hub: "
        "pass the revision the card was written for, or report it.",
    )


def _explained(error: Exception, repo: str, name: str | None, revision: str | None) -> DownloadError:
    """What went wrong on the way to the hub, and what to type."""
    from huggingface_hub import constants, errors

    what = f"{name} of {repo}" if name else repo
    what += f" at revision {revision!r}" if revision else ""
    page = f"{constants.ENDPOINT}/{repo}"
    log_in = "`hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "not in the cache either": the cause says why the hub did not answer
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None

    if isinstance(error, errors.GatedRepoError):  # before its base class RepositoryNotFoundError
        return DownloadError(
            f"{repo} is gated: the hub gives its files only to accounts that accepted its terms ({status}).",
            f"Accept the terms at {page}, then {log_in} of that account.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"The hub has no repository {repo!r}, or it is private and your account may not read it ({status}).",
            f"Check the name at {page}; for a private repository {log_in}.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{repo} has no revision {revision!r}.", f"Pick a commit of {page}/commits/main.")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return DownloadError(f"There is no {what}.", f"See the files at {page}/tree/{revision or 'main'}.")
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return DownloadError(
            f"{what} is not in the cache, or not all of it, and offline mode is on.",
            "Unset HF_HUB_OFFLINE and load once with a connection, or point HF_HOME to a cache that has it.",
        )
    if status in (401, 403):
        return DownloadError(
            f"The hub refused {what} ({status}): your token is invalid or may not read it.",
            f"Get a token at {constants.ENDPOINT}/settings/tokens, then {log_in}.",
        )
    if status is not None:
        return DownloadError(f"The hub answered {status} for {what}: {error}", "Try again later.")
    if isinstance(error, errors.HFValidationError):
        return DownloadError(f"{repo!r} cannot be a repository of the hub: {error}", 'Write it as "owner/name".')
    if isinstance(error, errors.HTTPError):
        return DownloadError(
            f"No connection to {constants.ENDPOINT} to fetch {what}, which is not in the cache: {error}",
            "Try again with a connection, or copy the cache of another machine and set HF_HOME to it.",
        )
    return DownloadError(f"{what} could not be downloaded: {error}")
