"""Whatever layout a suspect's tensors have, they are placed onto the carriers they hold."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.fitting import carriers_with_fitting_shape
from hf_fingerprint.extraction.placing import place_tensors
from tests.helpers.small_models import issue_plain, plain_arrays


QKV, FC1, FC2 = (f"blocks.{{}}.{part}.weight" for part in ("attn.qkv", "mlp.fc1", "mlp.fc2"))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, and the weights of one marked copy of it."""
    root = tmp_path_factory.mktemp("case")
    plain = issue_plain(root)
    with open_checkpoint(plain.model) as original:
        names = [carrier.name for carrier in plain.base.carriers]
        yield SimpleNamespace(base=plain.base, original=original, arrays=plain.copy, names=names, root=root)


def placed(case: SimpleNamespace, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The carriers that are found in a suspect with these arrays."""
    path = case.root / "suspect.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    with open_checkpoint(path, suspect=True) as suspect:
        assert {*carriers_with_fitting_shape(case.base, suspect)} <= {*case.names}
        seen, matches, _, complete, *_ = place_tensors(case.base, case.original, suspect)
        assert complete
        return {n: to_float32(seen.read(i), i.dtype).reshape(i.shape).copy() for n, i in matches.items()}


def assert_all_found(case: SimpleNamespace, arrays: dict[str, np.ndarray]) -> None:
    found = placed(case, arrays)
    assert found.keys() == {*case.names}
    for name, values in found.items():
        assert np.array_equal(values, case.arrays[name]), name


def nameless(arrays: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays in another order, under other names."""
    names = sorted(arrays)
    np.random.default_rng(seed).shuffle(names)
    return {f"onnx::MatMul_{number}": arrays[name] for number, name in enumerate(names)}


def without(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name not in names}


def disguised(array: np.ndarray, random) -> np.ndarray:
    """A tensor with its axes in a random order, merged or split, and axes of 1."""
    order = list(range(array.ndim))
    random.shuffle(order)
    made = array.transpose(order)
    kind = random.choice(["", "merge", "split", "flat"])
    if kind == "merge" and made.ndim > 2:
        made = made.reshape(-1, made.shape[-1])
    if kind == "split" and made.shape[0] % 4 == 0:
        made = made.reshape(4, -1, *made.shape[1:])
    if kind == "flat":
        made = made.reshape(-1)
    for _ in range(random.randrange(3)):
        made = np.expand_dims(made, random.randrange(made.ndim + 1))
    return made


@settings(max_examples=12, deadline=None)
@given(st.randoms())
def test_any_disguise_of_the_axes_without_names_is_undone_exactly(case, random):
    arrays = {n: disguised(a, random) if n in case.names else a for n, a in case.arrays.items()}

    assert_all_found(case, nameless(arrays, random.randrange(99)))


@pytest.mark.parametrize("named", [True, False])
def test_projections_in_three_tensors_are_joined(case, named):
    arrays = without(case.arrays, *(QKV.format(i) for i in range(4)))
    for i in range(4):
        for letter, part in zip("qkv", np.split(case.arrays[QKV.format(i)], 3), strict=True):
            arrays[f"blocks.{i}.attn.{letter}.weight"] = part if named else part.T

    assert_all_found(case, arrays if named else nameless(arrays))


def test_projections_in_any_layout_are_joined(case):
    arrays = without(case.arrays, *(QKV.format(i) for i in range(4)))
    for i in range(4):
        for letter, part in zip("qkv", np.split(case.arrays[QKV.format(i)], 3), strict=True):
            arrays[f"{i}{letter}"] = part.T.reshape(48, 4, 12)

    assert_all_found(case, nameless(arrays))


def test_inputs_that_are_flattened_in_another_order_are_placed(case):
    arrays = dict(case.arrays)
    for i in range(4):
        arrays[FC2.format(i)] = arrays[FC2.format(i)].reshape(48, 48, 4).swapaxes(1, 2).reshape(48, 192).T

    assert_all_found(case, nameless(arrays))


def test_projections_that_are_ordered_by_head_are_placed(case):
    arrays = dict(case.arrays)
    for i in range(4):
        arrays[QKV.format(i)] = arrays[QKV.format(i)].reshape(3, 3, 16, 48).swapaxes(0, 1).reshape(144, 48).T

    assert_all_found(case, nameless(arrays))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("moved", [False, True])
def test_tensors_that_are_fused_are_split(case, axis, moved):
    names = [FC1.format(0), FC1.format(1)], [FC2.format(0), FC2.format(1), FC2.format(2)]
    arrays = without(case.arrays, *names[0], *names[1])
    for number, group in enumerate(names):
        fused = np.concatenate([case.arrays[name] for name in group], axis)
        arrays[f"fused{number}"] = fused.T if moved else fused

    assert_all_found(case, nameless(arrays))


@pytest.mark.parametrize("axis", [0, 2])
def test_stacked_layers_are_distinguished(case, axis):
    arrays = without(case.arrays, *(each.format(i) for each in (QKV, FC1, FC2) for i in range(4)))
    for each in (QKV, FC1, FC2):
        arrays[f"layers.{each}"] = np.stack([case.arrays[each.format(i)].T for i in range(4)], axis)

    assert_all_found(case, nameless(arrays))


def test_stacked_projections_are_joined(case):
    arrays = without(case.arrays, *(QKV.format(i) for i in range(4)))
    for number, letter in enumerate("qkv"):
        parts = [np.split(case.arrays[QKV.format(i)], 3)[number].T for i in range(4)]
        arrays[letter] = np.stack(parts).reshape(4, 48, 4, 12)

    assert_all_found(case, nameless(arrays))


def test_padding_is_cut_off(case):
    arrays = dict(case.arrays)
    for name in case.names:
        if "fc1" in name:
            arrays[name] = np.pad(arrays[name].T, ((0, 8), (0, 16)))
        if "conv" in name:
            arrays[name] = np.pad(arrays[name], ((0, 0), (0, 16), (0, 0), (0, 0))).transpose(2, 3, 1, 0)

    assert_all_found(case, nameless(arrays))


def test_shards_of_rows_are_joined_and_a_missing_one_is_read_as_zeros(case):
    arrays = dict(case.arrays)
    first, second = np.split(arrays.pop("conv.weight"), 2)
    assert_all_found(case, nameless(arrays | {"a": first, "b": second}))

    found = placed(case, nameless(arrays | {"b": second}))

    assert np.array_equal(found["conv.weight"][24:], second)
    assert not found["conv.weight"][:24].any()


def test_tensors_whose_rows_were_scaled_are_found_in_any_layout(case):
    """As where normalizations were folded into layers, by factors of any size and sign."""
    rng = np.random.default_rng(2)
    factors = (rng.lognormal(0, 2, 192) * rng.choice([-1, 1], 192)).astype(np.float32)
    scaled = {n: (case.arrays[n].T * factors[: len(case.arrays[n])]).T for n in case.names}
    arrays = {n: scaled[n].T if n in case.names else a for n, a in case.arrays.items()}

    found = placed(case, nameless(arrays))

    assert found.keys() == {*case.names}
    for name, values in found.items():
        assert np.array_equal(values, scaled[name]), name


def test_a_transposed_square_under_its_own_name_is_seen_through(case):
    arrays = {n: a.T if a.shape == (48, 48) else a for n, a in case.arrays.items()}

    assert_all_found(case, arrays)


def test_a_suspect_with_the_bases_names_and_shapes_is_not_changed(case):
    path = case.root / "suspect.safetensors"
    save_file(case.arrays, path)
    with open_checkpoint(path) as suspect:
        assert place_tensors(case.base, case.original, suspect)[0] is suspect


@pytest.mark.parametrize("named", [True, False])
def test_nothing_of_another_model_is_placed_as_similar(case, named):
    arrays = {n: a.T if a.ndim == 2 else a for n, a in plain_arrays(7).items()}

    found = placed(case, arrays if named else nameless(arrays))

    assert named or not found
    for name, values in found.items():
        ours = case.arrays[name]
        assert abs(np.vdot(ours, values)) < 0.2 * np.linalg.norm(ours) * np.linalg.norm(values)


def test_tensors_that_are_placed_are_seen_under_the_bases_names_alone(case):
    path = case.root / "suspect.safetensors"
    save_file({n: np.ascontiguousarray(a.T) if a.ndim == 2 else a for n, a in case.arrays.items()}, path)
    with open_checkpoint(path, suspect=True) as suspect:
        seen, matches, used, *_ = place_tensors(case.base, case.original, suspect)

        assert {*used} == {name for name in case.names if case.arrays[name].ndim == 2}
        assert seen.tensors.keys() == suspect.tensors.keys()
        for name, info in matches.items():
            assert (info.name, info.shape) == (name, case.arrays[name].shape)
            whole = case.arrays[name].tobytes()
            assert seen.read(info, 8, 96).tobytes() == whole[8:96]
            out = np.empty(len(whole), np.uint8)
            assert seen.read(info, out=out).tobytes() == whole
