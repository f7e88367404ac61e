"""Split training: the owner's loop and the data holders' loop, in processes started by Accelerate.

Process 0 is the owner, all others hold data. In each step every data holder sends the codes of a batch. The owner runs
the server part on all of them, sends each holder its logits, receives their gradients and takes a step. Labels stay
with the holders and enter the gradients only through the loss. The owner can still read them there: the negative entry
of a softmax gradient is the label (O. Li et al., arXiv 2102.08504).
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.noise import ImageNoise
from hf_fingerprint.privacy.partition import Partition, class_logits
from hf_fingerprint.privacy.wire import MessageKind, Wire
from hf_fingerprint.progress import Progress, shows_progress, silent


OWNER = 0
MessageHook = Callable[[str, bytes], None]


@shows_progress
def owner_loop(
    partition: Partition,
    bottleneck: Bottleneck,
    restore: Callable[[torch.Tensor], torch.Tensor] | None,
    optimizer: torch.optim.Optimizer,
    steps: int,
    extra_loss: Callable[[], torch.Tensor] | None = None,
    progress: Progress | None = None,
    on_message: MessageHook | None = None,
    student: torch.nn.Module | None = None,
) -> None:
    """Trains the server part, or a student, on the codes that data holders send. Call it in process 0.

    Args:
        partition ([`Partition`]): its server part is trained; its client part does not change.
        bottleneck ([`Bottleneck`]): the one that data holders use.
        restore (callable or `None`): maps codes to features for the server part: a [`Denoiser`], or the inverse of B
            without noise. `None` with a student.
        optimizer (`torch.optim.Optimizer`): over `partition.server_parameters()` or the student's parameters, and
            those of `extra_loss` if it has any.
        steps (`int`): the number of steps, the same in all processes.
        extra_loss (callable, *optional*): returns a loss to add in each step, such as a [`DeepMarksLoss`].
        progress (callable, *optional*): a [`Progress`].
        on_message (callable, *optional*): called with every message, for an audit.
        student (`torch.nn.Module`, *optional*): a [`Student`] or the like, trained instead of the server part.

    Raises:
        [`FingerprintError`]: if this is not process 0 of two or more, neither `restore` nor `student` is given, the
            optimizer holds weights of the client part, or a data holder stops or sends an unexpected message.
    """
    progress = progress or silent
    if restore is None and student is None:
        raise FingerprintError("owner_loop got nothing to train on the codes: pass restore (a denoiser) or student.")
    _check_role(owner=True)
    client_part = {id(p) for name, p in partition.model.named_parameters() if name in partition.client_tensors}
    if any(id(p) in client_part for group in optimizer.param_groups for p in group["params"]):
        raise FingerprintError("The optimizer holds weights of the frozen client part: pass server_parameters().")
    trained_module = partition.model if student is None else student

    def compute_logits(codes: torch.Tensor) -> torch.Tensor:
        if student is not None or restore is None:
            return class_logits(trained_module(codes))
        with torch.no_grad():
            features = restore(codes)
        return partition.server_part(features)

    wires = [Wire(rank, on_message) for rank in range(1, dist.get_world_size())]
    device = next(trained_module.parameters()).device
    trained_module.train()
    for step in range(steps):
        optimizer.zero_grad()
        parts = [wire.receive(MessageKind.FEATURES, step, (-1, *bottleneck.code_shape)) for wire in wires]
        lengths = [len(part) for part in parts]
        logits = compute_logits(torch.cat(parts).to(device))
        for wire, part in zip(wires, logits.split(lengths), strict=True):
            wire.send(MessageKind.OUTPUTS, step, part)
        gradients = [
            wire.receive(MessageKind.GRADIENTS, step, (length, logits.shape[1]))
            for wire, length in zip(wires, lengths, strict=True)
        ]
        logits.backward(torch.cat(gradients).to(logits) / len(wires))
        if extra_loss is not None:
            extra_loss().backward()
        optimizer.step()
        progress("training", step + 1, steps)
    trained_module.eval()


@shows_progress
def data_holder_loop(
    partition: Partition,
    bottleneck: Bottleneck,
    images: torch.Tensor,
    labels: torch.Tensor,
    noise: ImageNoise,
    steps: int,
    batch: int = 32,
    seed: int = 0,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.nn.functional.cross_entropy,
    progress: Progress | None = None,
    on_message: MessageHook | None = None,
) -> None:
    """Takes part in a training with images and labels that never leave this process. Call it in any process but 0.

    Args:
        partition ([`Partition`]): its client part is run once per image.
        bottleneck ([`Bottleneck`]): makes the codes.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): the data holder's images.
        labels (`torch.Tensor`): their labels, as `loss` takes them.
        noise ([`ImageNoise`]): made with this data holder's secret.
        steps (`int`): the number of steps, the same in all processes.
        batch (`int`, *optional*, defaults to 32): images per step.
        seed (`int`, *optional*, defaults to 0): seed of the order of images, which changes with each pass.
        loss (callable, *optional*): the mean loss of `(logits, labels)`; cross-entropy by default.
        progress (callable, *optional*): a [`Progress`].
        on_message (callable, *optional*): called with every message, for an audit.

    Raises:
        [`FingerprintError`]: if this is process 0, there are fewer images than a batch, labels are missing, or the
            owner stops or sends an unexpected message.
    """
    progress = progress or silent
    _check_role(owner=False)
    if len(images) != len(labels) or not 1 <= batch <= len(images):
        raise FingerprintError(
            f"Got {len(images)} images, {len(labels)} labels and batches of {batch}: give one label per image, and "
            "batches of at most all images."
        )
    wire = Wire(OWNER, on_message)
    codes = encode_images(partition, bottleneck, images, noise)
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        pick, order = order[:batch], order[batch:]
        wire.send(MessageKind.FEATURES, step, codes[pick])
        logits = wire.receive(MessageKind.OUTPUTS, step, (batch, -1)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(logits, labels[pick].to(logits.device)), logits)
        wire.send(MessageKind.GRADIENTS, step, gradient)
        progress("training", step + 1, steps)


@torch.no_grad()
def encode_images(
    partition: Partition, bottleneck: Bottleneck, images: torch.Tensor, noise: ImageNoise, batch_size: int = 128
) -> torch.Tensor:
    """The codes of a data holder's images with their noise, `(n, *code_shape)`. Nothing else of the images is sent."""
    parts = []
    for part in images.split(batch_size):
        normal = noise.draw(part, bottleneck.code_shape)
        parts.append(bottleneck.send(partition.client_part(part), normal).cpu())
    return torch.cat(parts)


def _check_role(owner: bool) -> None:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        raise FingerprintError("Private training needs an owner and data holders: launch two or more processes.")
    if (dist.get_rank() == OWNER) != owner:
        loop = "data_holder_loop" if owner else "owner_loop"
        raise FingerprintError(f"This is process {dist.get_rank()}, and the owner is process 0: call {loop} here.")
