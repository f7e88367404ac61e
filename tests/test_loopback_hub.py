import base64
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from safetensors.numpy import save

from tests.helpers.loopback_hub import Blob, Fault, LoopbackHub, Request, blob_hash


pytestmark = pytest.mark.integration


FILES = {
    "config.json": b"{}",
    "model.safetensors": save({"a": np.arange(6, dtype=np.float32)}),
    "sub dir/deep/é [1].txt": b"x",
    "sub dir/labels.txt": b"0123456789",
}
CARD = b"---\nlicense: mit\nlibrary_name: timm\ntags: [a, b]\n---\n# A model\n"
UPLOAD = FILES | {"README.md": CARD, "empty.bin": b"", "other.bin": b"\x00\x01" * 50}
LFS = {"model.safetensors", "other.bin"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def test_the_real_client_finds_a_repo_as_it_was_added(hub, tmp_path):
    repo = hub.add("org/name", FILES)

    info = HfApi().model_info("org/name")
    folder = snapshot_download("org/name", local_dir=tmp_path / "here")

    assert info.sha == repo.refs["main"]
    assert [sibling.rfilename for sibling in info.siblings] == sorted(FILES)
    assert {name: (tmp_path / "here" / name).read_bytes() for name in FILES} == FILES
    assert folder == str(tmp_path / "here")
    assert hub.downloads() == set(FILES)


def test_the_real_client_lists_folders_and_what_is_below_them(hub):
    hub.add("org/name", FILES)

    def listed(folder: str | None, recursive: bool) -> list[str]:
        return sorted(found.path for found in HfApi().list_repo_tree("org/name", folder, recursive=recursive))

    assert listed(None, False) == ["config.json", "model.safetensors", "sub dir"]
    assert listed("sub dir", False) == ["sub dir/deep", "sub dir/labels.txt"]
    assert listed(None, True) == sorted([*FILES, "sub dir", "sub dir/deep"])


def test_branches_and_tags_move_and_commits_do_not(hub):
    repo = hub.add("org/name", {"a.txt": b"1"})
    first = repo.refs["main"]
    repo.tag("v1")
    second = repo.commit({"a.txt": b"2"})

    def content(revision: str) -> bytes:
        return Path(hf_hub_download("org/name", "a.txt", revision=revision)).read_bytes()

    assert [content(revision) for revision in ("main", "v1", first, second)] == [b"2", b"1", b"1", b"2"]


@pytest.mark.parametrize(
    ("requested", "status", "content"),
    [
        (None, 200, b"0123456789"),
        ("bytes=0-0", 206, b"0"),
        ("bytes=3-5", 206, b"345"),
        ("bytes=7-", 206, b"789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=10-", 416, b""),
        ("bytes=5-2", 416, b""),
    ],
)
def test_a_range_of_a_file_is_that_range(hub, requested, status, content):
    hub.add("org/name", FILES)
    url = f"{hub.url}/org/name/resolve/main/sub%20dir/labels.txt"

    response = get_session().get(url, headers={"Range": requested} if requested else {})

    assert (response.status_code, response.content) == (status, content)
    assert response.headers["Content-Length"] == str(len(content))
    if status == 206:
        assert response.headers["Content-Range"].endswith("/10")


def test_the_client_reads_a_header_and_a_part_of_a_file_without_the_rest(hub):
    hub.add("org/name", FILES)

    metadata = HfApi().get_safetensors_metadata("org/name")
    with HfFileSystem(endpoint=hub.url).open("org/name/sub dir/labels.txt", cache_type="none", block_size=4) as stream:
        stream.seek(4)
        part = stream.read(3)

    assert metadata.files_metadata["model.safetensors"].tensors["a"].shape == [6]
    assert part == b"456"


def test_a_file_on_the_disk_is_served_in_parts_and_what_is_sent_is_counted(hub, tmp_path):
    with (tmp_path / "large").open("wb") as stream:
        stream.write(b"0123456789")
        stream.truncate(1 << 30)
    hub.add("org/name", {"model.safetensors": Blob.on_disk(tmp_path / "large")})
    url = f"{hub.url}/org/name/resolve/main/model.safetensors"

    response = get_session().get(url, headers={"Range": "bytes=5-14"}, follow_redirects=True)

    assert response.content == b"56789" + bytes(5)
    assert hub.bytes_sent == 10
    assert HfApi().model_info("org/name", files_metadata=True).siblings[0].size == 1 << 30


def test_a_head_request_returns_commit_hash_and_size_and_sends_nothing(hub):
    repo = hub.add("org/name", FILES)

    response = get_session().head(f"{hub.url}/org/name/resolve/main/config.json")

    assert response.content == b""
    assert response.headers["X-Repo-Commit"] == repo.refs["main"]
    assert response.headers["ETag"] == f'"{blob_hash(b"{}")}"'
    assert response.headers["Content-Length"] == "2"


def test_what_is_missing_private_or_gated_is_distinguished_as_the_client_expects(hub, monkeypatch):
    hub.add("org/name", FILES)
    hub.add("org/private", FILES, private=True)
    hub.add("org/gated", FILES, gated=True)
    refusals = [
        (("org/missing", "config.json"), RepositoryNotFoundError),
        (("org/private", "config.json"), RepositoryNotFoundError),
        (("org/gated", "config.json"), GatedRepoError),
        (("org/name", "missing.json"), EntryNotFoundError),
    ]
    for token in (None, "known"):
        if token:
            hub.tokens.add(token)
            monkeypatch.setenv("HF_TOKEN", token)
            refusals.remove((("org/private", "config.json"), RepositoryNotFoundError))
        for arguments, error in refusals:
            with pytest.raises(error):
                hf_hub_download(*arguments)
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download("org/name", "config.json", revision="missing")
    assert hf_hub_download("org/private", "config.json")
    monkeypatch.setenv("HF_TOKEN", "unknown")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi().model_info("org/name")


@pytest.fixture
def alice(hub):
    """The client of someone who writes to their own repos and those of an organization."""
    hub.account("alice", orgs={"org"}, token="hf_alice")
    return HfApi(token="hf_alice")


@pytest.fixture
def bob(hub):
    """The client of someone else."""
    hub.account("bob", token="hf_bob")
    return HfApi(token="hf_bob")


def folder_of(files, folder):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def uploaded(api, repo_id="alice/model", files=UPLOAD, **options):
    api.create_repo(repo_id, exist_ok=True)
    additions = [CommitOperationAdd(name, data) for name, data in files.items()]
    return api.create_commit(repo_id, additions, commit_message="Add all", **options)


def status_of(call):
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code


def test_a_token_belongs_to_an_account_and_its_organizations(hub, alice):
    hub.account("alice", token="hf_read", role="read")
    hub.tokens.add("hf_plain")

    info = alice.whoami()

    assert (info["name"], [org["name"] for org in info["orgs"]]) == ("alice", ["org"])
    assert info["auth"]["accessToken"]["role"] == "write"
    read = HfApi(token="hf_read").whoami()
    assert (read["name"], read["auth"]["accessToken"]["role"]) == ("alice", "read")
    assert HfApi(token="hf_plain").whoami()["orgs"] == []
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_unknown").whoami()


def test_an_expired_token_is_refused_everywhere(hub, alice):
    uploaded(alice)
    hub.accounts["alice"].tokens.clear()

    for call in (
        lambda: alice.whoami(),
        lambda: alice.model_info("alice/model"),
        lambda: uploaded(alice, files={"a.txt": b"new"}),
        lambda: alice.delete_repo("alice/model"),
    ):
        assert status_of(call) == 401


def test_a_new_repo_is_empty_but_for_what_the_hub_puts_there(hub, alice):
    url = alice.create_repo("model", private=True)
    alice.create_repo("org/name")

    assert (url.repo_id, str(url)) == ("alice/model", f"{hub.url}/alice/model")
    assert alice.model_info("alice/model").private
    assert not alice.model_info("org/name").private
    assert alice.list_repo_files("alice/model") == [".gitattributes"]
    (first,) = alice.list_repo_commits("alice/model")
    assert (first.title, first.authors) == ("initial commit", ["system"])


def test_a_repo_is_created_once(hub, alice):
    alice.create_repo("alice/model")

    assert status_of(lambda: alice.create_repo("alice/model")) == 409
    assert alice.create_repo("alice/model", exist_ok=True).repo_id == "alice/model"
    assert alice.create_repo("alice/model", repo_type="dataset").repo_type == "dataset"
    assert len(hub.repos["alice/model"].history()) == 1


def test_only_their_owners_write_to_repos(hub, alice, bob):
    hub.account("alice", token="hf_read", role="read")
    hub.tokens.add("hf_plain")
    uploaded(alice)
    writes = [
        lambda api: api.create_repo("alice/new"),
        lambda api: api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="alice/model"),
        lambda api: api.upload_file(path_or_fileobj=b"x", path_in_repo="a.bin", repo_id="alice/model"),
        lambda api: api.update_repo_settings("alice/model", private=True),
        lambda api: api.move_repo("alice/model", "bob/model"),
        lambda api: api.create_branch("alice/model", branch="new"),
        lambda api: api.create_tag("alice/model", tag="new"),
        lambda api: api.auth_check("alice/model", write=True),
        lambda api: api.grant_access("alice/model", "bob"),
        lambda api: api.delete_repo("alice/model"),
    ]

    for write in writes:
        for api in (bob, HfApi(token="hf_read"), HfApi(token="hf_plain")):
            assert status_of(lambda api=api, write=write: write(api)) == 403
        assert status_of(lambda write=write: write(HfApi(token=False))) == 401
    assert list(hub.repos) == ["alice/model"]
    assert len(hub.repos["alice/model"].history()) == 2
    assert alice.auth_check("alice/model", write=True) is None


