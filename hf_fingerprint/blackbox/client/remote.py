"""Suspects behind an API: an address that takes an image and answers in JSON, or the Hub's inference providers.

A token is sent only to the address it was given for, never to another host that it redirects to. No error, log or name
holds it. A suspect's name is its address without user, query and fragment. Requests don't name this package.
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
from hf_fingerprint.blackbox.client.retries import RetryPolicy, TransientError, is_transient, require_library
from hf_fingerprint.blackbox.client.suspects import SuspectClient
from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.limits import MAX_CONFIG_VALUES, MAX_RESPONSE, megabytes, parse_json
from hf_fingerprint.checkpoints.plain_http import warn_plaintext_token
from hf_fingerprint.choices import REQUEST_FORMATS, RequestFormat, wrong_choice
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.retrying import retry_after


if TYPE_CHECKING:
    import threading

    import httpx2
    from huggingface_hub import InferenceClient

TIMEOUT = 30.0  # seconds
EXCHANGE_TIMEOUT_FACTOR = 4  # from the connection to the end of the response, redirects included
MAX_REDIRECTS = 5
_SAME_METHOD = (307, 308)
_ENCODINGS = ("", "identity", "gzip", "deflate")  # each expands at most a thousandfold; several would multiply
_PNG = "image/png"
_MAX_TEXT_LABEL = 200  # characters


def from_url(
    url: str,
    labels: Labels | Sequence[str],
    token: str | None = None,
    field: str | None = None,
    timeout: float = TIMEOUT,
    request_format: RequestFormat = "raw",
    request_field: str | None = None,
    retry_policy: RetryPolicy | None = None,
    user_agent: str | None = None,
) -> SuspectClient:
    """A suspect at an address that takes an image by POST and answers in JSON.

    Args:
        url (`str`): `http://` or `https://`.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        token (`str`, *optional*): sent as `Authorization: Bearer`.
        field (`str`, *optional*): the field of the response that holds the class; see [`parse_response`].
        timeout (`float`, *optional*, defaults to 30): seconds for the connection, and between any two parts of a
            response. The whole exchange, redirects included, may take four times as long.
        request_format (`str`, *optional*, defaults to `"raw"`): `"raw"` sends the PNG file, `"json"` an object with it
            in base64, `"multipart"` a form.
        request_field (`str`, *optional*): the image's field in the object (default `"inputs"`) or form (`"file"`).
        retry_policy ([`RetryPolicy`], *optional*): by default 5 requests a second and 5 attempts.
        user_agent (`str`, *optional*): sent as `User-Agent`; by default the HTTP library's own.

    Raises:
        [`FingerprintError`]: if an argument is invalid, or a library is missing.
    """
    require_library("httpx2")
    import httpx2

    shown, request_url, user = _split_url(url)
    if request_format not in REQUEST_FORMATS:
        raise FingerprintError(wrong_choice("request_format", request_format, REQUEST_FORMATS))
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"} | _user_agent_header(user_agent)
    if token is not None:
        headers["Authorization"] = f"Bearer {_check_token(token, shown)}"
    elif user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    if "Authorization" in headers:
        warn_plaintext_token(url, shown, "use an address that begins with https://")
    client, deadline = httpx2.Client(headers=headers, timeout=timeout), Deadline()
    extensions = {"trace": deadline.on_trace_event}

    def predict(image: np.ndarray) -> Any:
        content = _request_content(encode_png(image), request_format, request_field)
        request = client.build_request("POST", request_url, extensions=extensions, **content)
        with _http_logging_disabled(), deadline.limit(EXCHANGE_TIMEOUT_FACTOR * timeout) as expired:
            return _parse_body(_send(client, request, shown, expired))

    return SuspectClient(shown, predict, labels, field, retry_policy or RetryPolicy())


def from_inference_client(
    client: "InferenceClient | str",
    labels: Labels | Sequence[str],
    token: str | None = None,
    timeout: float = TIMEOUT,
    retry_policy: RetryPolicy | None = None,
    user_agent: str | None = None,
) -> SuspectClient:
    """A suspect that the Hub's inference client queries.

    Args:
        client (`huggingface_hub.InferenceClient` or `str`): a client with a model, or a Hub id, `org/name`.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        token (`str`, *optional*): for a Hub id; by default the token you are logged in with.
        timeout (`float`, *optional*, defaults to 30): seconds, for a Hub id.
        retry_policy ([`RetryPolicy`], *optional*): by default 5 requests a second and 5 attempts.
        user_agent (`str`, *optional*): sent as `User-Agent`, for a Hub id; by default the client's own.

    Raises:
        [`FingerprintError`]: if `client` is not a valid Hub id. An address is rejected, as the token would go to it.
    """
    if isinstance(client, str):
        name = f"hf:{client}"
        client = _hub_client(client, name, token, timeout, user_agent)
    else:
        model = client.model or "the recommended model"
        name = redact_url(model) if "://" in model else f"hf:{model}"
        if client.token:
            warn_plaintext_token(model, name, "use an address that begins with https://")
    return SuspectClient(name, _InferenceClientAdapter(client, name), labels, None, retry_policy or RetryPolicy())


def redact_url(url: str) -> str:
    """An address that is safe to show: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "the address"
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path, "", ""))


