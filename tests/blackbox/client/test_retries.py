from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.blackbox.client.retries import RetryPolicy, TransientError, is_transient
from hf_fingerprint.retrying import MAX_WAIT, retry_after
from tests.helpers.error_checks import refused


class Clock:
    """A clock that only sleeping advances."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def limited(rate: float = 5.0, max_attempts: int = 5) -> tuple[RetryPolicy, Clock]:
    clock = Clock()
    return RetryPolicy(rate, max_attempts, lambda: clock.now, clock.sleep), clock


def failing(times: int, wait: float | None = None):
    left = [times]

    def call() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise TransientError("it is busy", wait)
        return "result"

    return call


@given(st.floats(0.1, 50), st.lists(st.floats(0, 3), min_size=2, max_size=30))
def test_no_two_requests_come_sooner_than_the_rate_allows(rate, pauses):
    retry_policy, clock = limited(rate)
    began = []
    for pause in pauses:
        retry_policy(lambda: began.append(clock.now), "x")
        clock.now += pause

    assert all(b - a >= 1 / rate - 1e-9 for a, b in pairwise(began))


def test_what_passes_is_tried_again_after_longer_and_longer_waits():
    retry_policy, clock = limited(rate=1e6)

    assert retry_policy(failing(4), "x") == "result"
    assert retry_policy.retries == 4
    waits = [wait for wait in clock.waits if wait > 1e-3]
    assert all(0.5 * 2**i <= wait <= 0.5 * 2**i + 0.5 for i, wait in enumerate(waits)) and len(waits) == 4


def test_the_other_sides_wish_comes_before_ours():
    retry_policy, clock = limited(rate=1e6)
    retry_policy(failing(2, 7.0), "x")

    assert [wait for wait in clock.waits if wait > 1e-3] == [7.0, 7.0]


def test_one_image_without_an_answer_is_none_and_three_in_a_row_are_refused():
    retry_policy, _ = limited(max_attempts=2)
    assert [retry_policy(failing(9), "x") for _ in range(2)] == [None, None]
    assert retry_policy(failing(1), "x") == "result"
    assert [retry_policy(failing(9), "x") for _ in range(2)] == [None, None]

    said = refused(retry_policy, failing(9), "https://api.example/v1")
    assert "https://api.example/v1" in said and "it is busy" in said and "to resume" in said
    assert retry_policy.retries == 6


def test_what_does_not_pass_is_not_tried_again():
    retry_policy, _ = limited()

    def call():
        raise KeyError("once")

    with pytest.raises(KeyError):
        retry_policy(call, "x")
    assert retry_policy.retries == 0


NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 12 ", 12.0),
        ("86400", MAX_WAIT),
        (format_datetime(datetime.fromtimestamp(NOW + 20, UTC), usegmt=True), 20.0),
        (format_datetime(datetime.fromtimestamp(NOW - 20, UTC), usegmt=True), 0.0),
        (format_datetime(datetime.fromtimestamp(NOW + 9999, UTC), usegmt=True), MAX_WAIT),
        ("", None),
        (None, None),
        ("soon", None),
        ("-3", None),
        ("9" * 400, MAX_WAIT),
        ("nan", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, NOW) == seconds


@given(st.text(max_size=40))
def test_no_header_makes_one_wait_for_ever(header):
    seconds = retry_after(header, NOW)

    assert seconds is None or 0 <= seconds <= MAX_WAIT


def test_which_statuses_pass():
    assert [status for status in range(400, 600) if is_transient(status)] == [408, 425, 429, *range(500, 600)]


@pytest.mark.parametrize(("rate", "max_attempts"), [(0, 5), (-1, 5), (float("nan"), 5), (float("inf"), 5), (1, 0)])
def test_an_impossible_pace_is_refused(rate, max_attempts):
    refused(RetryPolicy, rate, max_attempts)
