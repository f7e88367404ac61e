"""HTTP of the loopback Hub: connections, requests with their bodies, responses and faults."""

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.loopback_hub_faults import Fault
from tests.helpers.loopback_hub_repos import Account, Call, Received, Refusal


if TYPE_CHECKING:
    from tests.helpers.loopback_hub import LoopbackHub


class LoopbackServer(ThreadingHTTPServer):
    """A server in separate threads that keeps connections open, and closes all of them in `stop`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self._open: set[socket.socket] = set()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Registers a connection and serves it."""
        with self._changing:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._changing:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints errors of the server, except for clients that disconnected."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Refuses new connections, and closes open ones."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._changing:
            for connection in self._open:
                cut(connection)
        deadline = time.monotonic() + 5
        while self._open and time.monotonic() < deadline:
            time.sleep(0.002)


class HttpHandler(BaseHTTPRequestHandler):
    """Reads requests, calls the method that `ROUTES` names, and sends its response."""

    hub: "LoopbackHub"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each response on a kept connection waits for an acknowledgment
    ROUTES: tuple[tuple[str, re.Pattern[str], str], ...] = ()
    STORE = re.compile(r"/lfs-store/(?P<sha256>[0-9a-f]{64})")

    body = b""
    fault: Fault | None = None

    def do_GET(self) -> None:
        """A GET request."""
        self._dispatch()

    def do_HEAD(self) -> None:
        """A HEAD request."""
        self._dispatch()

    def do_POST(self) -> None:
        """A POST request."""
        self._dispatch()

    def do_PUT(self) -> None:
        """A PUT request."""
        self._dispatch()

    def do_DELETE(self) -> None:
        """A DELETE request."""
        self._dispatch()

    def token(self) -> str | None:
        """Returns the token of the request."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def account(self) -> Account | None:
        """Returns the account of the token."""
        return next((known for known in self.hub.accounts.values() if self.token() in known.tokens), None)

    def query(self, name: str) -> list[str]:
        """Returns the values of a query parameter."""
        return parse_qs(urlsplit(self.path).query).get(name, [])

    def asks_for(self, name: str) -> bool:
        """Returns whether a query parameter is set to true."""
        return any(value.lower() in {"true", "1"} for value in self.query(name))

    def json(self) -> dict[str, Any]:
        """Returns the request's body, which must be a JSON object."""
        try:
            content = json.loads(self.body)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise Refusal(400, None, "The body is no JSON object")
        return content

    def send(self, status: int, body: bytes | memoryview, headers: Mapping[str, str] | None = None) -> None:
        """Sends a response; to HEAD, without its body. A fault may replace it."""
        kind = "" if self.fault is None else self.fault.kind
        if kind == "cut after":
            self._cut()
            return
        if kind == "status after":
            self._send_fault()
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if kind == "cut within" else body)
        if kind == "cut within":
            self._cut()

    def send_json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Sends a response in JSON."""
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: `calls` and `received` are the log."""

    def _dispatch(self) -> None:
        self.body = self._whole_body()
        call = Call(self.command, self.path, self.token())
        self.fault = self.hub.note(call, Received(self.command, self.path, dict(self.headers.items()), self.body))
        try:
            if self.fault is not None and self.fault.kind == "cut before":
                self._cut()
            elif self.fault is not None and self.fault.kind == "status":
                self._send_fault()
            else:
                self._answer()
        finally:
            self.fault, self.body = None, b""  # reset for the next request on this connection

    def _answer(self) -> None:
        try:
            for part, status in self.hub.failing.items():
                if part in self.path:
                    raise Refusal(status, None, "Out of order")
            if self.token() is not None and self.token() not in self.hub.tokens and self.account() is None:
                raise Refusal(401, None, "Invalid credentials in Authorization header")
            self._route()
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            headers = (headers if refusal.status >= 400 else {}) | refusal.headers
            self.send_json({"error": refusal.message} | refusal.body, refusal.status, headers)

    def _route(self) -> None:
        path = urlsplit(self.path).path
        for method, pattern, name in self.ROUTES:
            match = pattern.fullmatch(path)
            if match and method == self.command:
                parts = {key: value if value is None else unquote(value) for key, value in match.groupdict().items()}
                getattr(self, name)(**parts)
                return
        raise Refusal(404, None, f"{self.command} {path} is not answered by the loopback hub")

    def _whole_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match = self.STORE.fullmatch(urlsplit(self.path).path)
        held = self.hub.store.get(match["sha256"]) if match else None
        return held if held is not None and held == body else body  # an object that is sent again is stored once

    def _send_fault(self) -> None:
        fault, self.fault = self.fault, None
        assert fault is not None
        headers = {"X-Error-Message": fault.message, **fault.headers}
        self.send_json({"error": fault.message}, fault.status, headers)

    def _cut(self) -> None:
        self.close_connection = True
        cut(self.connection)


def cut(connection: socket.socket) -> None:
    """Ends a connection in both directions, even if the other side closed it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
