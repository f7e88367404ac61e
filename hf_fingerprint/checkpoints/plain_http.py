"""Tokens that go to an address without encryption: done as asked, and warned of before anything is sent."""

import warnings
from ipaddress import ip_address
from urllib.parse import urlsplit

from hf_fingerprint.errors import FingerprintWarning


def warn_plaintext_token(url: str, place: str, remedy: str) -> None:
    """Warns if whoever is on the way to an address can read a token that is sent there.

    Args:
        url (`str`): the address.
        place (`str`): the same as it may be shown.
        remedy (`str`): what to do about it.
    """
    if _is_unencrypted(url):
        text = f"The token for {place} goes over plain http, where anyone on the way can read it: {remedy}."
        warnings.warn(text, FingerprintWarning, stacklevel=1)  # from here, so that one address is named once


def warn_plaintext_hub_token() -> None:
    """The same of the Hub's token, where `HF_ENDPOINT` has such an address and somebody is logged in."""
    from huggingface_hub import constants, get_token

    if not _is_unencrypted(constants.ENDPOINT):
        return
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and get_token() is not None:
        host = urlsplit(constants.ENDPOINT).hostname
        warn_plaintext_token(
            constants.ENDPOINT, f"http://{host}", "set HF_ENDPOINT to an address that begins with https://"
        )


def _is_unencrypted(url: str) -> bool:
    """Whether an address is reached without encryption and not on this machine."""
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
