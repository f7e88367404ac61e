"""A model card is read within limits, and names one Hub id as base model or is refused."""

import pytest

from hf_fingerprint.checkpoints import limits
from hf_fingerprint.checkpoints.model_card import named_base_model, read_card
from hf_fingerprint.errors import CheckpointError
from tests.helpers.error_checks import refused


def folder_with(folder, front_matter, text="# A model"):
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n{text}\n")
    return folder


def test_a_folder_without_a_card_has_none(tmp_path):
    assert read_card(tmp_path) is None
    assert named_base_model(tmp_path) is None


@pytest.mark.parametrize(
    ("front_matter", "named"),
    [
        ("base_model: org/vit", "org/vit"),
        ("base_model: [org/vit.b-16_x]", "org/vit.b-16_x"),
        ("base_model:\n- org/vit\nlicense: mit", "org/vit"),
        ("license: mit", None),
        ("base_model: []", None),
        ("base_model: null", None),
    ],
)
def test_the_one_base_model_is_named(tmp_path, front_matter, named):
    assert named_base_model(folder_with(tmp_path, front_matter)) == named


@pytest.mark.parametrize(
    "value",
    ["vit", "../vit", "/etc/passwd", "a/b/c", "org/..", "https://e.org/x", "org/vit@main", "'org/vit:x'", "org/a--b"],
)
def test_nothing_but_a_hub_id_passes_for_one(tmp_path, value):
    said = refused(named_base_model, folder_with(tmp_path, f"base_model: {value}"), error=CheckpointError)

    assert value.strip("'") in said
    assert str(tmp_path) in said


@pytest.mark.parametrize("value", ["[org/a, org/b]", "[[org/a]]", "{org/a: 1}", "7", "true", "2026-01-01"])
def test_other_types_are_refused(tmp_path, value):
    assert "base_model" in refused(named_base_model, folder_with(tmp_path, f"base_model: {value}"))


def test_a_long_card_is_refused_before_it_is_parsed(tmp_path):
    endless = folder_with(tmp_path, "base_model: org/vit\n" + "a: b\n" * (limits.MAX_FRONT_MATTER // 4))
    assert "bytes of front matter" in refused(named_base_model, endless)

    (tmp_path / "README.md").write_bytes(b"x" * (limits.MAX_CARD + 1))
    assert "MB" in refused(named_base_model, tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\n[\n---\n", b"---\n- a\n---\n", b"---\na: &x [*x\n---\n"])
def test_a_card_that_cannot_be_parsed_is_one_sentence(tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)

    assert "correct its front matter" in refused(read_card, tmp_path, error=CheckpointError)
