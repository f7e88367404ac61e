import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.stats import beta, kstest, ortho_group

from hf_fingerprint.codes.deepmarks import soft_decoding
from hf_fingerprint.codes.deepmarks.block_design import BlockDesign
from hf_fingerprint.codes.deepmarks.soft_decoding import MAX_COALITIONS, _log_tail, soft_decode
from hf_fingerprint.errors import CodeError


PLANE = BlockDesign(31)


def orthonormal(points, count, rng):
    return ortho_group.rvs(points, size=count, random_state=rng).reshape(count, points, points)


def slow_log10_bounds(design, y, size):
    """The definition, with least squares for projections: the lowest p over the top-ranked A, of each T."""
    order = np.argsort(-(design.signs @ y))
    bounds = np.full(design.points, -np.inf)
    for colluders in itertools.chain(*(itertools.combinations(range(design.points), n) for n in range(size + 1))):
        d = design.points - len(colluders)
        p = 1.0
        for a in range(1, size + 1):
            others = [j for j in order if j not in colluders][:a]
            left = [
                np.sum((y - basis @ np.linalg.lstsq(basis, y)[0]) ** 2)
                for basis in (design.signs[list(colluders)].T, design.signs[[*colluders, *others]].T)
            ]
            p = min(p, size * math.comb(d, a) * beta.sf(1 - left[1] / left[0], a / 2, (d - a) / 2))
        outside = [j for j in range(design.points) if j not in colluders]
        bounds[outside] = np.maximum(bounds[outside], math.log10(p))
    return bounds


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_soft_decoder_names_the_coalition_of_any_average(data):
    coalition = data.draw(st.sets(st.integers(0, 30), min_size=1, max_size=5))
    shares = data.draw(st.lists(st.floats(0.05, 1), min_size=len(coalition), max_size=len(coalition)))
    scale = data.draw(st.sampled_from([1e-200, 1e-3, 1.0, 1e200]))
    weights = np.zeros(31)
    weights[list(coalition)] = np.array(shares) / sum(shares) * scale
    found = soft_decode(PLANE, weights @ PLANE.signs)
    assert found.accused == tuple(sorted(coalition))
    assert found.coalition == 5
    assert np.allclose(found.weights, weights, atol=1e-9 * scale, rtol=1e-9)


def test_the_soft_decoder_names_the_coalition_under_noise_beyond_the_codes_resilience():
    design = BlockDesign(21)
    rng = np.random.default_rng(3)
    colluders = [0, 3, 4, 9, 13, 20]
    assert design.resilience == 4
    found = soft_decode(design, design.signs[colluders].mean(axis=0) + 0.002 * rng.standard_normal(21), coalition=6)
    assert found.accused == tuple(colluders)


def test_more_colluders_than_assumed_incriminate_nobody():
    design = BlockDesign(133)
    found = soft_decode(design, design.signs[:2].mean(axis=0), coalition=1)
    assert found.accused == ()
    assert (found.log10_bounds < -6).all()


@pytest.mark.parametrize(("points", "size"), [(7, 1), (7, 2), (7, 3), (13, 2)])
def test_the_closed_forms_agree_with_projections_by_least_squares(points, size):
    design = BlockDesign(points)
    rng = np.random.default_rng(points + size)
    for noise in (0.05, 0.3, 3.0):
        y = design.signs[:2].T @ [0.7, 0.3] + noise * rng.standard_normal(points)
        found = soft_decode(design, y, coalition=size)
        assert np.allclose(found.log10_bounds, slow_log10_bounds(design, y, size), atol=1e-9)
        assert np.allclose(found.weights, nnls(design.signs.T, y)[0], atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(points=st.sampled_from([7, 13, 21, 31, 57]), seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 5))
def test_weights_are_the_non_negative_least_squares_fit(points, seed, noise):
    design = BlockDesign(points)
    rng = np.random.default_rng(seed)
    y = rng.dirichlet(np.ones(points)) @ design.signs + noise * rng.standard_normal(points)
    assert np.allclose(soft_decode(design, y, coalition=1).weights, nnls(design.signs.T, y)[0], atol=1e-8)


def test_the_default_coalition_is_the_largest_that_the_design_and_the_budget_allow():
    sizes = {}
    for points in (7, 13, 21, 31, 57, 133, 993):
        design = BlockDesign(points)
        sizes[points] = soft_decode(design, design.signs[0]).coalition
        assert soft_decode(design, design.signs[0]).accused == (0,)
    assert sizes == {7: 2, 13: 3, 21: 4, 31: 5, 57: 3, 133: 2, 993: 1}
    assert math.comb(31, 5) <= MAX_COALITIONS < math.comb(57, 4)