def encode_png(image: np.ndarray) -> bytes:
    """An image `(height, width, 3)`, `uint8`, as a PNG file."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _split_url(url: str) -> tuple[str, str, str | None]:
    """The parts of an address: `(shown, request_url, user)`, the last one `user:password` or `None`."""
    shown = redact_url(url)
    parts = urlsplit(url) if shown != "the address" else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise FingerprintError(f"{shown} can't be queried: give an address that begins with http:// or https://.")
    user = None
    if "@" in parts.netloc:
        user = ":".join(unquote(piece) for piece in parts.netloc.rpartition("@")[0].split(":", 1))
    return shown, urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")), user


def _check_token(token: str, shown: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise FingerprintError(f"The token for {shown} is not valid: give the whole token, without spaces.")
    return token


def _user_agent_header(user_agent: str | None) -> dict[str, str]:
    if user_agent is None:
        return {}
    if not user_agent.strip() or not user_agent.isascii() or not user_agent.isprintable():
        raise FingerprintError("The user agent is not valid: give a line of printable ASCII characters.")
    return {"User-Agent": user_agent.strip()}


def _request_content(png: bytes, request_format: str, request_field: str | None) -> dict[str, Any]:
    if request_format == "json":
        return {"json": {request_field or "inputs": base64.b64encode(png).decode()}}
    if request_format == "multipart":
        return {"files": {request_field or "file": ("image.png", png, _PNG)}}
    return {"content": png, "headers": {"Content-Type": _PNG}}


def _send(client: "httpx2.Client", request: "httpx2.Request", shown: str, expired: "threading.Event") -> bytes:
    import httpx2

    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if response.status_code not in _SAME_METHOD or response.next_request is None:
                    _check_status(response.status_code, response.headers, shown)
                    return _read_body(response, shown, expired)
                request = response.next_request  # without the token if the host is another
            finally:
                response.close()
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise FingerprintError(f"{shown} can't be queried ({type(error).__name__}): check the address.") from None
    except httpx2.RequestError as error:
        failed = "it took too long" if expired.is_set() else f"the connection failed ({type(error).__name__})"
        raise TransientError(failed) from None
    raise FingerprintError(f"{shown} redirects more than {MAX_REDIRECTS} times: give the address that it leads to.")


def _read_body(response: "httpx2.Response", shown: str, expired: "threading.Event") -> bytes:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in _ENCODINGS:
        remedy = "use an address that responds in gzip, deflate or none"
        raise FingerprintError(f"{shown} responds in the encoding {ascii(coding)[:80]}: {remedy}.")
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_RESPONSE:
            size = f"more than {megabytes(MAX_RESPONSE)} MB"
            raise FingerprintError(f"{shown} responds with {size}: give a classifier's address.")
        if expired.is_set():
            raise TransientError("it took too long")
    return bytes(body)


def _parse_body(body: bytes) -> Any:
    """The body as JSON, else as a short text, else `None`."""
    try:
        text = body.decode().strip()
        return parse_json(text, MAX_CONFIG_VALUES)
    except ValueError:
        return text if body.isascii() and len(text) <= _MAX_TEXT_LABEL and text.isprintable() else None


def _hub_client(model: str, name: str, token: str | None, timeout: float, user_agent: str | None) -> "InferenceClient":
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "://" in model:
        raise FingerprintError(f"{redact_url(model)} is not a Hub id: use from_url for an address.")
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise FingerprintError(f"{name} is not a valid Hub id: give hf:org/name.") from None
    token = None if token is None else _check_token(token, name)
    # lower case, as the client sends two otherwise
    headers = {key.lower(): value for key, value in _user_agent_header(user_agent).items()}
    return InferenceClient(model, token=token, timeout=timeout, headers=headers)


class _InferenceClientAdapter:
    """Queries a model through the Hub's inference client."""

    def __init__(self, client: "InferenceClient", name: str):
        self._client, self._name, self._answered = client, name, False

    def __call__(self, image: np.ndarray) -> Any:
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

        try:
            with _http_logging_disabled(), TemporaryDirectory() as folder:
                file = Path(folder) / "image.png"  # from bytes the client sends no content type
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
            if malformed and self._answered:  # it has responded before: this one response is not a list of labels
                return None
            raise self._error(error) from None
        self._answered = True
        return response

    def _error(self, error: Exception) -> FingerprintError:
        return FingerprintError(
            f"{self._name} can't be queried ({type(error).__name__}): check that an inference provider serves it for "
            f"image classification, and log in (hf auth login)."
        )


def _check_status(status: int, headers: Any, shown: str, by_id: bool = False) -> None:
    """Raises the error that an HTTP status stands for; `by_id` if the Hub's client made the request."""
    if 200 <= status < 300:
        return
    if is_transient(status):
        raise TransientError(f"it was unavailable (status {status})", retry_after(headers.get("Retry-After")))
    if 300 <= status < 400:
        target_url = redact_url(headers.get("Location", "")) or "elsewhere"
        raise FingerprintError(f"{shown} redirects to {target_url} (status {status}): give that address.")
    advice = "try another --request-format"
    if by_id:
        advice = (
            "check that an inference provider serves it for image classification, or query its endpoint by its "
            "address (https://...), with another --request-format"
        )
    messages = {
        400: f"rejects the request (status 400): {advice}",
        401: "needs a token or rejects the one given (status 401): name the variable that holds it by --token-env",
        403: "denies access to this token (status 403): use a token that has access",
        404: f"does not exist (status 404): check the {'id' if by_id else 'address'}",
    }
    problem = messages.get(status, f"rejects the request (status {status}): check what it needs, or {advice}")
    raise FingerprintError(f"{shown} {problem}.")


@contextmanager
def _http_logging_disabled() -> Iterator[None]:
    """Keeps the HTTP library from logging addresses: their query may hold a key."""
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
