"""Contents of the loopback Hub: repos with their commits and files, and the accounts that may read or write them."""

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple


MAIN = "main"

# what a new model repo's .gitattributes gives to LFS; and everything that is large
LFS_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gz", ".h5", ".joblib", ".mlmodel", ".model", ".msgpack",
    ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors",
    ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst",
)  # fmt: skip
LFS_SIZE = 10_000_000
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Refusal(Exception):
    """A response other than success, in the Hub's terms.

    Args:
        status (`int`): the HTTP status.
        code (`str` or `None`): for the `X-Error-Code` header.
        message (`str`): for the `X-Error-Message` header and the body.
        body (`dict`, *optional*): more for the body.
        headers (`dict`, *optional*): more headers.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.body, self.headers = dict(body or {}), dict(headers or {})


@dataclass(frozen=True)
class Blob:
    """A file's content, its git hash (of the LFS pointer, if it is stored as LFS) and, only then, its SHA-256."""

    data: bytes | mmap.mmap = field(repr=False)
    oid: str
    sha256: str | None = None

    @classmethod
    def plain(cls, data: bytes) -> "Blob":
        """A file that git itself holds."""
        return cls(data, blob_hash(data))

    @classmethod
    def lfs(cls, data: bytes, sha256: str) -> "Blob":
        """A file of which git holds a pointer only."""
        return cls(data, blob_hash(_pointer(sha256, len(data))), sha256)

    @classmethod
    def on_disk(cls, path: Path) -> "Blob":
        """A large file, perhaps all holes, that is served from the disk as LFS. Its hash is of where it is: a
        download of all of it would not be taken for whole."""
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        sha256 = hashlib.sha256(str(path).encode()).hexdigest()
        return cls(data, blob_hash(_pointer(sha256, len(data))), sha256)

    def entry(self, path: str) -> dict[str, Any]:
        """Returns its entry in the listing of a folder."""
        found = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        return found | ({"lfs": {"oid": self.sha256, **self._sizes()}} if self.sha256 else {})

    def sibling(self, path: str, blobs: bool) -> dict[str, Any]:
        """Returns its entry in the information about a repo."""
        found = {"rfilename": path}
        if not blobs:
            return found
        lfs = {"lfs": {"sha256": self.sha256, **self._sizes()}} if self.sha256 else {}
        return found | {"size": len(self.data), "blobId": self.oid} | lfs

    def _sizes(self) -> dict[str, int]:
        return {"size": len(self.data), "pointerSize": len(_pointer(self.sha256 or "", len(self.data)))}


@dataclass(frozen=True)
class Commit:
    """One state of a repo: its hash, all of its files, and who made it of which commit, when and why."""

    sha: str
    blobs: dict[str, Blob] = field(repr=False)
    title: str = ""
    message: str = ""
    author: str = "system"
    date: datetime = field(default_factory=lambda: datetime.now(UTC))
    parent: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        """The files' contents."""
        return {name: blob.data for name, blob in self.blobs.items()}


@dataclass
class Request:
    """A user's request to read a gated repo: `"pending"`, `"accepted"` or `"rejected"`."""

    status: str
    date: datetime = field(default_factory=lambda: datetime.now(UTC))


