from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, HfFileSystem, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import LoopbackHub, blob_hash
from safetensors.numpy import save


FILES = {
    "config.json": b"{}",
    "model.safetensors": save({"a": np.arange(6, dtype=np.float32)}),
    "sub dir/deep/é [1].txt": b"x",
    "sub dir/labels.txt": b"0123456789",
}


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
    ("asked", "status", "content"),
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
def test_a_range_of_a_file_is_that_range(hub, asked, status, content):
    hub.add("org/name", FILES)
    url = f"{hub.url}/org/name/resolve/main/sub%20dir/labels.txt"

    response = get_session().get(url, headers={"Range": asked} if asked else {})

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


def test_a_head_request_tells_commit_hash_and_size_and_sends_nothing(hub):
    repo = hub.add("org/name", FILES)

    response = get_session().head(f"{hub.url}/org/name/resolve/main/config.json")

    assert response.content == b""
    assert response.headers["X-Repo-Commit"] == repo.refs["main"]
    assert response.headers["ETag"] == f'"{blob_hash(b"{}")}"'
    assert response.headers["Content-Length"] == "2"


def test_what_is_missing_private_or_gated_is_told_apart_as_the_client_expects(hub, monkeypatch):
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


def test_what_it_does_not_answer_it_refuses(hub):
    hub.add("org/name", FILES)

    with pytest.raises(HfHubHTTPError):
        HfApi().create_repo("org/new")
    assert get_session().get(f"{hub.url}/api/whoami-v2").status_code == 404
