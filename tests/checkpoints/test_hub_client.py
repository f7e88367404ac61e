from collections.abc import Iterator

import numpy as np
import pytest
from huggingface_hub import hf_hub_download
from safetensors.numpy import save

from hf_fingerprint.checkpoints import find_weight_sets, open_checkpoint, open_ranged_checkpoint, resolve, write_copy
from hf_fingerprint.checkpoints.source import resolve_cached
from tests.helpers.checkpoint_files import bytes_of, refused, save_model
from tests.helpers.loopback_hub import LoopbackHub


WEIGHTS = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
OTHER = save({"a": np.zeros((2, 3), np.float32)})
CARD = {"config.json": b'{"architecture": "x"}', "README.md": b"# A model\n", ".gitattributes": b"*.safetensors lfs\n"}
PLAIN = {"model.safetensors": WEIGHTS, **CARD}
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
SHARDED = {
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": save({"b": np.ones(3, np.float16)}),
    "model.safetensors.index.json": INDEX,
    **CARD,
}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub on 127.0.0.1 that the real client talks to, with an empty cache."""
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def log_in(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, known: bool = True) -> str:
    token = "a-token-of-the-loopback-hub"
    monkeypatch.setenv("HF_TOKEN", token)
    hub.tokens |= {token} if known else set()
    return token


@pytest.mark.parametrize("name", ["org/name", "hf-hub:org/name", "org/name@main"])
def test_a_hub_id_becomes_a_folder_pinned_to_the_commit_of_the_default_branch(hub, name):
    repo = hub.add("org/name", PLAIN)

    source = resolve(name)

    assert source.name == "org/name"
    assert source.revision == repo.refs["main"]
    assert source.owns_folder
    assert bytes_of(source.folder) == PLAIN
    assert source.weights == (source.folder / "model.safetensors",)


@pytest.mark.parametrize("spelling", ["branch", "branch with a slash", "tag", "commit"])
@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_a_revision_may_be_a_branch_a_tag_or_a_commit(hub, spelling, prefix):
    repo = hub.add("org/name", PLAIN)
    old = repo.refs["main"]
    new = repo.commit(PLAIN | {"model.safetensors": OTHER})
    repo.tag("v1.0", old)
    branch = repo.commit(PLAIN | {"branch.txt": b"1"}, "dev")
    deep = repo.commit(PLAIN | {"deep.txt": b"1"}, "feature/x-1")
    revision, commit = {
        "branch": ("dev", branch),
        "branch with a slash": ("feature/x-1", deep),
        "tag": ("v1.0", old),
        "commit": (old, old),
    }[spelling]

    source = resolve(f"{prefix}org/name@{revision}")

    assert source.revision == commit != new
    assert source.name == "org/name"
    assert bytes_of(source.folder) == repo.commits[commit].files


def test_the_commit_is_pinned_even_if_the_branch_moves_between_two_requests(hub, monkeypatch):
    repo = hub.add("org/name", PLAIN)
    first = repo.refs["main"]
    at = repo.at

    def move_on(revision: str):
        found = at(revision)
        repo.commit(PLAIN | {"model.safetensors": OTHER})
        return found

    monkeypatch.setattr(repo, "at", move_on)
    source = resolve("org/name")

    assert source.revision == first
    assert (source.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_second_fetch_downloads_nothing(hub):
    hub.add("org/name", PLAIN)
    first = resolve("org/name")
    hub.calls.clear()

    assert resolve("org/name") == first
    assert hub.downloads() == set()


def test_a_moved_branch_is_followed(hub):
    repo = hub.add("org/name", PLAIN)
    before = resolve("org/name")
    repo.commit(PLAIN | {"model.safetensors": OTHER})

    after = resolve("org/name")

    assert after.revision == repo.refs["main"] != before.revision
    assert after.weights[0].read_bytes() == OTHER
    assert before.weights[0].read_bytes() == WEIGHTS


def test_of_weights_in_two_forms_only_safetensors_are_fetched(hub):
    others = ["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "training_args.bin"]
    hub.add("org/name", PLAIN | dict.fromkeys(others, b"x"))

    source = resolve("org/name")

    assert hub.downloads() == set(PLAIN)
    assert source.weights[0].name == "model.safetensors"


def test_weights_only_fetches_the_weights_and_the_config(hub):
    hub.add("org/name", PLAIN | {"sub/labels.txt": b"cat", "sub/config.json": b"{}"})

    source = resolve("org/name", weights_only=True)

    assert hub.downloads() == {"model.safetensors", "config.json"}
    with open_checkpoint(source) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_weights_only_works_without_a_config(hub):
    hub.add("org/name", {"model.safetensors": WEIGHTS, "README.md": b""})

    resolve("org/name", weights_only=True)

    assert hub.downloads() == {"model.safetensors"}


def test_other_files_are_fetched_by_a_later_full_fetch(hub):
    hub.add("org/name", PLAIN)
    resolve("org/name", weights_only=True)
    hub.calls.clear()

    assert bytes_of(resolve("org/name").folder) == PLAIN
    assert hub.downloads() == {"README.md", ".gitattributes"}


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_sharded_repo_is_fetched_with_its_index(hub, weights_only):
    hub.add("org/name", SHARDED | {"pytorch_model.bin": b"x"})

    source = resolve("org/name", weights_only)

    assert [path.name for path in source.weights] == sorted(name for name in SHARDED if name.endswith(".safetensors"))
    assert hub.downloads() == {n for n in SHARDED if not weights_only or n.startswith("model") or n == "config.json"}
    with open_checkpoint(source) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}


def test_a_sharded_repos_checkpoints_in_other_folders_are_not_fetched(hub):
    hub.add("org/name", SHARDED | {"checkpoint-10/model.safetensors": WEIGHTS})

    resolve("org/name")

    assert hub.downloads() == set(SHARDED)


def test_names_that_look_like_patterns_fetch_themselves_and_nothing_else(hub):
    odd = {"[ab].safetensors": WEIGHTS, "config.json": b"{}", "a (copy) é.txt": b"1", "*.json": b"{}"}
    hub.add("org/name", odd | {"a.bin": b"x", "b.bin": b"x"})

    assert bytes_of(resolve("org/name").folder) == odd
    hub.stop()
    assert bytes_of(resolve("org/name").folder) == odd


def test_a_copy_of_a_hub_model_holds_all_its_files_and_no_links(hub, tmp_path):
    hub.add("org/name", PLAIN | {"sub/labels.txt": b"cat", "pytorch_model.bin": b"x"})
    (tmp_path / "out").mkdir()

    with open_checkpoint("org/name") as checkpoint:
        write_copy(checkpoint, tmp_path / "out", {})

    assert bytes_of(tmp_path / "out") == PLAIN | {"sub/labels.txt": b"cat"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_local_folder_takes_precedence_and_the_hub_is_not_queried(hub, tmp_path, monkeypatch):
    hub.add("org/name", PLAIN)
    save_model(tmp_path / "org" / "name" / "model.safetensors", local=np.ones(2, np.float32))
    monkeypatch.chdir(tmp_path)

    source = resolve("org/name")

    assert source.name == str(tmp_path / "org" / "name")
    assert source.revision is None
    assert hub.calls == []


def test_hf_hub_spelling_means_the_hub_even_if_there_is_such_a_folder(hub, tmp_path, monkeypatch):
    hub.add("org/name", PLAIN)
    save_model(tmp_path / "org" / "name" / "model.safetensors", local=np.ones(2, np.float32))
    monkeypatch.chdir(tmp_path)

    assert resolve("hf-hub:org/name").revision == hub.repos["org/name"].refs["main"]


@pytest.mark.parametrize(
    "name", ["a/b/c", "local-dir:org/name", "name-only", "org/name@", "@main", "https://hf.co/org/name"]
)
def test_an_invalid_hub_id_is_not_queried(hub, name):
    hub.add("org/name", PLAIN)

    assert name in refused(resolve, name)
    assert hub.calls == []


@pytest.mark.parametrize("name", ["../name", "./name", "org/na--me"])
def test_an_invalid_repo_name_is_refused_without_blaming_the_connection(hub, name):
    text = refused(resolve, name)

    assert name in text
    assert "connection" not in text
    assert hub.calls == []


@pytest.mark.parametrize("logged_in", [False, True])
def test_a_repo_that_does_not_exist_is_named(hub, monkeypatch, logged_in):
    if logged_in:
        log_in(hub, monkeypatch)

    text = refused(resolve, "org/missing")

    assert "org/missing" in text
    assert "private" in text


def test_a_private_repo_is_refused_to_strangers_and_open_to_a_token(hub, monkeypatch):
    hub.add("org/private", PLAIN, private=True)

    assert "org/private" in refused(resolve, "org/private")
    assert hub.downloads() == set()
    token = log_in(hub, monkeypatch)
    assert bytes_of(resolve("org/private").folder) == PLAIN
    assert {call.token for call in hub.calls} == {None, token}


@pytest.mark.parametrize("logged_in", [False, True])
def test_a_gated_repo_is_refused_until_access_is_granted(hub, monkeypatch, logged_in):
    repo = hub.add("org/gated", PLAIN, gated=True)
    if logged_in:
        log_in(hub, monkeypatch)

    text = refused(resolve, "org/gated")

    assert "org/gated" in text
    assert "gated" in text.replace("org/gated", "")
    repo.granted.add(log_in(hub, monkeypatch))
    assert bytes_of(resolve("org/gated").folder) == PLAIN


def test_a_rejected_token_is_reported_rather_than_the_connection(hub, monkeypatch):
    hub.add("org/name", PLAIN)
    token = log_in(hub, monkeypatch, known=False)

    text = refused(resolve, "org/name")

    assert "org/name" in text
    assert "token" in text
    assert "connection" not in text
    assert token not in text


@pytest.mark.parametrize("revision", ["no-such-branch", "0" * 40, "v9", "deadbee"])
def test_a_revision_that_does_not_exist_is_named_with_the_repo(hub, revision):
    hub.add("org/name", PLAIN)

    assert f"org/name@{revision}" in refused(resolve, f"org/name@{revision}")


@pytest.mark.parametrize(
    "files",
    [CARD, CARD | {"tf_model.h5": b"x"}, CARD | {"checkpoint-10/model.safetensors": WEIGHTS}, {}],
    ids=["none", "TensorFlow's", "in a folder", "an empty repo"],
)
def test_a_repo_without_weights_is_named_and_nothing_is_fetched(hub, files):
    hub.add("org/name", files)

    assert "org/name" in refused(resolve, "org/name")
    assert hub.downloads() == set()


def test_a_repo_with_several_weight_files_names_them(hub):
    hub.add("org/name", {"one.safetensors": WEIGHTS, "two.safetensors": WEIGHTS})

    text = refused(resolve, "org/name")

    assert all(part in text for part in ("org/name", "one.safetensors", "two.safetensors"))


def test_a_hostile_index_on_the_hub_is_refused_too(hub):
    hub.add("org/name", {"m.safetensors": WEIGHTS, "n.safetensors": OTHER, "model.safetensors.index.json": b"["})

    assert "model.safetensors.index.json" in refused(resolve, "org/name")


def lose(hub: LoopbackHub, how: str) -> None:
    """Takes the Hub away."""
    if how == "down":
        hub.stop()
    else:
        hub.failing[""] = int(how)


@pytest.mark.parametrize("how", ["down", "500", "503"])
@pytest.mark.parametrize("revision", ["", "@v1", "@nothing"])
def test_an_uncached_model_without_the_hub_is_refused_by_name(hub, how, revision):
    hub.add("org/name", PLAIN).tag("v1")
    lose(hub, how)

    assert f"org/name{revision}" in refused(resolve, f"org/name{revision}")


@pytest.mark.parametrize(
    ("fetched", "how"), [("all", "down"), ("all", "503"), ("of two forms", "down"), ("weights only", "down")]
)
@pytest.mark.parametrize("spelling", ["", "@v1", "@commit"])
def test_a_cached_model_needs_no_hub(hub, fetched, how, spelling):
    repo = hub.add("org/name", PLAIN | ({"pytorch_model.bin": b"x"} if fetched == "of two forms" else {}))
    repo.tag("v1")
    weights_only = fetched == "weights only"
    name = "org/name" + spelling.replace("commit", repo.refs["main"])
    before = resolve(name, weights_only)
    lose(hub, how)

    assert resolve(name, weights_only) == before


def test_the_cache_serves_only_the_requested_commit(hub):
    repo = hub.add("org/name", PLAIN)
    repo.tag("v1")
    resolve("org/name@v1")
    other = repo.commit(PLAIN | {"model.safetensors": OTHER}, "dev")
    hub.stop()

    for revision in ("dev", other, "v2"):
        assert f"org/name@{revision}" in refused(resolve, f"org/name@{revision}")


def test_a_model_whose_weights_alone_are_cached_is_not_complete(hub):
    hub.add("org/name", PLAIN)
    resolve("org/name", weights_only=True)
    hub.stop()

    assert "org/name" in refused(resolve, "org/name")


@pytest.mark.parametrize("spelling", ["", "@v1", "@commit"])
def test_one_file_that_the_client_fetched_alone_is_a_model_without_the_hub(hub, spelling):
    repo = hub.add("org/name", PLAIN)
    repo.tag("v1")
    revision = spelling.removeprefix("@").replace("commit", repo.refs["main"]) or None
    hf_hub_download("org/name", "model.safetensors", revision=revision)
    hub.stop()

    found = resolve("org/name" + spelling.replace("commit", repo.refs["main"]))

    assert (found.revision, [path.name for path in found.weights]) == (repo.refs["main"], ["model.safetensors"])
    assert [
        source.revision for source in find_weight_sets("org/name" + (f"@{revision}" if revision else "")).sets
    ] == [repo.refs["main"]]


def test_one_of_several_files_in_a_repo_can_be_chosen(hub):
    repo = hub.add("org/name", {"one.safetensors": WEIGHTS, "two.safetensors": WEIGHTS, "config.json": b"{}"})

    found = resolve("org/name", file="two.safetensors")

    assert [path.name for path in found.weights] == ["two.safetensors"]
    assert (found.folder / "config.json").is_file()
    assert not (found.folder / "one.safetensors").exists()
    assert (found.name, found.revision) == ("org/name:two.safetensors", repo.refs["main"])
    for again in (
        f"{found.name}@{found.revision}",
        "org/name@main:two.safetensors",
        "hf-hub:org/name:two.safetensors",
    ):
        assert resolve(again) == found
    assert resolve_cached(found.name, str(found.revision)) == found
    ranged = open_ranged_checkpoint("org/name", file="one.safetensors")
    assert ranged is not None
    assert (ranged.source.name, ranged.unread_files) == ("org/name:one.safetensors", ())
    sets = find_weight_sets("org/name", file="one.safetensors").sets
    assert [[path.name for path in source.weights] for source in sets] == [["one.safetensors"]]
    for missing in ("three.safetensors", "../one.safetensors"):
        assert "choose one of" in refused(resolve, f"org/name:{missing}")


def test_an_interrupted_download_is_refused_by_name_and_completed_by_the_next(hub):
    hub.add("org/name", PLAIN)
    hub.failing["resolve"] = 403  # after 500 the client would try for 20 seconds

    assert "org/name" in refused(resolve, "org/name")

    hub.failing.clear()
    assert bytes_of(resolve("org/name").folder) == PLAIN
