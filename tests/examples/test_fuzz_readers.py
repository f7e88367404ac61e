import pytest

from examples.benchmarks import fuzz_readers
from examples.benchmarks.fuzz_inputs import header_bomb
from examples.benchmarks.fuzz_readers import WARM, Found, feed, figure_of, input_of, readers_table, shares
from examples.benchmarks.fuzz_targets import TARGETS, Target, targets_in
from hf_fingerprint.errors import FingerprintError


pytestmark = pytest.mark.integration


IN_ALL = 1000  # a hundredth of what the script feeds; the bombs are the script's alone


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "model"])
def test_mutated_inputs_end_in_one_sentence(tmp_path, name):
    (target,) = targets_in(tmp_path, [name])
    found = Found(name)
    feed(target, [WARM], found)
    assert (found.refused, found.escaped) == (name in ("identity",), []), "the valid one is read"

    feed(target, range(shares(IN_ALL, TARGETS)[name]), found)
    assert found.escaped == []


def test_each_seed_gives_the_same_input_and_most_give_another(tmp_path):
    (target,) = targets_in(tmp_path, ["reply"])
    inputs = [input_of(target, seed) for seed in range(50)]

    assert inputs == [input_of(target, seed) for seed in range(50)]
    assert len(set(inputs)) > 40


def test_what_escapes_is_counted_with_its_seed_and_refusals_are_not():
    def read(content: bytes) -> None:
        if content == b"0":
            raise FingerprintError("No.")
        raise KeyError("unexpected")

    target = Target("x", [b""], lambda content, rng: content, read, [lambda: b"0", lambda: b"1"])
    found = Found("x")
    feed(target, [-1, -2], found)

    assert (found.inputs, found.refused) == (2, 1)
    assert [each.split(":")[0] for each in found.escaped] == ["-2"]
    assert "KeyError" in found.escaped[0]
    figure = figure_of([found])
    assert not figure.holds and "1 tracebacks" in figure.measured
    assert readers_table([found]).rows[0][:3] == ("x", "2", "1")


def test_a_process_that_dies_is_counted_and_the_rest_is_fed_to_another(monkeypatch):
    total = fuzz_readers.watched("issuer", [WARM, 0, 1])

    assert (total.inputs, total.escaped, total.slow) == (3, [], [])


def test_every_input_is_given_to_a_reader():
    given = shares(100_000, TARGETS)

    assert sum(given.values()) == 100_000
    assert min(given.values()) > 500


def test_a_header_bomb_is_as_large_as_it_says():
    assert 999_000 < len(header_bomb(1_000_000)) < 1_001_000
