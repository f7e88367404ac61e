import pytest

from hf_fingerprint.codes import design_code
from hf_fingerprint.codes.design import MAX_WEIGHTS_PER_POSITION, STRATEGIES, WEIGHTS_PER_POSITION
from hf_fingerprint.errors import CodeError


@pytest.fixture(scope="module")
def three():
    return design_code(100, 3, drift=2.0)


def test_every_option_catches_the_coalition_by_every_strategy_with_the_weights_it_says(three):
    assert three.options
    for option in three.options:
        assert option.weights >= WEIGHTS_PER_POSITION * option.length
        assert list(option.scores) == list(STRATEGIES)
        assert min(option.scores.values()) > 4
        assert 4 < option.threshold < 12
    assert three.best is three.options[0]
    assert [option.weights for option in three.options] == sorted(option.weights for option in three.options)


def test_three_colluders_erase_fair_signs_and_two_do_not(three):
    assert {option.family for option in three.options} == {"tardos", "nuida"}
    assert design_code(100, 2, drift=2.0).best.family in ("fair_signs", "nuida")  # which are the same for two


@pytest.mark.parametrize(
    "harder",
    [{"coalition": 5}, {"drift": 20.0}, {"recipients": 10**9, "alpha": 1e-30}],
)
def test_more_colluders_drift_or_certainty_need_more_weights(harder):
    requested = {"recipients": 100, "coalition": 1, "drift": 2.0, "strategies": ["average"]}
    assert design_code(**requested).best.weights < design_code(**(requested | harder)).best.weights


def test_drift_is_outweighed_by_weights_once_positions_run_out():
    best = design_code(10, 1, drift=2000.0, strategies=["average"]).best
    assert best.length == 65536
    assert WEIGHTS_PER_POSITION < best.weights // best.length <= MAX_WEIGHTS_PER_POSITION


def test_what_no_code_withstands_has_no_best():
    assert design_code(10, 1, drift=1e9, strategies=["average"]).best is None


def test_progress_names_each_size_tried():
    steps = []
    best = design_code(10, 1, drift=2.0, strategies=["average"], progress=lambda step, *_: steps.append(step)).best
    assert f"{best.family}, {best.weights:,} weights" in steps


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"coalition": 0}, "recipients, 10, got 0"),
        ({"coalition": 11}, "recipients, 10, got 11"),
        ({"alpha": 0.0}, "at most 0.05, got 0.0"),
        ({"alpha": 0.06}, "at most 0.05, got 0.06"),
        ({"drift": float("nan")}, "got nan"),
        ({"drift": -1.0}, "at least 0, got -1.0"),
        ({"strategies": ["tie-dye"]}, "tie-dye"),
        ({"strategies": []}, "choose from"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(CodeError, match=said):
        design_code(**({"recipients": 10, "coalition": 2} | wrong))
