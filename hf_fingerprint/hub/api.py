"""Calls to the Hub: errors in one sentence, and retries."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hf_fingerprint.checkpoints.plain_http import warn_plaintext_hub_token
from hf_fingerprint.errors import FingerprintError, HubError
from hf_fingerprint.retrying import retry, retry_after


T = TypeVar("T")
MAX_ATTEMPTS = 4
_RESUME_HINT = "run the command again to resume"


@contextmanager
def translate_errors(repo: str, token: str | bool | None = None) -> Iterator[None]:
    """Turns errors of the Hub client into one sentence that holds no token, URL or response. Warns if a token would be
    sent to the Hub over plain http.

    Raises:
        [`HubError`]: if the Hub refuses a request or can't be reached.
    """
    warn_plaintext_hub_token(token)
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
    """Whether the connection failed. Compares class names, since the client's HTTP library depends on its version."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & {"TransportError", "RequestException"})


def _error_message(repo: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return f"{repo} is not a valid Hub id: give org/name."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"Publishing to {repo} needs a token with write access: log in (hf auth login), then {_RESUME_HINT}."
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status == 401 and not isinstance(error, errors.RepositoryNotFoundError):
        return f"The Hub rejects the token for {repo}: log in again (hf auth login), then {_RESUME_HINT}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo} is not on the Hub, or this token can't read it: check the id and log in (hf auth login)."
    if status == 403:
        return f"The token can't write to {repo}: use a token with write access."
    if status == 412:
        return f"Another commit to {repo} came first: check what changed, then {_RESUME_HINT}."
    if status == 429:
        return f"The Hub's rate limit is reached for {repo}: wait some minutes, then {_RESUME_HINT}."
    if status is not None and status >= 500:
        return f"The Hub fails for {repo} (status {status}): wait, then {_RESUME_HINT}."
    if status is not None:
        return f"The Hub refuses a request for {repo} (status {status}): check the id and the token's rights."
    if _is_transport_error(error):
        return f"The connection to the Hub failed for {repo} ({type(error).__name__}): {_RESUME_HINT}."
    return f"Publishing to {repo} failed ({type(error).__name__}): {_RESUME_HINT}."