def test_a_private_repo_is_seen_by_its_owner_and_members_only(hub, alice, bob):
    uploaded(alice, "org/private")
    alice.update_repo_settings("org/private", private=True)
    hub.account("carol", orgs=["org"], token="hf_carol")

    assert HfApi(token="hf_carol").model_info("org/private").private
    for api in (bob, HfApi(token=False)):
        for call in (api.model_info, api.auth_check, api.list_repo_refs, api.delete_repo):
            with pytest.raises(RepositoryNotFoundError):
                call("org/private")
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("org/private", "config.json")
        assert list(api.list_models()) == []
    alice.update_repo_settings("org/private", visibility="public")
    assert bob.hf_hub_download("org/private", "config.json")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_folder_that_is_uploaded_comes_back_as_it_was(hub, alice, tmp_path, kind):
    alice.create_repo("alice/name", repo_type=kind)
    before = datetime.now(UTC)

    info = alice.upload_folder(
        repo_id="alice/name",
        folder_path=folder_of(UPLOAD, tmp_path / "there"),
        commit_message="Add it",
        commit_description="For a test",
        repo_type=kind,
    )
    snapshot_download("alice/name", local_dir=tmp_path / "here", repo_type=kind)

    here = {name: (tmp_path / "here" / name).read_bytes() for name in UPLOAD}
    assert here == UPLOAD
    repo = hub.of_kind(kind)["alice/name"]
    last, first = repo.history()
    assert (last.sha, last.title, last.message, last.author) == (info.oid, "Add it", "For a test", "alice")
    assert first.date <= last.date
    assert before <= last.date <= datetime.now(UTC)
    assert last.files == UPLOAD | first.files
    assert info.commit_url == f"{hub.url}{repo.path}/commit/{info.oid}"
    commits = alice.list_repo_commits("alice/name", repo_type=kind)
    assert [(commit.commit_id, commit.title, commit.message, commit.authors) for commit in commits] == [
        (commit.sha, commit.title, commit.message, [commit.author]) for commit in (last, first)
    ]
    about = alice.repo_info("alice/name", repo_type=kind)
    assert (about.sha, about.author) == (info.oid, "alice")
    assert about.last_modified == commits[0].created_at
    assert about.created_at == commits[1].created_at