def test_the_tail_is_the_beta_distributions_and_never_below_it_where_that_underflows():
    rest = np.tile([1e-10, 1e-3, 0.3, 0.9, 1.0], 4)
    a = np.repeat([1, 2, 3, 9], 5)
    for d in (10, 31):
        assert np.allclose(_log_tail(rest, a, d), np.log(beta.sf(1 - rest, a / 2, (d - a) / 2)), rtol=1e-5)
    underflowing = _log_tail(np.array([0.01, 0.01]), np.array([1, 5]), 993)
    first_term = [
        (993 - b) / 2 * math.log(0.01) - math.log((993 - b) / 2 * math.gamma(b / 2))
        + math.lgamma(993 / 2) - math.lgamma((993 - b) / 2)
        for b in (1, 5)
    ]  # fmt: skip
    assert np.isfinite(underflowing).all()
    assert np.allclose(underflowing, first_term, atol=0.05)


def test_the_colluders_copies_are_independent_of_the_remaining_direction():
    """The theorem's heart: the share of the residual in an innocent's direction is Beta, for a spiteful suspect."""
    design = BlockDesign(7)
    rng = np.random.default_rng(11)
    signs = design.signs.T
    span, _ = np.linalg.qr(signs[:, :2])
    innocent = signs[:, 5] - span @ (span.T @ signs[:, 5])
    innocent /= np.linalg.norm(innocent)
    shares = []
    for u in orthonormal(7, 4000, rng):
        held = u @ signs[:, :2]
        suspect = np.sign(held[:, 0]) + held[:, 1] ** 3 + [3.0, 0, 0, 0, 0, 0, -1]
        y = u.T @ suspect
        left = y - span @ (span.T @ y)
        shares.append((left @ innocent) ** 2 / (left @ left))
    assert kstest(shares, beta(0.5, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize(("points", "size", "colluders"), [(7, 1, [2]), (7, 2, [0, 4]), (7, 2, [4]), (13, 1, [])])
def test_innocents_are_accused_no_more_often_than_promised(monkeypatch, points, size, colluders):
    monkeypatch.setattr(soft_decoding, "check_alpha", lambda alpha: None)  # a level at which some are
    design = BlockDesign(points)
    rng = np.random.default_rng(100 * points + 10 * size + len(colluders))
    alpha, trials = 0.2, 2000
    wrong = 0
    fixed = 3 * rng.standard_normal(points)
    for u in orthonormal(points, trials, rng):
        held = design.signs[colluders] @ u.T
        suspect = fixed + 0.3 * held.sum(axis=0) - np.sign(held).sum(axis=0)
        accused = soft_decode(design, u.T @ suspect, coalition=size, alpha=alpha).accused
        wrong += not set(accused) <= set(colluders)
    assert wrong / trials <= alpha
    assert wrong  # or the promise was not tested


def test_no_innocent_is_accused_in_noisy_simulations():
    design = BlockDesign(21)
    rng = np.random.default_rng(8)
    caught = 0
    for u in orthonormal(21, 300, rng):
        colluders = rng.choice(21, rng.integers(0, 4), replace=False)
        held = design.signs[colluders] @ u.T
        suspect = rng.dirichlet(np.ones(max(len(colluders), 1)))[: len(colluders)] @ held
        suspect = suspect + rng.choice([0.05, 0.3, 1.0]) * rng.standard_normal(21)
        accused = soft_decode(design, u.T @ suspect, coalition=3).accused
        assert set(accused) <= set(colluders.tolist())
        caught += len(accused)
    assert caught > 50


def test_nothing_read_accuses_nobody():
    found = soft_decode(PLANE, np.zeros(31))
    assert found.accused == ()
    assert not found.weights.any()
    assert not found.log10_bounds.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_readings_that_are_not_finite_are_refused(value):
    with pytest.raises(CodeError, match="not finite"):
        soft_decode(PLANE, np.where(np.arange(31) == 4, value, 0.5))


def test_readings_of_another_length_are_refused():
    with pytest.raises(CodeError, match=r"signal must have the shape \(31,\), got \(30,\)\."):
        soft_decode(PLANE, np.zeros(30))


@pytest.mark.parametrize("coalition", [-1, 0, 16, 31])
def test_a_coalition_that_leaves_nothing_to_refute_it_with_is_refused(coalition):
    with pytest.raises(CodeError, match=f"from 1 to 15 for 31 recipients, got {coalition}"):
        soft_decode(PLANE, PLANE.signs[0], coalition=coalition)


def test_a_coalition_beyond_the_budget_is_refused():
    with pytest.raises(CodeError, match="736,281 coalitions of 6 among 31 recipients, and at most 200,000"):
        soft_decode(PLANE, PLANE.signs[0], coalition=6)


@pytest.mark.parametrize("alpha", [0, 0.051, 1, -0.1, 2, float("nan")])
def test_an_alpha_that_nobody_is_accused_at_is_refused(alpha):
    with pytest.raises(CodeError, match=r"must be above 0 and at most 0\.05"):
        soft_decode(PLANE, PLANE.signs[0], alpha=alpha)
