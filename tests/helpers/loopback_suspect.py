"""A suspect behind HTTP on loopback: it classifies images by the color of the first pixel, with a configurable
response and faults."""

import base64
import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.loopback_hub_http import LoopbackServer, cut


@dataclass
class SeenRequest:
    """A received request."""

    method: str
    path: str
    headers: dict[str, str]
    pixel: int | None
    body: bytes = b""


@dataclass
class Fault:
    """A faulty response: a status with headers and a body; `status` 0 closes the connection.

    It is delayed by `seconds`. With `drip`, its bytes come one at a time, this many seconds apart. With `trickle`,
    headers come without end, this many seconds apart.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    seconds: float = 0.0
    drip: float = 0.0
    trickle: float = 0.0


class LoopbackSuspect:
    """A server that responds with `shape(class)` as JSON; the class is the red of the image's first pixel.

    Faults come first, each once. With `raw`, it responds with these bytes instead.
    """

    def __init__(self, shape: Callable[[int], Any] = lambda label: label):
        self.shape = shape
        self.faults: list[Fault] = []
        self.seen: list[SeenRequest] = []
        self.raw: bytes | None = None
        self.released = threading.Event()
        self._server = LoopbackServer(type("Handler", (_Handler,), {"suspect": self}))
        self.url = self._server.url + "/classify"

    def __enter__(self) -> "LoopbackSuspect":
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self._server.stop()


class _Handler(BaseHTTPRequestHandler):
    suspect: LoopbackSuspect
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        label = self._class_of(body)
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.suspect.seen.append(SeenRequest(self.command, self.path, headers, label, body))
        if self.suspect.faults:
            fault = self.suspect.faults.pop(0)
            if fault.seconds:
                self.suspect.released.wait(fault.seconds)
            if not fault.status:
                self.close_connection = True
                cut(self.connection)
                return
            if fault.trickle:
                self._trickle(fault.trickle)
                return
            self._send(fault.status, fault.body, fault.headers, fault.drip)
            return
        raw = self.suspect.raw
        self._send(200, json.dumps(self.suspect.shape(label)).encode() if raw is None else raw, {})

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def _send(self, status: int, body: bytes, headers: dict[str, str], drip: float = 0.0) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for piece in [body[i : i + 1] for i in range(len(body))] if drip else [body]:
            self.wfile.write(piece)
            if drip and self.suspect.released.wait(drip):
                break

    def _trickle(self, seconds: float) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):  # until the other side has had enough
            while not self.suspect.released.wait(seconds):
                self.wfile.write(b"X: y\r\n")

    def _class_of(self, body: bytes) -> int | None:
        kind = self.headers.get("Content-Type", "")
        if kind == "application/json":
            body = base64.b64decode(next(iter(json.loads(body).values())))
        elif kind.startswith("multipart/"):
            form = BytesParser(EmailMessage, policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
            (part,) = form.iter_parts()
            assert part.get_content_type() == "image/png"
            body = part.get_payload(decode=True)
        elif kind != "image/png":
            return None
        return int(np.asarray(Image.open(BytesIO(body)))[0, 0, 0])


def image_of_class(label: int, size: int = 8) -> np.ndarray:
    """An image that a loopback suspect classifies as `label`: `(size, size, 3)`, `uint8`."""
    image = np.random.default_rng(label).integers(0, 256, (size, size, 3)).astype(np.uint8)
    image[0, 0, 0] = label
    return image
