"""A suspect of several files is cleared only as the same tensors in one file would be."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hf_fingerprint import Issuer, Outcome, trace
from tests.helpers.small_models import PLAIN_SETTINGS, issue_plain, plain_arrays, save_plain, unlocked_vault


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, its weights, those of a copy, and the vault, unlocked."""
    return issue_plain(tmp_path_factory.mktemp("case"))


def carriers(case):
    return [carrier.name for carrier in case.base.carriers]


def in_another_basis(case, arrays):
    """The arrays, each carrier in other orthogonal bases of its outputs and inputs."""
    rng, found = np.random.default_rng(0), dict(arrays)
    for name in carriers(case):
        values = arrays[name].reshape(len(arrays[name]), -1)
        one, two = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in values.shape)
        found[name] = (one @ values @ two).reshape(arrays[name].shape).astype(np.float32)
    return found


def blocks(count):
    """The first blocks of another model with the base's shapes."""
    chosen = tuple(f"blocks.{i}." for i in range(count))
    return {name: values for name, values in plain_arrays(5).items() if name.startswith(chosen)}


def wide(seed):
    """A model of another architecture."""
    rng = np.random.default_rng(seed)
    return {f"layers.{i}.weight": rng.standard_normal((70 + i, 71), np.float32) for i in range(40)}


def traced(vault, folder, *files):
    """The trace of a folder with the base's file and others, and of one file with the tensors of all."""
    save_plain(folder / "several", files[0])
    joined = {}
    for number, arrays in enumerate(files):
        if number:
            save_file(arrays, folder / "several" / f"other-{number}.safetensors")
        joined |= {(f"z{number}.{name}" if number else name): w for name, w in arrays.items() if w.size or not number}
    save_plain(folder / "one", joined)
    return trace(folder / "several", vault), trace(folder / "one", vault)


@pytest.mark.parametrize("named", [True, False])
def test_a_copy_in_another_basis_is_not_cleared_by_the_base_in_another_file(case, tmp_path, named):
    hidden = in_another_basis(case, case.copy)
    if not named:
        hidden = {f"x{i}": values for i, values in enumerate(hidden.values())}

    several, one = traced(case.vault, tmp_path, case.own, hidden)

    assert several.outcome is one.outcome is Outcome.NOT_READABLE
    weights = f"{case.base.carrier_weights:,}"
    assert f"No copy shows in the {weights} weights" in several.reason
    assert f"but {weights} others (other-1.safetensors) have the shapes" in several.reason
    assert several.reason.startswith("model.safetensors: ") and "Trace each file by itself" in several.reason


@pytest.mark.parametrize(("count", "cleared"), [(1, True), (2, True), (4, False)])
def test_another_model_clears_the_base_if_it_cannot_hold_most_of_a_copy(case, tmp_path, count, cleared):
    several, one = traced(case.vault, tmp_path, case.own, blocks(count))

    assert several.outcome is one.outcome is (Outcome.NOBODY if cleared else Outcome.NOT_READABLE)


def test_a_copy_in_another_basis_over_several_files_is_not_cleared(case, tmp_path):
    """Neither with the base nor by itself does any part hold most of it."""
    hidden = in_another_basis(case, case.copy)
    parts = [{name: hidden[name] for name in carriers(case)[i::3]} for i in range(3)]
    parts[0] = {f"neck.{name}": values for name, values in parts[0].items()}

    several, one = traced(case.vault, tmp_path, case.own | parts[0], *parts[1:])

    assert several.outcome is one.outcome is Outcome.NOT_READABLE


def test_files_that_usually_come_with_a_model_clear_it(case, tmp_path):
    """A checkpoint of the training, an average over it, an optimizer's moments, a small model of other shapes."""
    folder = save_plain(tmp_path / "suspect", case.own, tokenizer_json="{}")
    rng = np.random.default_rng(0)
    moved = {
        n: w * np.float32(1) + (1e-4 * rng.standard_normal(w.shape)).astype(np.float32) if w.ndim > 1 else w
        for n, w in case.own.items()
    }
    save_file(moved, folder / "ema.safetensors")
    save_plain(folder / "checkpoint-7", moved)
    moments = {i: {"exp_avg": torch.randn(w.shape)} for i, w in enumerate(case.own.values()) if w.size > 1}
    torch.save({"state": moments}, folder / "moments.pth")
    torch.save({"state": moments}, folder / "optimizer.pt")
    save_file(wide(0), folder / "detector.safetensors")

    result = trace(folder, case.vault)

    assert (result.outcome, result.reason) == (Outcome.NOBODY, None)
    assert {"ema.safetensors", "moments.pth", "detector.safetensors"} <= set(result.files)


def test_a_model_that_fits_another_base_clears_the_base_next_to_it(case, tmp_path):
    """What can hold no copy of the base in the folder is another model, whichever bases the vault has."""
    vault, own = unlocked_vault(tmp_path / "vault"), {n: w for n, w in case.own.items() if w.size}
    for name, arrays in (("first", own), ("second", wide(1))):
        with Issuer(save_plain(tmp_path / name, arrays), vault, PLAIN_SETTINGS) as issuer:
            issuer.issue("a", tmp_path / f"copy of {name}")

    several, one = traced(vault, tmp_path, own, wide(2))

    assert several.outcome is one.outcome is Outcome.NOBODY
