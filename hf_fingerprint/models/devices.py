"""The device that a model runs on. Inputs are moved to it."""

from typing import TYPE_CHECKING, Any, TypeVar

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.launcher import own_device
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    import torch

T = TypeVar("T", "torch.nn.Module", "torch.Tensor")


def to_device(value: T, device: "str | torch.device | None") -> T:
    """A tensor on a device, or a model, which is moved in place. `None` leaves it where it is. Of several launched
    processes, `"cuda"` is for each its own device; see [`own_device`].

    Raises:
        [`FingerprintError`]: if torch has no such device here, or its memory is full.
    """
    import torch

    if device is None:
        return value
    try:
        place = torch.device(own_device(str(torch.device(device))))
        if place.type != "meta":
            return value.to(place)
        reason = "it computes nothing"
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = type(error).__name__
    raise FingerprintError(f"Device {printable(str(device))} can't be used ({reason}): give one that torch has here.")


def device_of(module: "torch.nn.Module") -> "torch.device":
    """The device of a model's first tensor."""
    import torch

    for tensors in (module.parameters(), module.buffers()):
        if (first := next(iter(tensors), None)) is not None:
            return first.device
    return torch.device("cpu")


def float64_device(device: "torch.device") -> "torch.device":
    """The device itself, or the CPU if it has no double precision, as Apple's GPUs."""
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def run_model(module: "torch.nn.Module", images: "torch.Tensor") -> Any:
    """The output of a model for images on any device, on the model's device."""
    return module(for_convolutions(images.to(device_of(module))))


def for_convolutions(images: "torch.Tensor") -> "torch.Tensor":
    """The same images in the order in which a processor's convolutions take half the time: channels last."""
    import torch

    if images.dim() != 4 or images.device.type != "cpu":
        return images
    return images.contiguous(memory_format=torch.channels_last)
