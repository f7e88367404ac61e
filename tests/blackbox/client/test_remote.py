"""Suspects over HTTP, on loopback."""

import errno
import gzip
import logging
import os
import sys
import traceback
from functools import partial
from tempfile import gettempdir

import numpy as np
import pytest

from hf_fingerprint.blackbox.client import remote
from hf_fingerprint.blackbox.client.remote import encode_png, from_inference_client, from_url, redact_url
from hf_fingerprint.blackbox.client.retries import RetryPolicy
from hf_fingerprint.errors import FingerprintError, FingerprintWarning, StorageError
from tests.helpers.error_checks import refused
from tests.helpers.loopback_suspect import Fault, LoopbackSuspect, image_of_class


NAMES = [f"class {index}" for index in range(10)]
TOKEN = "hf_Sesame0pen0123456789"
PLAIN_HEADERS = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"}
SHAPES = {
    "number": lambda predicted_labels: predicted_labels,
    "name": lambda predicted_labels: f"Class {predicted_labels}",
    "label": lambda predicted_labels: {"label": f"LABEL_{predicted_labels}"},
    "class": lambda predicted_labels: {"class": predicted_labels},
    "pipeline": lambda predicted_labels: [
        {"label": f"class {predicted_labels}", "score": 0.8},
        {"label": "class 0", "score": 0.1},
    ],
    "predictions": lambda predicted_labels: {"predictions": [np.eye(10)[predicted_labels].tolist()]},
    "probabilities": lambda predicted_labels: {"probabilities": np.eye(10)[predicted_labels].tolist()},
    "scores": lambda predicted_labels: {"scores": np.eye(10)[predicted_labels].tolist()},
    "batch": lambda predicted_labels: [np.eye(10)[predicted_labels].tolist()],
}


@pytest.fixture
def server():
    with LoopbackSuspect() as server:
        yield server


def quick(max_attempts: int = 4) -> RetryPolicy:
    """As patient as any, on a clock that doesn't run."""
    return RetryPolicy(1e6, max_attempts, sleep=lambda seconds: None)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("request_format", ["raw", "json", "multipart"])
def test_a_picture_arrives_whole_in_every_style_and_every_shape_is_read(server, shape, request_format):
    server.shape = SHAPES[shape]
    suspect = from_url(server.url, NAMES, request_format=request_format, retry_policy=quick())

    assert [suspect(image_of_class(predicted_labels)) for predicted_labels in (3, 9, 1)] == [3, 9, 1]
    assert [seen.pixel for seen in server.seen] == [3, 9, 1]
    assert suspect.name == server.url and suspect.retries == 0


def test_a_text_that_is_no_json_is_a_name(server):
    server.raw = b"class 4\n"

    assert from_url(server.url, NAMES)(image_of_class(1)) == 4


def test_the_field_and_the_part_are_as_one_says(server):
    server.shape = lambda predicted_labels: {"label": "no", "result": {"best": [predicted_labels]}}
    suspect = from_url(server.url, NAMES, field="result.best", request_format="json", request_field="image")

    assert suspect(image_of_class(6)) == 6


def test_the_token_is_sent_and_so_are_a_user_and_a_password(server):
    from_url(server.url, NAMES, token=f" {TOKEN}\n")(image_of_class(1))
    from_url(server.url.replace("//", "//al%40ice:pass@") + "?key=1#x", NAMES)(image_of_class(1))
    from_url(server.url, NAMES)(image_of_class(1))

    assert [seen.headers.get("authorization") for seen in server.seen] == [
        f"Bearer {TOKEN}",
        "Basic YWxAaWNlOnBhc3M=",
        None,
    ]
    assert [seen.path for seen in server.seen] == ["/classify", "/classify?key=1", "/classify"]


@pytest.mark.parametrize("request_format", ["raw", "json", "multipart"])
def test_nothing_that_is_sent_says_who_asks_and_the_user_agent_is_as_one_says(server, request_format):
    from_url(server.url, NAMES, request_format=request_format)(image_of_class(1))
    from_url(server.url, NAMES, request_format=request_format, user_agent="Mozilla/5.0 (X11)")(image_of_class(1))
    server.shape = SHAPES["pipeline"]
    from_inference_client(client(server), NAMES)(image_of_class(1))

    plain, named, by_client = server.seen
    for seen in server.seen:
        assert b"fingerprint" not in (repr(seen.headers).encode() + seen.body).lower()
    assert plain.headers["user-agent"].startswith("python-httpx2/") and "hf_hub" in by_client.headers["user-agent"]
    assert named.headers["user-agent"] == "Mozilla/5.0 (X11)"
    assert set(named.headers) == set(plain.headers) == PLAIN_HEADERS


