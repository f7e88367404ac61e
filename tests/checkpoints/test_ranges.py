import errno
import json
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from hf_fingerprint.checkpoints import (
    RangedCheckpoint,
    find_weight_sets,
    open_checkpoint,
    open_ranged_checkpoint,
    ranges,
)
from hf_fingerprint.checkpoints.limits import MAX_RANGE_BYTES
from hf_fingerprint.checkpoints.ranged_files import DownloadLimitError
from hf_fingerprint.checkpoints.ranges import GAP, HEADER_GUESS, merge_ranges
from hf_fingerprint.errors import StorageError
from tests.helpers.checkpoint_files import entry, raw_safetensors, refused
from tests.helpers.loopback_hub import Fault, LoopbackHub


RNG = np.random.default_rng(0)
ARRAYS = {
    "a": RNG.standard_normal((400, 300)).astype(np.float32),
    "b": RNG.standard_normal((7, 3)).astype(np.float16),
    "c": RNG.standard_normal((500, 200)).astype(np.float32),
    "d": RNG.standard_normal((64, 1000)).astype(np.float64),
}
WEIGHTS = save(ARRAYS)
CARD = {"config.json": b'{"architecture": "x"}', "README.md": b"# A model\n"}
PLAIN = {"model.safetensors": WEIGHTS, **CARD}
SHARDS = {"model-1.safetensors": ["a", "b"], "model-2.safetensors": ["c", "d"]}
INDEX = {"metadata": {}, "weight_map": {name: shard for shard, names in SHARDS.items() for name in names}}
SHARDED = {
    **{shard: save({name: ARRAYS[name] for name in names}) for shard, names in SHARDS.items()},
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    **CARD,
}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub on 127.0.0.1 that the real client talks to, with an empty cache; nobody waits between two tries."""
    monkeypatch.setattr("hf_fingerprint.checkpoints.ranged_files.FIRST_WAIT", 0)
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def opened(name: str = "org/name") -> RangedCheckpoint:
    found = open_ranged_checkpoint(name)
    assert found is not None
    return found


def values(checkpoint: RangedCheckpoint, name: str) -> np.ndarray:
    info = checkpoint.tensors[name]
    return checkpoint.read(info).view(ARRAYS[name].dtype).reshape(info.shape)


def store_calls(hub: LoopbackHub) -> list[str]:
    return [call.path for call in hub.calls if call.path.startswith("/lfs-store/")]


@pytest.mark.parametrize("lfs", [False, True])
@pytest.mark.parametrize("files", [PLAIN, SHARDED], ids=["one file", "shards"])
def test_every_tensor_equals_that_of_the_full_download(hub, files, lfs):
    repo = hub.add("org/name", files, lfs=lfs)

    with opened() as ranged:
        assert all(np.array_equal(values(ranged, name), array) for name, array in ARRAYS.items())
        assert (ranged.source.name, ranged.source.revision) == ("org/name", repo.refs["main"])
        with open_checkpoint("org/name") as whole:
            assert ranged.tensors == whole.tensors
            assert [path.name for path in ranged.source.weights] == [path.name for path in whole.source.weights]
        assert ranged.total_bytes == sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))


@pytest.mark.parametrize("spelling", ["branch", "tag", "commit"])
def test_a_revision_is_pinned_and_a_moved_branch_changes_nothing(hub, spelling):
    repo = hub.add("org/name", PLAIN, lfs=True)
    old = repo.refs["main"]
    repo.tag("v1")
    with opened("hf-hub:org/name@" + {"branch": "main", "tag": "v1", "commit": old}[spelling]) as ranged:
        repo.commit({"model.safetensors": save({"a": np.zeros((400, 300), np.float32)})}, lfs=True)

        assert ranged.source.revision == old
        assert np.array_equal(values(ranged, "a"), ARRAYS["a"])


@pytest.mark.parametrize("lfs", [False, True])
def test_the_counts_are_those_of_the_server(hub, lfs):
    hub.add("org/name", PLAIN, lfs=lfs)

    with opened() as ranged:
        header_exchanges = 2 if lfs else 1
        assert ranged.requests == len(hub.calls) == 1 + header_exchanges
        assert ranged.bytes_fetched == HEADER_GUESS
        a, c = ranged.tensors["a"], ranged.tensors["c"]
        ranged.fetch([(a, 0, 1200), (c, 4000, 8000)])
        assert ranged.requests == len(hub.calls) == 3 + header_exchanges  # they lie far apart
        assert ranged.bytes_fetched == HEADER_GUESS + 1200 + 4000


def test_later_ranges_go_straight_to_the_redirect_target_without_a_token(hub, monkeypatch):
    hub.tokens.add("hf_reader")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    hub.add("org/name", PLAIN, private=True, lfs=True)

    with opened() as ranged:
        for name in ARRAYS:
            values(ranged, name)

    assert len([call for call in hub.calls if "/resolve/" in call.path]) == 1
    assert len(store_calls(hub)) == 1 + len(ARRAYS)
    assert all((call.token is None) == call.path.startswith("/lfs-store/") for call in hub.calls)


def test_a_file_that_the_hub_serves_itself_is_requested_with_the_token_each_time(hub, monkeypatch):
    hub.tokens.add("hf_reader")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    hub.add("org/name", PLAIN, private=True)

    with opened() as ranged:
        assert np.array_equal(values(ranged, "a"), ARRAYS["a"])
    assert {call.token for call in hub.calls} == {"hf_reader"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_expired_address_is_resolved_again(hub, status):
    hub.add("org/name", PLAIN, lfs=True)
    with opened() as ranged:
        hub.faults.append(Fault(match="/lfs-store/", status=status))
        before = len(hub.calls)

        assert np.array_equal(values(ranged, "a"), ARRAYS["a"])
        assert np.array_equal(values(ranged, "c"), ARRAYS["c"])
        assert len(hub.calls) - before == 4  # refused, redirected, there; and straight there
        assert ranged.requests == len(hub.calls)


def test_a_permanently_refused_address_is_one_error(hub):
    hub.add("org/name", PLAIN, lfs=True)
    with opened() as ranged:
        hub.faults.append(Fault(match="/lfs-store/", status=403, times=99))

        assert "org/name" in refused(values, ranged, "a")


def test_adjacent_pieces_share_a_request_and_are_kept_until_dropped(hub):
    hub.add("org/name", PLAIN)
    with opened() as ranged:
        a = ranged.tensors["a"]
        before = len(hub.calls)
        ranged.fetch([(a, 2400, 3600), (a, 0, 1200), (a, 1200, 2400), (a, 3700, 4000)])
        assert len(hub.calls) - before == 1

        assert ranged.read(a, 100, 4000).tobytes() == ARRAYS["a"].tobytes()[100:4000]
        out = np.zeros(5000, np.uint8)
        assert ranged.read(a, 0, 1200, out).tobytes() == ARRAYS["a"].tobytes()[:1200] == out[:1200].tobytes()
        ranged.fetch([(a, 0, 1200)])
        assert len(hub.calls) - before == 1
        ranged.drop()
        assert ranged.read(a, 0, 1200).tobytes() == ARRAYS["a"].tobytes()[:1200]
        assert len(hub.calls) - before == 2


def test_with_a_limit_no_byte_between_two_pieces_is_fetched(hub):
    hub.add("org/name", PLAIN)
    ranged = open_ranged_checkpoint("org/name", max_bytes=10**6)
    assert ranged is not None
    before, a = ranged.bytes_fetched, ranged.tensors["a"]

    ranged.fetch([(a, 0, 100), (a, 200, 300), (a, 100, 150)])

    assert ranged.bytes_fetched - before == 250


pieces = st.tuples(st.integers(0, 2), st.integers(0, 10 * MAX_RANGE_BYTES), st.integers(1, MAX_RANGE_BYTES // 2))


@given(st.lists(pieces, max_size=30), st.sampled_from([0, GAP]))
def test_merged_ranges_hold_every_piece_and_little_else(drawn, gap):
    wanted = [(file, begin, begin + count) for file, begin, count in drawn]

    found = list(merge_ranges(wanted, gap))

    for file, begin, end in wanted:
        assert any(f == file and b <= begin and end <= e for f, b, e in found)
    assert all(e - b <= MAX_RANGE_BYTES for _, b, e in found)
    assert found == sorted(found)
    waste = sum(e - b for _, b, e in found) - sum(e - b for _, b, e in wanted)
    assert waste <= gap * len(wanted)


def test_a_header_larger_than_the_guess_takes_one_request_more(hub):
    many = {f"{'x' * 60}.{i}": np.full((2, 2), i, np.float32) for i in range(1500)}
    hub.add("org/name", {"model.safetensors": save(many)})

    with opened() as ranged:
        assert len(ranged.tensors) == 1500
        assert ranged.requests == 3
        assert ranged.read(ranged.tensors[f"{'x' * 60}.7"]).view(np.float32).tolist() == [7, 7, 7, 7]


def test_a_file_smaller_than_the_guess_is_fine(hub):
    hub.add("org/name", {"model.safetensors": save({"a": np.ones(3, np.float32)})})

    with opened() as ranged:
        assert ranged.read(ranged.tensors["a"]).view(np.float32).tolist() == [1, 1, 1]


def test_cached_models_and_other_formats_are_left_to_the_full_download(hub, tmp_path, monkeypatch):
    hub.add("org/bin", {"pytorch_model.bin": b"x"})
    hub.add("org/cached", PLAIN)
    hub.add("org/shards", SHARDED)
    hub.add("org/plain", PLAIN).ranges = False
    hub.add("org/lfs", PLAIN, lfs=True).ranges = False
    for name in ("org/cached", "org/shards"):
        open_checkpoint(name, weights_only=True).close()
    (tmp_path / "org" / "local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    for name in ("org/bin", "org/cached", "org/shards", "org/plain", "org/lfs", "org/local", "nowhere", "a/b/c"):
        assert open_ranged_checkpoint(name) is None
    assert open_ranged_checkpoint(tmp_path) is None
    hub.stop()
    assert open_ranged_checkpoint("org/cached") is None


def test_a_response_with_the_whole_file_is_rejected(hub):
    large = {"w": np.zeros((5000, 1000), np.float32)}
    hub.add("org/name", {"model.safetensors": save(large)}, lfs=True).ranges = False
    hub.faults.append(Fault(match="/lfs-store/", kind="cut within"))

    assert open_ranged_checkpoint("org/name") is None
    assert len(hub.calls) == 3


def test_shards_of_which_some_are_cached_are_read_by_ranges(hub):
    from huggingface_hub import hf_hub_download

    hub.add("org/name", SHARDED)
    hf_hub_download("org/name", "model-1.safetensors")

    assert set(opened().tensors) == set(ARRAYS)


def test_another_commit_in_the_cache_does_not_count(hub):
    repo = hub.add("org/name", PLAIN)
    open_checkpoint("org/name").close()
    repo.commit(PLAIN | {"model.safetensors": save({"new": np.ones(2, np.float32)})})

    assert list(opened().tensors) == ["new"]


def test_a_renamed_repo_is_read_under_its_new_name(hub):
    hub.add("org/new", PLAIN, lfs=True)
    hub.moved["model", "org/old"] = "org/new"

    with opened("org/old") as ranged:
        assert ranged.source.name == "org/new"
        assert np.array_equal(values(ranged, "a"), ARRAYS["a"])
        assert ranged.requests == len(hub.calls)


REFUSALS = {
    "missing": "not on the Hub",
    "private": "private",
    "gated": "ask for access on its page",
    "revision": "no such branch, tag or commit",
    "token": "rejects the token",
    "no weights": "no model weights",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_the_hubs_errors_are_those_of_a_download(hub, monkeypatch, what):
    hub.add("org/private", PLAIN, private=True)
    hub.add("org/gated", PLAIN, gated=True)
    hub.add("org/revision", PLAIN)
    hub.add("org/token", PLAIN)
    hub.add("org/no-weights", CARD)
    if what == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
    name = f"org/{what.replace(' ', '-')}" + ("@nowhere" if what == "revision" else "")

    text = refused(open_ranged_checkpoint, name)

    assert name in text
    assert REFUSALS[what] in text
    assert text == refused(open_checkpoint, name)


def test_a_gated_repo_opens_once_access_is_granted(hub, monkeypatch):
    repo = hub.add("org/gated", PLAIN, gated=True, lfs=True)
    assert f"{hub.url}/org/gated" in refused(open_ranged_checkpoint, "org/gated")
    hub.account("reader", token="hf_reader")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    repo.granted.add("hf_reader")

    assert np.array_equal(values(opened("org/gated"), "a"), ARRAYS["a"])


ONCE_IN_A_WHILE = [
    (kind, match)
    for kind in ("status", "cut before", "cut within", "cut after")
    for match in ("/api/models", "/resolve/", "/lfs-store/")
    if (kind, match) != ("cut within", "/resolve/")  # nobody reads the body of a redirect
]


@pytest.mark.parametrize(("kind", "match"), ONCE_IN_A_WHILE)
def test_transient_errors_are_retried(hub, kind, match):
    hub.add("org/name", PLAIN, lfs=True)
    hub.faults += [Fault(match=match, kind=kind, status=status) for status in (503, 429)]
    if match == "/lfs-store/":
        hub.faults += [Fault(match=match, kind=kind, skip=1) for _ in range(2)]

    with opened() as ranged:
        assert np.array_equal(values(ranged, "c"), ARRAYS["c"])
    assert not [fault for fault in hub.faults if fault.times > 0]


@pytest.mark.parametrize("kind", ["status", "cut before", "cut within"])
def test_persistent_errors_are_one_sentence_with_the_repo(hub, kind):
    hub.add("org/name", PLAIN, lfs=True)
    with opened("org/name@main") as ranged:
        hub.faults.append(Fault(match="/lfs-store/", kind=kind, times=99))

        text = refused(values, ranged, "a")

    assert "org/name@main can't be fetched" in text
    assert "signature" not in text


@pytest.mark.parametrize("lost", ["down", "failing", "offline"])
def test_without_the_hub_the_cache_is_used(hub, lost, monkeypatch):
    hub.add("org/name", PLAIN)
    if lost == "down":
        hub.stop()
    elif lost == "failing":
        hub.failing[""] = 503
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert open_ranged_checkpoint("org/name") is None
    assert "org/name" in refused(open_checkpoint, "org/name")


def test_a_server_that_stops_serving_ranges_is_one_error(hub):
    repo = hub.add("org/name", PLAIN)
    with opened() as ranged:
        repo.ranges = False

        assert "--full" in refused(values, ranged, "a")


HOSTILE = {
    "empty": b"",
    "seven bytes": b"1234567",
    "not JSON": raw_safetensors(b"{" * 40, bytes(8)),
    "a list": raw_safetensors(b"[]", bytes(8)),
    "header past the end": raw_safetensors({"a": entry([2], 0, 8)}, bytes(8), length=10_000),
    "header of 2^60 bytes": raw_safetensors({"a": entry([2], 0, 8)}, bytes(8), length=1 << 60),
    "header of 100 MB and 1": raw_safetensors({"a": entry([2], 0, 8)}, bytes(8), length=100_000_001),
    "offsets past the end": raw_safetensors({"a": entry([200], 0, 800)}, bytes(8)),
    "negative offsets": raw_safetensors({"a": entry([2], -8, 0)}, bytes(8)),
    "offsets that overlap": raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a hole": raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, bytes(24)),
    "more data": raw_safetensors({"a": entry([2], 0, 8)}, bytes(800)),
    "shape and size apart": raw_safetensors({"a": entry([3], 0, 8)}, bytes(8)),
    "a shape that overflows": raw_safetensors({"a": entry([1 << 62, 1 << 62], 0, 8)}, bytes(8)),
    "an unknown dtype and more data": raw_safetensors({"a": entry([2], 0, 8, "Q9")}, bytes(9)),
    "a deep header": raw_safetensors(b"[" * 100_000, bytes(8)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_by_its_own_name(hub, what):
    hub.add("org/name", {"model.safetensors": HOSTILE[what]})

    text = refused(open_ranged_checkpoint, "org/name")

    assert "org/name/model.safetensors" in text
    assert "/tmp" not in text


def test_a_header_that_is_too_large_is_not_fetched(hub):
    hub.add("org/name", {"model.safetensors": raw_safetensors(b"{}", bytes(1 << 20), length=200_000_000)})

    refused(open_ranged_checkpoint, "org/name")

    assert len(hub.calls) == 2


@pytest.mark.parametrize(
    "index",
    [
        b"[",
        b"[]",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": {"a": "../model-1.safetensors"}}',
        b'{"weight_map": {"a": "model-3.safetensors"}}',
        b'{"weight_map": {"a": "config.json"}}',
        b'{"weight_map": {"a": ["model-1.safetensors"]}}',
    ],
)
def test_a_hostile_index_is_refused_and_other_files_are_left_to_the_full_download(hub, index):
    hub.add("org/name", SHARDED | {"model.safetensors.index.json": index})
    hub.add("org/alone", CARD | {"model.safetensors.index.json": index})

    assert open_ranged_checkpoint("org/name") is None
    refused(open_checkpoint, "org/name")
    assert "org/alone/model.safetensors.index.json" in refused(open_ranged_checkpoint, "org/alone")


def test_an_endless_index_is_not_requested(hub):
    hub.add("org/name", SHARDED | {"model.safetensors.index.json": b" " * 10_000_001})

    assert open_ranged_checkpoint("org/name") is None
    assert hub.downloads() == set()


def test_a_damaged_file_does_not_hide_another(hub):
    hub.add("org/name", {"model.safetensors": b"decoy", "stolen.safetensors": WEIGHTS})

    assert open_ranged_checkpoint("org/name") is None
    found = find_weight_sets("org/name")
    assert [path.name for source in found.sets for path in source.weights] == ["stolen.safetensors"]
    assert [name for name, _ in found.unread] == ["model.safetensors"]


def test_an_index_that_misplaces_a_tensor_leaves_that_one_out(hub):
    weight_map = {"a": "model-2.safetensors", "e": "model-1.safetensors", "d": "model-2.safetensors"}
    hub.add("org/name", SHARDED | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()})

    with opened() as ranged:
        assert all(np.array_equal(values(ranged, name), array) for name, array in ARRAYS.items())
        assert ranged.left_out == {"e": "not in model-1.safetensors"}


def test_a_tensor_in_two_shards_is_there_twice(hub):
    hub.add("org/name", SHARDED | {"model-2.safetensors": WEIGHTS})

    with opened() as ranged:
        assert set(ranged.tensors) == {*ARRAYS, "a#2", "b#2"}
        assert ranged.read(ranged.tensors["a#2"]).tobytes() == ARRAYS["a"].tobytes()


@pytest.mark.parametrize("dtype", ["Q9", "F4", "F8_E8M0"])
def test_a_tensor_that_cannot_be_read_is_left_out(hub, dtype):
    header = {"a": entry([16], 24, 24 + (8 if dtype == "F4" else 16), dtype), "b": entry([2, 3], 0, 24)}
    header["c"] = entry([0, 3], 24, 24)
    hub.add("org/name", {"model.safetensors": raw_safetensors(header, bytes(header["a"]["data_offsets"][1]))})

    with opened() as ranged:
        assert list(ranged.tensors) == ["b"]
        assert ranged.left_out == {"a": f"dtype {dtype}", "c": "no elements"}


def test_other_weight_files_are_listed_with_their_sizes(hub):
    others = {"pytorch_model.bin": b"x" * 70, "onnx/model.onnx": b"x" * 9, "sub/model.safetensors": WEIGHTS}
    hub.add("org/name", SHARDED | others | {"training_args.bin": b"x", "optimizer.pt": b"x"}, lfs=True)

    with opened() as ranged:
        assert dict(ranged.unread_files) == {name: len(data) for name, data in others.items()}
        assert len(ranged.source.weights) == 2


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({"x.safetensors": save({"x": np.ones(2)}), "y.safetensors": WEIGHTS}, "y.safetensors"),
        ({"a/b/model.safetensors": WEIGHTS, "sub/x.safetensors": save({"x": np.ones(2)})}, "sub/x.safetensors"),
        ({"tf_model.h5": b"x" * 10**6, "sub/model.safetensors": WEIGHTS}, "sub/model.safetensors"),
        (
            {"x-00001-of-00002.safetensors": WEIGHTS, "x-00002-of-00002.safetensors": b""},
            "x-00001-of-00002.safetensors",
        ),
    ],
    ids=range(4),
)
def test_if_ambiguous_the_largest_file_nearest_the_top_is_read_and_the_others_listed(hub, files, chosen):
    hub.add("org/name", files)

    with opened() as ranged:
        assert [str(path) for path in ranged.source.weights] == [chosen]
        assert {name for name, _ in ranged.unread_files} == files.keys() - {chosen}


def test_an_index_in_a_subfolder_names_shards_next_to_it(hub):
    hub.add("org/name", {f"unet/{name}" if "model" in name else name: data for name, data in SHARDED.items()})

    with opened() as ranged:
        assert [str(path) for path in ranged.source.weights] == [f"unet/{shard}" for shard in SHARDS]
        assert np.array_equal(values(ranged, "c"), ARRAYS["c"])


@pytest.mark.parametrize(
    "files", [{"x.bin": b"x", "y.bin": b"x"}, {"m.gguf": b"x"}, {"sub/m.onnx": b"x"}], ids=range(3)
)
def test_a_repo_without_safetensors_is_left_to_the_full_download(hub, files):
    hub.add("org/name", files)

    assert open_ranged_checkpoint("org/name") is None


@pytest.mark.parametrize("max_bytes", [0, 7, 8, 40, 200, 1000, 20_000, 100_000, 140_000, 300_000, 10**7])
@pytest.mark.parametrize("files", [PLAIN, SHARDED], ids=["one file", "shards"])
def test_headers_and_indexes_count_against_the_limit(hub, files, max_bytes):
    hub.add("org/name", files, lfs=True)
    try:
        with open_ranged_checkpoint("org/name", max_bytes) as ranged:
            assert set(ranged.tensors) == set(ARRAYS)
            assert ranged.bytes_fetched <= max_bytes
            assert max_bytes >= 1000
    except DownloadLimitError as error:
        assert max_bytes < 1000
        assert "org/name needs 0." in str(error)
        assert "--max-mb allows 0 MB: raise --max-mb." in str(error)
    assert hub.bytes_sent <= max_bytes


def test_an_index_beyond_the_limit_is_not_requested(hub):
    hub.add("org/name", SHARDED | {"model.safetensors.index.json": json.dumps(INDEX).encode() + b" " * 500_000})

    with pytest.raises(DownloadLimitError, match=r"needs 0\.6 MB or more to be read, and --max-mb allows 0\.4 MB"):
        open_ranged_checkpoint("org/name", max_bytes=400_000)
    assert hub.downloads() == set()


def test_a_header_beyond_the_limit_is_not_requested(hub):
    many = {f"{'x' * 60}.{i}": np.full((2, 2), i, np.float32) for i in range(1500)}
    hub.add("org/name", {"model.safetensors": save(many)})

    with pytest.raises(DownloadLimitError, match=r"org/name needs 0\.\d MB or more"):
        open_ranged_checkpoint("org/name", max_bytes=100_000)
    assert hub.bytes_sent <= 100_000


def test_nothing_is_fetched_beyond_the_limit(hub):
    hub.add("org/name", PLAIN)
    with open_ranged_checkpoint("org/name", max_bytes=200_000) as ranged:
        a = ranged.tensors["a"]
        with pytest.raises(DownloadLimitError):
            ranged.read(a)
        with pytest.raises(DownloadLimitError):
            ranged.fetch([(a, 0, 100_000), (a, 200_000, 300_000)])
        assert ranged.bytes_fetched <= 200_000


def answering(
    monkeypatch: pytest.MonkeyPatch, content_range: str, body: bytes | None = None, status: int = 206
) -> None:
    """Lets the Hub answer every range with this."""
    from tests.helpers.loopback_hub import HubHandler

    def send_part(self, data, headers, ranges):
        self.send(status, data[:HEADER_GUESS] if body is None else body, {"Content-Range": content_range})

    monkeypatch.setattr(HubHandler, "send_part", send_part)


@pytest.mark.parametrize(
    "content_range",
    ["", "bytes 0-9/*", "bytes 5-131076/900000", "bytes 0-99/900000", "bytes 0-131071/90", "lines 0-1/2", "bytes"],
)
def test_a_response_with_another_range_is_rejected(hub, monkeypatch, content_range):
    hub.add("org/name", PLAIN)
    answering(monkeypatch, content_range)

    assert open_ranged_checkpoint("org/name") is None


@pytest.mark.parametrize("length", [HEADER_GUESS - 1, HEADER_GUESS + 1, 0])
def test_a_response_of_another_length_is_refused(hub, monkeypatch, length):
    hub.add("org/name", PLAIN)
    answering(monkeypatch, f"bytes 0-{HEADER_GUESS - 1}/{len(WEIGHTS)}", bytes(length))

    assert "org/name" in refused(open_ranged_checkpoint, "org/name")


@pytest.mark.parametrize("size", [10**15, 10**18, 10**40])
def test_an_absurd_size_is_refused_and_takes_no_disk_space(hub, monkeypatch, size):
    hub.add("org/name", PLAIN)
    answering(monkeypatch, f"bytes 0-{HEADER_GUESS - 1}/{size}")

    assert "org/name/model.safetensors" in refused(open_ranged_checkpoint, "org/name")


def test_a_full_temporary_folder_is_not_the_models_fault(hub, monkeypatch):
    hub.add("org/name", {"model.safetensors": save({"w": np.ones((4, 4), np.float32)})})

    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ranges.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(StorageError, match=f"The disk of {tempfile.gettempdir()} is full: make room"):
        open_ranged_checkpoint("org/name")


def test_the_hub_package_is_imported_only_when_it_is_needed():
    import subprocess
    import sys

    code = "import sys, hf_fingerprint.checkpoints as c\nassert c.open_ranged_checkpoint('/tmp') is None\n"
    subprocess.run([sys.executable, "-c", code + "assert 'huggingface_hub' not in sys.modules"], check=True)
