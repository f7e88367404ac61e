import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.blackbox import QueryResult, QueryScore
from hf_fingerprint.blackbox.querying.candidates import SkippedRecord
from hf_fingerprint.blackbox.querying.session import QueryStats
from hf_fingerprint.cli import output
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.registration import predicted_score
from hf_fingerprint.vault import Base, Calibration, Carrier, TensorRecord


def base(**changes: object) -> Base:
    calibration = changes.pop("calibration", Calibration("synthetic", 32, 1e-4, 9.1e-5, 0.9984))
    made = Base(
        base_id="0123456789ab",
        source="org/base",
        revision=None,
        content_hash="0" * 64,
        tensors={"w": TensorRecord("F32", (1000, 81), ""), "b": TensorRecord("F32", (1000,), "")},
        carriers=(Carrier("w", 0.01, np.ones(1000, np.float32)),),
        family="tardos",
        length=1024,
        coalition=20,
        certified=5,
        certified_by="simulation, 3 trials",
        alpha=1e-6,
        expected_recipients=1000,
        calibration=calibration,
        secret=b"\x01" * 32,
    )
    return replace(made, **changes)


def text(capsys: pytest.CaptureFixture) -> str:
    """What was printed, lines joined."""
    return " ".join(capsys.readouterr().out.split())


def query_result(scores: list[QueryScore], **changes: object) -> QueryResult:
    stats = QueryStats(queried=40, answered=39, decoys_queried=4, resumed=0, retries=0, stop_reason="proven")
    outcome = Outcome.ACCUSED if any(score.accused for score in scores) else Outcome.NOBODY
    made = QueryResult("https://api.example", ("0123456789ab",), tuple(scores), 8, 10, 1e-6, stats, outcome)
    return replace(made, **changes)


def test_a_query_is_printed_with_its_scores(capsys):
    of = "0123456789ab"
    scores = [
        QueryScore("[bold]x", "a" * 16, 17, 18, -12.34, True, of, "pushed"),
        QueryScore("carol", "b" * 16, 2, 19, 0.0, False, of),
    ]

    output.print_result(query_result(scores))

    said = text(capsys)
    assert "https://api.example queried for base 0123456789ab" in said
    assert "40 images queried, including 4 decoys; 39 responses bound" in said
    assert "[bold]x 17 of 18 10^-12.3 ACCUSED" in said
    assert "carol 2 of 19 1 -" in said
    assert (
        "accused: the copy made for [bold]x (aaaaaaaaaaaaaaaa, pushed). 8 copies tested; the "
        "probability that any innocent" in said
    )
    assert "stopped at the proof, after 40 images" in said
    assert said.endswith("nobody is cleared; --exhaustive queries all images, to find further colluders")


def test_a_query_of_several_bases_names_the_base_of_each_accusation_and_the_skipped_bases(capsys):
    scores = [QueryScore("alice", "a" * 16, 17, 18, -12.34, True, "0123456789ab")]
    skipped = (SkippedRecord("ba9876543210", "it has no trigger set", 3),)

    output.print_result(query_result(scores, base_ids=("aaaaaaaaaaaa", "0123456789ab"), skipped=skipped))

    said = text(capsys)
    assert "https://api.example queried for bases aaaaaaaaaaaa, 0123456789ab" in said
    assert "alice 0123456789ab 17 of 18 10^-12.3 ACCUSED" in said
    assert said.endswith("not queried for base ba9876543210: it has no trigger set")


def test_a_query_that_is_not_readable_says_why(capsys):
    stats = QueryStats(queried=3, answered=3, decoys_queried=0, resumed=0, retries=0, stop_reason="budget")
    why = "3 of 180 images have a response: continue with a larger --budget"

    output.print_result(query_result([], stats=stats, outcome=Outcome.NOT_READABLE, reason=why))

    said = text(capsys)
    assert f"not readable: {why}. 8 copies tested" in said
    assert "nobody is accused" not in said and "recipient" not in said.partition("a mixture of")[0]


