import pytest

from hf_fingerprint.retrying import retry


def failing(times: int, error: BaseException):
    left = [times]

    def call() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "done"

    return call


def test_a_call_is_repeated_after_the_delays():
    waits, attempts = [], []

    found = retry(failing(2, OSError()), 3, lambda _, attempt: 0.5 * attempt, attempts.append, waits.append)

    assert (found, waits, attempts) == ("done", [0.5, 1.0], [1, 2, 3])


def test_the_last_failure_is_raised():
    waits = []
    with pytest.raises(OSError, match="busy"):
        retry(failing(9, OSError("busy")), 3, lambda *_: 0.0, sleep=waits.append)
    assert len(waits) == 2


@pytest.mark.parametrize("error", [KeyError("once"), KeyboardInterrupt()], ids=repr)
def test_a_failure_that_will_not_pass_is_raised_at_once(error):
    waits = []
    with pytest.raises(type(error)):
        retry(failing(1, error), 3, lambda error, _: 0.0 if isinstance(error, OSError) else None, sleep=waits.append)
    assert waits == []
