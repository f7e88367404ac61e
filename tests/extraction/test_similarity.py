"""The shares of several bases in a suspect, by sampled rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.extraction.similarity import SampledWeights, estimate_shares, mean_cosine


SIZES = {"a": 4000, "b": 9000, "c": 500}


def backbone(seed: int = 0) -> SampledWeights:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in SIZES.items()}


def moved(one: SampledWeights, share: float, seed: int) -> SampledWeights:
    """Weights that drifted by a share of their size."""
    rng = np.random.default_rng(seed)
    return {n: (w + share * rng.standard_normal(len(w))).astype(np.float32) for n, w in one.items()}


def mixed(parts: list[SampledWeights], shares: list[float]) -> SampledWeights:
    return {n: np.sum([s * part[n] for s, part in zip(shares, parts, strict=True)], axis=0) for n in SIZES}


def is_relevant(suspect: SampledWeights, bases: list[SampledWeights]) -> list[int]:
    return np.flatnonzero(estimate_shares(suspect, bases).is_relevant).tolist()


def test_of_fifty_fine_tunes_only_that_which_a_copy_was_made_from_is_needed():
    root = backbone()
    tuned = [moved(root, 0.02, seed) for seed in range(1, 51)]
    for chosen in (0, 17, 49):
        assert is_relevant(moved(tuned[chosen], 0.004, 99), tuned) == [chosen]


@pytest.mark.parametrize("drift", [0.004, 0.02, 0.05])
def test_a_copy_that_drifted_further_than_the_bases_are_apart_keeps_its_base(drift):
    tuned = [moved(backbone(), 0.02, seed) for seed in range(1, 6)]
    assert 3 in is_relevant(moved(tuned[3], drift, 99), tuned)


def test_a_mixture_needs_all_that_it_was_mixed_from():
    tuned = [moved(backbone(), 0.03, seed) for seed in range(1, 9)]
    suspect = moved(mixed([tuned[1], tuned[4], tuned[6]], [0.2, 0.5, 0.3]), 0.004, 99)

    found = estimate_shares(suspect, tuned)

    assert np.flatnonzero(found.is_relevant).tolist() == [1, 4, 6]
    assert found.share[[1, 4, 6]] == pytest.approx([0.2, 0.5, 0.3], abs=0.05)


def test_bases_that_are_equal_in_their_carriers_are_all_needed():
    root = backbone()
    other = moved(root, 0.02, 1)
    assert is_relevant(moved(root, 0.004, 9), [other, root, root]) == [1, 2]
    assert is_relevant(root, [root, root]) == [0, 1]
    assert is_relevant(moved(other, 0.004, 9), [root, other, root, other]) == [1, 3]


def test_equal_bases_are_all_relevant():
    root = backbone()
    duplicate = moved(root, 1e-6, 1)
    assert is_relevant(moved(root, 0.3, 9), [root, duplicate]) == [0, 1]


def test_tensors_that_were_trained_far_or_pruned_hide_no_base():
    tuned = [moved(backbone(), 0.02, seed) for seed in range(1, 11)]
    suspect = moved(tuned[7], 0.004, 99)
    suspect["b"] = backbone(5)["b"]
    suspect["a"][::2] = 0
    suspect["c"][3] = 1e12
    assert 7 in is_relevant(suspect, tuned)


@given(st.sampled_from([0.0, np.inf, -np.inf, np.nan, 1e30, 1e-40]), st.integers(0, 3))
def test_absurd_weights_raise_nothing_and_leave_one_base_at_least(value, seed):
    suspect = {n: np.full(size, value if np.isfinite(value) else 0, np.float32) for n, size in SIZES.items()}
    found = estimate_shares(suspect, [backbone(seed), backbone(seed + 1), backbone(seed)])
    assert not np.isnan(found.share).any()
    assert not np.isnan(found.error).any()


def test_the_cosine_is_the_mean_over_similar_tensors():
    one, other = backbone(0), backbone(1)
    assert mean_cosine(one, one) == pytest.approx(1)
    assert abs(mean_cosine(one, other)) < 0.05
    assert mean_cosine(one, {}) == -1
    half = {"a": one["a"], "b": other["b"], "c": one["c"]}
    assert mean_cosine(one, half) == pytest.approx(1)
