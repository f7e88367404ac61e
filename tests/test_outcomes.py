"""The four outcomes: exit codes, and the joint outcome of several tests."""

import pytest

from hf_fingerprint.outcomes import Outcome, combine_outcomes


ACCUSED, NOBODY, NOT_COMPARABLE, NOT_READABLE = Outcome


def test_only_an_accusation_exits_with_0_and_only_what_was_not_read_with_3():
    assert [outcome.exit_code for outcome in Outcome] == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("outcomes", "together"),
    [
        ([NOBODY, ACCUSED, NOT_READABLE], ACCUSED),
        ([NOBODY, NOT_READABLE, NOT_COMPARABLE], NOT_READABLE),
        ([NOT_COMPARABLE, NOBODY], NOBODY),
        ([NOT_COMPARABLE, NOT_COMPARABLE], NOT_COMPARABLE),
    ],
)
def test_several_tests_are_not_nobody_if_one_read_too_little(outcomes, together):
    assert combine_outcomes(outcomes) is together
