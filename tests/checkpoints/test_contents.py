import json
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_fingerprint.checkpoints import contents as contents_module
from hf_fingerprint.checkpoints import list_contents, open_checkpoint, resolve, rewrite_tensors, write_copy
from hf_fingerprint.checkpoints.kinds import CODE, NOT_SHOWN, OTHER, SECRET
from tests.helpers.checkpoint_files import (
    bytes_of,
    names_of,
    open_folder,
    raw_safetensors,
    refused,
    save_model,
    save_shards,
    stranger,
)
from tests.helpers.unsafe_files import write_unsafe_files


ONE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
MODEL = [
    ".gitattributes",
    "CITATION.cff",
    "LICENSE",
    "LICENSE.md",
    "NOTICE.txt",
    "README.md",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "id2label.json",
    "image_processor_config.json",
    "imagenet_classes.txt",
    "labels.csv",
    "merges.txt",
    "plants-labels.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
]


def model(folder, **files):
    save_model(folder / "model.safetensors", **ONE)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def sorted_of(folder, **options) -> tuple[list[str], list[str]]:
    found = list_contents(resolve(folder), **options)
    return [each.name for each in found.included], names_of(found.left_out)


def reasons_of(folder) -> dict[str, str]:
    return dict(list_contents(resolve(folder)).left_out)


def test_the_files_of_a_model_are_included(tmp_path):
    model(tmp_path, **dict.fromkeys(MODEL, "{}"))

    assert sorted_of(tmp_path) == (MODEL, [])


def test_all_other_files_are_skipped_with_a_reason(tmp_path):
    model(tmp_path, **{"README.md": "# A model", "config.json": "{}"})
    expected = write_unsafe_files(tmp_path)

    found = list_contents(resolve(tmp_path))

    assert [each.name for each in found.included] == ["README.md", "config.json"]
    assert dict(found.left_out) == expected
    assert len(expected) > 40


def test_images_are_included_if_the_card_shows_them(tmp_path):
    card = (
        '---\nthumbnail: thumb.png\nwidget:\n- src: images/cat.jpg\n---\n![a](one.png) ![b](./two%20x.svg "t")\n'
        "<p><img width=3\nsrc='sub/three.webp'></p>\n[![n](four.gif)](five.png)\n![r][six]\n\n[six]: six.png\n"
        "![out](../seven.png) ![far](https://example.org/eight.png) [nine](nine.png) ![no](customers.csv)\n"
    )
    shown = ["four.gif", "images/cat.jpg", "one.png", "six.png", "sub/three.webp", "thumb.png", "two x.svg"]
    others = ["eight.png", "five.png", "nine.png", "seven.png"]
    model(tmp_path, **{"README.md": card, "customers.csv": "x"}, **dict.fromkeys([*shown, *others], b"\x89PNG"))

    assert sorted_of(tmp_path)[0] == ["README.md", *shown]
    assert reasons_of(tmp_path) == dict.fromkeys(others, NOT_SHOWN) | {"customers.csv": OTHER}


def test_an_image_that_contains_a_key_is_a_secret(tmp_path):
    model(tmp_path, **{"README.md": "![](one.png)", "one.png": "age-encryption.org/v1\n"})

    assert reasons_of(tmp_path) == {"one.png": SECRET}


def test_code_is_included_on_request(tmp_path):
    config = '{"auto_map": {"AutoModel": "modeling_own.Own"}}'
    model(
        tmp_path,
        **{"config.json": config, "modeling_own.py": "class Own: ...", "keys.py": "K = 'AKIA" + "A" * 16 + "'"},
    )

    assert reasons_of(tmp_path) == {"modeling_own.py": CODE, "keys.py": SECRET}
    assert sorted_of(tmp_path, include_code=True) == (["config.json", "modeling_own.py"], ["keys.py"])
    (without,), (with_code, _) = (list_contents(resolve(tmp_path), code).included for code in (False, True))
    assert json.loads(without.content) == {}
    assert with_code.content is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b"{", "not valid JSON"),
        ("tokenizer.json", b"\xff\xfe", "not valid JSON"),
        ("labels.txt", "age-secret-key-1QQ".encode("utf-16"), SECRET),
        ("README.md", b"Log in with hf_" + b"aB3dE" * 7, SECRET),
        ("merges.txt", b"-----BEGIN AGE ENCRYPTED FILE-----", SECRET),
    ],
)
def test_a_name_is_not_enough(tmp_path, name, content, reason):
    model(tmp_path, **{name: content})

    assert reasons_of(tmp_path) == {name: reason}


def test_a_token_in_a_configuration_is_dropped_and_the_rest_included(tmp_path):
    model(tmp_path, **{"config.json": json.dumps({"a": 1, "token": "hf_" + "aB3dE" * 7})})

    (config,) = list_contents(resolve(tmp_path)).included
    assert json.loads(config.content) == {"a": 1}


def test_a_file_that_is_too_large_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module.limits, "MAX_FILE", 10)
    model(tmp_path, **{"vocab.txt": "x" * 11, "LICENSE": "x" * 10})

    assert sorted_of(tmp_path) == (["LICENSE"], ["vocab.txt"])


