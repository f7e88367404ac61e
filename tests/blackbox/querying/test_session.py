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

from hf_fingerprint.blackbox.querying.e_process import EProcess
from hf_fingerprint.blackbox.querying.session import QueryPool, QueryStats, query_pools
from hf_fingerprint.blackbox.querying.transcript import Heading, Transcript, image_digest, pool_digest
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels
from hf_fingerprint.errors import FingerprintError
from tests.helpers.error_checks import refused
from tests.helpers.processes import ROOT


pytestmark = pytest.mark.integration


KEYS = [i.to_bytes(32, "big") for i in range(50)]
TRIGGERS, DECOYS, CLASSES = 60, 15, 10
POOL = [np.full((2, 2, 3), index, np.uint8) for index in range(TRIGGERS + DECOYS)]
ORDER = np.random.default_rng(0).permutation(TRIGGERS + DECOYS)
HEADING = Heading(
    "a model", "base", pool_digest([image_digest(i) for i in POOL]), TRIGGERS, DECOYS, CLASSES, 1e-6, None, len(KEYS)
)


def index_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


def leak(recipient: int = 7):
    """A copy that predicts its labels, and the number of a decoy."""
    own = keyed_labels(KEYS[recipient : recipient + 1], TRIGGERS, CLASSES)[0]
    return lambda image: int(own[i]) if (i := index_of(image)) < TRIGGERS else i % CLASSES


def innocent(image: np.ndarray) -> int:
    return (index_of(image) * 7) % CLASSES


def fresh() -> EProcess:
    return EProcess(KEYS, TRIGGERS, CLASSES)


def test_it_stops_at_the_first_proof_and_decoys_are_no_evidence():
    e_process, responses = fresh(), []
    done = query_pools(
        leak(),
        [QueryPool(POOL, e_process)],
        ORDER,
        on_response=lambda index, response: responses.append((index, response)),
    )

    assert e_process.accused().tolist() == [7]
    assert done.stop_reason == "proven" and done.queried == done.answered == len(responses) < 30
    assert [index for index, _ in responses] == ORDER[: done.queried].tolist()
    assert done.decoys_queried == sum(index >= TRIGGERS for index, _ in responses) > 0
    assert e_process.queried == done.queried - done.decoys_queried
    before = fresh()
    query_pools(leak(), [QueryPool(POOL, before)], ORDER[: done.queried - 1])
    assert not len(before.accused()), "it could have stopped earlier"


def test_an_innocent_gets_all_images_and_nobody_is_accused():
    e_process = fresh()
    done = query_pools(innocent, [QueryPool(POOL, e_process)], ORDER)

    assert done == QueryStats(75, 75, 15, 0, 0, "exhausted")
    assert e_process.queried == TRIGGERS and not len(e_process.accused())
    assert json.loads(json.dumps(done.to_dict())) == asdict(done)


@pytest.mark.parametrize("budget", [0, 1, 10, 74])
def test_the_budget_is_kept(budget):
    queried = []
    done = query_pools(
        lambda image: queried.append(1) or innocent(image), [QueryPool(POOL, fresh())], ORDER, budget=budget
    )

    assert (done.queried, len(queried), done.stop_reason) == (budget, budget, "budget")


def test_it_queries_until_there_are_min_responses():
    responses = leak()
    done = query_pools(
        lambda i: responses(i) if index_of(i) % 3 else None, [QueryPool(POOL, fresh())], ORDER, min_responses=45
    )

    assert done.answered == 45 < done.queried and done.stop_reason == "proven"


def test_no_answer_proves_nothing_and_counts():
    e_process = fresh()
    done = query_pools(lambda image: None, [QueryPool(POOL, e_process)], ORDER, budget=20)

    assert (done.queried, done.answered, e_process.queried) == (20, 0, 0)


def test_retries_are_those_of_this_session():
    class Suspect(SimpleNamespace):
        def __call__(self, image):
            self.retries += 2
            return innocent(image)

    assert query_pools(Suspect(retries=5), [QueryPool(POOL, fresh())], ORDER, budget=10).retries == 20


@given(st.integers(0, TRIGGERS + DECOYS), st.sampled_from(["leak", "innocent"]), st.booleans())
@settings(max_examples=25, deadline=None)  # the disk may be slow
def test_stopped_anywhere_it_ends_as_if_it_had_not_been(tmp_path_factory, after, who, abrupt):
    suspect, path = {"leak": leak(), "innocent": innocent}[who], tmp_path_factory.mktemp("q") / "transcript"
    queried: list[int] = []

    def counted(image):
        if abrupt and len(queried) == after:
            raise KeyboardInterrupt
        queried.append(index_of(image))
        return suspect(image)

    whole = query_pools(suspect, [QueryPool(POOL, fresh())], ORDER)
    with Transcript(path, HEADING) as transcript, suppress(KeyboardInterrupt):
        query_pools(counted, [QueryPool(POOL, fresh(), transcript)], ORDER, budget=None if abrupt else after)
    after, before = -1, len(queried)
    e_process = fresh()
    with Transcript(path, HEADING) as transcript:
        done = query_pools(counted, [QueryPool(POOL, e_process, transcript)], ORDER)

    assert (done.queried, done.stop_reason, done.decoys_queried) == (
        whole.queried,
        whole.stop_reason,
        whole.decoys_queried,
    )
    assert done.resumed == before and len(queried) == len(set(queried)) == whole.queried
    assert list(Transcript(path, HEADING).responses) == queried


def test_a_refusal_leaves_what_was_answered(tmp_path):
    def refusing(image):
        if image is POOL[ORDER[5]]:
            raise FingerprintError("No more.")
        return innocent(image)

    with Transcript(tmp_path / "t", HEADING) as transcript, pytest.raises(FingerprintError, match="No more"):
        query_pools(refusing, [QueryPool(POOL, fresh(), transcript)], ORDER)

    assert list(Transcript(tmp_path / "t", HEADING).responses) == ORDER[:5].tolist()


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
sys.path[:0] = [sys.argv[2]]
from tests.blackbox.querying.test_session import HEADING, ORDER, POOL, QueryPool, Transcript
from tests.blackbox.querying.test_session import fresh, innocent, query_pools

def suspect(image):
    print(len(transcript.responses), flush=True)
    sys.stdin.readline()
    return innocent(image)

transcript = Transcript(sys.argv[1], HEADING)
query_pools(suspect, [QueryPool(POOL, fresh(), transcript)], ORDER)
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
        for _ in range(12):  # a signal just before a read is handled after it, or with the next
            process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)  # before its input ends, which would be an answer
                break

    assert process.returncode != 0
    assert list(Transcript(tmp_path / "t", HEADING).responses) == ORDER[:6].tolist()


@pytest.mark.parametrize("order", [[0, 0], [75], [-1], [0.5]])
def test_an_impossible_order_is_refused(order):
    refused(query_pools, innocent, [QueryPool(POOL, fresh())], np.array(order))


def test_a_transcript_of_another_image_is_refused(tmp_path):
    with Transcript(tmp_path / "t", HEADING) as transcript:
        transcript.add(3, image_digest(POOL[4]), 1)

        assert "index 3" in refused(query_pools, innocent, [QueryPool(POOL, fresh(), transcript)], ORDER)


def test_some_of_the_pool_may_be_left_out():
    assert query_pools(innocent, [QueryPool(POOL, fresh())], ORDER[:8]).queried == 8
