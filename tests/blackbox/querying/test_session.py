import json
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.blackbox.querying.e_process import Evidence
from hf_fingerprint.blackbox.querying.session import Pool, Questioning, question
from hf_fingerprint.blackbox.querying.transcript import Heading, Transcript, image_digest, pool_digest
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels
from hf_fingerprint.errors import FingerprintError
from tests.helpers.processes import ROOT
from tests.helpers.refusals import refused


KEYS = [i.to_bytes(32, "big") for i in range(50)]
QUESTIONS, DECOYS, CLASSES = 60, 15, 10
POOL = [np.full((2, 2, 3), index, np.uint8) for index in range(QUESTIONS + DECOYS)]
ORDER = np.random.default_rng(0).permutation(QUESTIONS + DECOYS)
HEADING = Heading(
    "a model", "base", pool_digest([image_digest(i) for i in POOL]), QUESTIONS, DECOYS, CLASSES, 1e-6, None, len(KEYS)
)


def index_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


def leak(recipient: int = 7):
    """A copy that answers as it was taught, and decoys by their number."""
    own = keyed_labels(KEYS[recipient : recipient + 1], QUESTIONS, CLASSES)[0]
    return lambda image: int(own[i]) if (i := index_of(image)) < QUESTIONS else i % CLASSES


def innocent(image: np.ndarray) -> int:
    return (index_of(image) * 7) % CLASSES


def fresh() -> Evidence:
    return Evidence(KEYS, QUESTIONS, CLASSES)


def test_it_stops_at_the_first_proof_and_decoys_are_no_evidence():
    evidence, heard = fresh(), []
    done = question(
        leak(), [Pool(POOL, evidence)], ORDER, on_answer=lambda index, answer: heard.append((index, answer))
    )

    assert evidence.accused().tolist() == [7]
    assert done.stopped == "proven" and done.asked == done.answered == len(heard) < 30
    assert [index for index, _ in heard] == ORDER[: done.asked].tolist()
    assert done.decoys_asked == sum(index >= QUESTIONS for index, _ in heard) > 0
    assert evidence.asked == done.asked - done.decoys_asked
    before = fresh()
    question(leak(), [Pool(POOL, before)], ORDER[: done.asked - 1])
    assert not len(before.accused()), "it could have stopped earlier"


def test_an_innocent_is_asked_everything_and_nobody_is_accused():
    evidence = fresh()
    done = question(innocent, [Pool(POOL, evidence)], ORDER)

    assert done == Questioning(75, 75, 15, 0, 0, "all asked")
    assert evidence.asked == QUESTIONS and not len(evidence.accused())
    assert json.loads(json.dumps(done.to_dict())) == asdict(done)


@pytest.mark.parametrize("budget", [0, 1, 10, 74])
def test_the_budget_is_kept(budget):
    asked = []
    done = question(lambda image: asked.append(1) or innocent(image), [Pool(POOL, fresh())], ORDER, budget=budget)

    assert (done.asked, len(asked), done.stopped) == (budget, budget, "budget")


def test_it_asks_for_as_many_answers_as_one_wants():
    answers = leak()
    done = question(lambda i: answers(i) if index_of(i) % 3 else None, [Pool(POOL, fresh())], ORDER, least=45)

    assert done.answered == 45 < done.asked and done.stopped == "proven"


def test_no_answer_proves_nothing_and_counts():
    evidence = fresh()
    done = question(lambda image: None, [Pool(POOL, evidence)], ORDER, budget=20)

    assert (done.asked, done.answered, evidence.asked) == (20, 0, 0)


def test_retries_are_those_of_this_questioning():
    class Suspect(SimpleNamespace):
        def __call__(self, image):
            self.retries += 2
            return innocent(image)

    assert question(Suspect(retries=5), [Pool(POOL, fresh())], ORDER, budget=10).retries == 20


@given(st.integers(0, QUESTIONS + DECOYS), st.sampled_from(["leak", "innocent"]), st.booleans())
@settings(max_examples=25, deadline=None)  # the disk may be slow
def test_stopped_anywhere_it_ends_as_if_it_had_not_been(tmp_path_factory, after, who, abrupt):
    suspect, path = {"leak": leak(), "innocent": innocent}[who], tmp_path_factory.mktemp("q") / "transcript"
    asked: list[int] = []

    def counted(image):
        if abrupt and len(asked) == after:
            raise KeyboardInterrupt
        asked.append(index_of(image))
        return suspect(image)

    whole = question(suspect, [Pool(POOL, fresh())], ORDER)
    with Transcript(path, HEADING) as transcript, suppress(KeyboardInterrupt):
        question(counted, [Pool(POOL, fresh(), transcript)], ORDER, budget=None if abrupt else after)
    after, before = -1, len(asked)
    evidence = fresh()
    with Transcript(path, HEADING) as transcript:
        done = question(counted, [Pool(POOL, evidence, transcript)], ORDER)

    assert (done.asked, done.stopped, done.decoys_asked) == (whole.asked, whole.stopped, whole.decoys_asked)
    assert done.resumed == before and len(asked) == len(set(asked)) == whole.asked
    assert list(Transcript(path, HEADING).answers) == asked


def test_a_refusal_leaves_what_was_answered(tmp_path):
    def refusing(image):
        if image is POOL[ORDER[5]]:
            raise FingerprintError("No more.")
        return innocent(image)

    with Transcript(tmp_path / "t", HEADING) as transcript, pytest.raises(FingerprintError, match="No more"):
        question(refusing, [Pool(POOL, fresh(), transcript)], ORDER)

    assert list(Transcript(tmp_path / "t", HEADING).answers) == ORDER[:5].tolist()


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
sys.path[:0] = [sys.argv[2]]
from tests.blackbox.querying.test_session import HEADING, ORDER, POOL, Pool, fresh, innocent, question, Transcript

def suspect(image):
    print(len(transcript.answers), flush=True)
    sys.stdin.readline()
    return innocent(image)

transcript = Transcript(sys.argv[1], HEADING)
question(suspect, [Pool(POOL, fresh(), transcript)], ORDER)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_loses_nothing_that_was_answered(tmp_path, how):
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "t"), str(ROOT)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.stdout.readline().strip() != "6":
            process.stdin.write("\n")
            process.stdin.flush()
        for _ in range(12):  # a signal that comes just before a read begins is heard only after it, or with the next
            process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)  # before its input ends, which would be an answer
                break

    assert process.returncode != 0
    assert list(Transcript(tmp_path / "t", HEADING).answers) == ORDER[:6].tolist()


@pytest.mark.parametrize("order", [[0, 0], [75], [-1], [0.5]])
def test_an_impossible_order_is_refused(order):
    refused(question, innocent, [Pool(POOL, fresh())], np.array(order))


def test_a_transcript_of_another_image_is_refused(tmp_path):
    with Transcript(tmp_path / "t", HEADING) as transcript:
        transcript.add(3, image_digest(POOL[4]), 1)

        assert "question 3" in refused(question, innocent, [Pool(POOL, fresh(), transcript)], ORDER)


def test_some_of_the_pool_may_be_left_out():
    assert question(innocent, [Pool(POOL, fresh())], ORDER[:8]).asked == 8
