"""Core ML models: what is read from each form of the tiny copies, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml.coreml_files import FORMAT
from tests.helpers.forms import FORMS, copy_weights, kind_of
from tests.helpers.wire import field


MAIN = ("Data/com.apple.CoreML/model.mlmodel", "model.mil", "model.espresso.net")
FORMS_AND_ERRORS = [  # the relative error
    ("conv", "fp32.mlpackage", 1e-6),
    ("conv", "int8.mlpackage", 1e-2),
    ("conv", "palette6.mlpackage", 0.05),
    ("conv", "palette4.mlmodelc", 0.15),
    ("conv", "network_linear8.mlmodel", 1e-2),
    ("conv", "network.mlmodelc", 1e-3),
    ("vit", "fp16.mlpackage", 1e-3),
    ("vit", "int4.mlpackage", 0.15),
    ("vit", "palette3_grouped.mlpackage", 0.3),
    ("vit", "palette4_int8_tables.mlpackage", 0.15),
    ("vit", "int8.mlmodelc", 1e-2),
    ("vit", "network_lut4.mlmodel", 0.15),
]
SPARSE = [
    ("conv", "sparse.mlpackage", 1e-3),
    ("conv", "sparse_int8.mlmodelc", 1e-2),
    ("vit", "sparse_palette4.mlpackage", 0.15),
]


def main_file(form: Path) -> Path:
    return next((form / name for name in MAIN if (form / name).is_file()), form)


def load(path, left_out=None):
    found = FORMAT.load(path, {} if left_out is None else left_out)
    return found, {name: stored_values(tensor) for name, tensor in found.tensors}


def folded_weights(kind: str) -> dict[str, np.ndarray]:
    """The matrices and convolutions of the copy, with the normalizations after them folded in."""
    copy, found = copy_weights(kind), {}
    for name, values in copy.items():
        if values.ndim == 2 and name.endswith("weight"):
            found[name] = values
        elif values.ndim == 4:
            norm = {"conv1.0": "conv1.1", "conv1.3": "conv1.4", "conv1.6": "bn1"}.get(
                name.removesuffix(".weight"),
                name.removesuffix(".weight").replace("conv", "bn").replace("downsample.1", "downsample.2"),
            )
            scale = np.float32(1)
            if f"{norm}.running_var" in copy:
                scale = copy[f"{norm}.weight"] / np.sqrt(copy[f"{norm}.running_var"] + 1e-5)
                scale = scale.reshape(-1, 1, 1, 1)
            found[name] = values * scale
    return found


def nearest(tensors, wanted):
    """The tensor of the shape of `wanted` that is nearest to it."""
    same = [each for each in tensors.values() if each.size == wanted.size and each.ndim > 1]
    return min((each.reshape(wanted.shape) for each in same), key=lambda each: relative_error(each, wanted))


def relative_error(values, wanted):
    """The length of the difference, relative to that of `wanted`."""
    return np.linalg.norm(values - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(("kind", "name", "most"), FORMS_AND_ERRORS)
def test_each_form_has_all_weights_with_their_values(kind, name, most):
    left_out = {}
    found, tensors = load(main_file(FORMS / kind / "made" / name), left_out)

    assert not left_out
    assert len(found.tensors) == 32
    for wanted in folded_weights(kind).values():
        assert relative_error(nearest(tensors, wanted), wanted) < most
    if not name.startswith("network.mlmodelc"):
        assert found.producer == "coremltools 9.0"


@pytest.mark.parametrize(("kind", "name", "most"), SPARSE)
def test_weights_that_were_pruned_are_0_and_the_others_have_their_values(kind, name, most):
    _, tensors = load(main_file(FORMS / kind / "made" / name))

    for wanted in folded_weights(kind).values():
        values = nearest(tensors, wanted)
        kept = values != 0
        assert 0.4 < kept.mean() < 0.6
        assert relative_error(values[kept], wanted[kept]) < most
        assert np.abs(wanted[~kept]).mean() < np.abs(wanted[kept]).mean()


def test_weights_have_the_names_of_the_program():
    _, tensors = load(main_file(FORMS / "vit/made/fp16.mlpackage"))

    wanted = copy_weights("vit")["blocks.0.attn.qkv.weight"]
    np.testing.assert_allclose(tensors["blocks_0_attn_qkv_weight_to_fp16"], wanted, atol=1e-3)


def test_the_weight_file_is_a_companion():
    form = FORMS / "vit/made/fp16.mlpackage"

    assert load(main_file(form))[0].companions == (form / "Data/com.apple.CoreML/weights/weight.bin",)
    assert load(FORMS / "vit/made/network_lut4.mlmodel")[0].companions == ()


@pytest.mark.parametrize(("kind", "name"), [each[:2] for each in FORMS_AND_ERRORS + SPARSE])
def test_main_files_are_recognized_by_content(kind, name, tmp_path):
    main = main_file(FORMS / kind / "made" / name)
    head = main.read_bytes()[:512]

    assert FORMAT.matches(head, main)
    if main.suffix != ".net":
        renamed = tmp_path / "no_ending"
        shutil.copy(main, renamed)
        assert FORMAT.matches(head, renamed)


def test_other_files_are_not_recognized(tmp_path):
    onnx = field(1, 8) + field(2, "pytorch") + field(3, "2.9") + field(7, b"") + field(8, field(2, 17))
    contents = {
        "model.onnx": onnx,
        "cut.mlmodel": field(1, 7) + field(2, b"")[:1],
        "text.mil": b"program",
        "model.espresso.net": b"pbze\0\0\0\0",  # compressed
        "weight.bin": (FORMS / "vit/made/int8.mlmodelc/weights/weight.bin").read_bytes(),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert not FORMAT.matches(content[:512], tmp_path / name), name


def test_companions_are_found_in_a_repo():
    names = [
        "a.mlpackage/Data/com.apple.CoreML/model.mlmodel", "a.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "b.mlmodelc/model.mil", "b.mlmodelc/weights/weight.bin", "b.mlmodelc/coremldata.bin",
        "c.mlmodelc/model.espresso.net", "c.mlmodelc/model.espresso.weights", "d.mlmodel", "weights/weight.bin",
    ]  # fmt: skip

    assert list(FORMAT.companions(names[0], names)) == [names[1]]
    assert list(FORMAT.companions(names[2], names)) == [names[3]]
    assert list(FORMAT.companions(names[5], names)) == [names[6]]
    assert list(FORMAT.companions("d.mlmodel", names)) == []


def test_models_in_a_pipeline_are_read(tmp_path):
    first = (FORMS / "vit/made/network_lut4.mlmodel").read_bytes()
    second = field(1, 7) + field(2, b"") + field(604, b"")  # a scaler
    path = tmp_path / "pipeline.mlmodel"
    pipeline = field(1, second) + field(1, first) + field(2, "scaler") + field(2, "net")
    path.write_bytes(field(1, 7) + field(200, field(1, pipeline)))

    found, tensors = load(path)

    assert len(tensors) == 32
    assert all(name.startswith("net.") for name in tensors)
    assert FORMAT.matches(path.read_bytes()[:512], path)
    assert found.companions == ()


def test_pipelines_are_not_followed_without_end(tmp_path):
    model = field(604, b"")
    for _ in range(6):
        model = field(202, field(1, model))
    path = tmp_path / "pipeline.mlmodel"
    path.write_bytes(field(1, 7) + model)

    with pytest.raises(InvalidFileError, match="nested too deep"):
        load(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("@model_path/../weights/weight.b", "outside its folder"),
        ("/model_path/weights/weights.bin", "outside its folder"),
        ("@model_path/weights/./weight.bn", "is missing"),
        ("@model_path/weights/weigh_.bin_", "is missing"),
    ],
)
def test_no_path_leaves_the_package(name, reason, tmp_path):
    form = tmp_path / "bad.mlmodelc"
    shutil.copytree(FORMS / "vit/made/int8.mlmodelc", form)
    text = (form / "model.mil").read_text()
    (form / "model.mil").write_text(text.replace("@model_path/weights/weight.bin", name))
    left_out = {}

    found, _ = load(form / "model.mil", left_out)

    assert found.companions == ()
    assert len(found.tensors) + len(left_out) == 32
    assert any(reason in each for each in left_out.values())


def test_a_link_to_outside_is_not_followed(tmp_path):
    form = tmp_path / "bad.mlmodelc"
    shutil.copytree(FORMS / "vit/made/int8.mlmodelc", form)
    (form / "weights/weight.bin").rename(tmp_path / "weight.bin")
    (form / "weights/weight.bin").symlink_to(tmp_path / "weight.bin")
    left_out = {}

    assert load(form / "model.mil", left_out)[0].companions == ()
    assert set(left_out.values()) == {
        "in weights/weight.bin, which is a link to outside its folder: replace it with the file itself"
    }


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    repo = tmp_path / "models--x--y"
    form = repo / "snapshots/abc/int8.mlmodelc"
    shutil.copytree(FORMS / "vit/made/int8.mlmodelc", form)
    (repo / "blobs").mkdir()
    (form / "weights/weight.bin").rename(repo / "blobs/1")
    (form / "weights/weight.bin").symlink_to(repo / "blobs/1")
    left_out = {}

    assert len(load(form / "model.mil", left_out)[0].tensors) == 32
    assert not left_out


def test_a_weight_file_that_is_cut_off_loses_only_what_is_missing(tmp_path):
    form = tmp_path / "cut.mlpackage"
    shutil.copytree(FORMS / "vit/made/fp16.mlpackage", form)
    weights = main_file(form).parent / "weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:70_000])
    left_out = {}

    found, _ = load(main_file(form), left_out)

    assert found.tensors and left_out
    assert set(left_out.values()) == {"cut off or damaged"}


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_names_of_forms_tell_their_model(kind):
    assert all(kind_of(form) == kind for form in (FORMS / kind / "made").glob("*.ml*"))
