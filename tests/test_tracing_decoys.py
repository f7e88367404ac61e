"""A copy is traced if its file also holds the base, and nobody is cleared while a copy may be left unread."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Outcome, trace
from hf_fingerprint.tracing.local_files import MAX_PASSES
from tests.helpers.forms import FORMS, KINDS, RECIPIENT, copy_weights, open_vault
from tests.helpers.loopback_hub import LoopbackHub


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def vault(kind, tmp_path_factory):
    return open_vault(kind, tmp_path_factory.mktemp(kind))


def base_weights(kind):
    return load_file(FORMS / kind / "base" / "model.safetensors")


def numbered(weights, begin="x", change=lambda values: values):
    return {f"{begin}{i}": np.array(change(values), order="C") for i, values in enumerate(weights.values())}


def as_codes(values):
    return np.asarray(np.round(values / max(float(np.abs(values).max()), 1e-9) * 127), np.int8)


def traced(weights, kind, vault, folder):
    save_file(weights, folder / "model.safetensors")
    return trace(folder / "model.safetensors", vault, base=FORMS / kind / "base", all_scores=True)


@pytest.mark.parametrize("change", [np.asarray, np.transpose, as_codes], ids=["plain", "transposed", "integers"])
@pytest.mark.parametrize("named", [True, False])
def test_the_base_in_front_of_a_copy_does_not_hide_it(kind, vault, tmp_path, named, change):
    front = base_weights(kind) if named else numbered(base_weights(kind), "a")

    result = traced(front | numbered(copy_weights(kind), "b", change), kind, vault, tmp_path)

    assert [each.recipient for each in result.accused] == [RECIPIENT]


@pytest.mark.parametrize("join", [np.stack, np.concatenate])
def test_the_base_and_a_copy_in_the_same_tensors(kind, vault, tmp_path, join):
    base, copy = base_weights(kind), copy_weights(kind)
    held = {f"x{i}": join([base[name], copy[name]]) for i, name in enumerate(base) if base[name].ndim}

    result = traced(held, kind, vault, tmp_path)

    assert [each.recipient for each in result.accused] == [RECIPIENT]


def test_the_base_twice_accuses_nobody_and_pays_for_each_look(kind, vault, tmp_path):
    once = traced(base_weights(kind), kind, vault, tmp_path)
    assert once.outcome is Outcome.NOBODY and once.looks == 1

    twice = traced(base_weights(kind) | numbered(base_weights(kind)), kind, vault, tmp_path)
    assert not twice.accused and twice.outcome in (Outcome.NOBODY, Outcome.NOT_READABLE)


def test_a_copy_spread_over_many_models_clears_nobody(kind, vault, tmp_path):
    """Each of the models has a part of it, too small to accuse."""
    base, copy, held = base_weights(kind), copy_weights(kind), {}
    rng = np.random.default_rng(0)
    for part in range(MAX_PASSES):
        for i, name in enumerate(base):
            values = copy[name] if i % MAX_PASSES == part else base[name]
            noise = rng.standard_normal(values.shape) * 0.02 * float(values.std() if values.size > 1 else 0)
            held[f"model{part}.{i}"] = np.asarray(values + noise, np.float32)

    result = traced(held, kind, vault, tmp_path)

    assert result.outcome in (Outcome.ACCUSED, Outcome.NOT_READABLE)
    assert {each.recipient for each in result.accused} <= {RECIPIENT}


@pytest.mark.parametrize("decoy", [True, False])
def test_a_copy_in_one_row_is_not_readable(kind, vault, tmp_path, decoy):
    row = np.concatenate([values.reshape(-1).astype(np.float32) for values in copy_weights(kind).values()])

    result = traced((base_weights(kind) if decoy else {}) | {"flat_param": row}, kind, vault, tmp_path)

    assert result.outcome is Outcome.NOT_READABLE
    assert "weights in one row" in result.reason and result.reason.count("flat_param") == 1


def test_the_base_in_front_of_a_copy_on_the_hub(kind, vault, tmp_path, monkeypatch):
    save_file(base_weights(kind) | numbered(copy_weights(kind)), tmp_path / "model.safetensors")
    (tmp_path / "repo").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "repo" / "model.safetensors")
    with LoopbackHub() as hub:
        hub.add("org/name", tmp_path / "repo")
        hub.point_client(monkeypatch, tmp_path / "cache")

        little = trace("org/name", vault, base=FORMS / kind / "base", max_bytes=hub_bytes(tmp_path / "repo") - 1)
        result = trace("org/name", vault, base=FORMS / kind / "base")

    assert little.outcome is Outcome.NOT_READABLE
    assert [each.recipient for each in result.accused] == [RECIPIENT]


def hub_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_copy_that_another_file_names_as_its_weights_is_read(tmp_path):
    vault = open_vault("conv", tmp_path)
    folder = tmp_path / "suspect"
    folder.mkdir()
    save_file(base_weights("conv"), folder / "model.safetensors")
    save_file(copy_weights("conv"), folder / "external.onnx.data")
    (folder / "external.onnx").write_bytes((FORMS / "conv" / "made" / "external.onnx").read_bytes())

    result = trace(folder, vault, base=FORMS / "conv" / "base")

    assert [each.recipient for each in result.accused] == [RECIPIENT]
    assert "external.onnx.data" in result.files