def test_weights_and_large_files_become_lfs_and_others_do_not(hub, alice):
    uploaded(alice, files=UPLOAD | {"large.txt": b"x" * 10_000_000})

    tree = {found.path: found for found in alice.list_repo_tree("alice/model", recursive=True)}
    paths = {found.path: found for found in alice.get_paths_info("alice/model", ["large.txt", "sub dir", "missing"])}
    siblings = {found.rfilename: found for found in alice.model_info("alice/model", files_metadata=True).siblings}

    assert {name for name in UPLOAD if tree[name].lfs} == LFS
    assert tree["large.txt"].lfs.size == paths["large.txt"].lfs.size == siblings["large.txt"].lfs.size == 10_000_000
    assert set(paths) == {"large.txt", "sub dir"}
    for name, data in UPLOAD.items():
        assert (tree[name].size, siblings[name].size) == (len(data), len(data))
        assert tree[name].blob_id == siblings[name].blob_id
        if name in LFS:
            sha = UploadInfo.from_bytes(data).sha256.hex()
            assert tree[name].lfs.sha256 == siblings[name].lfs.sha256 == sha
            assert hub.store[sha] == data
            pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (
                sha.encode(),
                len(data),
            )
            assert (tree[name].blob_id, tree[name].lfs.pointer_size) == (blob_hash(pointer), len(pointer))
        else:
            assert tree[name].blob_id == blob_hash(data)


