"""Write requests of the loopback Hub: repos and their settings, files, branches, tags, access."""

import base64
import hashlib
import json
import re
from typing import Any

import yaml

from tests.helpers.loopback_hub_repos import (
    GIT_ATTRIBUTES,
    MAIN,
    Blob,
    Commit,
    Refusal,
    Repo,
    Request,
    is_lfs,
    kind_of,
    written,
)
from tests.helpers.loopback_hub_routes import API, ReadingHandler, metadata_of


class HubHandler(ReadingHandler):
    """Handles one request."""

    LFS = r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects"
    BRANCH = re.compile(API + r"/branch/(?P<branch>[^/]+)")
    TAG = re.compile(API + r"/tag/(?P<name>[^/]+)")
    ROUTES = (
        *ReadingHandler.ROUTES,
        ("POST", re.compile(r"/api/repos/create"), "create"),
        ("DELETE", re.compile(r"/api/repos/delete"), "delete"),
        ("POST", re.compile(r"/api/repos/move"), "move"),
        ("PUT", re.compile(API + r"/settings"), "settings"),
        ("POST", re.compile(API + r"/user-access-request/grant"), "grant"),
        ("POST", re.compile(API + r"/user-access-request/handle"), "handle_request"),
        ("GET", re.compile(API + r"/user-access-request/(?P<status>pending|accepted|rejected)"), "access_requests"),
        ("POST", re.compile(r"/api/validate-yaml"), "validate_yaml"),
        ("POST", re.compile(API + r"/preupload/(?P<revision>[^/]+)"), "preupload"),
        ("POST", re.compile(LFS + r"/batch"), "lfs_batch"),
        ("PUT", ReadingHandler.STORE, "store"),
        ("POST", re.compile(LFS + r"/verify"), "lfs_verify"),
        ("POST", re.compile(API + r"/commit/(?P<branch>[^/]+)"), "commit"),
        ("POST", BRANCH, "create_branch"),
        ("DELETE", BRANCH, "delete_branch"),
        ("POST", TAG, "create_tag"),
        ("DELETE", TAG, "delete_tag"),
    )

    def create(self) -> None:
        """A new repo, with a first commit that holds its `.gitattributes`."""
        body = self.json()
        kind, repo_id = self._named(body)
        self.check_writer(repo_id.split("/")[0])
        private = body.get("visibility") == "private" or body.get("private") is True
        repo = Repo(repo_id, private, kind=kind, store=self.hub.store)
        payload = {"url": self.hub.url + repo.path, "name": repo_id}
        with self.hub.lock:
            if repo_id in self.hub.of_kind(kind):
                raise Refusal(409, None, f"You already created this {kind} repo", payload)
            self.hub.moved.pop((kind, repo_id), None)
            self.hub.of_kind(kind)[repo_id] = repo
            repo.commit({".gitattributes": GIT_ATTRIBUTES}, title="initial commit")
        self.send_json(payload)

    def delete(self) -> None:
        """A repo is gone, and so are the names that it had before."""
        kind, repo_id = self._named(self.json())
        with self.hub.lock:
            self.check_writer(self.readable(kind, repo_id).namespace)
            del self.hub.of_kind(kind)[repo_id]
            for old in [old for old, new in self.hub.moved.items() if (old[0], new) == (kind, repo_id)]:
                del self.hub.moved[old]
        self.send_json({})

    def move(self) -> None:
        """A repo gets another name, to which the old one leads."""
        body = self.json()
        kind, old, new = kind_of(body.get("type") or ""), body["fromRepo"], body["toRepo"]
        with self.hub.lock:
            repo, repos = self.readable(kind, old), self.hub.of_kind(kind)
            self.check_writer(repo.namespace)
            self.check_writer(new.split("/")[0])
            if new in repos:
                raise Refusal(409, None, f"A repository called {new} already exists")
            repos[new] = repos.pop(old)
            repo.repo_id = new
            for before in [before for before, now in self.hub.moved.items() if (before[0], now) == (kind, old)]:
                self.hub.moved[before] = new
            self.hub.moved[kind, old] = new
            self.hub.moved.pop((kind, new), None)
        self.send_json({})

    def settings(self, kind: str, repo: str) -> None:
        """Who may see a repo, and who may have its files."""
        body, known = self.json(), self.writable(kind, repo)
        if body.get("gated", False) not in ("auto", "manual", False):
            raise Refusal(400, None, f"Invalid gated setting: {body['gated']}")
        if body.get("visibility", "public") not in ("public", "private"):
            raise Refusal(400, None, f"Invalid visibility: {body['visibility']}")
        known.gated = body.get("gated", known.gated)
        known.private = body.get("private", known.private)
        if "visibility" in body:
            known.private = body["visibility"] == "private"
        self.send_json({"private": known.private, "gated": known.gated})

    def grant(self, kind: str, repo: str) -> None:
        """A user may have a gated repo's files."""
        self._decide(self._gated(kind, repo), self.json().get("user"), "accepted", 400)
        self.send_json({})

    def handle_request(self, kind: str, repo: str) -> None:
        """Accepts or rejects a user's request, or sets it back to pending."""
        body, known = self.json(), self._gated(kind, repo)
        if body.get("user") not in known.requests:
            raise Refusal(404, None, f"There is no request of {body.get('user')}")
        self._decide(known, body["user"], body["status"], 404)
        self.send_json({})

    def access_requests(self, kind: str, repo: str, status: str) -> None:
        """The users whose request was accepted, was rejected, or waits for that."""
        found = [(user, request) for user, request in self._gated(kind, repo).requests.items()]
        self.send_json(
            [
                {
                    "user": {"user": user, "fullname": user},
                    "requestId": hashlib.sha1(user.encode()).hexdigest()[:24],
                    "status": status,
                    "timestamp": written(request.date),
                }
                for user, request in found
                if request.status == status
            ]
        )

    def validate_yaml(self) -> None:
        """Whether a model card's metadata can be read."""
        try:
            found = yaml.safe_load(metadata_of(self.json().get("content") or "") or "")
        except yaml.YAMLError as error:
            self._invalid(f"YAML Metadata Error: {error}")
            return
        if found is None:
            warning = "YAML Metadata Warning: empty or missing yaml metadata in repo card"
            self.send_json({"errors": [], "warnings": [{"message": warning}]})
        elif not isinstance(found, dict):
            self._invalid("YAML Metadata Error: the metadata must be an object")
        else:
            self.send_json({"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        """How each of some files is to be uploaded, and what it is like now."""
        now = self.commit_of(self.writable(kind, repo), revision).blobs
        payload = []
        for file in self.json()["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            blob = now.get(file["path"])
            payload.append(answer | ({"oid": blob.sha256 or blob.oid} if blob else {}))
        self.send_json({"files": payload})

    def lfs_batch(self, kind: str | None, repo: str) -> None:
        """Where to upload each of some LFS objects; nowhere, if it is stored already."""
        known, body = self.writable(kind or "model", repo), self.json()
        if body.get("operation") != "upload" or "basic" not in body.get("transfers", ["basic"]):
            raise Refusal(422, None, "Only basic uploads are answered by the loopback hub")
        payload: list[dict[str, Any]] = []
        for item in body["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.store:
                verify = {"href": f"{self.hub.url}{known.path}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": {"href": self.store_url(item["oid"])}, "verify": verify}
            payload.append(answer)
        self.send_json(
            {"transfer": "basic", "objects": payload}, headers={"Content-Type": "application/vnd.git-lfs+json"}
        )

    def store(self, sha256: str) -> None:
        """An LFS object, uploaded by anyone who has the signed address."""
        self.check_signature(sha256)
        if self.hub.store.get(sha256) is not self.body:
            if hashlib.sha256(self.body).hexdigest() != sha256:
                raise Refusal(400, None, "What was uploaded has another SHA-256")
            self.hub.store.setdefault(sha256, self.body)
        self.send(200, b"")

    def lfs_verify(self, kind: str | None, repo: str) -> None:
        """Whether an LFS object is stored as it should be."""
        self.writable(kind or "model", repo)
        body = self.json()
        if len(self.hub.store.get(body["oid"], b"")) != body["size"]:
            raise Refusal(404, None, f"There is no object {body['oid']} of {body['size']} bytes")
        self.send_json({})

    def commit(self, kind: str, repo: str, branch: str) -> None:
        """Several changes of files, all of them or none."""
        known = self.writable(kind, repo)
        if self.asks_for("create_pr"):
            raise Refusal(400, None, "Pull requests are not answered by the loopback hub")
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line]
        about = header["value"]
        with self.hub.lock:
            head = self._head(known, branch)
            if about.get("parentCommit", head.sha) != head.sha:
                raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
            blobs = dict(head.blobs)
            for operation in operations:
                self._change(blobs, operation["key"], operation["value"])
            author = self.account()
            assert author is not None
            sha = known.commit(blobs, branch, about["summary"], about.get("description", ""), author.name)
        url = f"{self.hub.url}{known.path}/commit/{sha}"
        self.send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def create_branch(self, kind: str, repo: str, branch: str) -> None:
        """A new branch, at a revision or at the head of main."""
        known = self.writable(kind, repo)
        with self.hub.lock:
            commit = self.commit_of(known, self.json().get("startingPoint") or MAIN)
            self._new_ref(known, branch)
            known.refs[branch] = commit.sha
        self.send_json({})

    def delete_branch(self, kind: str, repo: str, branch: str) -> None:
        """A branch is gone."""
        known = self.writable(kind, repo)
        with self.hub.lock:
            self._head(known, branch)
            if branch == MAIN:
                raise Refusal(403, None, "The branch main is protected")
            del known.refs[branch]
        self.send_json({})

    def create_tag(self, kind: str, repo: str, name: str) -> None:
        """A new tag for a revision."""
        known, tag = self.writable(kind, repo), self.json()["tag"]
        with self.hub.lock:
            self.commit_of(known, name)
            self._new_ref(known, tag)
            known.tag(tag, name)
        self.send_json({})

    def delete_tag(self, kind: str, repo: str, name: str) -> None:
        """A tag is gone."""
        known = self.writable(kind, repo)
        with self.hub.lock:
            if name not in known.tags:
                raise Refusal(404, "RevisionNotFound", f"Tag {name} does not exist")
            known.tags.remove(name)
            del known.refs[name]
        self.send_json({})

    def writable(self, kind: str, repo_id: str) -> Repo:
        """The repo, if this request may change it."""
        repo = self.readable(kind, repo_id)
        self.check_writer(repo.namespace)
        return repo

    def _named(self, body: dict[str, Any]) -> tuple[str, str]:
        if body.get("type") not in (None, "model", "dataset"):
            raise Refusal(400, None, f"{body['type']} repos are not answered by the loopback hub")
        account = self.account()
        namespace = body.get("organization") or (account.name if account else "")
        return body.get("type") or "model", f"{namespace}/{body['name']}"

    def _gated(self, kind: str, repo_id: str) -> Repo:
        repo = self.writable(kind, repo_id)
        if not repo.gated:
            raise Refusal(400, None, "The repo is not gated")
        return repo

    def _decide(self, repo: Repo, user: str | None, status: str, refused: int) -> None:
        if user not in self.hub.accounts:
            raise Refusal(404, None, f"There is no user {user}")
        if user in repo.requests and repo.requests[user].status == status:
            raise Refusal(refused, None, f"The request of {user} is {status} already")
        repo.requests[user] = Request(status)

    def _invalid(self, message: str) -> None:
        self.send_json({"error": message, "errors": [{"message": message}], "warnings": []}, 400)

    def _head(self, repo: Repo, branch: str) -> Commit:
        if branch not in repo.refs or branch in repo.tags:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        return self.commit_of(repo, branch)

    def _new_ref(self, repo: Repo, name: str) -> None:
        if name in repo.refs:
            raise Refusal(409, None, f"Reference {name} already exists")

    def _change(self, blobs: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            blobs[path] = Blob.plain(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            data = self.hub.store.get(value["oid"])
            if data is None or value.get("size", len(data)) != len(data):
                raise Refusal(400, None, f"LFS pointer pointed to a file that does not exist: {path}")
            blobs[path] = Blob.lfs(data, value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            folder = f"{path.rstrip('/')}/"
            gone = [name for name in blobs if (name == path if key == "deletedFile" else name.startswith(folder))]
            if not gone:
                raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            for name in gone:
                del blobs[name]
        else:
            raise Refusal(400, None, f"{key} is not answered by the loopback hub")
