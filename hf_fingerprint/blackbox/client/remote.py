"""Suspects behind an API: any address that takes a picture and answers in JSON, and the Hub's inference providers.

Tokens go to the address they were given for and nowhere else: not with a redirect to another host, into no error, log
or name. A name keeps of an address what no secret is usually part of: no user, query or fragment. Nothing that is sent
names this package: by default a suspect sees the user agent of the HTTP library, or of the Hub's client.
"""

import base64
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.blackbox.client.deadline import Deadline
from hf_fingerprint.blackbox.client.retries import (
    RetryPolicy,
    TransientError,
    is_transient,
    require_library,
    retry_after,
)
from hf_fingerprint.blackbox.client.suspects import SuspectClient
from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.limits import MAX_CONFIG_VALUES, MAX_RESPONSE, megabytes, parse_json
from hf_fingerprint.checkpoints.plain_http import warn_plaintext_token
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import threading

    import httpx2
    from huggingface_hub import InferenceClient

REQUEST_FORMATS = ("raw", "json", "multipart")
TIMEOUT = 30.0  # seconds
EXCHANGE_TIMEOUT_FACTOR = 4  # times as long for a whole exchange: connection, headers, redirects and reply
MAX_REDIRECTS = 5
_SAME_METHOD = (307, 308)
_ENCODINGS = ("", "identity", "gzip", "deflate")  # each at most a thousand times its size; several would multiply
_PNG = "image/png"
_MAX_TEXT_LABEL = 200  # letters of a class's name


def from_url(
    url: str,
    labels: Labels | Sequence[str],
    token: str | None = None,
    field: str | None = None,
    timeout: float = TIMEOUT,
    request_format: str = "raw",
    request_field: str | None = None,
    retry_policy: RetryPolicy | None = None,
    user_agent: str | None = None,
) -> SuspectClient:
    """Asks an address that takes a picture by POST and answers in JSON.

    Args:
        url (`str`): `http://` or `https://`.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        token (`str`, *optional*): sent as `Authorization: Bearer`.
        field (`str`, *optional*): where in the reply the class is, as for [`parse_response`].
        timeout (`float`, *optional*, defaults to 30): seconds for the connection, and between any two parts of a
            reply; four times as long from the connection to the reply's end, redirects included.
        request_format (`str`, *optional*, defaults to `"raw"`): `"raw"`, the PNG as it is; `"json"`, in base64 in an object;
            `"multipart"`, as a form sends it.
        request_field (`str`, *optional*): the name of the object's or form's field, by default `"inputs"` and `"file"`.
        retry_policy ([`RetryPolicy`], *optional*): by default 5 requests a second and 5 tries.
        user_agent (`str`, *optional*): sent as `User-Agent`; by default the HTTP library's own.

    Raises:
        [`FingerprintError`]: if the address, the token, the style or the user agent is impossible, or a library is
            missing.
    """
    require_library("httpx2")
    import httpx2

    display_url, request_url, user = _split_url(url)
    if request_format not in REQUEST_FORMATS:
        raise FingerprintError(
            f"{display_url} can't be asked in the style {request_format!r}: choose {', '.join(REQUEST_FORMATS)}."
        )
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"} | _user_agent_header(user_agent)
    if token is not None:
        headers["Authorization"] = f"Bearer {_check_token(token, display_url)}"
    elif user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    if "Authorization" in headers:
        warn_plaintext_token(url, display_url, "ask by an address that begins with https://")
    client, deadline = httpx2.Client(headers=headers, timeout=timeout), Deadline()
    extensions = {"trace": deadline.on_trace_event}

    def predict(image: np.ndarray) -> Any:
        request = client.build_request(
            "POST",
            request_url,
            extensions=extensions,
            **_request_content(encode_png(image), request_format, request_field),
        )
        with _http_logging_disabled(), deadline.limit(EXCHANGE_TIMEOUT_FACTOR * timeout) as expired:
            return _parse_body(_send(client, request, display_url, expired))

    return SuspectClient(display_url, predict, labels, field, retry_policy or RetryPolicy())


