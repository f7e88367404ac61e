"""Deliberate failures between the loopback Hub and its clients."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


KINDS = ("status", "status after", "cut before", "cut after", "cut within")


@dataclass
class Fault:
    """A failure of some requests. Append it to `LoopbackHub.faults`; the first that matches is used.

    Args:
        match (`str`): a regular expression, searched for in `METHOD /path?query`. An empty one matches every request.
        request (`int`, *optional*): the number of the only request that it applies to, counted from 1 since the start
            of the server.
        kind (`str`): the failure.

            - `"status"`: the response is an error, and nothing is done.
            - `"status after"`: the request is carried out, but the response is an error.
            - `"cut before"`: the connection is cut after the request, and nothing is done.
            - `"cut after"`: the request is carried out, and the connection is cut instead of a response.
            - `"cut within"`: the request is carried out, and the connection is cut after the first half of the
              answer's body.
        status (`int`): the status of the error.
        message (`str`): its message; a 401 always has the Hub's message for an expired token.
        headers (`dict[str, str]`): its headers, such as `Retry-After`.
        times (`int`): the number of requests that fail.
        skip (`int`): the number of matching requests that pass before.
    """

    match: str = ""
    request: int | None = None
    kind: str = "status"
    status: int = 503
    message: str = "Out of order"
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    skip: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}, got {self.kind!r}")
        if self.status == 401:
            self.message = "Invalid credentials in Authorization header"

    def happens(self, number: int, request_line: str) -> bool:
        """Returns whether this request fails, and counts it."""
        if self.times <= 0 or self.request not in (None, number) or not re.search(self.match, request_line):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True