def test_a_query_that_accuses_nobody_names_the_stop_reason_and_the_copies_it_cannot_trace(capsys):
    stats = QueryStats(queried=60, answered=60, decoys_queried=6, resumed=50, retries=3, stop_reason="budget")

    output.print_result(query_result([], stats=stats, non_answering=("dora", "[red]e", "dora")))

    said = text(capsys)
    assert (
        "60 images queried, 50 of them earlier, as the transcript shows, including 6 decoys; 60 responses, 3" in said
    )
    assert "nobody is accused. 8 copies tested" in said
    assert "stopped at the budget, after 60 images" in said
    assert "or none: nobody is cleared queries" in said
    assert said.endswith("trace 3 of these copies, which have no trigger labels: dora, [red]e")


def test_a_base_is_described_in_a_few_lines():
    lines = output.describe_base(base())

    said = "\n".join(lines)
    assert "org/base  (base 0123456789ab)" in said
    assert "at revision" not in said
    assert "carriers: 1 of 2 tensors, 81,000 weights" in said
    assert "code: tardos, 1,024 positions, 79 weights each, designed for 20 colluders" in said
    assert "KL 9.1e-05 of 1e-04 allowed, top-1 agreement 99.8% on 32 synthetic images" in said
    scores = [f"{predicted_score(base(), drift):.0f}" for drift in (0.0, 0.02, 0.2)]
    assert "one leaked copy: {} as issued, {} after a drift of 2 %, {} after 20 %".format(*scores) in said
    assert "certified coalition: 5 among 1,000 recipients at alpha 1e-06" in said
    assert "designed for 20, certified against 5: the code's bits are drawn for mixtures of 20 copies, and" in said
    assert "accuse every one of up to 5 colluders; of more, some may stay unnamed" in said
    assert "at revision abc" in output.describe_base(base(revision="abc"))[0]


def test_a_base_that_could_not_be_measured_is_not_said_to_be():
    said = "\n".join(output.describe_base(base(calibration=Calibration("none", 0, 1e-4, None, None))))

    assert "not measured" in said
    assert "KL" not in said


def test_a_base_measured_on_the_users_images_says_so():
    said = "\n".join(output.describe_base(base(calibration=Calibration("images", 9, 1e-4, 5e-5, 1.0))))

    assert "on 9 images" in said


SINGLE = Calibration(
    "synthetic", 1000, 1e-4, 9.1e-5, 0.991, "single_label", 1000, 991, 8.3e-5, 9.9e-5, 3.2e-5, 0.984, 0.995
)


@pytest.mark.parametrize(
    ("calibration", "line"),
    [
        (
            SINGLE,
            "output (single label): KL 9.1e-05 (8.3e-05 to 9.9e-05) of 1e-04 allowed; single copies "
            "vary by 35%, top-1 "
            "agreement 991 of 1,000 (98.4% to 99.5%) on synthetic images",
        ),
        (
            replace(SINGLE, output="multi_label", inputs="images"),
            "output (multi label): KL 9.1e-05 (8.3e-05 to 9.9e-05) of 1e-04 allowed; single copies vary by 35%, all "
            "labels agree on 991 of 1,000 (98.4% to 99.5%) on images",
        ),
        (
            replace(SINGLE, output="dense", decisions=256_000, agreeing=253_696),
            "output (dense): KL 9.1e-05 (8.3e-05 to 9.9e-05) of 1e-04 allowed; single copies vary by "
            "35%, agreement of "
            "positions 253,696 of 256,000 (98.4% to 99.5%) on 1,000 synthetic images",
        ),
        (
            replace(SINGLE, output="features", decisions=None, agreeing=None, agreement=None),
            "output (features): 1 - cosine 9.1e-05 (8.3e-05 to 9.9e-05) of 1e-04 allowed; single "
            "copies vary by 35%, mean "
            "cosine 0.999909 on 1,000 synthetic images",
        ),
        (
            replace(SINGLE, eps=0.003, kl=4e-3, kl_low=3e-3, kl_high=5e-3),
            "output (single label): KL 4.0e-03 (3.0e-03 to 5.0e-03) at a fixed amplitude of 0.3%; single copies "
            "vary by 1%, top-1 agreement 991 of 1,000 (98.4% to 99.5%) on synthetic images",
        ),
    ],
    ids=lambda value: value.output if isinstance(value, Calibration) else "",
)
def test_what_was_measured_is_said_by_its_kind_with_counts_and_intervals(calibration, line):
    assert line in output.describe_base(base(calibration=calibration))


