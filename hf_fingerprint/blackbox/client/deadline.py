"""An end to HTTP exchanges that take too long in all.

A client's own timeouts start anew with every byte that comes, so a service that sends a header a second holds it for
hours. Here the sockets of an exchange are shut down when its time is over, wherever it is just then.
"""

import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


_CONNECT_EVENTS = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Deadline:
    """Watches the connections of one client.

    `on_trace_event` is the callable for a request's `trace` extension, by which it learns of the client's connections.
    """

    def __init__(self) -> None:
        self._sockets: deque[socket.socket] = deque(maxlen=8)  # an exchange has one, and one for each redirect

    def on_trace_event(self, event: str, info: Mapping[str, Any]) -> None:
        """Takes notice of a connection that was opened."""
        if event in _CONNECT_EVENTS:
            opened = info["return_value"].get_extra_info("socket")
            if isinstance(opened, socket.socket):
                self._sockets.append(opened)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[threading.Event]:
        """Shuts the connections down if the block isn't left within so many seconds.

        Yields:
            `threading.Event`: set once that has happened.
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
            with suppress(OSError):  # closed since
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # below TLS, which would wait for the other side
