"""A Hugging Face Hub on 127.0.0.1 for the real, unpatched `huggingface_hub` client.

    with LoopbackHub() as hub:
        hub.add("org/name", folder)               # a folder becomes the first commit on main
        hub.account("alice", orgs={"org"}, token="hf_alice")
        hub.point_client(monkeypatch, cache)      # the client of this process now uses this Hub
        snapshot_download("org/name")
        hub.faults.append(Fault(match="POST .*/commit/", kind="cut after"))  # one request gets no response
        HfApi(token="hf_alice").upload_folder(repo_id="org/name", folder_path=other)

It serves, for models and for datasets (`/api/datasets/...`, `/datasets/{id}/...`):

    GET        /api/whoami-v2
    GET        /api/models?author=&search=&sort=&limit=&full=&expand=
    GET        /api/models/{id}[/revision/{rev}]?blobs=&expand=
    GET        /api/models/{id}/tree/{rev}[/{folder}]?recursive=true
    POST       /api/models/{id}/paths-info/{rev}
    GET        /api/models/{id}/commits/{rev}, .../refs, .../auth-check[/write]
    HEAD, GET  /{id}/resolve/{rev}/{file}                with Range

    POST       /api/repos/create, /api/repos/move        DELETE /api/repos/delete
    PUT        /api/models/{id}/settings                 gated, visibility
    POST       /api/models/{id}/user-access-request/grant, .../handle
    GET        /api/models/{id}/user-access-request/pending, .../accepted, .../rejected
    POST       /api/validate-yaml
    POST       /api/models/{id}/preupload/{rev}
    POST       /{id}.git/info/lfs/objects/batch, .../verify
    POST       /api/models/{id}/commit/{branch}          file, lfsFile, deletedFile, deletedFolder, parentCommit
    POST       /api/models/{id}/branch/{name}, .../tag/{rev}     DELETE .../branch/{name}, .../tag/{name}

    HEAD, GET, PUT  /lfs-store/{sha256}?signature=       with Range; on the separate port of the store

with the status codes and `X-Error-Code` headers by which the client distinguishes a missing or private repo, a gated
one, an unknown revision and a missing file. A request for a file that is stored as LFS is redirected (302, with
`X-Linked-Etag` and `X-Linked-Size`): to another port, since the client must treat the store as another host, to which
it sends no token; the store refuses one. The old name of a moved repo redirects to the new one (307).

`calls` lists every request, and `received` its headers and body. `faults` lists deliberate failures; a request's body
is always read first, so no connection is cut while the client sends.

Not supported: Xet (`point_client` switches it off in the client), the multipart transfer of LFS
objects, pull requests and other refs/*, short commit hashes, paging, `expand` of folders and paths (last commits,
security), squashing, copying LFS files from one repo to another, `.gitignore` and `.gitattributes` (name and size
alone decide what becomes LFS), checks of a model card's metadata beyond its syntax, most filters and fields of lists,
spaces, discussions, collections, repos without an organization, roles within organizations (members may write) and
fine-grained tokens, requesting access (put a `Request` into `Repo.requests`) and deciding on it by its id, limits on
names and sizes, rate limits other than by a fault, and warning headers. All repos share equal LFS objects:
anyone who knows an object's SHA-256 may commit it.

To support more, add a method to `HubHandler` (in `loopback_hub_routes` or `loopback_hub_writes`) and its pattern to
`ROUTES`.
"""

import os
import secrets
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.loopback_hub_faults import Fault
from tests.helpers.loopback_hub_http import LoopbackServer
from tests.helpers.loopback_hub_repos import (
    Account,
    Blob,
    Call,
    Commit,
    Received,
    Refusal,
    Repo,
    Request,
    blob_hash,
    kind_of,
)
from tests.helpers.loopback_hub_writes import HubHandler


__all__ = [
    "Account", "Blob", "Call", "Commit", "Fault", "HubHandler", "LoopbackHub", "Received", "Refusal", "Repo",
    "Request", "blob_hash",
]  # fmt: skip


