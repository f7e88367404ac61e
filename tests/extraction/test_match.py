from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.match import match_names, match_tensors
from tests.helpers.small_models import issue_plain


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, and the weights of one marked copy of it."""
    plain = issue_plain(tmp_path_factory.mktemp("case"))
    with open_checkpoint(plain.model) as original:
        yield SimpleNamespace(base=plain.base, original=original, arrays=plain.copy)


def matched(case: SimpleNamespace, arrays: dict[str, np.ndarray], tmp_path: Path) -> dict[str, str]:
    """The suspect's names for the carriers."""
    save_file(arrays, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        found = match_tensors(case.base, case.original, suspect)
    return {name: info.name for name, info in found.items()}


def carriers(case: SimpleNamespace) -> list[str]:
    return [carrier.name for carrier in case.base.carriers]


def test_tensors_of_the_same_names_match(case, tmp_path):
    assert matched(case, case.arrays, tmp_path) == {name: name for name in carriers(case)}
    assert len(carriers(case)) == 17


@pytest.mark.parametrize("prefix", ["module.", "timm_model.", "_orig_mod.", "module._orig_mod.timm_model."])
def test_what_wrappers_put_before_names_is_no_obstacle(case, tmp_path, prefix):
    arrays = {prefix + name: array for name, array in case.arrays.items()}

    assert matched(case, arrays, tmp_path) == {name: prefix + name for name in carriers(case)}


def test_without_names_each_of_many_equal_shapes_finds_its_own(case, tmp_path):
    names = sorted(case.arrays)
    np.random.default_rng(0).shuffle(names)
    new = {name: f"tensor{i}" for i, name in enumerate(names)}

    found = matched(case, {new[name]: case.arrays[name] for name in names}, tmp_path)

    assert found == {name: new[name] for name in carriers(case)}


def test_names_that_changed_places_are_seen_through(case, tmp_path):
    def swapped(name: str) -> str:
        return name.replace("blocks.0", "*").replace("blocks.2", "blocks.0").replace("*", "blocks.2")

    found = matched(case, {swapped(name): array for name, array in case.arrays.items()}, tmp_path)

    assert found == {name: swapped(name) for name in carriers(case)}


def test_a_namesake_with_other_content_is_passed_over_for_a_similar_tensor(case, tmp_path):
    arrays = dict(case.arrays)
    arrays["hidden"] = arrays["blocks.1.mlp.fc1.weight"]
    arrays["blocks.1.mlp.fc1.weight"] = np.random.default_rng(1).standard_normal((192, 48)).astype(np.float32)

    found = matched(case, arrays, tmp_path)

    assert found["blocks.1.mlp.fc1.weight"] == "hidden"
    assert found["blocks.0.mlp.fc1.weight"] == "blocks.0.mlp.fc1.weight"


def test_a_namesake_with_other_content_is_taken_when_nothing_is_more_like_it(case, tmp_path):
    arrays = case.arrays | {"conv.weight": np.random.default_rng(1).standard_normal((48, 48, 3, 3)).astype(np.float32)}

    assert matched(case, arrays, tmp_path)["conv.weight"] == "conv.weight"


def test_a_namesake_of_another_shape_is_left_out(case, tmp_path):
    arrays = case.arrays | {"conv.weight": case.arrays["conv.weight"].reshape(48, 432)}

    found = matched(case, arrays, tmp_path)

    assert "conv.weight" not in found
    assert len(found) == 16


@pytest.mark.parametrize("dtype", ["<i4", "|u1", "|b1"])
def test_what_is_no_float_is_never_matched(case, tmp_path, dtype):
    arrays = case.arrays | {"conv.weight": case.arrays["conv.weight"].astype(dtype)}

    assert "conv.weight" not in matched(case, arrays, tmp_path)


def test_no_tensor_is_matched_twice(case, tmp_path):
    lone = {"x": case.arrays["blocks.0.mlp.fc1.weight"]}

    assert matched(case, lone, tmp_path) == {"blocks.0.mlp.fc1.weight": "x"}
    double = {"x": lone["x"], "y": lone["x"].copy()}
    assert len(matched(case, double, tmp_path)) == 1


def test_nothing_in_common_matches_nothing(case, tmp_path):
    assert matched(case, {"a.weight": np.ones((7, 9), np.float32)}, tmp_path) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3e38])
def test_useless_weights_are_matched_by_name_and_disturb_no_others(case, tmp_path, value):
    arrays = dict(case.arrays)
    for name in ("blocks.0.mlp.fc1.weight", "blocks.3.mlp.fc1.weight"):
        arrays[name] = np.sign(arrays[name]) * np.float32(value)

    found = matched(case, arrays, tmp_path)

    assert found == {name: name for name in carriers(case)}


def test_a_suspect_in_half_precision_matches_without_names(case, tmp_path):
    arrays = {f"t{i}": a.astype(np.float16) for i, a in enumerate(case.arrays.values()) if a.dtype == np.float32}

    assert len(matched(case, arrays, tmp_path)) == 17


def test_names_are_matched_by_headers_alone(case, tmp_path):
    arrays = {f"module.{name}": np.zeros_like(array) for name, array in case.arrays.items() if "blocks.1" not in name}
    save_file(arrays, tmp_path / "suspect.safetensors")

    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        found = match_names(case.base, suspect)

    assert {name: info.name for name, info in found.items()} == {
        name: f"module.{name}" for name in carriers(case) if "blocks.1" not in name
    }


def test_each_carrier_is_found_among_thousands_of_decoys_of_its_shape(case, tmp_path):
    names = [name for name in carriers(case) if name.endswith("fc1.weight")]
    shape = case.arrays[names[0]].shape
    decoys = np.random.default_rng(3).standard_normal((2000, *shape)).astype(np.float16)
    arrays = {f"decoy{i}": decoy for i, decoy in enumerate(decoys)}
    arrays |= {f"hidden{i}": case.arrays[name] for i, name in enumerate(names)}

    assert matched(case, arrays, tmp_path) == {name: f"hidden{i}" for i, name in enumerate(names)}