def test_many_skipped_files_are_summarized_by_their_number(tmp_path):
    model(tmp_path, **{f"photos/{i:03}.csv": b"x" for i in range(50)}, **{"labels.txt": "cat"})

    handed, left = sorted_of(tmp_path)
    assert handed == ["labels.txt"]
    assert left == [*(f"photos/{i:03}.csv" for i in range(20)), "photos/..."]
    assert reasons_of(tmp_path)["photos/..."] == f"30 more: {OTHER}"


def test_a_folder_with_too_many_files_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module.limits, "MAX_FILES_PER_FOLDER", 10)
    model(tmp_path, **{f"data/{i}.txt": b"x" for i in range(12)}, **{f"few/{i}.csv": b"x" for i in range(9)})

    assert sorted_of(tmp_path) == ([], ["data/", *(f"few/{i}.csv" for i in range(9))])


def test_a_tree_with_too_many_files_is_searched_breadth_first(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module.limits, "MAX_FILES_IN_FOLDERS", 40)
    model(tmp_path, **{f"d{i:02}/labels.txt": b"x" for i in range(40)})

    handed, left = sorted_of(tmp_path)
    assert handed == []
    assert left == [*(f"d{i:02}/" for i in range(20)), "..."]


def test_a_vaults_folder_is_one_line(tmp_path):
    model(tmp_path, **{"v/vault.db": b"SQLite format 3\0", "v/labels.txt": "x", "v/locks/a.lock": ""})

    assert list_contents(resolve(tmp_path)).left_out == (("v/", "a vault"),)


def test_an_unreadable_file_is_an_error_with_its_name():
    with open_folder() as folder:
        source = resolve(model(folder / "model", **{"config.json": "{}", "closed/labels.txt": "x"}))
        (folder / "model").chmod(0o755)
        (folder / "model" / "closed").chmod(0)
        with stranger():
            assert names_of(list_contents(source).left_out) == ["closed/"]
        (folder / "model" / "config.json").chmod(0)
        with stranger():
            assert "config.json can't be read" in refused(list_contents, source)
        (folder / "model" / "closed").chmod(0o700)


class TestACopy:
    def copied(self, source, out):
        out.mkdir()
        with open_checkpoint(source) as checkpoint:
            return write_copy(checkpoint, out, {})

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0])
    def test_has_the_rights_of_its_source(self, tmp_path, mask):
        source = model(tmp_path / "source", **{"config.json": "{}", "sub/labels.txt": "x", "LICENSE": "x"})
        modes = {
            "model.safetensors": 0o600,
            "config.json": 0o640,
            "sub/labels.txt": 0o444,
            "LICENSE": 0o644,
            "sub": 0o750,
        }
        for name, mode in modes.items():
            (source / name).chmod(mode)
        source.chmod(0o700)
        before = os.umask(mask)
        try:
            self.copied(source, tmp_path / "out")
        finally:
            os.umask(before)

        found = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in [*modes, "."]}
        assert found == modes | {".": 0o700}

    def test_in_memory_too(self, tmp_path):
        path = model(tmp_path / "source") / "model.safetensors"
        path.chmod(0o600)
        (tmp_path / "out").mkdir()
        with open_checkpoint(path.parent) as checkpoint:
            write_copy(checkpoint, tmp_path / "out", {}, in_memory=True).write_buffered()

        assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o600

    def test_keeps_its_rights_when_a_tensor_is_replaced(self, tmp_path):
        path = model(tmp_path) / "model.safetensors"
        path.chmod(0o600)
        with open_checkpoint(path) as checkpoint:
            rewrite_tensors(path, [(checkpoint.tensors["a"], lambda raw: raw.fill(0))])

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not load_file(path)["a"].any()

    def test_a_copy_has_no_trace_of_the_machine_it_was_made_on(self, tmp_path):
        source = save_shards(tmp_path / "source", {"m-1.safetensors": ONE})
        notes = {"__metadata__": {"format": "pt", "path": "/home/ada/x", "sha256": "ab" * 32}}
        entry = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
        (source / "m-1.safetensors").write_bytes(raw_safetensors(notes | entry, ONE["a"].tobytes()))
        index = {"metadata": {"total_size": 24, "by": "/home/ada"}, "weight_map": {"a": "m-1.safetensors"}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        (source / "config.json").write_text(json.dumps({"_name_or_path": "/home/ada/x", "hidden_size": 3}))

        written = self.copied(source, tmp_path / "out")

        found = bytes_of(tmp_path / "out")
        assert not [name for name, content in found.items() if b"/home/ada" in content or b"ab" * 32 in content]
        assert json.loads(found["model.safetensors.index.json"])["metadata"] == {"total_size": 24}
        assert json.loads(found["config.json"]) == {"hidden_size": 3}
        assert int.from_bytes(found["m-1.safetensors"][:8], "little") % 8 == 0
        with open_checkpoint(tmp_path / "out") as made:
            assert made.read(made.tensors["a"]).tobytes() == ONE["a"].tobytes()
        assert written.left_out == ()
        assert list_contents(resolve(tmp_path / "out")).included[0].content is None