def test_an_lfs_file_is_redirected_to_where_no_token_is_sent(hub, alice):
    data = UPLOAD["model.safetensors"]
    commit = uploaded(alice)
    alice.update_repo_settings("alice/model", private=True)
    url = hf_hub_url("alice/model", "model.safetensors")

    about = get_hf_file_metadata(url, token="hf_alice")
    hub.calls.clear()
    path = alice.hf_hub_download("alice/model", "model.safetensors")
    with HfFileSystem(endpoint=hub.url, token="hf_alice").open(
        "alice/model/model.safetensors", block_size=8
    ) as stream:
        stream.seek(8)
        part = stream.read(4)

    assert (about.size, about.commit_hash) == (len(data), commit.oid)
    assert about.etag == UploadInfo.from_bytes(data).sha256.hex()
    assert about.location.startswith(f"{hub.store_url}/lfs-store/{about.etag}?")
    assert (Path(path).read_bytes(), part) == (data, data[8:12])
    assert hub.downloads() == {"model.safetensors"}
    assert {call.token for call in hub.calls if "/lfs-store/" in call.path} == {None}
    assert {call.token for call in hub.calls if "/lfs-store/" not in call.path} == {"hf_alice"}


def test_the_store_serves_ranges_to_anyone_with_the_signed_address(hub, alice):
    uploaded(alice)
    data = UPLOAD["other.bin"]
    about = get_hf_file_metadata(hf_hub_url("alice/model", "other.bin"))
    session = get_session()

    whole, head = session.get(about.location), session.head(about.location)
    part = session.get(about.location, headers={"Range": "bytes=10-13"})

    assert (whole.status_code, whole.content) == (200, data)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(data)))
    assert (part.status_code, part.content) == (206, data[10:14])
    assert part.headers["Content-Range"] == f"bytes 10-13/{len(data)}"
    assert session.get(about.location, headers={"Range": "bytes=100-"}).status_code == 416
    assert session.get(about.location, headers={"Authorization": "Bearer hf_alice"}).status_code == 400
    assert session.get(about.location.split("?")[0]).status_code == 403
    assert session.get(about.location + "0").status_code == 403


@pytest.mark.parametrize("name", ["other.bin", "sub dir/labels.txt"])
def test_a_repo_may_answer_ranges_with_the_whole_file(hub, alice, name):
    uploaded(alice)
    hub.repos["alice/model"].ranges = False

    response = get_session().get(hf_hub_url("alice/model", name), headers={"Range": "bytes=3-5"})

    assert (response.status_code, response.content) == (200, UPLOAD[name])
    assert "Accept-Ranges" not in response.headers


def test_what_is_added_may_be_lfs_too(hub):
    hub.add("org/name", UPLOAD, lfs=True)

    tree = HfApi().list_repo_tree("org/name", recursive=True)
    path = hf_hub_download("org/name", "model.safetensors")

    assert {found.path for found in tree if getattr(found, "lfs", None)} == LFS
    assert Path(path).read_bytes() == UPLOAD["model.safetensors"]
    assert hub.downloads() == {"model.safetensors"}


def test_what_is_there_already_is_not_uploaded_again(hub, alice):
    first = uploaded(alice)
    hub.received.clear()

    again = uploaded(alice)
    elsewhere = uploaded(alice, "org/copy", {"renamed.bin": UPLOAD["other.bin"]})

    assert again.oid == first.oid
    assert not [request for request in hub.received if request.method == "PUT"]
    copy = hub.repos["org/copy"].commits[elsewhere.oid].blobs["renamed.bin"]
    assert copy.data is hub.repos["alice/model"].commits[first.oid].blobs["other.bin"].data


def test_a_file_is_copied_and_replaced_and_deleted(hub, alice):
    uploaded(alice)
    operations = [
        CommitOperationCopy("other.bin", "copy.bin"),
        CommitOperationCopy("config.json", "copy.json"),
        CommitOperationAdd("config.json", b"[]"),
        CommitOperationDelete("empty.bin"),
        CommitOperationDelete("sub dir/"),
    ]

    alice.create_commit("alice/model", operations, commit_message="Change it")

    left = {name: data for name, data in UPLOAD.items() if "sub dir" not in name and name != "empty.bin"}
    left |= {"copy.bin": UPLOAD["other.bin"], "copy.json": b"{}", "config.json": b"[]"}
    files = hub.repos["alice/model"].at("main").files
    assert {name: files[name] for name in files if name != ".gitattributes"} == left