def test_a_full_temporary_folder_is_not_the_suspects_fault(server, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "TemporaryDirectory", full)
    said = refused(
        from_inference_client(client(server), NAMES, retry_policy=quick()), image_of_class(5), error=StorageError
    )
    assert f"The disk of {gettempdir()} is full: make room" in said and not server.seen


def test_the_user_agent_of_a_hub_id_is_as_one_says(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    made = []
    monkeypatch.setattr(hub, "InferenceClient", lambda *arguments, **options: made.append(options))

    from_inference_client("org/name", NAMES, user_agent="curl/8")
    from_inference_client("org/name", NAMES)

    assert [each["headers"] for each in made] == [{"user-agent": "curl/8"}, {}]


@pytest.mark.parametrize("name", ["", " ", "a\r\nX-Evil: 1", "Mozilla\x1b", "né"])
def test_an_impossible_user_agent_is_refused(name):
    assert "user agent" in refused(partial(from_url, user_agent=name), "https://api.example", NAMES)


@pytest.mark.parametrize(
    "url", ["http://api.example/x", "http://192.0.2.7:80/", "http://[2001:db8::1]/x", "HTTP://u:sesame@api.example"]
)
def test_a_token_over_plain_http_is_warned_of_before_it_is_sent(url):
    token = None if "@" in url else TOKEN
    with pytest.warns(
        FingerprintWarning, match="goes over plain http, where anyone on the network can read it"
    ) as warned:
        from_url(url, NAMES, token)

    assert redact_url(url) in str(warned[0].message) and "esame" not in str(warned[0].message) and len(warned) == 1


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("https://api.example/x", TOKEN),
        ("http://api.example/x", None),
        *((f"http://{host}/x", TOKEN) for host in ("127.0.0.1:9", "127.8.8.8", "localhost", "a.localhost", "[::1]:8")),
    ],
)
def test_what_nobody_can_read_on_the_way_is_not_warned_of(url, token, recwarn):
    from_url(url, NAMES, token)

    assert not recwarn.list


def test_a_client_with_a_token_for_plain_http_is_warned_of():
    hub = pytest.importorskip("huggingface_hub")
    with pytest.warns(FingerprintWarning, match="http://api.example/v1 goes over plain http"):
        from_inference_client(hub.InferenceClient("http://api.example/v1", token=TOKEN), NAMES)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(429, {"Retry-After": "0"})],
        [Fault(429, {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}), Fault(503)],
        [Fault(500)],
        [Fault(408), Fault(425), Fault(502)],
        [Fault(0)],
        [Fault(0), Fault(0)],
        [Fault(200, {"Content-Encoding": "gzip"}, b"no gzip")],
    ],
    ids=str,
)
def test_a_transient_failure_is_retried(server, faults):
    server.faults = list(faults)
    suspect = from_url(server.url, NAMES, retry_policy=quick())

    assert suspect(image_of_class(5)) == 5
    assert suspect.retries == len(faults) == len(server.seen) - 1


def test_a_late_response_is_retried(server):
    server.faults = [Fault(200, seconds=30)]
    suspect = from_url(server.url, NAMES, timeout=0.3, retry_policy=quick())

    assert suspect(image_of_class(5)) == 5
    assert suspect.retries == 1


def test_a_response_that_never_ends_is_retried(server):
    server.faults = [Fault(200, body=b" " * 10_000, drip=0.02)]
    suspect = from_url(server.url, NAMES, timeout=0.3, retry_policy=quick())

    assert suspect(image_of_class(5)) == 5
    assert suspect.retries == 1


def test_headers_that_never_end_are_retried(server):
    server.faults = [Fault(200, trickle=0.02)]
    suspect = from_url(server.url, NAMES, timeout=0.2, retry_policy=quick())

    assert suspect(image_of_class(5)) == 5
    assert suspect.retries == 1


def test_a_service_that_always_trickles_is_given_up_in_a_sentence(server):
    server.faults = [Fault(200, trickle=0.02) for _ in range(3)]
    suspect = from_url(server.url, NAMES, timeout=0.1, retry_policy=quick(max_attempts=1))

    assert [suspect(image_of_class(5)) for _ in range(2)] == [None, None]
    assert "it took too long" in refused(suspect, image_of_class(5))


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "zstd"])
def test_an_encoding_that_may_unpack_without_end_is_not_unpacked(server, coding):
    server.faults = [Fault(200, {"Content-Encoding": coding}, gzip.compress(b"1"))]

    assert "encoding" in refused(from_url(server.url, NAMES, retry_policy=quick()), image_of_class(5))


