"""Exported programs of PyTorch: weights with raw bytes (2.8 and later) and in a nested file (before)."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.exported_programs import FORMAT
from tests.helpers.checkpoint_files import refused
from tests.helpers.forms import FORMS, copy_weights, made, read_tensor


VALUES = np.arange(6, dtype="<f4")
FLOAT, STRIDED = 7, 7


def meta(sizes: list[int], strides: list[int], offset: Any = 0, **changes: Any) -> dict[str, Any]:
    found = {
        "dtype": FLOAT,
        "sizes": [{"as_int": each} for each in sizes],
        "strides": [{"as_int": each} for each in strides],
        "storage_offset": {"as_int": offset},
        "layout": STRIDED,
    }
    return found | changes


def entry(place: str = "weight_0", **described: Any) -> dict[str, Any]:
    return {"path_name": place, "is_param": True, "use_pickle": False, **described}


def package(path: Path, config: Any, graph: Any = None, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("m/archive_format", "pt2")
        target.writestr("m/models/model.json", json.dumps(graph))
        text = config if isinstance(config, bytes) else json.dumps({"config": config})
        target.writestr("m/data/weights/model_weights_config.json", text)
        for name, content in {"weight_0": VALUES.tobytes(), **members}.items():
            target.writestr(f"m/data/weights/{name}", content)
    return path


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    left_out: dict[str, str] = {}
    found = FORMAT.load(path, left_out)
    reasons = {name: tensor.unreadable_reason() for name, tensor in found.tensors}
    left_out.update((name, reason) for name, reason in reasons.items() if reason)
    return {name: read_tensor(tensor) for name, tensor in found.tensors if not reasons[name]}, left_out


@pytest.mark.parametrize("path", made("exported_*.pt2"), ids=lambda path: path.name)
def test_every_tensor_has_the_name_and_the_values_of_the_state_dict(path):
    assert FORMAT.matches(path.read_bytes()[:512], path)

    found, left_out = load(path)

    assert not left_out
    expected = copy_weights("conv")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert (
        FORMAT.load(path, {}).producer
        == f"torch.export of PyTorch {'2.14.1+cu130' if '14' in path.name else '2.6.0+cu124'}"
    )


def test_it_is_a_suspect_and_no_base():
    path = FORMS / "conv/made/exported_2.14.pt2"

    with open_checkpoint(path, suspect=True) as opened:
        assert opened.tensors["fc.weight"].shape == (5, 32)
    assert "only a suspect" in refused(open_checkpoint, path)


def test_weights_may_share_a_payload_in_any_layout(tmp_path):
    path = package(
        tmp_path / "m.pt2",
        {
            "a": entry(tensor_meta=meta([2, 3], [3, 1])),
            "t": entry(tensor_meta=meta([3, 2], [1, 3])),
            "last": entry(tensor_meta=meta([2], [1], 4)),
        },
    )

    found, left_out = load(path)

    assert not left_out
    np.testing.assert_array_equal(found["t"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(found["last"], [4, 5])


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        (entry("../weight_0", tensor_meta=meta([6], [1])), "not in the file"),
        (entry("/etc/passwd", tensor_meta=meta([6], [1])), "not in the file"),
        (entry(7), "not in the file"),
        (entry(), "no description"),
        (entry(tensor_meta=meta([7], [1])), "larger than its storage"),
        (entry(tensor_meta=meta([6], [1], 1)), "larger than its storage"),
        (entry(tensor_meta=meta([-6], [1])), "impossible sizes"),
        (entry(tensor_meta=meta([6], [])), "impossible sizes"),
        (entry(tensor_meta=meta([6], [1], None)), "impossible sizes"),
        (entry(tensor_meta=meta([1 << 63], [0])), "impossible sizes"),
        (entry(tensor_meta=meta([6], [1], dtype=[])), "an unknown dtype"),
        (entry(tensor_meta=meta([6], [1], layout=1)), "a sparse layout"),
        ("weight_0", "not in the file"),
        (entry("custom_obj_0"), "an object of code"),
    ],
)
def test_what_can_not_be_read_is_left_out_with_a_reason(tmp_path, described, reason):
    config = {"good": entry(tensor_meta=meta([6], [1])), "odd": described}
    path = package(tmp_path / "m.pt2", config, custom_obj_0=b"code")

    found, left_out = load(path)

    assert left_out == {"odd": reason}
    np.testing.assert_array_equal(found["good"], VALUES)


@pytest.mark.parametrize("config", [b"", b"[", b"[]", b'{"config": []}', b"\xff", b"[" * 100_000])
def test_a_list_of_weights_that_is_damaged_is_refused(tmp_path, config):
    with pytest.raises(InvalidFileError):
        load(package(tmp_path / "m.pt2", config))


def test_compiled_code_alone_is_not_taken_for_weights(tmp_path):
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("m/archive_format", "pt2")
        target.writestr("m/data/aotinductor/model/code.so", b"\x7fELF")

    assert not FORMAT.matches(path.read_bytes()[:512], path)


def test_a_nested_file_may_not_be_compressed(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", b"}." + bytes(10_000))
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("serialized_exported_program.json", "{}")
        target.writestr("serialized_state_dict.pt", inner.getvalue())

    with pytest.raises(InvalidFileError, match="many times"):
        load(path)


BYTE_CODES = np.arange(6, dtype=np.int8)
CODES, SCALES, ZEROS = "codes", "scales", "zeros"
QUANTIZED = {
    CODES: entry(tensor_meta=meta([2, 3], [3, 1], dtype=2)),
    SCALES: entry("weight_1", tensor_meta=meta([3], [1])),
    ZEROS: entry("weight_2", tensor_meta=meta([3], [1], dtype=5)),
}
STORED = {
    "weight_0": BYTE_CODES.tobytes(),
    "weight_1": np.array([1, 2, 4], "<f4").tobytes(),
    "weight_2": np.array([0, 1, 0], "<i8").tobytes(),
}


def graph_of(target: str, *arguments: Any) -> dict[str, Any]:
    """A graph with one node whose inputs `b_...` stand for the tensors."""
    specs = [{"buffer": {"arg": {"name": f"b_{name}"}, "buffer_name": name}} for name in QUANTIZED]
    inputs = [{"name": "x", "arg": each} for each in arguments]
    node = {"target": f"torch.ops.quantized_decomposed.dequantize_per_{target}", "inputs": inputs}
    return {"graph_module": {"signature": {"input_specs": specs}, "graph": {"nodes": [node]}}}


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": f"b_{name}"}}


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (
            graph_of("channel.default", tensor(CODES), tensor(SCALES), tensor(ZEROS), {"as_int": 1}),
            {CODES: [[0, 0, 8], [3, 6, 20]]},
        ),
        (
            graph_of("tensor.default", tensor(CODES), {"as_float": 0.5}, {"as_int": 1}),
            {CODES: [[-0.5, 0, 0.5], [1, 1.5, 2]], SCALES: [1, 2, 4], ZEROS: [0, 1, 0]},
        ),
    ],
)
def test_codes_are_dequantized_as_the_graph_does(tmp_path, graph, expected):
    found, left_out = load(package(tmp_path / "m.pt2", QUANTIZED, graph, **STORED))

    assert not left_out
    assert {name: value.tolist() for name, value in found.items()} == expected


@pytest.mark.parametrize(
    "graph",
    [
        None,
        [],
        {
            "graph_module": {
                "signature": {"input_specs": [1, {}, {"a": []}]},
                "graph": {"nodes": [None, {"target": 1}]},
            }
        },
        graph_of("channel.default", tensor(CODES)),
        graph_of("channel.default", tensor(CODES), tensor(SCALES), tensor(ZEROS), {"as_int": 2}),
        graph_of("channel.default", tensor(CODES), tensor(SCALES), tensor(ZEROS), {"as_int": -1}),
        graph_of("channel.default", tensor(CODES), tensor("other"), tensor(ZEROS), {"as_int": 1}),
        graph_of("tensor.default", tensor(CODES), {"as_float": "0"}, {"as_int": 1 << 70}),
        graph_of("tensor.tensor", tensor(CODES), tensor(SCALES), tensor(ZEROS)),
    ],
)
def test_codes_whose_scales_are_not_found_stay_codes(tmp_path, graph):
    found, left_out = load(package(tmp_path / "m.pt2", QUANTIZED, graph, **STORED))

    assert not left_out
    assert found[CODES].dtype == np.int8
    assert found[CODES].reshape(-1).tolist() == BYTE_CODES.tolist()
    assert found.keys() == QUANTIZED.keys()