@pytest.mark.parametrize("missing", [CommitOperationDelete("missing.txt"), CommitOperationDelete("missing/")])
def test_a_commit_that_cannot_be_done_as_a_whole_changes_nothing(hub, alice, missing):
    first = uploaded(alice)

    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        alice.create_commit("alice/model", [CommitOperationAdd("a.txt", b"x"), missing], commit_message="Fail")

    assert hub.repos["alice/model"].refs == {"main": first.oid}


def test_an_lfs_file_must_be_uploaded_before_it_is_committed(hub, alice):
    first = uploaded(alice)
    addition = CommitOperationAdd("new.bin", b"new")
    alice.preupload_lfs_files("alice/model", [addition])
    hub.store.clear()

    with pytest.raises(BadRequestError, match=r"does not exist: new\.bin"):
        alice.create_commit("alice/model", [CommitOperationAdd("a.txt", b"x"), addition], commit_message="Fail")

    assert hub.repos["alice/model"].refs == {"main": first.oid}


def test_the_store_refuses_other_bytes_than_announced(hub, alice):
    alice.create_repo("alice/model")
    ((action,), errors, transfer) = post_lfs_batch_info(
        [UploadInfo.from_bytes(b"right")], token="hf_alice", repo_type="model", repo_id="alice/model"
    )
    href, session = action["actions"]["upload"]["href"], get_session()

    assert (errors, transfer) == ([], "basic")
    assert session.put(href, content=b"wrong").status_code == 400
    assert session.put(href.split("?")[0], content=b"right").status_code == 403
    assert hub.store == {}
    verify = {"oid": action["oid"], "size": 5}
    headers = {"Authorization": "Bearer hf_alice"}
    assert session.post(action["actions"]["verify"]["href"], json=verify, headers=headers).status_code == 404
    assert session.put(href, content=iter([b"ri", b"ght"])).status_code == 200
    assert session.post(action["actions"]["verify"]["href"], json=verify, headers=headers).status_code == 200
    assert list(hub.store.values()) == [b"right"]


def test_a_commit_on_an_old_parent_is_refused(hub, alice):
    first = uploaded(alice)
    second = uploaded(alice, files={"a.txt": b"1"}, parent_commit=first.oid)

    assert status_of(lambda: uploaded(alice, files={"a.txt": b"2"}, parent_commit=first.oid)) == 412
    assert hub.repos["alice/model"].refs == {"main": second.oid}


@pytest.mark.parametrize("metadata", [b"a: [", b"a: b: c", b"- a", b"a"])
def test_a_model_card_whose_metadata_cannot_be_read_is_refused_before_anything_is_sent(hub, alice, tmp_path, metadata):
    alice.create_repo("alice/model")
    card = b"---\n%b\n---\n" % metadata
    folder = folder_of(UPLOAD | {"README.md": card}, tmp_path / "folder")

    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        alice.upload_folder(repo_id="alice/model", folder_path=folder)

    assert hub.store == {}
    assert len(hub.repos["alice/model"].history()) == 1


def test_a_model_card_is_read_and_one_without_metadata_is_warned_of(hub, alice):
    uploaded(alice)

    ModelCard(CARD.decode()).validate()
    info = alice.model_info("alice/model")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        uploaded(alice, files={"README.md": b"# A model"})

    assert (info.card_data.license, info.library_name, info.tags) == ("mit", "timm", ["a", "b"])
    assert alice.model_info("alice/model").card_data is None


def test_a_moved_repo_is_found_by_its_old_names_too(hub, alice, bob):
    uploaded(alice)
    alice.move_repo("alice/model", "org/second")
    alice.move_repo("org/second", "org/third")

    for name in ("alice/model", "org/second"):
        assert alice.model_info(name).id == "org/third"
        assert Path(alice.hf_hub_download(name, "model.safetensors")).read_bytes() == UPLOAD["model.safetensors"]
        assert Path(alice.hf_hub_download(name, "config.json")).read_bytes() == b"{}"
    alice.upload_file(path_or_fileobj=b"new", path_in_repo="new.bin", repo_id="alice/model")
    assert hub.repos["org/third"].at("main").files["new.bin"] == b"new"
    moved = [call for call in hub.calls if call.path.startswith("/api/models/alice/model")]
    assert moved
    assert list(hub.repos) == ["org/third"]

    alice.update_repo_settings("org/third", private=True)
    for name in ("alice/model", "org/third"):
        with pytest.raises(RepositoryNotFoundError):
            bob.model_info(name)
    alice.move_repo("org/third", "alice/model")
    assert alice.model_info("org/third").id == "alice/model"
    alice.create_repo("org/third")
    assert alice.model_info("org/third").id == "org/third"