def test_a_reply_that_unpacks_to_more_than_is_read_is_refused(server):
    server.faults = [Fault(200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 40_000_000))]

    assert "more than 16 MB" in refused(from_url(server.url, NAMES, retry_policy=quick()), image_of_class(5))


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422])
def test_a_permanent_failure_is_one_sentence_and_not_retried(server, status):
    server.faults = [Fault(status, body=TOKEN.encode())]
    suspect = from_url(server.url + "?key=sesame", NAMES, TOKEN, retry_policy=quick())

    said = refused(suspect, image_of_class(5))
    assert server.url in said and str(status) in said and len(server.seen) == 1
    assert "sesame" not in said.lower()


def test_a_suspect_that_is_out_of_order_is_given_up_after_three_images(server):
    server.faults = [Fault(503)] * 6
    suspect = from_url(server.url, NAMES, retry_policy=quick(max_attempts=2))
    assert suspect(image_of_class(1)) is suspect(image_of_class(2)) is None

    said = refused(suspect, image_of_class(3))
    assert "503" in said and server.url in said and suspect.retries == 3
    assert suspect(image_of_class(4)) == 4


def test_a_suspect_that_is_not_there_is_given_up():
    with LoopbackSuspect() as server:
        pass
    suspect = from_url(server.url, NAMES, retry_policy=quick(max_attempts=1))
    assert suspect(image_of_class(1)) is suspect(image_of_class(2)) is None

    assert "ConnectError" in refused(suspect, image_of_class(3))


@pytest.mark.parametrize("raw", [b"<html>", b"\xff\xfe", b"", b"[" * 99999, b"1" * 9999, b'{"label": "cl', b"NaN"])
def test_garbage_is_no_answer_and_in_the_beginning_refused(server, raw):
    suspect = from_url(server.url, NAMES, retry_policy=quick())
    assert suspect(image_of_class(4)) == 4
    server.raw = raw
    assert [suspect(image_of_class(4)) for _ in range(4)] == [None] * 4

    new = from_url(server.url, NAMES, retry_policy=quick())
    assert new(image_of_class(4)) is new(image_of_class(4)) is None
    assert server.url in refused(new, image_of_class(4))


def test_an_endless_answer_is_refused(server):
    server.raw = b" " * (17 << 20)

    assert "16 MB" in refused(from_url(server.url, NAMES), image_of_class(1))


@pytest.mark.parametrize("request_format", ["raw", "json", "multipart"])
def test_a_redirect_takes_the_picture_along_and_leaves_the_token(server, request_format):
    with LoopbackSuspect() as other:
        server.faults = [Fault(307, {"Location": other.url}), Fault(308, {"Location": "/elsewhere"})]
        suspect = from_url(server.url, NAMES, TOKEN, request_format=request_format)

        assert [suspect(image_of_class(6)), suspect(image_of_class(7))] == [6, 7]
        assert ["authorization" in seen.headers for seen in other.seen] == [False]
        assert other.seen[0].method == "POST"
        assert [(seen.path, "authorization" in seen.headers) for seen in server.seen] == [
            ("/classify", True),
            ("/classify", True),
            ("/elsewhere", True),
        ]
        assert TOKEN not in str([seen.headers for seen in other.seen])


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_lose_the_picture_is_refused_with_the_address(server, status):
    server.faults = [Fault(status, {"Location": "https://user:sesame@api.example/v2?key=sesame"})]

    said = refused(from_url(server.url, NAMES, TOKEN), image_of_class(1))
    assert "https://api.example/v2" in said and "sesame" not in said
    assert len(server.seen) == 1


@pytest.mark.parametrize("where", ["/classify", "ftp://x/", "http://[", ""])
def test_a_redirect_that_leads_nowhere_is_refused(server, where):
    server.faults = [Fault(307, {"Location": where})] * 40
    suspect = from_url(server.url, NAMES, retry_policy=quick(max_attempts=1))

    with pytest.raises(FingerprintError) as caught:
        for _ in range(3):
            suspect(image_of_class(1))
    assert server.url in str(caught.value)


def everything_of(error: BaseException) -> str:
    predicted_labels, chain = "".join(traceback.format_exception(error)), error
    while chain is not None:
        predicted_labels += repr(chain) + str(chain.args)
        chain = chain.__cause__ or chain.__context__
    return predicted_labels


