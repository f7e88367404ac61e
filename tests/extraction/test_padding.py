"""Rows and columns of zeros hide no copy, wherever they are, and neither do tables of few levels."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Issuer, trace
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.padding import strip_padding
from tests.helpers.pruned_channels import remove_channels
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The base, its vault and the weights of one of its two copies."""
    root = tmp_path_factory.mktemp("case")
    vault = unlocked_vault(root / "vault")
    with Issuer(save_plain(root / "model", plain_arrays(blocks=8)), vault, PLAIN_SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob"], root / "copies"))
        return issuer.base, vault, load_file(copies[0].path / "model.safetensors")


def padded(arrays: Arrays, before: int, after: int) -> Arrays:
    """The arrays with zeros around rows and columns, besides those of the image's channels."""

    def pad(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(before, after) if size > 3 else (0, 0) for size in values.shape[:2]] + [(0, 0)] * 2)

    layers = {name for name, values in arrays.items() if values.ndim in (2, 4) and values.size}
    return {
        name: pad(values.reshape(*values.shape, *[1] * (4 - values.ndim))).squeeze() if name in layers else values
        for name, values in arrays.items()
    }


def palettized(arrays: Arrays, levels: int) -> Arrays:
    """The arrays with each weight replaced by the mean of its quantile."""
    found = {}
    for name, values in arrays.items():
        found[name] = values
        if values.ndim > 1 and values.size:
            order = np.array_split(values.argsort(axis=None), levels)
            found[name] = values.copy().reshape(-1)
            for places in order:
                found[name][places] = values.reshape(-1)[places].mean()
            found[name] = found[name].reshape(values.shape)
    return found


@pytest.mark.parametrize(("before", "after"), [(0, 8), (8, 0), (4, 4)])
def test_padding_is_stripped_at_both_ends(case, tmp_path, before, after):
    base, vault, arrays = case
    save_file(padded(arrays, before, after), tmp_path / "suspect.safetensors")

    result = trace(tmp_path / "suspect.safetensors", vault)

    assert [each.recipient for each in result.accused] == ["alice"]
    assert result.tensors_matched == len(base.carriers)


def test_channels_of_zeros_that_the_base_has_itself_are_no_padding(case, tmp_path):
    base, _, arrays = case
    wide = padded(arrays, 4, 4)
    wide["conv.weight"][10] = 0  # one row fewer than the base has
    save_file(wide, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors", suspect=True) as suspect:
        seen = strip_padding(base, suspect)
        assert seen.tensors["conv.weight"].shape == wide["conv.weight"].shape
        assert seen.tensors["blocks.0.mlp.fc1.weight"].shape == (192, 48)


def test_a_suspect_without_padding_stays_unchanged(case, tmp_path):
    base, _, arrays = case
    save_file(arrays, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors", suspect=True) as suspect:
        assert strip_padding(base, suspect) is suspect


@pytest.mark.parametrize("change", [lambda arrays: arrays, lambda arrays: remove_channels(arrays, 0.25)])
def test_weights_of_a_palette_name_the_recipient(case, tmp_path, change):
    _, vault, arrays = case
    save_file(palettized(change(arrays), 64), tmp_path / "suspect.safetensors")

    assert [each.recipient for each in trace(tmp_path / "suspect.safetensors", vault).accused] == ["alice"]