def test_a_repo_is_not_moved_over_another_or_to_others(hub, alice, bob):
    uploaded(alice)
    uploaded(alice, "org/other")

    assert status_of(lambda: alice.move_repo("alice/model", "org/other")) == 409
    assert status_of(lambda: alice.move_repo("alice/model", "bob/model")) == 403
    with pytest.raises(RepositoryNotFoundError):
        alice.move_repo("alice/missing", "org/new")
    assert list(hub.repos) == ["alice/model", "org/other"]


def test_a_deleted_repo_is_gone_under_all_its_names(hub, alice):
    uploaded(alice)
    alice.move_repo("alice/model", "alice/second")
    alice.delete_repo("alice/second")

    for name in ("alice/model", "alice/second"):
        assert not alice.repo_exists(name)
    with pytest.raises(RepositoryNotFoundError):
        alice.delete_repo("alice/second")
    alice.delete_repo("alice/second", missing_ok=True)
    assert hub.moved == {}


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_a_gated_repo_opens_for_whom_it_is_granted(hub, alice, bob, gated):
    uploaded(alice)
    assert status_of(lambda: alice.grant_access("alice/model", "bob")) == 400
    alice.update_repo_settings("alice/model", gated=gated)

    assert bob.model_info("alice/model").gated == gated
    for call in (bob.auth_check, lambda name: bob.hf_hub_download(name, "model.safetensors")):
        with pytest.raises(GatedRepoError):
            call("alice/model")
    alice.auth_check("alice/model")
    assert alice.hf_hub_download("alice/model", "config.json")

    alice.grant_access("alice/model", "bob")
    bob.auth_check("alice/model")
    assert bob.hf_hub_download("alice/model", "model.safetensors")
    (accepted,) = alice.list_accepted_access_requests("alice/model")
    assert (accepted.username, accepted.status) == ("bob", "accepted")
    assert status_of(lambda: alice.grant_access("alice/model", "bob")) == 400
    assert status_of(lambda: alice.grant_access("alice/model", "nobody")) == 404
    assert status_of(lambda: list(bob.list_accepted_access_requests("alice/model"))) == 403

    alice.update_repo_settings("alice/model", gated=False)
    assert alice.model_info("alice/model").gated is False


def test_a_request_for_access_is_decided(hub, alice, bob):
    uploaded(alice)
    alice.update_repo_settings("alice/model", gated="manual")
    hub.repos["alice/model"].requests["bob"] = Request("pending")

    with pytest.raises(GatedRepoError):
        bob.auth_check("alice/model")
    assert [request.username for request in alice.list_pending_access_requests("alice/model")] == ["bob"]
    alice.accept_access_request("alice/model", "bob")
    bob.auth_check("alice/model")
    alice.reject_access_request("alice/model", "bob", rejection_reason=None)
    with pytest.raises(GatedRepoError):
        bob.auth_check("alice/model")
    assert [request.username for request in alice.list_rejected_access_requests("alice/model")] == ["bob"]
    assert status_of(lambda: alice.accept_access_request("alice/model", "alice")) == 404


def test_repos_are_listed_by_author_and_name_with_the_requested_fields(hub, alice, bob):
    for name in ("alice/first", "org/second", "alice/third"):
        uploaded(alice, name)
    alice.update_repo_settings("alice/third", private=True)

    def names(api, **options):
        return [model.id for model in api.list_models(**options)]

    assert names(alice) == ["alice/first", "org/second", "alice/third"]
    assert names(alice, author="alice") == ["alice/first", "alice/third"]
    assert names(bob, author="alice") == ["alice/first"]
    assert names(alice, search="IR") == ["alice/first", "alice/third"]
    assert names(alice, sort="last_modified", limit=2) == ["alice/third", "org/second"]
    (plain,) = alice.list_models(author="org")
    (full,) = alice.list_models(author="org", full=True)
    (expanded,) = alice.list_models(author="org", expand=["sha", "lastModified"])
    info = alice.model_info("org/second")
    assert (plain.private, plain.sha, plain.last_modified, plain.siblings) == (False, None, None, None)
    assert (full.private, full.sha, full.last_modified) == (False, info.sha, info.last_modified)
    assert [sibling.rfilename for sibling in full.siblings] == sorted([*UPLOAD, ".gitattributes"])
    assert (expanded.private, expanded.sha, expanded.last_modified) == (None, info.sha, info.last_modified)
    assert alice.model_info("org/second", expand=["private"]).sha is None
    alice.create_repo("alice/data", repo_type="dataset")
    assert [found.id for found in alice.list_datasets(author="alice")] == ["alice/data"]


