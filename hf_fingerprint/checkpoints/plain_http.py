"""Warnings, before anything is sent, about tokens that go over an unencrypted connection."""

import warnings
from ipaddress import ip_address
from urllib.parse import urlsplit

from hf_fingerprint.errors import FingerprintWarning


def warn_plaintext_token(url: str, place: str, remedy: str) -> None:
    """Warns if a token is sent to `url` unencrypted.

    Args:
        url (`str`): the address.
        place (`str`): its name in the warning.
        remedy (`str`): what to do about it.
    """
    if _is_unencrypted(url):
        text = f"The token for {place} goes over plain http, where anyone on the network can read it: {remedy}."
        warnings.warn(text, FingerprintWarning, stacklevel=1)  # this location, so that each text is shown once


def warn_plaintext_hub_token(token: str | bool | None = None) -> None:
    """Warns if a token is sent to the Hub unencrypted, because `HF_ENDPOINT` is a plain http address.

    Args:
        token (`str` or `bool`, *optional*): as for [`HubOptions`]. Defaults to the token of this machine, if any.
    """
    from huggingface_hub import constants, get_token

    if not _is_unencrypted(constants.ENDPOINT):
        return
    implicit = token is True or (token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN)
    if isinstance(token, str) or (implicit and get_token() is not None):
        host = urlsplit(constants.ENDPOINT).hostname
        warn_plaintext_token(
            constants.ENDPOINT, f"http://{host}", "set HF_ENDPOINT to an address that begins with https://"
        )


def _is_unencrypted(url: str) -> bool:
    """Whether an address is plain http and not on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme != "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True
