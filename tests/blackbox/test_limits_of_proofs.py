"""Proofs and transcripts are held to what working them out takes, before that is done."""

import json

import pytest

from examples.benchmarks.fuzz_targets import make_proof, make_transcript
from hf_fingerprint.blackbox import check_proof
from hf_fingerprint.blackbox.querying import proof as proof_module
from hf_fingerprint.blackbox.querying.transcript import Transcript, read_transcript
from hf_fingerprint.checkpoints.limits import MAX_PROOF, MAX_TRANSCRIPT
from tests.helpers.error_checks import refused


def test_responses_are_expanded_once_for_all_accused(tmp_path):
    path = tmp_path / "proof.json"
    path.write_bytes(make_proof(300, 160, 160))

    found = check_proof(path).accusations

    assert len(found) == 300
    assert all(each.opened and each.published is None and not each.holds for each in found)


@pytest.mark.parametrize(("accused", "triggers"), [(257, 65_536), (10_001, 1)])
def test_more_accused_than_can_be_worked_out_in_time_are_refused(tmp_path, monkeypatch, accused, triggers):
    monkeypatch.setattr(proof_module, "keyed_labels", pytest.fail)
    path = tmp_path / "proof.json"
    path.write_bytes(make_proof(accused, triggers, 1))

    assert f"accuses {accused} recipients by {triggers} triggers" in refused(check_proof, path)


def test_a_proof_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "proof.json"
    with path.open("wb") as stream:
        stream.truncate(MAX_PROOF + 1)

    assert "a proof may have 16 MB" in refused(check_proof, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"alpha": 1e-06', '"alpha": NaN'),
        lambda text: text.replace('"format": 1', '"format": 2, "format": 1'),
        lambda text: text.replace('"suspect": "s"', f'"suspect": "{"s" * 5000}"'),
    ],
)
def test_what_readers_take_in_several_ways_is_no_proof(tmp_path, change):
    path = tmp_path / "proof.json"
    text = make_proof(2, 12, 10).decode()
    assert change(text) != text
    path.write_text(change(text))

    assert "not a proof" in refused(check_proof, path)


def test_a_transcript_with_more_lines_than_images_is_refused(tmp_path):
    path = tmp_path / "transcript"
    path.write_bytes(make_transcript(5))
    heading, responses = read_transcript(path)
    assert len(responses) == 5

    path.write_bytes(make_transcript(5) + b"\n" * 100_000)
    assert "more responses than images" in refused(read_transcript, path)
    assert "more responses than images" in refused(Transcript, path, heading)
    with path.open("r+b") as stream:
        stream.truncate(MAX_TRANSCRIPT + 1)
    assert "a transcript may have 32 MB" in refused(read_transcript, path)


def test_a_line_that_takes_memory_is_damaged(tmp_path):
    path = tmp_path / "transcript"
    lines = make_transcript(3).splitlines()
    lines[2] = json.dumps([[]] * 10_000).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")

    assert "damaged in line 3" in refused(read_transcript, path)