class LoopbackHub:
    """The server, in separate threads. Use it as a context manager, or call `start()` and `stop()`.

    Attributes:
        repos (`dict[str, Repo]`): the models that it serves.
        datasets (`dict[str, Repo]`): the datasets.
        moved (`dict[tuple[str, str], str]`): the new name by `"model"` or `"dataset"` and the old name.
        store (`dict[str, bytes]`): LFS objects by their SHA-256, including those that no commit has yet.
        tokens (`set[str]`): tokens without an account: they read everything that is not gated, and write
            nothing.
        accounts (`dict[str, Account]`): the accounts by name; see `account`.
        calls (`list[Call]`): the requests so far.
        received (`list[Received]`): their headers and bodies.
        failing (`dict[str, int]`): the status of the response, by a part of the path: `{"": 503}` fails every request.
        faults (`list[Fault]`): deliberate failures.
        bytes_sent (`int`): bytes of files sent so far.
        lock (`threading.RLock`): held during changes.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.store: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.accounts: dict[str, Account] = {}
        self.calls: list[Call] = []
        self.received: list[Received] = []
        self.failing: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.bytes_sent = 0
        self.lock = threading.RLock()
        self.signing_key = secrets.token_bytes(16)
        self.url = ""
        self.store_url = ""
        self._servers: list[LoopbackServer] = []
        self._requests = 0

    def __enter__(self) -> "LoopbackHub":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> "LoopbackHub":
        """Starts to serve on two free ports: the Hub's and that of its store of LFS objects."""
        handler = type("BoundHandler", (HubHandler,), {"hub": self})
        self._servers = [LoopbackServer(handler), LoopbackServer(handler)]
        self.url, self.store_url = (server.url for server in self._servers)
        return self

    def stop(self) -> None:
        """Stops the server: refuses new connections, and closes open ones."""
        for server in self._servers:
            server.stop()
        self._servers = []

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Blob] | Path,
        private: bool = False,
        gated: bool | str = False,
        kind: str = "model",
        lfs: bool = False,
    ) -> Repo:
        """Adds a repo with a first commit of the files, or of a folder; with `lfs`, weights are stored as LFS."""
        repo = self.of_kind(kind)[repo_id] = Repo(repo_id, private, gated, kind, self.store)
        repo.commit(files, lfs=lfs)
        return repo

    def account(self, name: str, orgs: Iterable[str] = (), token: str | None = None, role: str = "write") -> Account:
        """Adds an account, or adds organizations or another token to an existing one.

        Args:
            name (`str`): the user's name, and the namespace of their own repos.
            orgs (`list[str]`): organizations whose repos the user may read and write too.
            token (`str`, *optional*): a token of the account.
            role (`str`): `"write"`, or `"read"` for a token that writes nothing.
        """
        account = self.accounts.setdefault(name, Account(name))
        account.orgs |= set(orgs)
        if token is not None:
            account.tokens[token] = role
        return account

    def of_kind(self, kind: str) -> dict[str, Repo]:
        """Returns the models, or the datasets."""
        return self.datasets if kind_of(kind) == "dataset" else self.repos

    def downloads(self) -> set[str]:
        """Returns the files whose content was requested."""
        found = set()
        for call in self.calls:
            parts = urlsplit(call.path)
            match = HubHandler.RESOLVE.fullmatch(parts.path)
            if call.method == "GET" and match:
                found.add(unquote(match["file"]))
            elif call.method == "GET" and HubHandler.STORE.fullmatch(parts.path):
                found.update(parse_qs(parts.query).get("file", []))
        return found

    def note(self, call: Call, received: Received) -> Fault | None:
        """Logs a request, and returns its fault, if any."""
        with self.lock:
            self._requests += 1
            self.calls.append(call)
            self.received.append(received)
            request_line = f"{call.method} {call.path}"
            return next((fault for fault in self.faults if fault.happens(self._requests, request_line)), None)

    def note_sent(self, count: int) -> None:
        """Counts sent bytes of a file."""
        with self.lock:
            self.bytes_sent += count

    def point_client(self, monkeypatch: Any, cache: Path) -> None:
        """Points the `huggingface_hub` client of this process at this server, with an empty cache and no login."""
        import huggingface_hub
        from huggingface_hub import constants, file_download, hf_api, utils

        older = getattr(utils, "reset_sessions", None)  # before version 1
        (older or huggingface_hub.close_session)()  # it may keep earlier proxies and connections
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)  # used by functions such as `create_repo`
        for keeper in (constants, file_download):  # in the second before version 1
            template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(keeper, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        if used := sys.modules.get("transformers.utils.hub"):
            monkeypatch.setattr(used, "_hf_api", None, raising=False)  # it caches its first client
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "stored_tokens"))

    def environment(self, cache: Path) -> dict[str, str]:
        """Returns the environment of a process whose client uses this server."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