def test_the_strength_is_explained_by_what_limits_it_and_what_it_yields():
    found = replace(SINGLE, max_kl=1e-3, kl=6e-4, min_agreement=0.995, predicted_agreement=0.9969)
    decisions, divergence = (replace(found, predicted_agreement_low=low, agreement=1.0) for low in (0.9953, 0.999))

    by_decisions = output.describe_base(base(calibration=decisions))
    by_divergence = output.describe_base(base(calibration=divergence))
    plain = output.describe_base(base(calibration=replace(divergence, inputs="images", kl=9e-5)))

    assert "; predicted 99.69% (99.53% or more) of 99.5% required" in by_decisions[3]
    advice = "; on images of your own (--calibration) it may be stronger"
    assert by_decisions[4] == f"strength: up to 1.0% of each row's root mean square, limited by the agreement{advice}"
    assert by_divergence[4].endswith(f"limited by the KL{advice}")
    assert plain[4].endswith("limited by the largest amplitude that a budget allows")
    drifted = re.search(r"(\d+) after 20 % \(at a KL of 1e-04: (\d+)\)", by_decisions[5])
    averaged = re.search(r"averaging alone: (\d+), by formula \(at a KL of 1e-04: (\d+)\)", "\n".join(by_decisions))
    assert int(drifted[1]) > int(drifted[2])
    assert int(averaged[1]) > int(averaged[2])
    assert "(at a KL of" not in "\n".join(plain)


def test_a_record_that_replaces_another_says_so():
    assert any("replaces record 0123456789aa" in line for line in output.describe_base(base(replaces="0123456789aa")))


def test_a_base_that_is_a_copy_says_so():
    assert any("is a copy of base 0123456789aa" in line for line in output.describe_base(base(copy_of="0123456789aa")))


def test_what_is_not_known_of_a_base_is_a_warning_on_stderr(capsys):
    output.warn_unmeasured(base())
    assert capsys.readouterr().err == ""

    output.warn_unmeasured(base(calibration=Calibration("none", 0, 1e-4, None, None, eps=0.003)))

    out, err = capsys.readouterr()
    assert out == ""
    assert "the effect of the mark on the output of org/base could not be measured" in err
    assert len(err.splitlines()) == 1


def test_json_is_strict(capsys):
    output.print_json({"path": Path("a/b"), "x": [1, None, True]})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "x": [1, None, True]}

    with pytest.raises(ValueError):
        output.print_json({"x": float("nan")})
    assert capsys.readouterr().out == ""


def test_results_go_to_stdout_and_remarks_to_stderr(capsys):
    output.echo("a [bold]result[/bold]")
    output.echo_err("a [bold]remark[/bold]")

    assert capsys.readouterr() == ("a [bold]result[/bold]\n", "a [bold]remark[/bold]\n")


def test_where_no_terminal_is_long_work_says_what_it_does_every_half_minute(capsys, monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    seconds = iter([0, 29, 31, 40, 62, 63, 70])
    monkeypatch.setattr("hf_fingerprint.progress.monotonic", lambda: next(seconds))
    with output.progress_bars() as progress:
        progress("one [bold]step", 0, None)
        for done in range(5):
            progress("extracting", done, 4)

    lines = ["one [bold]step", "extracting", "extracting: 50%, about 11 s left", "extracting: done"]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))


def test_progress_is_silent_where_the_environment_says_so(capsys):
    with output.progress_bars() as progress:
        progress("one step", 0, None)
        progress("extracting", 1, 2)

    assert capsys.readouterr() == ("", "")


def test_progress_survives_an_error_inside_it(capsys):
    with pytest.raises(ZeroDivisionError), output.progress_bars() as progress:
        progress("extracting", 1, 2)
        raise ZeroDivisionError
