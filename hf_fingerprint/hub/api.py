"""The Hub's client as publishing uses it: refusals in one sentence, patience with what passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hf_fingerprint.checkpoints.plain_http import warn_plaintext_hub_token
from hf_fingerprint.errors import FingerprintError, HubError
from hf_fingerprint.retrying import retry, retry_after


T = TypeVar("T")
MAX_ATTEMPTS = 4
_RESUME_HINT = "run the same command again to go on"


@contextmanager
def translate_errors(repo: str) -> Iterator[None]:
    """Turns whatever the client raises into one sentence, without the token, addresses or answers in it. Warns
    of a token that is about to go to the Hub over plain http.

    Raises:
        [`HubError`]: what the Hub refuses, or that it can't be reached.
    """
    warn_plaintext_hub_token()
    try:
        yield
    except FingerprintError:
        raise
    except Exception as error:
        raise HubError(_error_message(repo, error)) from None


def with_retries(call: Callable[[], T]) -> T:
    """The result of a call to the Hub, which is repeated if the Hub is busy or the connection fails. The call must be
    safe to repeat."""
    return retry(call, MAX_ATTEMPTS, _delay)


def _delay(error: Exception, attempt: int) -> float | None:
    """Seconds before the next attempt; `None` for a failure that will not pass."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, FingerprintError | HFValidationError):
        return None
    if isinstance(error, HfHubHTTPError):
        status, headers = error.response.status_code, error.response.headers
        if status != 429 and status < 500:
            return None
        requested = retry_after(headers.get("Retry-After"))
        return 2.0 ** (attempt - 1) if requested is None else requested
    return 0.5 * 2.0 ** (attempt - 1) if _is_transport_error(error) else None


def _is_transport_error(error: Exception) -> bool:
    """Whether the connection failed; the client's HTTP library changed over its versions."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & {"TransportError", "RequestException"})


def _error_message(repo: str, error: Exception) -> str:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return f"{repo} is not a possible Hub id: give org/name."
    if isinstance(error, LocalTokenNotFoundError):
        return f"Publishing to {repo} needs a token that may write there: log in (hf auth login), then {_RESUME_HINT}."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"The Hub rejects the token in use for {repo}: log in again (hf auth login), then {_RESUME_HINT}."
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo} is not on the Hub, or this token may not see it: check the id and log in (hf auth login)."
    if status == 403:
        return f"The token in use may not write to {repo}: use one of an account with write access there."
    if status == 412:
        return f"Somebody else committed to {repo} meanwhile: look at what changed there, then {_RESUME_HINT}."
    if status == 429:
        return f"The Hub takes no more requests for {repo} at present: wait some minutes, then {_RESUME_HINT}."
    if status is not None and status >= 500:
        return f"The Hub is out of order for {repo} (status {status}): wait, then {_RESUME_HINT}."
    if status is not None:
        return f"The Hub refuses a request for {repo} (status {status}): check the id and the token's rights."
    if _is_transport_error(error):
        return f"The connection to the Hub broke off at {repo} ({type(error).__name__}): {_RESUME_HINT}."
    return f"Publishing to {repo} failed ({type(error).__name__}): {_RESUME_HINT}."
