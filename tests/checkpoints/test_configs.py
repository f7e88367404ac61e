import json

import pytest

from hf_fingerprint.checkpoints.configs import clean_config, clean_header, clean_index, names_local_files


TIMM = {"architecture": "tf_efficientnet_lite0", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 56, 56]}}
VIT = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}


def cleaned(config: object, name: str = "config.json", include_code: bool = False) -> object:
    return json.loads(clean_config(name, json.dumps(config).encode(), include_code))


@pytest.mark.parametrize(
    ("config", "mended"),
    [
        (TIMM | {"model_args": {"num_classes": 10}}, TIMM),
        (TIMM | {"model_args": {"num_classes": 10, "img_size": 64}}, TIMM | {"model_args": {"img_size": 64}}),
        ({"architecture": "x", "model_args": {"num_classes": 3}}, {"architecture": "x", "num_classes": 3}),
        (TIMM, TIMM),
        (TIMM | {"model_args": {"img_size": 64}}, TIMM | {"model_args": {"img_size": 64}}),
        (VIT | {"model_args": {"num_classes": 10}}, VIT | {"model_args": {"num_classes": 10}}),
    ],
)
def test_the_number_of_classes_is_deduplicated(config, mended):
    assert cleaned(config) == mended


@pytest.mark.parametrize(
    "content",
    [
        b'{"model_type" :"vit",\r\n "id2label": {"0": "/m/01g317"}}',
        b'{"transformers_version": "5.0", "torch_dtype": "float32", "big": 1e999, "none": NaN}',
        b'{"url": "https://example.org/a/b", "ratio": "16/9", "path": "data/owner", "token": 5, "eos_token": "/s"}',
        b'\xef\xbb\xbf{"a": 1}',
        b"[]",
        b'"text"',
    ],
)
def test_what_has_nothing_to_drop_keeps_its_bytes(content):
    assert clean_config("config.json", content, include_code=False) == content


@pytest.mark.parametrize(
    "value",
    [
        "/home/ada/models/plants",
        "/srv/models/x",
        "~/models/plants",
        "~ada/models",
        "C:\\Users\\ada\\model",
        "D:/models",
        "file:///data/x",
        "loaded from /home/ada/models",
        "cache_dir=/root/.cache",
    ],
)
def test_local_paths_are_dropped_at_any_depth(value):
    config = VIT | {"tokenizer_file": value, "nested": {"deep": [{"place": value, "kept": 1}], "list": ["a", value]}}

    assert cleaned(config) == VIT | {"nested": {"deep": [{"kept": 1}], "list": ["a"]}}


def test_the_origin_and_the_token_of_a_model_are_dropped():
    traces = {"_name_or_path": "org/secret-base", "_commit_hash": "ab" * 20, "use_auth_token": True, "token": "hf_x"}

    found = cleaned(VIT | traces | {"text_config": traces | {"name_or_path": "", "kept": [0]}})

    assert found == VIT | {"text_config": {"kept": [0]}}


def test_labels_that_are_paths_keep_their_last_part_and_their_number():
    config = VIT | {
        "id2label": {"0": "cat", "1": "/home/ada/photos/dog", "2": "/m/01g317"},
        "label2id": {"cat": 0, "/home/ada/photos/dog": 1, "/m/01g317": 2},
        "label_names": ["cat", "/home/ada/photos/dog"],
    }

    assert cleaned(config) == VIT | {
        "id2label": {"0": "cat", "1": "dog", "2": "/m/01g317"},
        "label2id": {"cat": 0, "dog": 1, "/m/01g317": 2},
        "label_names": ["cat", "dog"],
    }


def test_auto_map_keeps_only_code_that_is_copied_or_in_another_repo():
    own = {"AutoConfig": "configuration.Own"}
    elsewhere = {"AutoModel": "org/code--modeling.Own"}
    config = VIT | {"auto_map": own | elsewhere}

    assert cleaned(config) == VIT | {"auto_map": elsewhere}
    assert cleaned(VIT | {"auto_map": own}) == VIT
    assert cleaned(config, include_code=True) == config


def test_cleaning_is_idempotent():
    config = TIMM | {"_name_or_path": "x", "model_args": {"num_classes": 10}, "where": "/home/a/b", "ä": "ö"}
    once = clean_config("config.json", json.dumps(config).encode(), include_code=False)

    assert clean_config("config.json", once, include_code=False) == once


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\xfd", b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900])
def test_a_configuration_that_is_not_json_is_refused(content):
    try:
        assert clean_config("config.json", content, include_code=False) == content
    except ValueError:
        pass
    else:
        assert json.loads(content)


def test_an_index_says_where_tensors_are_and_how_large_they_are():
    index = {"weight_map": {"a": "m-1.safetensors"}, "metadata": {"total_size": 4, "total_parameters": 1}}
    plain = json.dumps(index, indent=1).encode()
    noted = index | {"made_on": "a machine", "metadata": index["metadata"] | {"total_size": 4, "owner": "/home/a"}}

    assert clean_index(plain) == plain
    assert json.loads(clean_index(json.dumps(noted).encode())) == index
    with pytest.raises(ValueError, match="no index"):
        clean_index(b'{"weight_map": []}')


@pytest.mark.parametrize("notes", [None, {}, {"format": "pt"}, {"format": "mlx"}])
def test_a_header_with_only_what_loaders_read_is_unchanged(notes):
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header if notes is None else {"__metadata__": notes} | header).encode() + b"   "

    assert clean_header(text) == text


@pytest.mark.parametrize(
    ("notes", "kept"),
    [({"format": "pt", "path": "/home/a"}, {"format": "pt"}), ({"sha256": "ab"}, None), ({"format": "/home/a"}, None)],
)
def test_notes_in_a_header_are_dropped_and_the_tensors_stay_in_order(notes, kept):
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [i * 4, i * 4 + 4]} for i, name in enumerate("bäa")}

    found = json.loads(clean_header(json.dumps(header | {"__metadata__": notes}).encode()))

    assert found.pop("__metadata__", None) == kept
    assert list(found.items()) == list(header.items())


@pytest.mark.parametrize("content", [b"cat\n/home/ada/dog.jpg", b'{"C:\\\\data\\\\x": 1}', b"a,/mnt/x/y"])
def test_lists_of_files_are_distinguished_from_labels(content):
    assert names_local_files(content)
    assert not names_local_files(b"cat\nand/or\n/m/01g317\n~ish")
