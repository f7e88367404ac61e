"""A Hugging Face Hub on 127.0.0.1 for the real, unpatched `huggingface_hub` client.

    with LoopbackHub() as hub:
        hub.add("org/name", folder)               # a folder becomes the first commit on main
        hub.point_client(monkeypatch, cache)      # the client of this process talks to it from here on
        snapshot_download("org/name")

What it answers:

    GET        /api/models/{id}[/revision/{rev}]
    GET        /api/models/{id}/tree/{rev}[/{folder}]?recursive=true
    HEAD, GET  /{id}/resolve/{rev}/{file}                with Range

with the status codes and `X-Error-Code` headers by which the client tells a missing or private repo, a gated one, an
unknown revision and a missing file apart. Every request is kept in `calls`.

What it leaves out: everything that writes (repos/create, preupload, LFS batch, commit, settings, tags), LFS and Xet
(each file is a plain one, with its git blob hash for ETag, and no redirect to another host), pull requests and other
refs/*, short commit hashes, paging, paths-info, `expand`, dataset and space repos, repos without an organisation,
organisations and their roles (any known token may read every private repo), rate limits and warning headers. The
client must run with Xet off, which `point_client` sees to.

To answer more, add a method to `HubHandler` and its pattern to `ROUTES`.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


MAIN = "main"


@dataclass(frozen=True)
class Commit:
    """One state of a repo: its hash and all of its files."""

    sha: str
    files: dict[str, bytes] = field(repr=False)


class Repo:
    """A model repo: commits, and the branches and tags that point to them.

    Args:
        repo_id (`str`): `org/name`.
        private (`bool`): only a known token may see it.
        gated (`bool`): anyone may see it, but only a token in `granted` may have its files.
    """

    def __init__(self, repo_id: str, private: bool = False, gated: bool = False):
        self.repo_id = repo_id
        self.private = private
        self.gated = gated
        self.granted: set[str] = set()
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}

    def commit(self, files: Mapping[str, bytes] | Path, branch: str = MAIN) -> str:
        """Makes the files (or a folder's) the new state of a branch, and returns the commit's hash."""
        content = _read_folder(files) if isinstance(files, Path) else dict(files)
        parent = self.refs.get(branch, "")
        listing = json.dumps([self.repo_id, parent, {name: blob_hash(data) for name, data in sorted(content.items())}])
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[sha] = Commit(sha, content)
        self.refs[branch] = sha
        return sha

    def tag(self, name: str, revision: str = MAIN) -> None:
        """Gives a commit another name."""
        self.refs[name] = self.refs.get(revision, revision)

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a full hash means."""
        return self.commits.get(self.refs.get(revision, revision))


class Call(NamedTuple):
    """One request as it came."""

    method: str
    path: str
    token: str | None


class LoopbackHub:
    """The server, in a thread of its own. Use as a context manager, or `start()` and `stop()` it.

    Attributes:
        repos (`dict[str, Repo]`): what it serves.
        tokens (`set[str]`): the tokens that it knows.
        calls (`list[Call]`): the requests so far.
        failing (`dict[str, int]`): a status to answer with, by a part of the path: `{"": 503}` fails every request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.calls: list[Call] = []
        self.failing: dict[str, int] = {}
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    def __enter__(self) -> "LoopbackHub":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> "LoopbackHub":
        """Begins to serve on a free port."""
        handler = type("BoundHandler", (HubHandler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def stop(self) -> None:
        """Goes down: connections are refused from here on."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None

    def add(self, repo_id: str, files: Mapping[str, bytes] | Path, private: bool = False, gated: bool = False) -> Repo:
        """Adds a repo whose first commit on main holds the files, or a folder's."""
        repo = self.repos[repo_id] = Repo(repo_id, private, gated)
        repo.commit(files)
        return repo

    def downloads(self) -> set[str]:
        """The files whose content was asked for."""
        found = (HubHandler.RESOLVE.fullmatch(urlsplit(call.path).path) for call in self.calls if call.method == "GET")
        return {unquote(match["file"]) for match in found if match}

    def point_client(self, monkeypatch: Any, cache: Path) -> None:
        """Turns the `huggingface_hub` client of this process to this server, with a cache and no login of its own."""
        from huggingface_hub import close_session, constants

        close_session()  # it may remember proxies and connections of before
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "stored_tokens"))

    def environment(self, cache: Path) -> dict[str, str]:
        """The environment for a process whose client shall talk to this server."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


class Refusal(Exception):
    """An answer other than success, in the Hub's own terms.

    Args:
        status (`int`): the HTTP status.
        code (`str` or `None`): for the `X-Error-Code` header.
        message (`str`): for the `X-Error-Message` header and the body.
    """

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    MODEL = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
    TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?")
    RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
    ROUTES = (
        ("GET", MODEL, "model"),
        ("GET", TREE, "tree"),
        ("GET", RESOLVE, "resolve"),
        ("HEAD", RESOLVE, "resolve"),
    )

    def do_GET(self) -> None:
        """A GET request."""
        self._dispatch()

    def do_HEAD(self) -> None:
        """A HEAD request."""
        self._dispatch()

    def model(self, repo: str, revision: str | None) -> None:
        """What the Hub tells about a model at a revision."""
        known = self.readable(repo)
        commit = self.commit_of(known, revision or MAIN)
        self.send_json(
            {
                "id": known.repo_id,
                "modelId": known.repo_id,
                "sha": commit.sha,
                "private": known.private,
                "gated": "manual" if known.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": name} for name in sorted(commit.files)],
            }
        )

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        """The files under a folder."""
        commit = self.commit_of(self.readable(repo), revision)
        prefix = f"{folder}/" if folder else ""
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in {"true", "1"}
        entries: dict[str, dict[str, Any]] = {}
        for name, data in sorted(commit.files.items()):
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                above = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(above.encode()).hexdigest()
                entries[above] = {"type": "directory", "path": above, "size": 0, "oid": oid}
            if recursive or len(parts) == 1:
                entries[name] = {"type": "file", "path": name, "size": len(data), "oid": blob_hash(data)}
        self.send_json(list(entries.values()))

    def resolve(self, repo: str, revision: str, file: str) -> None:
        """A file, or a range of its bytes."""
        known = self.readable(repo)
        if known.gated and self.token() not in known.granted:
            status = 401 if self.token() is None else 403
            raise Refusal(status, "GatedRepo", f"Access to model {repo} is restricted.")
        commit = self.commit_of(known, revision)
        if file not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        data = commit.files[file]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob_hash(data)}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked is None:
            self.send(200, data, headers)
            return
        begin, end = _range(asked, len(data))
        if not begin < end:
            self.send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send(206, data[begin:end], headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"})

    def token(self) -> str | None:
        """The token that came with the request."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def readable(self, repo_id: str) -> Repo:
        """The repo, if it exists and this request may see it; a stranger can't tell a private one from none."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token() is None):
            raise Refusal(401 if self.token() is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        """The commit that a revision means."""
        commit = repo.at(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Sends an answer; to HEAD, without its body."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # so that no connection outlives `stop`
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Sends an answer in JSON."""
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the server quiet: `calls` holds the log."""

    def _dispatch(self) -> None:
        self.hub.calls.append(Call(self.command, self.path, self.token()))
        try:
            for part, status in self.hub.failing.items():
                if part in self.path:
                    raise Refusal(status, None, "Out of order")
            if self.token() is not None and self.token() not in self.hub.tokens:
                raise Refusal(401, None, "Invalid credentials in Authorization header")
            self._route()
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.send_json({"error": refusal.message}, refusal.status, headers)

    def _route(self) -> None:
        path = urlsplit(self.path).path
        for method, pattern, name in self.ROUTES:
            match = pattern.fullmatch(path)
            if match and method == self.command:
                parts = {key: value if value is None else unquote(value) for key, value in match.groupdict().items()}
                getattr(self, name)(**parts)
                return
        raise Refusal(404, None, f"{self.command} {path} is not answered by the loopback hub")


def blob_hash(data: bytes) -> str:
    """The hash that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _read_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _range(asked: str, size: int) -> tuple[int, int]:
    """Begin and end of `bytes=a-b`, `bytes=a-` or `bytes=-n`; empty if it can't be met."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if match is None or match[0] == "bytes=-":
        return 0, 0
    if not match[1]:
        return max(0, size - int(match[2])), size
    return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
