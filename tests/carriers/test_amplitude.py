import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_fingerprint.carriers import row_rms, spend_budget
from hf_fingerprint.carriers.amplitude import MAX_CAP, REFERENCE_CAP, REFERENCE_KL, largest_eps


def cost(eps, sensitivity):
    return float((eps**2 * sensitivity).sum())


@st.composite
def budgets(draw):
    """`(max_kl, sensitivity, counts)`, sensitivities over as many orders of magnitude as real layers and more."""
    tensors = draw(st.integers(1, 8))
    exponents = draw(hnp.arrays(float, tensors, elements=st.floats(-8, 6)))
    counts = draw(hnp.arrays(float, tensors, elements=st.integers(1, 10**7)))
    return 10 ** draw(st.floats(-9, 0)), 10**exponents, counts


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-1000, 1000, width=32)))
def test_row_rms_is_the_root_of_the_mean_square(values):
    rms = row_rms(values)
    assert rms.dtype == np.float32
    np.testing.assert_allclose(rms, np.sqrt((values.astype(float) ** 2).mean(axis=1)), rtol=1e-6, atol=1e-37)


def test_row_rms_sums_in_double_precision():
    values = np.full((1, 3), 1e30, np.float32)
    np.testing.assert_allclose(row_rms(values), 1e30, rtol=1e-6)


def test_row_rms_of_rows_without_weights_is_zero():
    np.testing.assert_array_equal(row_rms(np.empty((3, 0), np.float32)), 0)


@given(budgets())
def test_the_budget_and_the_cap_are_kept_and_every_tensor_is_marked(budget):
    max_kl, sensitivity, counts = budget
    eps = spend_budget(max_kl, sensitivity, counts)
    assert eps.shape == sensitivity.shape
    assert cost(eps, sensitivity) <= max_kl * (1 + 1e-6)
    assert np.all(eps > 0)
    assert np.all(eps <= largest_eps(max_kl))


@given(budgets())
def test_the_budget_is_spent_or_every_tensor_is_at_the_cap(budget):
    max_kl, sensitivity, counts = budget
    eps = spend_budget(max_kl, sensitivity, counts)
    assert np.all(eps == largest_eps(max_kl)) or cost(eps, sensitivity) == pytest.approx(max_kl, rel=1e-6)


@given(budgets())
def test_tensors_below_the_cap_pay_the_same_for_each_weight(budget):
    """What maximizes the sum of n log eps: eps^2 S / n is one number wherever the cap doesn't bind."""
    max_kl, sensitivity, counts = budget
    eps = spend_budget(max_kl, sensitivity, counts)
    share = eps**2 * sensitivity / counts
    free = eps < largest_eps(max_kl) * (1 - 1e-9)
    assume(free.any())
    np.testing.assert_allclose(share[free], share[free].max(), rtol=1e-6)
    assert np.all(share[~free] <= share[free].max() * (1 + 1e-6))


@given(budgets(), st.floats(0.001, 0.5))
def test_another_cap_is_kept_too(budget, cap):
    max_kl, sensitivity, counts = budget
    eps = spend_budget(max_kl, sensitivity, counts, cap)
    assert np.all(eps <= cap)
    assert cost(eps, sensitivity) <= max_kl * (1 + 1e-6)


@given(budgets())
def test_a_larger_budget_marks_no_tensor_less(budget):
    max_kl, sensitivity, counts = budget
    small, large = (spend_budget(scale * max_kl, sensitivity, counts) for scale in (1, 3))
    assert np.all(large >= small * (1 - 1e-6))


def test_insensitive_tensors_are_marked_more_strongly():
    eps = spend_budget(1e-4, np.array([100.0, 1.0, 1e-3]), np.array([1000.0, 1000.0, 1000.0]))
    np.testing.assert_allclose(eps[1] / eps[0], 10, rtol=1e-5)
    assert eps[2] == REFERENCE_CAP


def test_a_known_budget_gives_the_known_answer():
    """Two tensors of 100 and 300 weights, no cap in the way: a quarter and three quarters of the budget."""
    eps = spend_budget(4e-6, np.array([2.0, 5.0]), np.array([100.0, 300.0]))
    np.testing.assert_allclose(eps, [np.sqrt(1e-6 / 2), np.sqrt(3e-6 / 5)], rtol=1e-6)


SOME_DEAD = np.array([0.0, 50.0, 0.0]), np.array([10.0, 1000.0, 3000.0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tensors_that_do_not_move_the_output_are_marked_at_the_cap():
    eps = spend_budget(1e-6, *SOME_DEAD)
    assert eps[0] == eps[2] == REFERENCE_CAP
    assert eps[1] ** 2 * 50 == pytest.approx(1e-6)


def test_tensors_that_do_not_move_the_output_raise_no_warning(recwarn):
    """Modules that no calibration input reaches have a sensitivity of exactly 0, and that is fine."""
    spend_budget(1e-6, *SOME_DEAD)
    assert not recwarn.list


def test_a_model_that_nothing_moves_is_marked_at_the_cap():
    np.testing.assert_array_equal(spend_budget(1e-6, np.zeros(3), np.ones(3)), REFERENCE_CAP)


def test_the_cap_grows_with_the_root_of_an_unusual_budget():
    """As the amplitudes of all other tensors do, so that the shares stay; up to a tenth of a row's size."""
    assert largest_eps(REFERENCE_KL / 100) == largest_eps(REFERENCE_KL) == REFERENCE_CAP
    assert largest_eps(4 * REFERENCE_KL) == pytest.approx(2 * REFERENCE_CAP)
    assert largest_eps(1) == MAX_CAP


def test_four_times_the_usual_budget_is_twice_the_mark_everywhere():
    sensitivity, counts = np.array([100.0, 1.0, 1e-3]), np.array([1000.0, 1000.0, 1000.0])
    usual, larger = (spend_budget(budget, sensitivity, counts) for budget in (REFERENCE_KL, 4 * REFERENCE_KL))
    np.testing.assert_allclose(larger, 2 * usual, rtol=1e-6)
