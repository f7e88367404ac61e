import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import save

from hf_fingerprint.checkpoints import (
    HubOptions,
    Source,
    find_weight_sets,
    open_checkpoint,
    open_ranged_checkpoint,
    resolve,
    write_copy,
)
from hf_fingerprint.checkpoints.hub_options import locate
from hf_fingerprint.checkpoints.source import resolve_cached
from hf_fingerprint.errors import CheckpointError
from tests.helpers import error_checks
from tests.helpers.checkpoint_files import bytes_of
from tests.helpers.loopback_hub import LoopbackHub


TOKEN, WRONG = "hf_ofThisTest", "hf_ofNobody"
HALF = {"b": np.ones(3, np.float16)}
WEIGHTS, OTHER = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}), save({"a": np.zeros((2, 3), np.float32)})
PLAIN = {"model.safetensors": WEIGHTS, "config.json": b'{"architecture": "x"}'}


def refused(function: Callable[..., object], *args: object, **options: object) -> str:
    """Returns the error's text."""
    return error_checks.refused(partial(function, **options), *args, error=CheckpointError)


def sharded(variant: str = "") -> dict[str, bytes]:
    """Two shards and their index, named as transformers names those of a variant."""
    shards = {f"model{variant}-0000{number}-of-00002.safetensors": number for number in (1, 2)}
    weights = save({"a": np.ones((2, 3), np.float16)}), save(HALF)
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    return {**dict(zip(shards, weights, strict=True)), f"model.safetensors.index{variant}.json": index}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub on 127.0.0.1 that the real client talks to, with an empty cache and no login."""
    monkeypatch.setattr("hf_fingerprint.checkpoints.ranged_files.FIRST_WAIT", 0)
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def read_ranges(name: str, options: HubOptions) -> Source:
    found = open_ranged_checkpoint(name, options=options)
    assert found is not None
    with found:
        for info in found.tensors.values():
            assert len(found.read(info)) == info.nbytes
        return found.source


def find_sets(name: str, options: HubOptions) -> Source:
    (found,) = find_weight_sets(name, options=options).sets
    open_checkpoint(found, suspect=True).close()
    return found


WAYS = {
    "downloaded": lambda name, options: resolve(name, options=options),
    "as a suspect": find_sets,
    "by ranges": read_ranges,
}
Way = Callable[[str, HubOptions], Source]


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request) -> Way:
    """A way to read a model on the Hub."""
    return request.param


class TestOptions:
    def test_show_no_token(self):
        options = HubOptions(token=TOKEN, revision="v1")

        assert (
            TOKEN not in f"{options} {options!r} {options.access} {Source('a', Path(), (), None, None, True, options)}"
        )
        assert "v1" in repr(options)

    @pytest.mark.parametrize("token", ["", "hf two", "hf_ä", "hf_a\nX-Header: 1", 7], ids=repr)
    def test_refuse_what_is_no_token_without_showing_it(self, token):
        text = refused(HubOptions, token=token)

        assert "token" in text
        assert not str(token) or str(token) not in text

    @pytest.mark.parametrize(
        "subfolder", ["..", "a/../..", "/etc", "a\\b", "..\\b", "C:\\a", "a:b", "a@b", "a\0b", "a\nb", 7], ids=repr
    )
    def test_refuse_a_hostile_subfolder(self, subfolder, tmp_path):
        refused(HubOptions, subfolder=subfolder)

    @pytest.mark.parametrize("variant", ["", "../a", "a/b", "fp16.", "a b", 7], ids=repr)
    def test_refuse_what_is_no_variant(self, variant):
        refused(HubOptions, variant=variant)

    @pytest.mark.parametrize("option", [{"revision": ""}, {"revision": "a\nb"}, {"cache_dir": ""}], ids=str)
    def test_refuse_empty_values(self, option):
        assert next(iter(option)) in refused(HubOptions, **option)

    def test_of_a_model_in_memory_reach_its_base_and_choose_no_files(self):
        model = torch.nn.Linear(2, 2)

        assert HubOptions.for_model(model, token=TOKEN, cache_dir="c") == HubOptions(token=TOKEN, cache_dir="c")
        for option in ("revision", "subfolder", "variant"):
            assert option in refused(HubOptions.for_model, model, **{option: "v1"})

    def test_that_contradict_the_name_are_refused(self, tmp_path):
        assert "v1" in refused(locate, "org/name@v1", options=HubOptions(revision="v2"))
        assert "subfolder" in refused(locate, "org/name:a/", options=HubOptions(subfolder="b"))
        assert "variant" in refused(locate, "org/name:a.safetensors", options=HubOptions(variant="fp16"))
        assert "revision" in refused(locate, tmp_path, options=HubOptions(revision="main"))
        assert locate("org/name@v1", options=HubOptions(revision="v1")) == locate("org/name@v1")
        assert locate("org/name:a/", options=HubOptions(subfolder="a/")) == locate("org/name:a/")

    @pytest.mark.parametrize("spelled", ["vision", "vision/", "./vision"])
    def test_subfolders_have_one_spelling(self, spelled):
        assert HubOptions(subfolder=spelled).subfolder == "vision"
        assert HubOptions(subfolder="").subfolder is None


class TestARevision:
    @pytest.mark.parametrize("kind", ["branch", "tag", "commit"])
    def test_means_what_it_means_after_the_name(self, hub, way, kind):
        repo = hub.add("org/name", PLAIN)
        old = repo.refs["main"]
        repo.commit(PLAIN | {"model.safetensors": OTHER})
        repo.tag("v1.0", old)
        branch = repo.commit(PLAIN | {"branch.txt": b"1"}, "feature/x")
        revision, commit = {"branch": ("feature/x", branch), "tag": ("v1.0", old), "commit": (old, old)}[kind]

        found = way("org/name", HubOptions(revision=revision))

        assert (found.name, found.revision) == ("org/name", commit)
        assert way(f"org/name@{revision}", HubOptions()) == found

    def test_that_does_not_exist_is_named(self, hub, way):
        hub.add("org/name", PLAIN)

        assert "org/name@v9" in refused(way, "org/name", HubOptions(revision="v9"))


class TestAToken:
    @pytest.mark.parametrize("closed", ["private", "gated"])
    def test_opens_what_it_may_read(self, hub, way, closed):
        repo = hub.add("org/name", PLAIN, lfs=True, **{closed: True})
        hub.tokens.add(TOKEN)
        repo.granted.add(TOKEN)

        assert way("org/name", HubOptions(token=TOKEN)).name == "org/name"
        assert {call.token for call in hub.calls if not call.path.startswith("/lfs-store/")} == {TOKEN}
        assert {call.token for call in hub.calls if call.path.startswith("/lfs-store/")} == {None}

    @pytest.mark.parametrize("closed", ["private", "gated"])
    @pytest.mark.parametrize("token", [WRONG, None, False])
    def test_is_needed_and_never_shown(self, hub, way, closed, token):
        hub.add("org/name", PLAIN, **{closed: True})

        text = refused(way, "org/name", HubOptions(token=token))

        assert "org/name" in text
        assert WRONG not in text
        assert "token" in text
        assert hub.bytes_sent == 0

    def test_of_the_machine_is_not_sent_if_it_is_forbidden_or_another_is_given(self, hub, way, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", WRONG)
        hub.add("org/name", PLAIN)
        hub.tokens.add(TOKEN)

        way("org/name", HubOptions(token=False))
        way("org/name", HubOptions(token=TOKEN))

        assert {call.token for call in hub.calls} == {None, TOKEN}

    def test_of_the_machine_may_be_required(self, hub, way, monkeypatch):
        hub.add("org/name", PLAIN)
        hub.tokens.add(TOKEN)

        assert "log in" in refused(way, "org/name", HubOptions(token=True))
        assert hub.calls == []
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        way("org/name", HubOptions(token=True))
        assert {call.token for call in hub.calls} == {TOKEN}


class TestACacheDir:
    def test_holds_all_downloads(self, hub, tmp_path):
        hub.add("org/name", PLAIN)
        options = HubOptions(cache_dir=tmp_path / "mine")

        source = resolve("org/name", options=options)

        assert source.folder.is_relative_to(tmp_path / "mine")
        assert find_weight_sets("org/name", options=options).sets[0].folder.is_relative_to(tmp_path / "mine")
        assert not Path(constants.HF_HUB_CACHE).exists()

    def test_is_enough_without_the_hub(self, hub, tmp_path):
        repo = hub.add("org/name", PLAIN)
        options = HubOptions(cache_dir=str(tmp_path / "mine"))
        source = resolve("org/name", options=options)
        hub.stop()

        assert resolve("org/name", options=options) == source
        assert resolve_cached("org/name", repo.refs["main"], options) == source
        assert find_weight_sets("org/name", options=options).sets[0].weights == source.weights
        refused(resolve, "org/name")

    def test_that_has_the_model_makes_ranges_needless(self, hub, tmp_path):
        hub.add("org/name", PLAIN)
        options = HubOptions(cache_dir=tmp_path / "mine")
        resolve("org/name", options=options)

        assert open_ranged_checkpoint("org/name", options=options) is None
        assert open_ranged_checkpoint("org/name") is not None


class TestASubfolder:
    def test_is_the_models_folder(self, hub, way):
        repo = hub.add("org/name", {f"vision/b/{name}": data for name, data in PLAIN.items()} | {"model.bin": b"x"})

        found = way("org/name", HubOptions(subfolder="vision/b"))

        assert (found.name, found.revision) == ("org/name:vision/b/", repo.refs["main"])
        assert way("org/name:vision/b/", HubOptions()) == found
        assert hub.downloads() <= {"vision/b/model.safetensors", "vision/b/config.json"}

    def test_alone_goes_with_a_copy(self, hub, tmp_path):
        own = {
            "vision/config.json": b'{"x": 1}',
            "vision/preprocessor_config.json": b"{}",
            "vision/sub/labels.txt": b"",
        }
        hub.add("org/name", PLAIN | own | {"vision/model.safetensors": OTHER, "text/config.json": b"{}"})
        (tmp_path / "copy").mkdir()

        with open_checkpoint("org/name", options=HubOptions(subfolder="vision")) as checkpoint:
            write_copy(checkpoint, tmp_path / "copy", {})

        expected = {name.removeprefix("vision/"): data for name, data in own.items()} | {"model.safetensors": OTHER}
        assert bytes_of(tmp_path / "copy") == expected

    @pytest.mark.parametrize("file", [None, "old.safetensors"])
    def test_is_found_again_by_the_recorded_name(self, hub, file):
        hub.add("org/name", {"v/model.safetensors": WEIGHTS, "v/old.safetensors": OTHER, "v/config.json": b"{}"})

        found = resolve("org/name", file=file, options=HubOptions(subfolder="v"))

        assert found.name == ("org/name:v/" if file is None else "org/name:v/./old.safetensors")
        assert found.folder.name == "v"
        assert resolve(found.location) == resolve(f"{found.name}@{found.revision}") == found
        assert resolve_cached(found.name, str(found.revision)) == found

    def test_that_is_missing_is_named(self, hub, way):
        hub.add("org/name", PLAIN)

        text = refused(way, "org/name", HubOptions(subfolder="vision"))

        assert "org/name" in text
        assert "vision" in text

    def test_of_a_local_folder_is_a_folder(self, tmp_path):
        (tmp_path / "m/v").mkdir(parents=True)
        (tmp_path / "m/v/model.safetensors").write_bytes(WEIGHTS)
        (tmp_path / "m/v/old.safetensors").write_bytes(OTHER)
        options = HubOptions(subfolder="v")

        assert resolve(tmp_path / "m", options=options) == resolve(tmp_path / "m/v")
        assert resolve(tmp_path / "m", file="old.safetensors", options=options).weights[0].name == "old.safetensors"
        assert len(find_weight_sets(tmp_path / "m", options=options).sets) == 2
        assert "w" in refused(resolve, tmp_path / "m", options=HubOptions(subfolder="w"))
        assert "file" in refused(resolve, tmp_path / "m/v/model.safetensors", options=options)

    def test_must_not_be_a_link_to_elsewhere(self, tmp_path):
        (tmp_path / "m").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "other/model.safetensors").write_bytes(WEIGHTS)
        (tmp_path / "m/v").symlink_to(tmp_path / "other")

        assert "link" in refused(resolve, tmp_path / "m", options=HubOptions(subfolder="v"))

    @pytest.mark.parametrize("name", ["org/name:../", "org/name:a/../../", "org/name:a/./../b.bin", "org/name:/etc/"])
    def test_in_a_hostile_name_is_refused(self, hub, name):
        refused(resolve, name)
        assert hub.calls == []


class TestAVariant:
    def test_is_one_file(self, hub, way):
        hub.add(
            "org/name", PLAIN | {"model.fp16.safetensors": OTHER, "model.fp16.bin": b"x", "pytorch_model.bin": b"x"}
        )

        found = way("org/name", HubOptions(variant="fp16"))

        assert [path.name for path in found.weights] == ["model.fp16.safetensors"]
        assert found.name == "org/name:model.fp16.safetensors"
        assert hub.downloads() <= {"model.fp16.safetensors", "config.json"}

    @pytest.mark.parametrize("subfolder", [None, "vision"])
    def test_may_be_sharded(self, hub, way, subfolder):
        files = PLAIN | sharded() | sharded(".fp16")
        repo = hub.add("org/name", files if subfolder is None else {f"vision/{n}": data for n, data in files.items()})

        found = way("org/name", HubOptions(variant="fp16", subfolder=subfolder))

        assert [path.name for path in found.weights] == [n for n in sharded(".fp16") if n.endswith("safetensors")]
        inner = "" if subfolder is None else "vision/./"
        assert found.name == f"org/name:{inner}model.safetensors.index.fp16.json"
        fetched = {name.rpartition("/")[2] for name in hub.downloads() if name.endswith(".safetensors")}
        assert fetched <= sharded(".fp16").keys()
        again = resolve(f"{found.name}@{repo.refs['main']}")
        with open_checkpoint(again) as checkpoint:
            assert {info.dtype for info in checkpoint.tensors.values()} == {"F16"}

    def test_is_loaded_by_transformers_from_a_copy(self, hub, tmp_path):
        from transformers import ViTConfig, ViTForImageClassification

        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = ViTForImageClassification(ViTConfig(**small, image_size=16, patch_size=8, num_labels=3))
        model.save_pretrained(tmp_path / "model", variant="fp16", max_shard_size="5KB")
        assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
        hub.add("org/name", tmp_path / "model")
        (tmp_path / "copy").mkdir()

        with open_checkpoint("org/name", options=HubOptions(variant="fp16")) as checkpoint:
            write_copy(checkpoint, tmp_path / "copy", {})

        copy = ViTForImageClassification.from_pretrained(tmp_path / "copy", variant="fp16")
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), copy.parameters(), strict=True))
        assert resolve(tmp_path / "copy").index == tmp_path / "copy/model.safetensors.index.fp16.json"

    def test_of_a_local_folder_is_a_file_of_it(self, tmp_path):
        for name, data in (PLAIN | {"model.fp16.safetensors": OTHER}).items():
            (tmp_path / name).write_bytes(data)

        found = resolve(tmp_path, options=HubOptions(variant="fp16"))

        assert found == resolve(tmp_path, file="model.fp16.safetensors")
        assert find_weight_sets(tmp_path, options=HubOptions(variant="fp16")).sets[0].weights == found.weights

    def test_that_is_missing_is_named_with_what_there_is(self, hub, way, tmp_path):
        hub.add("org/name", PLAIN)
        (tmp_path / "model.safetensors").write_bytes(WEIGHTS)

        for name in ("org/name", str(tmp_path)):
            if name == "org/name" or way is not read_ranges:
                text = refused(way, name, HubOptions(variant="bf16"))
                assert name in text
                assert "bf16" in text
                assert "model.safetensors" in text

    def test_without_a_request_comes_after_the_usual_weights(self, hub):
        hub.add("org/name", PLAIN | sharded(".fp16"))
        hub.add("org/half", sharded(".fp16"))

        assert resolve("org/name").weights[0].name == "model.safetensors"
        assert len(resolve("org/half").weights) == 2
