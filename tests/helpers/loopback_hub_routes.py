"""Read requests of the loopback Hub: repos, their files and commits, and accounts."""

import hashlib
import hmac
import re
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import yaml

from tests.helpers.loopback_hub_http import HttpHandler
from tests.helpers.loopback_hub_repos import MAIN, Blob, Commit, Refusal, Repo, folders, kind_of, written


API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
LISTED = ("_id", "id", "modelId", "private", "createdAt", "likes", "downloads", "tags", "library_name", "pipeline_tag")


class ReadingHandler(HttpHandler):
    """Handles one request that changes nothing."""

    REPO = re.compile(API + r"(/revision/(?P<revision>[^/]+))?")
    TREE = re.compile(API + r"/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?")
    PATHS = re.compile(API + r"/paths-info/(?P<revision>[^/]+)")
    COMMITS = re.compile(API + r"/commits/(?P<revision>[^/]+)")
    RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
    ROUTES = (
        ("GET", re.compile(r"/api/whoami-v2"), "whoami"),
        ("GET", re.compile(r"/api/(?P<kind>models|datasets)"), "repos"),
        ("GET", REPO, "repo"),
        ("GET", TREE, "tree"),
        ("POST", PATHS, "paths"),
        ("GET", COMMITS, "commits"),
        ("GET", re.compile(API + r"/refs"), "refs"),
        ("GET", re.compile(API + r"/auth-check(?P<write>/write)?"), "auth_check"),
        ("GET", RESOLVE, "resolve"),
        ("HEAD", RESOLVE, "resolve"),
        ("GET", HttpHandler.STORE, "stored"),
        ("HEAD", HttpHandler.STORE, "stored"),
    )

    def whoami(self) -> None:
        """The account that the token belongs to."""
        if self.token() is None:
            raise Refusal(401, None, "Invalid username or password.")
        account = self.account()
        name, orgs = ("a-reader", []) if account is None else (account.name, sorted(account.orgs))
        role = "read" if account is None else account.tokens[self.token()]
        self.send_json(
            {
                "type": "user",
                "id": hashlib.sha1(name.encode()).hexdigest()[:24],
                "name": name,
                "fullname": name,
                "isPro": False,
                "orgs": [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in orgs],
                "auth": {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}},
            }
        )

    def repos(self, kind: str) -> None:
        """The repos that this request may see: by author or a part of the name, sorted, and no more than a limit."""
        found = [repo for repo in list(self.hub.of_kind(kind).values()) if self.may_read(repo)]
        for author in self.query("author"):
            found = [repo for repo in found if repo.namespace == author]
        for part in self.query("search"):
            found = [repo for repo in found if part.lower() in repo.repo_id.lower()]
        payload = [self.about(repo, repo.at(MAIN)) for repo in found]
        for key in self.query("sort"):
            payload.sort(key=lambda info: info.get(key) or "", reverse=True)
        for limit in self.query("limit"):
            payload = payload[: int(limit)]
        if not self.query("expand") and not self.asks_for("full"):
            payload = [{key: value for key, value in info.items() if key in LISTED} for info in payload]
        self.send_json([self.expanded(info) for info in payload])

    def repo(self, kind: str, repo: str, revision: str | None) -> None:
        """Sends the information about a repo at a revision."""
        known = self.readable(kind, repo)
        if revision is None and MAIN not in known.refs:
            self.send_json(self.expanded(self.about(known, None)))
        else:
            self.send_json(self.expanded(self.about(known, self.commit_of(known, revision or MAIN))))

    def tree(self, kind: str, repo: str, revision: str, folder: str | None) -> None:
        """The files and folders under a folder."""
        commit = self.commit_of(self.readable(kind, repo), revision)
        prefix = f"{folder}/" if folder else ""
        below = {name: blob for name, blob in commit.blobs.items() if name.startswith(prefix)}
        if folder and not below:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        found = [name for name in {*below, *folders(below)} if name.startswith(prefix)]
        if not self.asks_for("recursive"):
            found = [name for name in found if "/" not in name.removeprefix(prefix)]
        self.send_json([_entry(name, commit) for name in sorted(found)])

    def paths(self, kind: str, repo: str, revision: str) -> None:
        """Those of some files and folders that exist."""
        commit = self.commit_of(self.readable(kind, repo), revision)
        found = {*commit.blobs, *folders(commit.blobs)}
        self.send_json([_entry(path, commit) for path in self.form("paths") if path in found])

    def commits(self, kind: str, repo: str, revision: str) -> None:
        """The commits up to a revision."""
        known = self.readable(kind, repo)
        self.commit_of(known, revision)
        self.send_json(
            [
                {
                    "id": commit.sha,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": written(commit.date),
                }
                for commit in known.history(revision)
            ]
        )

    def refs(self, kind: str, repo: str) -> None:
        """The branches and tags."""
        found: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        known = self.readable(kind, repo)
        for name, sha in sorted(known.refs.items()):
            group, path = ("tags", "refs/tags/") if name in known.tags else ("branches", "refs/heads/")
            found[group].append({"name": name, "ref": path + name, "targetCommit": sha})
        self.send_json(found)

    def auth_check(self, kind: str, repo: str, write: str | None) -> None:
        """Whether this request may have a repo's files, or change them."""
        known = self.readable(kind, repo)
        self.check_gate(known)
        if write:
            self.check_writer(known.namespace)
        self.send_json({})

    def resolve(self, kind: str | None, repo: str, revision: str, file: str) -> None:
        """A file, or a range of its bytes; of one that is stored as LFS, where to get it."""
        known = self.readable(kind or "model", repo)
        self.check_gate(known)
        commit = self.commit_of(known, revision)
        if file not in commit.blobs:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        blob = commit.blobs[file]
        if blob.sha256 is None:
            self.send_part(blob.data, {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"'}, known.ranges)
            return
        target = self.store_url(blob.sha256, file=file, **({} if known.ranges else {"ranges": "no"}))
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        headers = {"X-Repo-Commit": commit.sha, "Location": target, "Content-Type": "text/plain"} | linked
        self.send(302, f"Found. Redirecting to {target}".encode(), headers)

    def stored(self, sha256: str) -> None:
        """An LFS object, or a range of its bytes, to anyone who has the signed address."""
        self.check_signature(sha256)
        data = self.hub.store.get(sha256)
        if data is None:
            raise Refusal(404, None, "No such object")
        self.send_part(data, {"ETag": f'"{sha256[:32]}"'}, "no" not in self.query("ranges"))

    def send_part(self, data: bytes, headers: dict[str, str], ranges: bool) -> None:
        """Sends a file, or the requested range of it."""
        requested = self.headers.get("Range")
        if requested is None or not ranges:
            self.hub.note_sent(len(data) * (self.command == "GET"))
            self.send(200, data, headers | ({"Accept-Ranges": "bytes"} if ranges else {}))
            return
        begin, end = _range(requested, len(data))
        if not begin < end:
            self.send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        payload = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        self.hub.note_sent((end - begin) * (self.command == "GET"))
        self.send(206, memoryview(data)[begin:end], headers | payload)

    def about(self, repo: Repo, commit: Commit | None) -> dict[str, Any]:
        """Returns all information about a repo."""
        blobs = {} if commit is None else commit.blobs
        card = card_of(blobs["README.md"]) if "README.md" in blobs else None
        payload = {
            "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
            "id": repo.repo_id,
            "author": repo.namespace,
            "sha": None if commit is None else commit.sha,
            "private": repo.private,
            "gated": "manual" if repo.gated is True else repo.gated,
            "disabled": False,
            "tags": (card or {}).get("tags") or [],
            "downloads": 0,
            "likes": 0,
            "cardData": card,
            "siblings": [blob.sibling(name, self.asks_for("blobs")) for name, blob in sorted(blobs.items())],
        }
        if repo.kind == "model":
            payload |= {key: card[key] for key in ("library_name", "pipeline_tag") if card and key in card}
            payload["modelId"] = repo.repo_id
        dates = sorted(known.date for known in repo.commits.values())
        if commit is not None:
            payload |= {"createdAt": written(dates[0]), "lastModified": written(commit.date)}
        return payload

    def expanded(self, info: dict[str, Any]) -> dict[str, Any]:
        """Returns only the requested fields, if the request names any."""
        requested = self.query("expand")
        return {key: value for key, value in info.items() if key in {"_id", "id", *requested}} if requested else info

    def form(self, name: str) -> list[str]:
        """The values of a field in the request's body, which is a form."""
        return parse_qs(self.body.decode()).get(name, [])

    def may_read(self, repo: Repo) -> bool:
        """Whether this request may know of a repo."""
        account = self.account()
        owns = account is not None and account.owns(repo.namespace)
        return not repo.private or self.token() in self.hub.tokens or owns

    def readable(self, kind: str, repo_id: str) -> Repo:
        """The repo, if it exists and this request may see it; a stranger can't tell a private one from none."""
        repos = self.hub.of_kind(kind)
        repo = repos.get(repo_id)
        moved = self.hub.moved.get((kind_of(kind), repo_id))
        if repo is None and moved in repos and self.may_read(repos[moved]):
            target = self.path.replace(quote(repo_id), quote(moved), 1)
            raise Refusal(307, None, f"Temporary Redirect. Redirecting to {target}", headers={"Location": target})
        if repo is None or not self.may_read(repo):
            raise Refusal(401 if self.token() is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def check_gate(self, repo: Repo) -> None:
        """Refuses the files of a gated repo to all who were not granted access."""
        account = self.account()
        if not repo.gated or self.token() in repo.granted:
            return
        if account is not None:
            request = repo.requests.get(account.name)
            if account.owns(repo.namespace) or (request is not None and request.status == "accepted"):
                return
        status = 401 if self.token() is None else 403
        raise Refusal(status, "GatedRepo", f"Access to {repo.kind} {repo.repo_id} is restricted.")

    def check_writer(self, namespace: str) -> None:
        """Refuses a change to all who have no right to it."""
        account = self.account()
        if self.token() is None:
            # the client takes a 401 of these addresses for a missing repo, but only if they begin with https
            code = None if self.path.startswith("/api/repos/") else "RepoNotFound"
            raise Refusal(401, code, "Invalid username or password.")
        if account is None or account.tokens[self.token()] != "write":
            raise Refusal(403, None, "Forbidden: you must use a write token to upload to a repository.")
        if not account.owns(namespace):
            raise Refusal(403, None, f'You don\'t have the rights to write under the namespace "{namespace}".')

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        """The commit that a revision means."""
        commit = repo.at(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def store_url(self, sha256: str, **query: str) -> str:
        """The signed address of an LFS object, on the store's own host."""
        return f"{self.hub.store_url}/lfs-store/{sha256}?{urlencode(query | {'signature': self._signature(sha256)})}"

    def check_signature(self, sha256: str) -> None:
        """Refuses what did not come by a signed address; and a token, which has no business with the store."""
        if self.query("signature") != [self._signature(sha256)]:
            raise Refusal(403, None, "The signature does not match")
        if self.token() is not None:
            raise Refusal(400, None, "Only one way to authorize is allowed: a signature and a token came")

    def _signature(self, sha256: str) -> str:
        return hmac.new(self.hub.signing_key, sha256.encode(), "sha256").hexdigest()


def metadata_of(readme: str) -> str | None:
    """The YAML at the top of a model card, if there is any."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", readme, re.DOTALL | re.MULTILINE)
    return match[1] if match else None


def card_of(readme: Blob) -> dict[str, Any] | None:
    """The metadata of a model card, if there is any that can be read."""
    try:
        found = yaml.safe_load(metadata_of(readme.data.decode(errors="replace")) or "")
    except yaml.YAMLError:
        return None
    return found if isinstance(found, dict) else None


def _entry(path: str, commit: Commit) -> dict[str, Any]:
    if path in commit.blobs:
        return commit.blobs[path].entry(path)
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _range(requested: str, size: int) -> tuple[int, int]:
    """Begin and end of `bytes=a-b`, `bytes=a-` or `bytes=-n`; empty if it can't be met."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", requested)
    if match is None or match[0] == "bytes=-":
        return 0, 0
    if not match[1]:
        return max(0, size - int(match[2])), size
    return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
