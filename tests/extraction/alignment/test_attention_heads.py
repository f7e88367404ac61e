import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.extraction.alignment.attention_heads import fit_head_bases, match_heads


HEADS, WIDTH, CHANNELS = 3, 8, 60


def made(seed, drift=0.0):
    """Queries and keys, the same after a drift, and what an attacker made of those: permuted, and in other bases."""
    rng = np.random.default_rng(seed)
    ours = [rng.standard_normal((HEADS, WIDTH, CHANNELS)) for _ in range(2)]
    drifted = [each + drift * rng.standard_normal(each.shape) for each in ours]
    basis = rng.standard_normal((HEADS, WIDTH, WIDTH)) + 2 * np.eye(WIDTH)
    moved = [basis @ drifted[0], np.linalg.inv(basis).swapaxes(1, 2) @ drifted[1]]
    order = rng.permutation(HEADS)
    return ours, drifted, [each[order] for each in moved], np.argsort(order)


@pytest.mark.parametrize("drift", [0.0, 0.01, 0.1])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_heads_in_another_basis_and_order_are_aligned(drift, seed):
    ours, drifted, theirs, place = made(seed, drift)

    order = match_heads(*zip(ours, theirs, strict=True))
    bases = fit_head_bases(order, *zip(ours, theirs, strict=True))

    assert order.tolist() == place.tolist()
    for dual_basis_change, wanted in zip((bases.first(theirs[0]), bases.second(theirs[1])), drifted, strict=True):
        assert np.square(dual_basis_change - wanted).mean() <= 1e-12 + 2.5 * WIDTH / (2 * CHANNELS) * drift**2


def test_directions_in_which_a_head_has_little_energy_do_not_spoil_the_others():
    shares = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        strength = np.geomspace(1, 0.1, WIDTH)[:, None]
        mixed = [
            rng.standard_normal((WIDTH, WIDTH)) @ (strength * rng.standard_normal((WIDTH, CHANNELS))) for _ in "ab"
        ]
        drifted = [each + 0.1 * each.std() * rng.standard_normal(each.shape) for each in mixed]
        basis = rng.standard_normal((WIDTH, WIDTH)) + 2 * np.eye(WIDTH)
        theirs = basis @ drifted[0], np.linalg.inv(basis).T @ drifted[1]

        bases = fit_head_bases(np.array([0]), *((a[None], b[None]) for a, b in zip(mixed, theirs, strict=True)))

        dual_basis_change = bases.first(theirs[0][None])[0], bases.second(theirs[1][None])[0]
        left, drift = (
            sum(float(np.square(x - ours).sum()) for x, ours in zip(each, mixed, strict=True))
            for each in (dual_basis_change, drifted)
        )
        shares.append(left / drift)

    assert np.quantile(shares, 0.8) < 1


def test_aligned_heads_give_the_same_scores_as_the_suspects():
    ours, _, theirs, _ = made(1, 0.1)
    order = match_heads(*zip(ours, theirs, strict=True))

    bases = fit_head_bases(order, *zip(ours, theirs, strict=True))

    before, after = (
        theirs[0].swapaxes(1, 2) @ theirs[1],
        bases.first(theirs[0]).swapaxes(1, 2) @ bases.second(theirs[1]),
    )
    assert after == pytest.approx(before[order], abs=1e-9)


def test_a_head_of_zeros_stays_one():
    ours, _, theirs, _ = made(2)
    theirs = [np.zeros_like(each) for each in theirs]

    bases = fit_head_bases(np.arange(HEADS), *zip(ours, theirs, strict=True))

    assert not bases.first(theirs[0]).any()
