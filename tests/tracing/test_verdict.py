import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hf_fingerprint.codes import Tardos
from hf_fingerprint.extraction import Extraction, Lineage
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing.verdict import Candidates, decide
from hf_fingerprint.vault import Base, Calibration, CopyRecord


def make_base(length: int) -> Base:
    calibration = Calibration("none", 0, 1e-4, None, None)
    return Base("x", "x", None, "", {}, (), Tardos.family, length, 3, 1, "", 1e-6, 4, calibration, bytes(32))


def reading_of(values: np.ndarray, mass: np.ndarray) -> Extraction:
    return Extraction(values, mass, 4, 100, 0, Lineage(True, 1.0, 0.0), mass)


def copies(count: int) -> list[CopyRecord]:
    return [CopyRecord(f"{i:016x}", "x", f"r{i}", "issued", "", None, None, "", b"") for i in range(count)]


def test_the_bound_holds_over_all_looks_for_innocents():
    """At alpha = 0.05 and with innocent keys alone, the share of traces in which any look accuses anybody. The looks
    see one growing extraction, as the real ones do, so their scores are as similar as possible."""
    rng, accused, trials, looks = np.random.default_rng(0), 0, 150, 5
    suspect = SimpleNamespace(source=SimpleNamespace(name="s", revision=None))
    base = replace(make_base(length=64), alpha=0.05)
    highest = []
    for _ in range(trials):
        keys = [rng.bytes(32) for _ in range(3)]
        tested = [Candidates(base, copies(3), keys)]
        values, mass, found = np.zeros(64), np.zeros(64), False
        for look in range(1, looks + 1):
            mass += 2**look
            # what a suspect may be: noise, a codeword of nobody here, or a few loud positions
            values += 2**look * (rng.standard_normal(64) * rng.integers(0, 2) + rng.choice([-1, 1], 64) ** look)
            extraction = reading_of(values, mass)
            result = decide(suspect, [extraction], tested, look, all_scores=True)
            highest.append(result.scores[0].score)
            found |= bool(result.accused)
            assert all(s.accused == (s.log10_false_accusation <= math.log10(0.05) + 1e-12) for s in result.scores)
        accused += found

    assert max(highest) > 2.5  # the scores are an innocent's, and not nothing
    assert accused / trials < 0.05


def test_looks_and_records_pay_for_themselves():
    rng = np.random.default_rng(1)
    suspect = SimpleNamespace(source=SimpleNamespace(name="s", revision=None))
    base, key = make_base(length=1024), b"\3" * 32
    values = base.codebook().codeword(key) + 2 * rng.standard_normal(1024)
    extraction = reading_of(values, np.ones(1024))
    tested = Candidates(base, copies(2), [key, b"\4" * 32])

    def bound(look: int | None, records: int) -> float:
        result = decide(suspect, [extraction] * records, [tested] * records, look, all_scores=True)
        assert result.recipients_tested == 2 * records
        assert result.looks == (look or 1)
        return result.scores[0].log10_false_accusation

    alone = bound(None, 1)
    assert -300 < alone < -6
    assert bound(1, 1) == pytest.approx(alone + np.log10(2), abs=0.35)
    assert bound(5, 1) == pytest.approx(alone + np.log10(30), abs=0.35)
    assert bound(None, 2) == pytest.approx(alone + np.log10(2), abs=0.35)
    assert bound(3, 3) == pytest.approx(alone + np.log10(36), abs=0.35)
    assert sum(1 / (look * (look + 1)) for look in range(1, 10_000)) < 1


def test_a_verdict_over_records_names_the_one_with_the_surest_score():
    suspect = SimpleNamespace(source=SimpleNamespace(name="s", revision=None))
    one, two = make_base(length=1024), replace(make_base(length=1024), base_id="y", alpha=1e-8)
    nothing = Extraction(np.zeros(1024), np.zeros(1024), 0, 0, 0, Lineage(False, 0.0, 0.0), np.zeros(1024))
    key = b"\3" * 32
    whole = reading_of(one.codebook().codeword(key).astype(float), np.ones(1024))

    tested = [Candidates(one, copies(3), [b"a" * 32] * 3), Candidates(two, copies(1), [key])]
    result = decide(suspect, [nothing, whole], tested, all_scores=True)

    assert result.base == result.accused[0].base == "y"
    assert result.alpha == 1e-8
    assert (result.weights_read, result.recipients_tested, len(result.scores)) == (100, 4, 4)
    assert [score.recipient for score in result.accused] == ["r0"]
    assert b"a" * 32 not in repr(Candidates(one, copies(3), [b"a" * 32] * 3)).encode()


def test_the_scores_of_those_who_are_not_accused_are_left_out_unless_requested():
    suspect = SimpleNamespace(source=SimpleNamespace(name="s", revision=None))
    base, key = make_base(1024), b"\3" * 32
    tested = [Candidates(base, copies(3), [b"\4" * 32, key, b"\5" * 32], states={f"{1:016x}": "pushed"})]
    extraction = reading_of(base.codebook().codeword(key).astype(float), np.ones(1024))
    noise = reading_of(np.random.default_rng(0).standard_normal(1024), np.ones(1024))

    result, nobody = decide(suspect, [extraction], tested), decide(suspect, [noise], tested)

    assert result.scores == result.accused
    assert [(s.recipient, s.base, s.state) for s in result.accused] == [("r1", "x", "pushed")]
    assert nobody.scores == nobody.accused == ()
    assert (result.recipients_tested, nobody.recipients_tested) == (3, 3)
    assert (result.outcome, nobody.outcome) == (Outcome.ACCUSED, Outcome.NOT_READABLE)
    assert len(decide(suspect, [noise], tested, all_scores=True).scores) == 3


def test_which_base_is_named_for_a_suspect_that_accuses_nobody_depends_on_no_key():
    suspect = SimpleNamespace(source=SimpleNamespace(name="s", revision=None))
    bases = [replace(make_base(1024), base_id=name) for name in "xyz"]
    rng = np.random.default_rng(1)
    for _ in range(20):
        extractions = [reading_of(rng.standard_normal(1024), np.ones(1024)) for _ in bases]
        tested = [Candidates(base, copies(3), [rng.bytes(32) for _ in range(3)]) for base in bases]
        assert decide(suspect, extractions, tested).base == "x"


def test_a_claim_pays_for_everybody():
    suspect = SimpleNamespace(source=SimpleNamespace(name="s", revision=None))
    base, key = make_base(1024), b"\3" * 32
    values = base.codebook().codeword(key) + 2 * np.random.default_rng(1).standard_normal(1024)

    def bound(recipients: int | None) -> float:
        tested = Candidates(base, copies(1), [key], recipients)
        result = decide(suspect, [reading_of(values, np.ones(1024))], [tested])
        assert result.recipients_covered == (recipients or 1)
        return result.accused[0].log10_false_accusation

    assert bound(1000) == pytest.approx(bound(None) + 3, abs=0.5)
    with pytest.raises(IndexError):
        bound(10**300)