def test_branches_and_tags_are_made_and_taken_back(hub, alice):
    first = uploaded(alice)
    alice.create_branch("alice/model", branch="dev")
    alice.create_tag("alice/model", tag="v1", revision=first.oid)
    second = uploaded(alice, files={"a.txt": b"1"}, revision="dev")

    refs = alice.list_repo_refs("alice/model")

    assert {ref.name: ref.target_commit for ref in refs.branches} == {"dev": second.oid, "main": first.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first.oid}
    assert [commit.sha for commit in hub.repos["alice/model"].history("dev")][:2] == [second.oid, first.oid]
    assert status_of(lambda: alice.create_branch("alice/model", branch="dev")) == 409
    assert status_of(lambda: alice.create_tag("alice/model", tag="v1")) == 409
    alice.create_branch("alice/model", branch="dev", exist_ok=True)
    for revision in ("v1", "missing"):
        with pytest.raises(RevisionNotFoundError):
            uploaded(alice, files={"a.txt": b"2"}, revision=revision)
    alice.delete_branch("alice/model", branch="dev")
    alice.delete_tag("alice/model", tag="v1")
    assert hub.repos["alice/model"].refs == {"main": first.oid}
    assert status_of(lambda: alice.delete_branch("alice/model", branch="main")) == 403
    for call in (
        lambda: alice.delete_branch("alice/model", branch="dev"),
        lambda: alice.delete_tag("alice/model", tag="v1"),
    ):
        with pytest.raises(RevisionNotFoundError):
            call()


def test_all_that_was_sent_is_kept(hub, alice):
    uploaded(alice)

    assert [(request.method, request.path) for request in hub.received] == [call[:2] for call in hub.calls]
    puts = [request for request in hub.received if request.method == "PUT"]
    (commit,) = (request for request in hub.received if "/commit/" in request.path)
    assert sorted(request.body for request in puts) == sorted(UPLOAD[name] for name in LFS)
    assert all(request.body is hub.store[request.path[11:75]] for request in puts)
    assert not any("authorization" in map(str.lower, request.headers) for request in puts)
    for name in set(UPLOAD) - LFS:
        assert base64.b64encode(UPLOAD[name]) in commit.body
    assert {name.lower(): value for name, value in commit.headers.items()}["authorization"] == "Bearer hf_alice"


@pytest.mark.parametrize(("kind", "done"), [("cut before", False), ("cut after", True)])
def test_a_connection_is_cut_before_or_after_the_work_is_done(hub, alice, kind, done):
    uploaded(alice)
    hub.faults.append(Fault(match=r"POST .*/commit/", kind=kind))

    with pytest.raises(httpx2.RemoteProtocolError):
        uploaded(alice, files={"a.txt": b"1"})

    assert ("a.txt" in hub.repos["alice/model"].at("main").files) is done
    assert hub.received[-1].path.endswith("/commit/main")
    uploaded(alice, files={"a.txt": b"2"})
    assert hub.repos["alice/model"].at("main").files["a.txt"] == b"2"


@pytest.mark.parametrize(("kind", "done"), [("status", False), ("status after", True)])
@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_an_error_is_answered_before_or_after_the_work_is_done(hub, alice, status, kind, done):
    uploaded(alice)
    hub.faults.append(Fault(match=r"/commit/", kind=kind, status=status, message="Broken", times=2))

    for content in (b"1", b"2"):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials" if status == 401 else "Broken") as caught:
            uploaded(alice, files={"a.txt": content})
        assert caught.value.response.status_code == status
        assert (hub.repos["alice/model"].at("main").files.get("a.txt") == content) is done
    assert uploaded(alice, files={"a.txt": b"3"}).oid == hub.repos["alice/model"].refs["main"]


def test_the_client_gets_over_errors_that_pass(hub, alice):
    alice.create_repo("alice/model")
    hub.faults += [
        Fault(match=r"POST .*/preupload/", status=429, headers={"Retry-After": "0"}),
        Fault(match=r"PUT /lfs-store/", kind="cut after"),
        Fault(match=r"POST .*/verify", status=500),
    ]

    commit = uploaded(alice, files={"a.bin": b"weights"})

    assert hub.repos["alice/model"].commits[commit.oid].files["a.bin"] == b"weights"
    requested = [call.path.split("?")[0].split("/")[-1] for call in hub.calls]
    assert [requested.count(part) for part in ("verify", "batch")] == [2, 1]
    assert len([call for call in hub.calls if "/preupload/" in call.path]) == 2
    first, second = (request for request in hub.received if request.method == "PUT")
    assert first.body is second.body
    assert [fault.times for fault in hub.faults] == [0, 0, 0]


