"""Messages between the owner and data holders: raw numbers after a fixed header.

    holder -> owner   FEATURES    the codes of a batch
    owner -> holder   OUTPUTS     the logits of the batch
    holder -> owner   GRADIENTS   the gradients of the holder's loss with respect to the logits

A message is a header of nine little-endian 64-bit integers (magic, kind, step, axes, four lengths, bytes), followed by
that many bytes of little-endian `float32`. Nothing is pickled. A receiver states the kind, step and shape that it
expects and refuses everything else.
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
    """The content of a message."""

    FEATURES, OUTPUTS, GRADIENTS = 1, 2, 3


def pack(kind: MessageKind, step: int, tensor: torch.Tensor) -> bytes:
    """The bytes of a message: the training step, from 0, and a tensor of up to four axes as `float32`."""
    if tensor.dim() > MAX_AXES:
        raise FingerprintError(f"A message can't hold a tensor of {tensor.dim()} axes: send at most {MAX_AXES}.")
    numbers = tensor.detach().cpu().contiguous().numpy().astype("<f4")
    lengths = [*numbers.shape, *(0,) * (MAX_AXES - numbers.ndim)]
    return np.array([MAGIC, kind, step, numbers.ndim, *lengths, numbers.nbytes], "<i8").tobytes() + numbers.tobytes()


def unpack(message: bytes) -> tuple[MessageKind, int, torch.Tensor]:
    """The kind, step and tensor of a message. Raises a [`FingerprintError`] if it is malformed or cut off."""
    kind, step, shape = read_header(message[:HEADER_BYTES])
    body = message[HEADER_BYTES:]
    if len(body) != 4 * math.prod(shape):
        raise FingerprintError(f"A message has {len(body)} bytes instead of {4 * math.prod(shape)}: it was cut off.")
    return kind, step, torch.from_numpy(np.frombuffer(body, "<f4").astype(np.float32)).reshape(shape)


def read_header(header: bytes) -> tuple[MessageKind, int, tuple[int, ...]]:
    """The kind, step and shape in a header. Raises a [`FingerprintError`] if it is invalid."""
    numbers = np.frombuffer(header, "<i8").tolist() if len(header) == HEADER_BYTES else [0] * (HEADER_BYTES // 8)
    magic, kind, step, axes, *lengths, size = numbers
    shape = tuple(lengths[: max(0, axes)])
    if magic != MAGIC or not 0 <= axes <= MAX_AXES or kind not in list(MessageKind) or min(shape, default=0) < 0:
        raise FingerprintError("The received bytes are not a message of this protocol: check both sides' versions.")
    if any(lengths[axes:]) or size != 4 * math.prod(shape):
        raise FingerprintError("A message's header contradicts itself: check both sides' versions.")
    return MessageKind(kind), step, shape


class Wire:
    """The connection to one other process, over `torch.distributed` (gloo) as Accelerate starts it.

    Args:
        peer (`int`): the other process's rank.
        on_message (callable, *optional*): called with `"sent"` or `"received"` and each message's bytes.
    """

    def __init__(self, peer: int, on_message: Callable[[str, bytes], None] | None = None):
        self.peer, self._on_message = peer, on_message

    def __repr__(self) -> str:
        return f"Wire(peer={self.peer})"

    def send(self, kind: MessageKind, step: int, tensor: torch.Tensor) -> None:
        """Sends a tensor. Raises a [`FingerprintError`] if the connection ended."""
        message = bytearray(pack(kind, step, tensor))
        if self._on_message is not None:
            self._on_message("sent", bytes(message))
        message_tensor = torch.frombuffer(message, dtype=torch.uint8)
        self._transfer(dist.send, message_tensor[:HEADER_BYTES], step)
        self._transfer(dist.send, message_tensor[HEADER_BYTES:], step)

    def receive(self, kind: MessageKind, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Receives a tensor of a kind, step and shape. A length of -1 allows any from 1 to 1,000,000.

        Raises:
            [`FingerprintError`]: if the connection ended, or another message arrives.
        """
        header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        self._transfer(dist.recv, header, step)
        got_kind, got_step, got_shape = read_header(header.numpy().tobytes())
        fits = len(got_shape) == len(shape) and all(
            want == have or (want == -1 and 1 <= have <= 1_000_000)
            for want, have in zip(shape, got_shape, strict=True)
        )
        if (got_kind, got_step) != (kind, step) or not fits:
            raise FingerprintError(
                f"Process {self.peer} sent {got_kind.name.lower()} of shape {got_shape} for step {got_step}, expected "
                f"{kind.name.lower()} of shape {shape} for step {step}: start all processes with the same arguments."
            )
        body = torch.empty(4 * math.prod(got_shape), dtype=torch.uint8)
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
                f"The connection to process {self.peer} ended at step {step} ({type(error).__name__}): see why "
                "it stopped, and restart all processes."
            ) from None
