"""What crosses between owner and holders: features and feature gradients, as raw numbers behind a fixed header.

    holder -> owner   FEATURES    the codes of a batch at the first cut
    owner -> holder   OUTPUTS     the features at the second cut, before the loss: logits
    holder -> owner   GRADIENTS   of the holder's loss in those

A message is a header of nine little-endian 64-bit integers (magic, kind, step, axes, up to four lengths, bytes) and
then that many bytes of little-endian `float32`. Nothing is pickled, nothing else is said: a receiver states the kind,
the step and the shape it waits for, and takes no other.
"""

import math
from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist

from hf_fingerprint.errors import FingerprintError


MAGIC = int.from_bytes(b"hffpwir1", "little")
HEADER_BYTES, MAX_AXES = 72, 4


class MessageKind(IntEnum):
    """What a message holds."""

    FEATURES = 1
    OUTPUTS = 2
    GRADIENTS = 3


def pack(kind: MessageKind, step: int, tensor: torch.Tensor) -> bytes:
    """A message.

    Args:
        kind ([`MessageKind`]): what it is.
        step (`int`): of the training, from 0.
        tensor (`torch.Tensor`): up to four axes; sent as `float32`.
    """
    if tensor.dim() > MAX_AXES:
        raise FingerprintError(f"A tensor of {tensor.dim()} axes can't be sent: {MAX_AXES} are the most.")
    numbers = tensor.detach().cpu().contiguous().numpy().astype("<f4")
    lengths = [*numbers.shape, *(0,) * (MAX_AXES - numbers.ndim)]
    return np.array([MAGIC, kind, step, numbers.ndim, *lengths, numbers.nbytes], "<i8").tobytes() + numbers.tobytes()


def unpack(message: bytes) -> tuple[MessageKind, int, torch.Tensor]:
    """Kind, step and tensor of a message.

    Raises:
        [`FingerprintError`]: if it is none, or of another length than its header says.
    """
    kind, step, shape = read_header(message[:HEADER_BYTES])
    body = message[HEADER_BYTES:]
    if len(body) != 4 * math.prod(shape):
        raise FingerprintError(f"A message of {len(body)} bytes should have {4 * math.prod(shape)}: it was cut off.")
    return kind, step, torch.from_numpy(np.frombuffer(body, "<f4").astype(np.float32)).reshape(shape)


def read_header(header: bytes) -> tuple[MessageKind, int, tuple[int, ...]]:
    """Kind, step and shape.

    Raises:
        [`FingerprintError`]: if it is no header.
    """
    numbers = np.frombuffer(header, "<i8").tolist() if len(header) == HEADER_BYTES else [0] * (HEADER_BYTES // 8)
    magic, kind, step, axes, *lengths, size = numbers
    shape = tuple(lengths[: max(0, axes)])
    if magic != MAGIC or not 0 <= axes <= MAX_AXES or kind not in list(MessageKind) or min(shape, default=0) < 0:
        raise FingerprintError("What came over the wire is no message of this protocol: check both sides' versions.")
    if any(lengths[axes:]) or size != 4 * math.prod(shape):
        raise FingerprintError("A message's header contradicts itself: check both sides' versions.")
    return MessageKind(kind), step, shape


class Wire:
    """The connection to one other process, over `torch.distributed` (gloo) as Accelerate starts it.

    Args:
        peer (`int`): the other's rank.
        on_message (callable, *optional*): is shown every message's bytes, with `"sent"` or `"received"`.
    """

    def __init__(self, peer: int, on_message: Callable[[str, bytes], None] | None = None):
        self.peer, self._on_message = peer, on_message

    def __repr__(self) -> str:
        return f"Wire(peer={self.peer})"

    def send(self, kind: MessageKind, step: int, tensor: torch.Tensor) -> None:
        """Sends a tensor.

        Raises:
            [`FingerprintError`]: if the connection ended.
        """
        message = bytearray(pack(kind, step, tensor))
        if self._on_message is not None:
            self._on_message("sent", bytes(message))
        message_tensor = torch.frombuffer(message, dtype=torch.uint8)
        self._transfer(dist.send, message_tensor[:HEADER_BYTES], step)
        self._transfer(dist.send, message_tensor[HEADER_BYTES:], step)

    def receive(self, kind: MessageKind, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Waits for a tensor of a kind, step and shape; a length of -1 stands for any from 1 to a million.

        Raises:
            [`FingerprintError`]: if the connection ended, or something else came.
        """
        header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        self._transfer(dist.recv, header, step)
        header_values = read_header(header.numpy().tobytes())
        fits = len(header_values[2]) == len(shape) and all(
            want == have or (want == -1 and 1 <= have <= 1_000_000)
            for want, have in zip(shape, header_values[2], strict=True)
        )
        if header_values[:2] != (kind, step) or not fits:
            raise FingerprintError(
                f"Process {self.peer} sent {header_values[0].name.lower()} of shape {header_values[2]} for step {header_values[1]} where "
                f"{kind.name.lower()} of shape {shape} for step {step} were due: start all with the same settings."
            )
        body = torch.empty(4 * math.prod(header_values[2]), dtype=torch.uint8)
        self._transfer(dist.recv, body, step)
        message = header.numpy().tobytes() + body.numpy().tobytes()
        if self._on_message is not None:
            self._on_message("received", message)
        return unpack(message)[2]

    def _transfer(self, transfer: Callable[..., object], buffer: torch.Tensor, step: int) -> None:
        try:
            transfer(buffer, self.peer)
        except (RuntimeError, ValueError) as error:
            raise FingerprintError(
                f"The connection to process {self.peer} ended at step {step} ({type(error).__name__}): see what "
                "stopped it, and start all again."
            ) from None
