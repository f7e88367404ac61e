"""What is no weight file, or not supported, is named for what it is, with what could be read instead."""

import zipfile
from pathlib import Path

import pytest

from hf_fingerprint.checkpoints import find_weight_sets
from hf_fingerprint.checkpoints.formats.recognition import FORMATS, inspect_file, is_supported
from tests.helpers.forms import FORMS


REFUSED = {
    "program.pte": (b"\x1c\0\0\0ET12" + bytes(100), "an ExecuTorch program"),
    "net.engine": (b"ftrt" + bytes(100), "a TensorRT engine"),
    "net.plan": (bytes(3) + b"x" * 100, "TensorRT"),
    "net.rknn": (b"RKNN" + bytes(100), "Rockchip"),
    "net.om": (b"IMOD" + bytes(100), "Ascend"),
    "other.om": (b"x" * 100, "compiled for one kind of chip"),
    "net.param": (b"7767517\n10 10\n", "NCNN"),
    "net.mnn": (b"x" * 100, "MNN"),
    "saved_model.pb": (b"x" * 100, "TensorFlow SavedModel"),
    "variables/variables.data-00000-of-00001": (b"x" * 100, "TensorFlow SavedModel"),
    "group1-shard1of2.bin": (b"x" * 100, "TensorFlow.js"),
    "net.pdparams": (b"x" * 100, "PaddlePaddle"),
    "secret.onnx": (b"Salted__" + bytes(100), "encrypted"),
    "secret.bin": (b"age-encryption.org/v1\n" + bytes(100), "encrypted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_named_with_what_could_be_read(tmp_path, name):
    content, what = REFUSED[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)

    ((_, reason),) = find_weight_sets(path).unread

    assert what in reason
    assert ": " in reason, "it names no way out"
    assert not is_supported(path)


def test_a_model_for_one_chip_in_a_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.dlc", "w") as archive:
        archive.writestr("model", b"x" * 100)
        archive.writestr("dlc.metadata", b"x" * 100)

    ((_, reason),) = find_weight_sets(tmp_path / "net.dlc").unread

    assert "Qualcomm" in reason


def test_each_file_has_at_most_one_format():
    files = [path for path in FORMS.rglob("*") if path.is_file() and path.parent.name != "vault"]
    assert files
    for path in files:
        head = path.open("rb").read(512)
        matching = [form.name for form in FORMATS if form.matches(head, path)]
        assert len(matching) <= 1, (path, matching)
        if matching:
            assert inspect_file(path) == matching[0]


def test_the_page_of_forms_names_each_format():
    page = (Path(__file__).parents[3] / "docs" / "formats" / "suspects.md").read_text()

    for form in FORMATS:
        assert f"| {form.name} |" in page