def test_a_fault_is_for_one_request_or_waits_for_some(hub, alice):
    uploaded(alice)
    requested = len(hub.calls)
    hub.faults += [Fault(request=requested + 2, status=500), Fault(match=r"^GET .*/refs$", status=503, skip=1)]

    statuses = []
    for call in (alice.whoami, alice.whoami, alice.whoami, *[lambda: alice.list_repo_refs("alice/model")] * 3):
        try:
            call()
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)

    assert statuses == [200, 500, 200, 200, 503, 200]
    with pytest.raises(ValueError, match="must be one of"):
        Fault(kind="cut")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_is_cut_goes_on_with_a_range_or_from_the_start(hub, alice, ranges):
    content = bytes(range(256)) * 100_000  # the client keeps whole chunks of 10 MB only
    uploaded(alice, files={"a.bin": content})
    hub.repos["alice/model"].ranges = ranges
    hub.faults.append(Fault(match=r"GET /lfs-store/", kind="cut within"))

    path = alice.hf_hub_download("alice/model", "a.bin")

    assert Path(path).read_bytes() == content
    gets = [request for request in hub.received if request.method == "GET" and "/lfs-store/" in request.path]
    requested = [{name.lower(): value for name, value in request.headers.items()}.get("range") for request in gets]
    assert len(gets) == 2
    assert requested[0] is None
    assert requested[1] == f"bytes={10 * 2**20}-"


def test_connections_are_kept_open_and_do_not_outlive_the_server(tmp_path, monkeypatch):
    before = set(threading.enumerate())
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        hub.add("org/name", FILES)
        for _ in range(3):
            HfApi().model_info("org/name")
        kept = [thread for thread in set(threading.enumerate()) - before if "process_request" in thread.name]
        assert len(kept) == 1
    with pytest.raises(httpx2.ConnectError):
        HfApi().model_info("org/name")
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before


def test_many_clients_write_at_once(hub, alice):
    alice.create_repo("alice/model")
    errors = []

    def write(number):
        try:
            files = {f"{number}.bin": bytes([number]) * 1000, f"{number}.txt": b"%d" % number}
            for name, data in files.items():
                alice.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="alice/model")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(hub.repos["alice/model"].history()) == 17
    files = hub.repos["alice/model"].at("main").files
    assert all(files[f"{n}.bin"] == bytes([n]) * 1000 and files[f"{n}.txt"] == b"%d" % n for n in range(8))


def test_timm_pushes_a_model_and_loads_it_again(hub, monkeypatch):
    import timm
    import torch

    hub.account("alice", token="hf_alice")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    model = timm.create_model("test_vit", num_classes=3)

    timm.models.push_to_hf_hub(model, "tiny", private=True, safe_serialization=True)
    loaded = timm.create_model("hf-hub:alice/tiny", pretrained=True)

    files = hub.repos["alice/tiny"].at("main").blobs
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert {name for name, blob in files.items() if blob.sha256} == {"model.safetensors"}
    weights = loaded.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_transformers_pushes_a_model_and_loads_it_again(hub, monkeypatch):
    import torch
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    hub.account("alice", orgs=["org"], token="hf_alice")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=16,
        )
    )

    model.push_to_hub("org/tiny", private=True)
    model.push_to_hub("org/tiny", revision="dev", commit_message="Again", tags=["again"])
    loaded = AutoModelForImageClassification.from_pretrained("org/tiny", revision="dev")

    repo = hub.repos["org/tiny"]
    assert {"README.md", "config.json", "model.safetensors"} <= set(repo.at("main").files)
    assert repo.at("dev").title == "Again"
    weights = loaded.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_what_it_does_not_answer_it_refuses(hub, alice):
    uploaded(alice)

    for call in (
        lambda: alice.create_discussion("alice/model", title="A topic"),
        lambda: alice.create_repo("alice/space", repo_type="space", space_sdk="static"),
        lambda: uploaded(alice, files={"a.txt": b"1"}, create_pr=True),
        lambda: alice.super_squash_history("alice/model"),
    ):
        assert status_of(call) in (400, 404)
    assert list(hub.repos) == ["alice/model"]
    assert len(hub.repos["alice/model"].history()) == 2