@pytest.mark.parametrize(
    "fault", [None, Fault(401), Fault(404), Fault(500), Fault(0), Fault(302, {"Location": "http://127.0.0.1:1/"})]
)
def test_no_secret_is_in_names_errors_or_logs(server, fault, caplog):
    caplog.set_level(logging.DEBUG)
    address = server.url.replace("//", "//alice:Sesame0pen0@") + "?key=Sesame0pen0#Sesame0pen0"
    for suspect in (
        from_url(address, NAMES, retry_policy=quick(max_attempts=1)),
        from_url(server.url + "?key=Sesame0pen0", NAMES, TOKEN, retry_policy=quick(max_attempts=1)),
        from_inference_client(client(server), NAMES, retry_policy=quick(max_attempts=1)),
    ):
        server.shape = SHAPES["pipeline"]
        server.faults = [fault] * 3 if fault is not None else []
        predicted_labels = suspect.name + repr(suspect) + str(vars(suspect)) + str(suspect._parse.__dict__)
        try:
            for _ in range(3):
                suspect(image_of_class(1))
        except FingerprintError as error:
            predicted_labels += everything_of(error)
        assert "Sesame0pen0" not in predicted_labels and "U2VzYW1lMHBlbjA" not in predicted_labels
    assert "Sesame0pen0" not in caplog.text
    assert "DEBUG" in caplog.text


@pytest.mark.parametrize(
    "url", ["", "api.example/v1", "ftp://api.example", "http://", "http://[::1", "http://a:port/", "https://a/\n"]
)
def test_an_impossible_address_is_refused(url):
    refused(from_url, url, NAMES)


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "sesamé"])
def test_an_impossible_token_is_refused_and_not_shown(token):
    said = refused(from_url, "https://api.example/v1", NAMES, token)

    assert not token.strip() or token not in said


def test_an_unknown_style_is_refused():
    with pytest.raises(FingerprintError, match="raw, json, multipart"):
        from_url("https://api.example/v1", NAMES, request_format="xml")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://user:pass@api.example:8443/v1/x?key=1#part", "https://api.example:8443/v1/x"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://a:port/", "the address"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url, place):
    assert redact_url(url) == place


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)

    said = refused(from_url, "https://api.example/v1", NAMES)
    assert "httpx2" in said and "hf-fingerprint[blackbox]" in said


def test_a_png_keeps_every_pixel():
    from io import BytesIO

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)

    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_png(image)))), image)


def client(server):
    hub = pytest.importorskip("huggingface_hub")
    return hub.InferenceClient(model=server.url, token=TOKEN, timeout=5)


def test_a_client_of_the_hub_is_queried(server):
    server.shape = SHAPES["pipeline"]
    suspect = from_inference_client(client(server), NAMES, retry_policy=quick())

    assert [suspect(image_of_class(predicted_labels)) for predicted_labels in (3, 8)] == [3, 8]
    assert suspect.name == server.url
    assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert server.seen[0].headers["content-type"] == "image/png"


@pytest.mark.parametrize("fault", [Fault(429, {"Retry-After": "0"}), Fault(503), Fault(0)], ids=str)
def test_a_client_of_the_hub_asks_again_what_passes(server, fault):
    server.shape, server.faults = SHAPES["pipeline"], [fault]
    suspect = from_inference_client(client(server), NAMES, retry_policy=quick())

    assert suspect(image_of_class(5)) == 5
    assert suspect.retries == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_permanent_failure_of_the_hub_is_one_sentence(server, status):
    server.faults = [Fault(status, body=TOKEN.encode())]
    said = refused(from_inference_client(client(server), NAMES, retry_policy=quick()), image_of_class(5))

    assert server.url in said and str(status) in said and "esame" not in said and len(server.seen) == 1
    assert ("by its address" in said) == ("--request-format" in said) == (status in (400, 422))


@pytest.mark.parametrize("raw", [b"<html>", b"\xff\xfe", b"{}", b"3", b"[3]", b"null", b'{"error": "x"}', b"[" * 9999])
def test_garbage_through_a_client_of_the_hub_is_no_answer(server, raw):
    server.shape = SHAPES["pipeline"]
    suspect = from_inference_client(client(server), NAMES, retry_policy=quick())
    assert suspect(image_of_class(4)) == 4
    server.raw = raw

    assert suspect(image_of_class(4)) is None
    assert server.url in refused(from_inference_client(client(server), NAMES, retry_policy=quick()), image_of_class(4))


def test_a_client_of_the_hub_leaves_the_token_when_it_is_redirected(server):
    with LoopbackSuspect(SHAPES["pipeline"]) as other:
        server.faults = [Fault(307, {"Location": other.url})]

        assert from_inference_client(client(server), NAMES)(image_of_class(6)) == 6
        assert ["authorization" in seen.headers for seen in other.seen] == [False]


def test_a_hub_id_is_named_and_an_address_is_none():
    assert from_inference_client("org/name", NAMES).name == "hf:org/name"
    said = refused(from_inference_client, "https://user:sesame@api.example/v1", NAMES, TOKEN)
    assert "api.example" in said and "sesame" not in said
    refused(from_inference_client, "org/name/more", NAMES)
