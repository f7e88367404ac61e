import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.blackbox.querying.transcript import Heading, Transcript, image_digest, pool_digest, read_transcript
from hf_fingerprint.errors import StorageError
from tests.helpers.error_checks import refused


IMAGES = [np.full((2, 3, 3), value, np.uint8) for value in range(12)]
DIGESTS = [image_digest(image) for image in IMAGES]
HEADING = Heading("https://api.example/v1", "0123abcd-beef", pool_digest(DIGESTS), 10, 2, 7, 1e-6, 0.5, 1000)
GOLDEN = (
    '{"format": 1, "created": "2026-11-22T20:00:00+00:00", "suspect": "https://api.example/v1", '
    '"base": "0123abcd-beef", "digest": "@", "questions": 10, "decoys": 2, "classes": 7, "alpha": 1e-06, '
    '"share": 0.5, "recipients": 1000}\n'
    '{"question": 11, "image": "#", "answer": null, "at": "2026-11-22T20:00:01+00:00"}\n'
    '{"question": 3, "image": "%", "answer": 6, "at": "2026-11-22T20:00:02+00:00"}\n'
)
POOL = "066faf4a8b569bc4ef8e87886ea4c923dcd0fef30110766ec13ae67f29b0988a"
ELEVEN = "76f86a2a854fb4874f8afad1c6c158506ca372dc68fb67f5dc1985316524a216"
THREE = "f31c4ef13383c580aa10782185d9eb8ccde667915b9e03024b7058c74afbe520"


def golden() -> str:
    return GOLDEN.replace("@", POOL).replace("#", ELEVEN).replace("%", THREE)


def undated(text: str) -> list[dict]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in line.items() if key not in ("at", "created")} for line in lines]


def written(path, responses, heading=HEADING):
    with Transcript(path, heading) as transcript:
        for trigger, response in responses.items():
            transcript.add(trigger, DIGESTS[trigger], response)
    return path


def test_the_format_stays_as_documented(tmp_path):
    assert pool_digest(DIGESTS) == POOL and DIGESTS[11] == ELEVEN and DIGESTS[3] == THREE
    with Transcript(tmp_path / "new", HEADING) as transcript:
        transcript.add(11, DIGESTS[11], None)
        transcript.add(3, DIGESTS[3], 6)
    (tmp_path / "old").write_text(golden())

    text = (tmp_path / "new").read_text()
    assert undated(text) == undated(golden())
    assert [list(json.loads(line)) for line in text.splitlines()] == [
        list(json.loads(line)) for line in golden().splitlines()
    ]
    with Transcript(tmp_path / "old", HEADING) as old:
        assert list(old.responses.items()) == [(11, None), (3, 6)]
        assert old.images == {11: ELEVEN, 3: THREE}
    assert (tmp_path / "old").read_text() == golden()


RESPONSES = st.dictionaries(st.integers(0, 11), st.none() | st.integers(0, 6))


@given(RESPONSES, st.data())
@settings(deadline=None)  # the disk may be slow
def test_cut_anywhere_it_resumes_with_the_first_responses(tmp_path_factory, responses, data):
    path = written(tmp_path_factory.mktemp("t") / "transcript", responses)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])

    with Transcript(path, HEADING) as transcript:
        kept = list(transcript.responses.items())
        assert kept == list(responses.items())[: len(kept)]
        assert len(kept) == max(whole[:cut].count(b"\n") - 1, 0)
        for trigger, response in list(responses.items())[len(kept) :]:
            transcript.add(trigger, DIGESTS[trigger], response)
    assert undated(path.read_text()) == undated(whole.decode())


@given(RESPONSES, st.data())
@settings(deadline=None)  # the disk may be slow
def test_a_changed_byte_never_gives_another_trigger_set(tmp_path_factory, responses, data):
    """What was asked and answered is what was written or, where a line changed into another that is possible, is
    within what can be asked and answered."""
    path = written(tmp_path_factory.mktemp("t") / "transcript", responses)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)

    try:
        with Transcript(path, HEADING) as transcript:
            predicted_labels = transcript.responses
    except Exception as error:
        assert type(error).__name__ == "FingerprintError" and str(path) in str(error)
        assert path.read_bytes() == whole
    else:
        assert all(
            0 <= trigger < 12 and (response is None or 0 <= response < 7)
            for trigger, response in predicted_labels.items()
        )


