"""Branches that a suspect fused into one convolution are read from their sum."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Issuer, Outcome, trace
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.fused_branches import find_fused_branches
from hf_fingerprint.extraction.placing import place_tensors
from tests.helpers.small_models import PLAIN_SETTINGS, save_plain, unlocked_vault


MODULES, WIDTH = 5, 32
KERNEL, POINT = "stages.{}.conv_kxk.conv.weight", "stages.{}.conv_1x1.conv.weight"
POINTS = "pointwise.{}.conv_kxk.{}.conv.weight"


def branched(seed: int = 0) -> dict[str, np.ndarray]:
    """Modules with a 3x3 and a 1x1 branch, and modules with three 1x1 branches."""
    rng = np.random.default_rng(seed)
    arrays = {"stem.weight": rng.standard_normal((WIDTH, 3, 3, 3))}
    for i in range(MODULES):
        arrays[KERNEL.format(i)] = 0.05 * rng.standard_normal((WIDTH, WIDTH, 3, 3))
        arrays[POINT.format(i)] = 0.1 * rng.standard_normal((WIDTH, WIDTH, 1, 1))
        arrays |= {POINTS.format(i, n): 0.1 * rng.standard_normal((2 * WIDTH, 2 * WIDTH, 1, 1)) for n in range(3)}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {"head.weight": np.eye(WIDTH, 10).T}


def fused(arrays: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """The same with each module's branches, and an identity, scaled row by row and added up."""
    rng = np.random.default_rng(seed)

    def scale(values: np.ndarray) -> np.ndarray:
        return values * rng.uniform(0.5, 2, (len(values), 1, 1, 1))

    found = {"stem.weight": arrays["stem.weight"], "head.weight": arrays["head.weight"]}
    for i in range(MODULES):
        kernel = scale(arrays[KERNEL.format(i)])
        kernel[:, :, 1:2, 1:2] += scale(arrays[POINT.format(i)]) + scale(np.eye(WIDTH)[:, :, None, None])
        found[f"stages.{i}.reparam_conv.weight"] = kernel
        identity = scale(np.eye(2 * WIDTH)[:, :, None, None])
        points = sum((scale(arrays[POINTS.format(i, n)]) for n in range(3)), start=identity)
        found[f"pointwise.{i}.reparam_conv.weight"] = points
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base with branches, open, its vault, and the weights of one marked copy of it."""
    root = tmp_path_factory.mktemp("case")
    model, vault = save_plain(root / "model", branched()), unlocked_vault(root / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copy = load_file(issuer.issue("alice", root / "copy").path / "model.safetensors")
        base = issuer.base
    with open_checkpoint(model) as original:
        yield SimpleNamespace(
            base=base, original=original, own=branched(), copy=copy, root=root, vault=vault, model=model
        )


def traced(case, arrays):
    path = case.root / "suspect.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return trace(path, case.vault, base=case.model, all_scores=True)


def differences(case, arrays):
    """What is read of each carrier, less the base's weights, and the placed suspect."""
    path = case.root / "suspect.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    with open_checkpoint(path, suspect=True) as suspect:
        found = place_tensors(case.base, case.original, suspect)
        read = {
            n: to_float32(found.suspect.read(i), i.dtype).reshape(i.shape) - case.own[n]
            for n, i in found.matches.items()
        }
    return read, found


@pytest.mark.parametrize("named", [True, False])
def test_each_branchs_mark_is_read_from_the_sum(case, named):
    arrays = fused(case.copy)
    if not named:
        arrays = {f"onnx::Conv_{number}": array for number, array in enumerate(reversed(arrays.values()))}

    read, found = differences(case, arrays)

    assert read.keys() >= {name for name in case.own if "conv" in name}
    for i in range(MODULES):
        mark = case.copy[KERNEL.format(i)] - case.own[KERNEL.format(i)]
        around = np.ones((3, 3), bool)
        around[1, 1] = False
        ratios = read[KERNEL.format(i)][:, :, around] / mark[:, :, around]
        assert np.median(ratios) == pytest.approx(1 / ratios.size * ratios.sum(), rel=0.1)
        assert 0.9 < np.median(ratios) < 1.3  # over the mean share of the sum, which is less than 1 in the middle
        points = [(case.copy[POINTS.format(i, n)] - case.own[POINTS.format(i, n)]).ravel() for n in range(3)]
        for n in range(3):
            products = [float(np.corrcoef(read[POINTS.format(i, n)].ravel(), other)[0, 1]) for other in points]
            assert products[n] > 0.4
    assert 0.5 < found.interference < 4


def test_the_recipient_of_a_fused_copy_is_named_and_the_fused_base_is_nobodys(case):
    whole, result = traced(case, case.copy), traced(case, fused(case.copy))

    assert [score.recipient for score in result.accused] == ["alice"]
    assert result.accused[0].score > 0.7 * whole.accused[0].score
    assert traced(case, fused(case.own)).outcome is Outcome.NOBODY
    assert traced(case, fused(branched(1))).outcome is Outcome.NOT_COMPARABLE


@pytest.mark.parametrize("drift", [0.1, 0.5, 1.0, 2.0])
def test_fused_branches_that_drifted_too_far_to_show_a_mark_clear_nobody(case, drift):
    rng = np.random.default_rng(2)
    for arrays in (case.own, case.copy):
        moved = {n: v + drift * v.std() * rng.standard_normal(v.shape) for n, v in fused(arrays).items()}
        result = traced(case, {n: v.astype(np.float32) for n, v in moved.items()})
        assert result.outcome in (Outcome.NOT_READABLE, Outcome.NOT_COMPARABLE)


def test_branches_that_were_not_fused_are_read_as_they_are(case):
    arrays = {f"onnx::Conv_{number}": array for number, array in enumerate(reversed(case.copy.values()))}

    read, found = differences(case, arrays)

    assert found.interference == 0
    assert all(np.array_equal(read[name] + case.own[name], case.copy[name]) for name in read) or all(
        np.allclose(read[name], case.copy[name] - case.own[name], atol=1e-7) for name in read
    )


def test_pruned_and_broken_weights_of_the_sum_are_dropped(case):
    arrays = fused(case.copy)
    broken = arrays["stages.0.reparam_conv.weight"]
    broken[:8], broken[8:12, 0] = 0, np.nan

    read, _ = differences(case, arrays)

    kernel = read[KERNEL.format(0)] + case.own[KERNEL.format(0)]
    assert not kernel[:8].any()
    assert np.isnan(kernel[8:12, 0]).all()
    assert np.isfinite(kernel[12:]).all()


def test_a_fused_tensor_is_found_behind_hundreds_of_others(case):
    rng = np.random.default_rng(0)
    others = {f"a.{i}.weight": rng.standard_normal((WIDTH, WIDTH, 3, 3)).astype(np.float32) for i in range(850)}
    save_file(
        others | {f"z.{name}": values for name, values in fused(case.copy).items()}, case.root / "many.safetensors"
    )

    with open_checkpoint(case.root / "many.safetensors", suspect=True) as suspect:
        missing = [carrier.name for carrier in case.base.carriers]
        found = find_fused_branches(case.base, case.original, suspect, missing, set())

    assert found.placements.keys() == set(missing)
