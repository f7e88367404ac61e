"""Laws of the changes that are made for differences to an ancestor."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.attacks import (
    Binarization,
    LowRank,
    MagnitudeBand,
    RandomDropping,
    SingularValueShrinkage,
    SpectralNoise,
    Ternarization,
)
from hf_fingerprint.errors import FingerprintError


VALUES = {n: torch.tensor(v) for n, v in json.loads(Path(__file__).with_name("mergekit.json").read_text()).items()}
DELTA = VALUES["copies"][0] - VALUES["ancestor"]


def one(change, tensor):
    return change({"w": tensor})["w"]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kept", [0.25, 0.5])
def test_masks_are_mergekits(kept):
    assert torch.equal(one(MagnitudeBand(kept), DELTA), VALUES[f"magnitude {kept}"])
    assert torch.equal(one(MagnitudeBand(kept, 0.1), DELTA), VALUES[f"outliers {kept}"])


def test_random_masks_are_mergekits_before_they_are_rescaled():
    dare, della = one(RandomDropping(0.5), DELTA), one(RandomDropping(0.5, 0.2), DELTA)

    assert torch.allclose(dare * 0.5, VALUES["dare 0.5"])
    assert torch.equal(della != 0, VALUES["della 0.5"] != 0)
    assert (DELTA != 0).all() and 0 < (della == 0).sum() < 12


@given(st.integers(1, 12), st.integers(1, 40), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 9))
def test_as_many_weights_are_kept_as_said_and_they_are_the_largest_but_outliers(rows, columns, kept, outliers, seed):
    tensor = noise(rows, columns, seed=seed)

    after = one(MagnitudeBand(kept, outliers), tensor)

    count, stays = int(kept * tensor.numel()), after != 0
    assert int(stays.sum()) == count
    assert torch.equal(after[stays], tensor[stays])
    removed = min(int(outliers * tensor.numel()), tensor.numel() - count)
    sizes = tensor.abs().flatten().sort(descending=True).values
    assert torch.equal(tensor[stays].abs().sort(descending=True).values, sizes[removed : removed + count])


@pytest.mark.parametrize("window", [0.0, 0.09])
def test_dropping_leaves_the_mean_unchanged_and_drops_as_many_as_said(window):
    tensor = noise(8, 50)

    drops = torch.stack([one(RandomDropping(0.9, window, seed), tensor) for seed in range(3000)])

    error = tensor.abs() * ((0.9 + window) / (0.1 - window) / 3000) ** 0.5
    assert ((drops.mean(0) - tensor).abs() < 6 * error).all()
    assert float((drops == 0).double().mean()) == pytest.approx(0.9, abs=0.002)


def test_a_window_spares_the_large_weights_of_each_row():
    tensor = torch.arange(1, 101.0).expand(200, 100)

    stays = one(RandomDropping(0.5, 0.4), tensor) != 0

    assert float(stays[:, :10].double().mean()) == pytest.approx(0.14, abs=0.04)
    assert float(stays[:, -10:].double().mean()) == pytest.approx(0.86, abs=0.04)


def test_shrinkage_lowers_singular_values_by_the_threshold():
    tensor = noise(6, 2, 3, 3)

    before, after = (torch.linalg.svdvals(t.flatten(1)) for t in (tensor, one(SingularValueShrinkage(0.8), tensor)))

    assert torch.allclose(after, (before - 0.8 * before.median()).clamp_min(0), atol=1e-4)
    assert one(SingularValueShrinkage(1e3), tensor).abs().max() < 1e-4


def test_noise_has_the_size_that_was_said_and_the_tensors_own_directions():
    tensor = one(LowRank(0.1), noise(40, 60))

    added = one(SpectralNoise(0.3), tensor) - tensor

    assert float(added.norm() / tensor.norm()) == pytest.approx(0.3, rel=1e-4)
    left, values, _ = torch.linalg.svd(tensor)
    inside = left[:, values > 1e-3 * values[0]]
    assert inside.shape[1] == 4
    assert torch.allclose(inside @ (inside.T @ added), added, atol=1e-4)


def test_own_noise_is_larger_where_the_tensor_is_and_flat_noise_is_not():
    left, _, right = torch.linalg.svd(noise(30, 30))
    tensor = (left * torch.logspace(0, -2, 30)) @ right

    own, flat = (
        torch.stack([one(SpectralNoise(1.0, power, seed), tensor) - tensor for seed in range(200)])
        for power in (0.5, 0.0)
    )

    sizes = [(left.T @ each).square().mean((0, 2)) for each in (own, flat)]
    assert float(sizes[0][0] / sizes[0][-1]) == pytest.approx(100, rel=0.3)
    assert float(sizes[1].max() / sizes[1].min()) < 1.2
    assert one(SpectralNoise(1.0), torch.zeros(3, 3)).abs().max() == 0


def test_levels_are_two_or_three_of_the_mean_magnitude():
    tensor = torch.tensor([[1.0, -2.0, 3.0], [-6.0, 0.5, 5.5]])

    assert torch.allclose(one(Binarization(), tensor), 3 * tensor.sign())
    assert torch.allclose(one(Ternarization(0.9), tensor), 4.8333333 * torch.tensor([[0, 0, 1.0], [-1, 0, 1]]))
    assert one(Ternarization(9.0), tensor).abs().max() == 0


def test_the_largest_tensors_are_binarized_first():
    state = {"small": noise(2, 2), "large": noise(9, 9)}

    after = Binarization(0.5)(state)

    assert torch.equal(after["small"], state["small"])
    assert len(after["large"].abs().unique()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MagnitudeBand(1.5),
        lambda: MagnitudeBand(0.5, -0.1),
        lambda: RandomDropping(1.0),
        lambda: RandomDropping(-0.1),
        lambda: RandomDropping(0.9, 0.2),
        lambda: Binarization(2.0),
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(FingerprintError, match="choose"):
        wrong()