def from_inference_client(
    client: "InferenceClient | str",
    labels: Labels | Sequence[str],
    token: str | None = None,
    timeout: float = TIMEOUT,
    retry_policy: RetryPolicy | None = None,
    user_agent: str | None = None,
) -> SuspectClient:
    """Asks a model through the Hub's inference client.

    Args:
        client (`huggingface_hub.InferenceClient` or `str`): a client with its model, or a Hub id, `org/name`.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        token (`str`, *optional*): for a Hub id; by default the one logged in with.
        timeout (`float`, *optional*, defaults to 30): seconds, for a Hub id.
        retry_policy ([`RetryPolicy`], *optional*): by default 5 requests a second and 5 tries.
        user_agent (`str`, *optional*): sent as `User-Agent`, for a Hub id; by default the client's own.

    Raises:
        [`FingerprintError`]: if there is no such id, or an address is given, which the token would go to.
    """
    if isinstance(client, str):
        name = f"hf:{client}"
        client = _make_inference_client(client, name, token, timeout, user_agent)
    else:
        model = client.model or "the recommended model"
        name = redact_url(model) if "://" in model else f"hf:{model}"
        if client.token:
            warn_plaintext_token(model, name, "ask by an address that begins with https://")
    adapter = _InferenceClientAdapter(client, name)
    return SuspectClient(name, adapter, labels, None, retry_policy or RetryPolicy())


def redact_url(url: str) -> str:
    """An address as it may be shown: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "the address"
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path, "", ""))


def encode_png(image: np.ndarray) -> bytes:
    """An image `(height, width, 3)`, `uint8`, as a PNG file, which keeps every pixel."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _split_url(url: str) -> tuple[str, str, str | None]:
    """An address: as it may be shown, as it is asked, and `user:password`."""
    display_url = redact_url(url)
    parts = urlsplit(url) if display_url != "the address" else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise FingerprintError(f"{display_url} can't be asked: give an address that begins with http:// or https://.")
    user = None
    if "@" in parts.netloc:
        user = ":".join(unquote(request_field) for request_field in parts.netloc.rpartition("@")[0].split(":", 1))
    return display_url, urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")), user


