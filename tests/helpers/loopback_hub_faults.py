"""What may go wrong between the loopback Hub and its clients, as often as a test wants it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


KINDS = ("status", "status after", "cut before", "cut after", "cut within")


@dataclass
class Fault:
    """Something that goes wrong with some requests. Put it into `LoopbackHub.faults`; the first that fits is taken.

    Args:
        match (`str`): a regular expression, searched for in `METHOD /path?query`. Every request, if it is empty.
        request (`int`, *optional*): the number of the only request that it is for, counted from 1 since the start
            of the server.
        kind (`str`): what happens.

            - `"status"`: an error is the answer, and nothing is done.
            - `"status after"`: what was asked for is done, but an error is the answer.
            - `"cut before"`: the connection is cut after the request has come, and nothing is done.
            - `"cut after"`: what was asked for is done, and the connection is cut instead of an answer.
            - `"cut within"`: what was asked for is done, and the connection is cut after the first half of the
              answer's body.
        status (`int`): the status of the error.
        message (`str`): its message. 401 always says what the Hub says of an expired token.
        headers (`dict[str, str]`): its headers, such as `Retry-After`.
        times (`int`): how many requests it is for.
        skip (`int`): how many fitting requests pass before it.
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
            raise ValueError(f"{self.kind!r} is none of {KINDS}")
        if self.status == 401:
            self.message = "Invalid credentials in Authorization header"

    def happens(self, number: int, asked: str) -> bool:
        """Whether it is for this request, which is then counted."""
        if self.times <= 0 or self.request not in (None, number) or not re.search(self.match, asked):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True
