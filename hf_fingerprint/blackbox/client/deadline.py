"""A limit on the total time of an HTTP exchange.

The timeouts of HTTP clients start anew with every byte, so a service that sends one header a second keeps a client
busy for hours. A [`Deadline`] shuts the sockets of the exchange down once its time is over.
"""

import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


_CONNECT_EVENTS = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Deadline:
    """A time limit for the exchanges of one HTTP client.

    Pass `on_trace_event` as a request's `trace` extension, so that the deadline learns of the client's connections.
    """

    def __init__(self) -> None:
        self._sockets: deque[socket.socket] = deque(maxlen=8)  # one for the request and one for each redirect

    def on_trace_event(self, event: str, info: Mapping[str, Any]) -> None:
        """Remembers the socket of a new connection."""
        if event in _CONNECT_EVENTS:
            opened = info["return_value"].get_extra_info("socket")
            if isinstance(opened, socket.socket):
                self._sockets.append(opened)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[threading.Event]:
        """Shuts the connections down if the block takes longer than `seconds`.

        Yields:
            `threading.Event`: set once the connections are shut down.
        """
        expired = threading.Event()
        timer = threading.Timer(seconds, self._shut_down_sockets, [expired])
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()

    def _shut_down_sockets(self, expired: threading.Event) -> None:
        expired.set()
        for each in list(self._sockets):
            with suppress(OSError):  # already closed
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # beneath TLS, whose shutdown waits for the peer