class Repo:
    """A model or dataset repo: commits, and the branches and tags that point to them.

    Args:
        repo_id (`str`): `org/name`.
        private (`bool`): only those who have a right to may see it.
        gated (`bool` or `str`): anyone may see it, but only a token in `granted`, and a user whose request is
            accepted, may have its files. `True` means `"manual"`.
        kind (`str`): `"model"` or `"dataset"`.
        store (`dict[str, bytes]`, *optional*): LFS objects by their SHA-256.

    Attributes:
        ranges (`bool`): whether a part of a file can be requested. If not, the response is the whole file.
        requests (`dict[str, Request]`): users who requested access, or were granted it.
    """

    def __init__(
        self,
        repo_id: str,
        private: bool = False,
        gated: bool | str = False,
        kind: str = "model",
        store: dict[str, bytes] | None = None,
    ):
        self.repo_id = repo_id
        self.private = private
        self.gated = gated
        self.kind = kind
        self.store = {} if store is None else store
        self.ranges = True
        self.granted: set[str] = set()
        self.requests: dict[str, Request] = {}
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.tags: set[str] = set()

    @property
    def path(self) -> str:
        """Its page's path on the Hub."""
        return f"/datasets/{self.repo_id}" if self.kind == "dataset" else f"/{self.repo_id}"

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.repo_id.split("/")[0]

    def commit(
        self,
        files: Mapping[str, bytes | Blob] | Path,
        branch: str = MAIN,
        title: str = "Add files",
        message: str = "",
        author: str = "system",
        lfs: bool = False,
    ) -> str:
        """Makes the files (or a folder's) the new state of a branch, and returns the commit's hash.

        Args:
            files (`dict[str, bytes]` or `Path`): all files of the new state.
            branch (`str`): the branch, which need not exist.
            title (`str`), message (`str`), author (`str`): metadata of the commit.
            lfs (`bool`): whether weights and other large files are stored as LFS, as an upload's would be.
        """
        content = _read_folder(files) if isinstance(files, Path) else files
        blobs = {name: self._blob(name, data, lfs) for name, data in sorted(content.items())}
        parent = self.refs.get(branch, "")
        listing = {name: blob.oid for name, blob in blobs.items()}
        sha = hashlib.sha1(json.dumps([self.repo_id, parent, listing, title, message, author]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, blobs, title, message, author, parent=parent)
        self.refs[branch] = sha
        return sha

    def tag(self, name: str, revision: str = MAIN) -> None:
        """Gives a commit another name."""
        self.refs[name] = self.refs.get(revision, revision)
        self.tags.add(name)

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a full hash means."""
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str = MAIN) -> list[Commit]:
        """The commits up to a revision, the last one first."""
        found, commit = [], self.at(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found

    def _blob(self, name: str, data: bytes | Blob, lfs: bool) -> Blob:
        if isinstance(data, Blob):
            if data.sha256 is not None:
                self.store.setdefault(data.sha256, data.data)
            return data
        if not (lfs and data and is_lfs(name, len(data))):
            return Blob.plain(data)
        sha = hashlib.sha256(data).hexdigest()
        return Blob.lfs(self.store.setdefault(sha, data), sha)


@dataclass
class Account:
    """A user of the Hub, who may write to their own repos and to those of their organizations.

    Attributes:
        name (`str`): the user's name.
        orgs (`set[str]`): the organizations.
        tokens (`dict[str, str]`): each token with its role, `"write"` or `"read"`. Take one out, and it has expired.
    """

    name: str
    orgs: set[str] = field(default_factory=set)
    tokens: dict[str, str] = field(default_factory=dict)

    def owns(self, namespace: str) -> bool:
        """Returns whether repos of that name belong to the account or to one of its organizations."""
        return namespace == self.name or namespace in self.orgs


class Call(NamedTuple):
    """One request."""

    method: str
    path: str
    token: str | None


class Received(NamedTuple):
    """Headers and body of a request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def kind_of(kind_text: str) -> str:
    """`"model"` or `"dataset"`, of what an address or a request says."""
    return "dataset" if kind_text.startswith("dataset") else "model"


def blob_hash(data: bytes) -> str:
    """The hash that git gives to a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % len(data))
    digest.update(data)
    return digest.hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether a file of that name and size is to be stored as LFS."""
    return path.endswith(LFS_SUFFIXES) or size >= LFS_SIZE


def written(date: datetime) -> str:
    """A date as the Hub writes it."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def folders(paths: Iterable[str]) -> set[str]:
    """All folders that hold the files."""
    return {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _read_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