@pytest.mark.parametrize("name", list(asdict(HEADING)))
def test_another_query_is_refused_naming_what_differs(tmp_path, name):
    path = written(tmp_path / "t", {3: 6})
    value = getattr(HEADING, name)
    other = replace(HEADING, **{name: value + ("x" if isinstance(value, str) else 1)})

    assert name in refused(Transcript, path, other)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (2, b"{}"),
        (2, b""),
        (2, b"\xff"),
        (2, b'{"question": 12, "image": "#", "answer": 1, "at": "x"}'),
        (2, b'{"question": true, "image": "#", "answer": 1, "at": "x"}'),
        (2, b'{"question": 1, "image": "#", "answer": 7, "at": "x"}'),
        (2, b'{"question": 1, "image": "#", "answer": 1.0, "at": "x"}'),
        (2, b'{"question": 1, "image": "nothing", "answer": 1, "at": "x"}'),
        (2, b'{"question": 1, "image": ["#"], "answer": 1, "at": "x"}'),
        (2, b'{"question": 3, "image": "#", "answer": 1, "at": "x"}'),
        (2, b'{"verdict": {}, "at": "x"}'),
        (1, b"[]"),
        (1, b'{"format": "1"}'),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(tmp_path, number, line):
    path = written(tmp_path / "t", {2: 5, 3: 6})
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line.replace(b"#", DIGESTS[1].encode())
    path.write_bytes(b"\n".join(lines))
    expected = 3 if b'"question": 3' in line else number

    assert f"damaged in line {expected}" in refused(Transcript, path, HEADING)


def test_a_newer_format_is_refused(tmp_path):
    (tmp_path / "t").write_text(golden().replace('"format": 1', '"format": 2'))

    assert "format 2" in refused(Transcript, tmp_path / "t", HEADING)


@pytest.mark.parametrize("content", ["notes", "{", '{"format": 1, "created": "2026', '{"format": 1, "other": 1}'])
def test_no_other_file_is_written_to(tmp_path, content):
    (tmp_path / "notes").write_text(content)
    if b'{"format": 1, "created": "2026'.startswith(content.encode()):  # what a crash may leave
        Transcript(tmp_path / "notes", HEADING).close()
        return

    refused(Transcript, tmp_path / "notes", HEADING)
    assert (tmp_path / "notes").read_text() == content


def test_an_answer_that_is_none_is_not_kept(tmp_path):
    with Transcript(tmp_path / "t", HEADING) as transcript:
        transcript.add(3, DIGESTS[3], 6)
        for trigger, response in ((3, 6), (12, 1), (-1, 1), (4, 7), (4, -1), (4, True)):
            refused(transcript.add, trigger, DIGESTS[4], response)

    assert len((tmp_path / "t").read_text().splitlines()) == 2


def test_a_line_that_half_fits_on_the_disk_is_taken_back_and_queried_again(tmp_path, monkeypatch):
    write = os.write
    with Transcript(tmp_path / "t", HEADING) as transcript:
        transcript.add(3, DIGESTS[3], 6)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, content: write(file, content[: len(content) // 2]))
            said = refused(transcript.add, 4, DIGESTS[4], 5, error=StorageError)
        assert f"The disk of {tmp_path} is full: make room" in said
        assert transcript.responses == {3: 6}
    assert (tmp_path / "t").read_bytes().endswith(b"}\n")

    assert read_transcript(written(tmp_path / "t", {4: 5}))[1] == {3: 6, 4: 5}


def test_a_folder_or_a_missing_one_is_refused(tmp_path):
    assert str(tmp_path) in refused(Transcript, tmp_path, HEADING)
    assert "nowhere" in refused(Transcript, tmp_path / "nowhere" / "t", HEADING)


def test_the_digests_are_those_of_plain_sha256():
    from hashlib import sha256

    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert image_digest(image) == sha256(bytes(range(18))).hexdigest()
    assert image_digest(np.asfortranarray(image)) == image_digest(image)
    assert pool_digest([image_digest(image)]) == sha256(sha256(bytes(range(18))).digest()).hexdigest()
