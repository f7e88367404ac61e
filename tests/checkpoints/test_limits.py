"""Every limit is checked before an input is expanded. The fuzz measures the memory."""

import os

import pytest

from hf_fingerprint.checkpoints.limits import MAX_NAME, megabytes, parse_json, read_bounded
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import CheckpointError, FingerprintError
from tests.helpers.checkpoint_files import refused


def test_a_file_is_read_up_to_its_limit_and_refused_above(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"x" * 1000)

    assert read_bounded(path, 1000, "a configuration") == b"x" * 1000
    text = refused(read_bounded, path, 999, "a configuration")
    assert str(path) in text and "a configuration may have" in text


def test_a_special_file_is_refused_without_blocking(tmp_path):
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)

    assert "not a regular file" in refused(read_bounded, pipe, 10, "a configuration")
    assert "not a regular file" in refused(read_bounded, "/dev/zero", 10, "a configuration")
    with pytest.raises(OSError):
        read_bounded(tmp_path, 10, "a configuration")


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"x" * 1000)
    monkeypatch.setattr("os.fstat", lambda descriptor: os.stat_result([0] * 10))

    assert "a list may have" in refused(read_bounded, path, 10, "a list")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" + "[]," * 400 + "0]", "values"),
        ('{"a":' * 400 + "0" + "}" * 400, "values"),
        ("[" * 100_000, "values"),
        ("1" * 100_000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_json_that_takes_memory_is_refused_before_it_is_parsed(text, why):
    for content in (text, text.encode()):
        with pytest.raises(ValueError, match=why):
            parse_json(content, values=500)


def test_json_that_is_nested_too_deep_is_refused():
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}', '{"a": 1, "a": 2}'])
def test_strict_json_refuses_what_parsers_resolve_differently(text):
    parse_json(text)
    with pytest.raises(ValueError):
        parse_json(text, strict=True)


def test_errors_are_of_the_requested_class(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"xx")

    with pytest.raises(FingerprintError) as caught:
        read_bounded(path, 1, "it", FingerprintError)
    assert not isinstance(caught.value, CheckpointError)


def test_a_size_above_the_limit_never_looks_equal_to_it():
    assert (megabytes(16_000_000), megabytes(16_000_001, round_up=True)) == ("16", "16.1")


def test_a_name_of_a_million_prefixes_takes_one_pass():
    assert normalize_name("module." * 200_000 + "weight") == "weight"
    assert len("module." * 200_000) > MAX_NAME