def _check_token(token: str, display_url: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise FingerprintError(f"The token for {display_url} is none: see that it is whole, without spaces.")
    return token


def _user_agent_header(user_agent: str | None) -> dict[str, str]:
    if user_agent is None:
        return {}
    if not user_agent.strip() or not user_agent.isascii() or not user_agent.isprintable():
        raise FingerprintError("The user agent is none: give a line of ASCII characters.")
    return {"User-Agent": user_agent.strip()}


def _request_content(picture: bytes, request_format: str, request_field: str | None) -> dict[str, Any]:
    if request_format == "json":
        return {"json": {request_field or "inputs": base64.b64encode(picture).decode()}}
    if request_format == "multipart":
        return {"files": {request_field or "file": ("image.png", picture, _PNG)}}
    return {"content": picture, "headers": {"Content-Type": _PNG}}


def _send(client: "httpx2.Client", request: "httpx2.Request", display_url: str, expired: "threading.Event") -> bytes:
    import httpx2

    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if response.status_code not in _SAME_METHOD or response.next_request is None:
                    _check_status(response.status_code, response.headers, display_url)
                    return _read_body(response, display_url, expired)
                request = response.next_request  # without the token, where it leads to another host
            finally:
                response.close()
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise FingerprintError(f"{display_url} can't be asked ({type(error).__name__}): check the address.") from None
    except httpx2.RequestError as error:
        if expired.is_set():
            raise TransientError("it took too long") from None
        raise TransientError(f"the connection failed ({type(error).__name__})") from None
    raise FingerprintError(
        f"{display_url} redirects more than {MAX_REDIRECTS} times: give the address that it leads to."
    )


def _read_body(response: "httpx2.Response", display_url: str, expired: "threading.Event") -> bytes:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in _ENCODINGS:
        raise FingerprintError(
            f"{display_url} answers in the encoding {ascii(coding)[:80]}: give an address that doesn't."
        )
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_RESPONSE:
            raise FingerprintError(
                f"{display_url} answers with more than {megabytes(MAX_RESPONSE)} MB: give an address that tells classes."
            )
        if expired.is_set():
            raise TransientError("it took too long")
    return bytes(body)


def _parse_body(body: bytes) -> Any:
    """JSON, or a short text as it is, or nothing."""
    try:
        text = body.decode().strip()
        return parse_json(text, MAX_CONFIG_VALUES)
    except ValueError:
        return text if body.isascii() and len(text) <= _MAX_TEXT_LABEL and text.isprintable() else None


def _make_inference_client(
    model: str, name: str, token: str | None, timeout: float, user_agent: str | None
) -> "InferenceClient":
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "://" in model:
        raise FingerprintError(f"{redact_url(model)} is no Hub id: ask it by its address, as from_url does.")
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise FingerprintError(f"{name} is not a possible Hub id: give hf:org/name.") from None
    token = None if token is None else _check_token(token, name)
    headers = {key.lower(): value for key, value in _user_agent_header(user_agent).items()}  # or the client sends both
    return InferenceClient(model, token=token, timeout=timeout, headers=headers)


class _InferenceClientAdapter:
    """Asks through a client of the Hub."""

    def __init__(self, client: "InferenceClient", name: str):
        self._client, self._name, self._answered = client, name, False

    def __call__(self, image: np.ndarray) -> Any:
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

        try:
            with _http_logging_disabled(), TemporaryDirectory() as folder:
                file = Path(folder) / "image.png"  # of bytes alone, the client would not say that they are a PNG
                file.write_bytes(encode_png(image))
                response = self._client.image_classification(file)
        except HfHubHTTPError as error:
            _check_status(error.response.status_code, error.response.headers, self._name, by_id=True)
            raise self._error(error) from None
        except InferenceTimeoutError:
            raise TransientError("it took too long") from None
        except Exception as error:
            if isinstance(error, OSError) and is_disk_full_error(error):
                raise disk_full_error(Path(gettempdir())) from None
            if "TransportError" in {kind.__name__ for kind in type(error).__mro__}:
                raise TransientError(f"the connection failed ({type(error).__name__})") from None
            malformed = isinstance(error, ValueError | TypeError | AttributeError | KeyError | RecursionError)
            if malformed and self._answered:  # whoever answered before can be asked: this is no list of labels
                return None
            raise self._error(error) from None
        self._answered = True
        return response

    def _error(self, error: Exception) -> FingerprintError:
        return FingerprintError(
            f"{self._name} can't be asked ({type(error).__name__}): see that an inference provider serves it for "
            f"image classification, and log in (hf auth login)."
        )


def _check_status(status: int, headers: Any, display_url: str, by_id: bool = False) -> None:
    """Raises what a status asks for, unless it is well; `by_id` tells that the Hub's client chose how to ask."""
    if 200 <= status < 300:
        return
    if is_transient(status):
        raise TransientError(f"it said it can't (status {status})", retry_after(headers.get("Retry-After")))
    if 300 <= status < 400:
        target_url = redact_url(headers.get("Location", "")) or "elsewhere"
        raise FingerprintError(f"{display_url} redirects to {target_url} (status {status}): give that address.")
    otherwise = "try another --style"
    if by_id:
        otherwise = (
            "see that an inference provider serves it for image classification, or ask its endpoint by its address "
            "(https://...), with another --style"
        )
    messages = {
        400: f"rejects the request (status 400): {otherwise}",
        401: "asks for a token or rejects the one given (status 401): name the variable with it by --token-env",
        403: "doesn't let this token ask (status 403): use one with the right to",
        404: f"is not there (status 404): check the {'id' if by_id else 'address'}",
    }
    problem = messages.get(status, f"refuses to answer (status {status}): see what it asks for, or {otherwise}")
    raise FingerprintError(f"{display_url} {problem}.")


@contextmanager
def _http_logging_disabled() -> Iterator[None]:
    """Keeps the HTTP library from logging addresses, whose query may hold a key."""
    loggers = [logging.getLogger(name) for name in ("httpx", "httpx2")]
    for logger in loggers:
        logger.addFilter(_reject_record)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_reject_record)


def _reject_record(record: logging.LogRecord) -> bool:
    return False
