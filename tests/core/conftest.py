"""A Hugging Face hub on this machine, for tests without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_somebody_who_may_write"


@dataclass(frozen=True)
class Request:
    """What a client asked, and how many bytes of a file it was sent."""

    method: str
    path: str
    range: str | None
    sent: int


@dataclass
class Hub:
    """Repositories that the real huggingface_hub client can read and write, and the accidents that may befall it.

    Speaks what the hub speaks of HTTP: `resolve` with ETag, X-Repo-Commit, and for large files a redirect with
    X-Linked-Etag and X-Linked-Size; Range requests; `api/models/.../revision` and `/tree`; X-Error-Code. For writing: `api/repos/create`,
    `branch`, `preupload`, the LFS batch with `PUT` and verification, and `commit`; only with the token `TOKEN`. No Xet.
    """

    url: str = ""
    folder: Path = Path()  # of this test: the hub's cache is folder/"hub", scfm's folder/"scfm"
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)  # (repo, commit) -> name -> content
    branches: dict[tuple[str, str], str] = field(default_factory=dict)  # (repo, branch) -> commit
    gated: dict[str, int] = field(default_factory=dict)  # repo -> 401 without a token, 403 with one
    broken: dict[str, int] = field(default_factory=dict)  # repo -> any other status
    cut: dict[str, int] = field(default_factory=dict)  # file -> after how many bytes to cut its next download
    corrupted: set[str] = field(default_factory=set)  # files whose first byte is sent wrong
    requests: list[Request] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)  # of repositories that were made by a client
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by their sha256

    def content(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Files of a branch."""
        return self.commits[repo, self.branches[repo, branch]]

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit `files` as the whole content of a branch; returns the commit hash."""
        parts = [repo, *(f"{name}:{hashlib.sha1(content).hexdigest()}" for name, content in sorted(files.items()))]
        commit = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[repo, commit] = dict(files)
        self.branches[repo, branch] = commit
        return commit

    def env(self) -> dict[str, str]:
        """Environment of a process whose hub this is."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder), "SCFM_CACHE": str(self.folder / "scfm")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SCFM_"))}
        return kept | ours | {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def gets(self, name: str) -> list[Request]:
        """Downloads of a file's content."""
        return [request for request in self.requests if request.method == "GET" and request.path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.write(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_PUT(self) -> None:
        self.write(self.body())

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def write(self, body: bytes) -> None:
        """Everything that changes the hub."""
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        if parts[0] == "lfs":  # signed links need no token
            oid = parts[1]
            if self.command == "PUT":
                if hashlib.sha256(body).hexdigest() != oid:
                    return self.reply(400)
                self.hub.objects[oid] = body
                return self.reply(200)
            return self.reply(200 if oid in self.hub.objects else 404)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"X-Error-Message": "Invalid username or password."})
        asked = [json.loads(line) for line in body.splitlines() if line.strip()]
        if path == "api/validate-yaml":
            return self.json({"warnings": [], "errors": []})
        if path == "api/repos/create":
            return self.make(f"{asked[0]['organization']}/{asked[0]['name']}", asked[0])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.json({"transfer": "basic", "objects": [self.action(item) for item in asked[0]["objects"]]})
        repo, what, revision = "/".join(parts[2:4]), parts[4], "/".join(parts[5:])
        if what == "branch":
            known = (repo, revision) in self.hub.branches
            self.hub.branches.setdefault((repo, revision), self.hub.branches[repo, "main"])
            return self.reply(409 if known else 200)
        if what == "preupload":
            files = [
                {"path": item["path"], "shouldIgnore": False, "uploadMode": self.mode(item["path"])}
                for item in asked[0]["files"]
            ]
            return self.json({"files": files})
        if what == "commit":
            return self.commit(repo, revision, asked)
        return self.reply(404)

    @staticmethod
    def mode(name: str) -> str:
        return "lfs" if name.endswith(".safetensors") else "regular"

    def json(self, content: object) -> None:
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def make(self, repo: str, asked: dict) -> None:
        if any(known == repo for known, _ in self.hub.commits):
            return self.reply(409, {"Content-Type": "application/json"}, json.dumps({"url": repo}).encode())
        self.hub.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(repo, {".gitattributes": b""})
        self.json({"url": f"{self.hub.url}/{repo}", "id": repo})

    def action(self, item: dict) -> dict:
        links = {what: {"href": f"{self.hub.url}/lfs/{item['oid']}"} for what in ("upload", "verify")}
        known = item["oid"] in self.hub.objects
        return {"oid": item["oid"], "size": item["size"], **({} if known else {"actions": links})}

    def commit(self, repo: str, branch: str, lines: list[dict]) -> None:
        files = dict(self.hub.content(repo, branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.add(repo, files, branch)
        self.json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and len(parts) == 6:
            repo, what, revision, name = "/".join(parts[2:4]), parts[4], parts[5], None
        elif len(parts) >= 5 and parts[2] in ("resolve", "cdn"):
            repo, what, revision, name = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        else:
            return self.reply(404)

        status = self.hub.gated.get(repo)
        if status:
            return self.reply(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if repo in self.hub.broken:
            return self.reply(self.hub.broken[repo])
        if not any(known == repo for known, _ in self.hub.commits):
            # the hub does not tell strangers which private repositories exist
            return self.reply(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        commit = self.hub.branches.get((repo, revision), revision)
        if (repo, commit) not in self.hub.commits:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.commits[repo, commit]
        if name is None:
            return self.describe(repo, what, commit, files)
        if name not in files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        large = not name.endswith((".json", ".txt"))
        if what == "resolve" and large:
            headers = {
                "Location": f"{self.hub.url}/{repo}/cdn/{commit}/{name}",
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(files[name]).hexdigest()}"',
                "X-Linked-Size": str(len(files[name])),
            }
            return self.reply(302, headers)
        return self.send_file(name, commit, files[name])

    def describe(self, repo: str, what: str, commit: str, files: dict[str, bytes]) -> None:
        if what == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.reply(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        about = {"id": repo, "sha": commit, "private": False, "siblings": [{"rfilename": name} for name in files]}
        return self.reply(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def send_file(self, name: str, commit: str, content: bytes) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if name in self.hub.corrupted:
            content = bytes([content[0] ^ 1]) + content[1:]
        status, start = 200, 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(
            status, headers, content[start:], until=self.hub.cut.pop(name, None) if self.command == "GET" else None
        )

    def reply(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", until: int | None = None
    ) -> None:
        """Answer, and hang up: HTTP/1.0 keeps no connection open. `until`: hang up after that many bytes."""
        sent = b"" if self.command == "HEAD" else body[:until]
        self.hub.requests.append(Request(self.command, self.path, self.headers.get("Range"), len(sent)))
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(sent)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that huggingface_hub in this process talks to, with empty caches; offline mode is off."""
    import huggingface_hub
    from huggingface_hub import constants

    hub = Hub(folder=tmp_path / "cache")
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        # the client reads its environment once, on import
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(hub.folder / "token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(hub.folder / "agents.json"), raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("SCFM_CACHE", str(hub.folder / "scfm"))
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between attempts
        huggingface_hub.close_session()  # a session keeps the proxies it was opened with
        yield hub
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()
