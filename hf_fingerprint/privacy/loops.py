"""Training over the cut: the owner's loop and a holder's, in processes that Accelerate starts.

Process 0 is the owner, all others hold images. At each step every holder sends the codes of a batch; the owner runs
the back on all of them, sends each holder its logits, gets their gradients and takes a step. Labels stay with the
holders: they come out of the loss as gradients. (Who knows the protocol can read them there: the one negative entry of
a softmax's gradient is the label's. O. Li et al., "Label leakage and protection in two-party split learning", arXiv
2102.08504.)
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.bottleneck import Bottleneck
from hf_fingerprint.privacy.noise import ImageNoise
from hf_fingerprint.privacy.partition import Partition, class_logits
from hf_fingerprint.privacy.wire import MessageKind, Wire
from hf_fingerprint.progress import Progress, silent


OWNER = 0
MessageHook = Callable[[str, bytes], None]


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
    """Trains the back on what the holders send, or a reader of codes; runs in process 0.

    Args:
        partition ([`Partition`]): its back is trained; its front stays as it is.
        bottleneck ([`Bottleneck`]): the one that the holders have.
        restore (callable): from codes to features for the back: a [`Denoiser`], or the inverse of B without noise;
            `None` with a reader.
        optimizer (`torch.optim.Optimizer`): of `partition.back_parameters()` or the reader's, and perhaps of
            `extra_loss`'s.
        steps (`int`): how many; the same for all.
        extra_loss (callable, *optional*): added to each step's loss: a mark's ([`DeepMarksLoss`]), or the loss on
            images of the owner's own.
        progress (callable, *optional*): a [`Progress`].
        on_message (callable, *optional*): sees every message, for an audit.
        student (`torch.nn.Module`, *optional*): from codes to logits, trained in the back's place: a [`Student`].

    Raises:
        [`FingerprintError`]: if this isn't process 0 of two or more, there is neither `restore` nor a reader, an
            optimised weight is in the front, or a holder stops or sends what isn't due.
    """
    progress = progress or silent
    if restore is None and student is None:
        raise FingerprintError("Nothing would learn from the codes: give owner_loop a denoiser, or a reader.")
    _check_role(owner=True)
    client_part = {id(p) for name, p in partition.model.named_parameters() if name in partition.client_tensors}
    if any(id(p) in client_part for group in optimizer.param_groups for p in group["params"]):
        raise FingerprintError("The optimiser holds weights of the front, which never trains: give back_parameters().")
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
    """Takes part in a training with images and labels that stay here; runs in any process but 0.

    Args:
        partition ([`Partition`]): its front is run, once for each image.
        bottleneck ([`Bottleneck`]): what is sent goes through it.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): the holder's.
        labels (`torch.Tensor`): theirs, as `loss` takes them.
        noise ([`ImageNoise`]): with this holder's own secret.
        steps (`int`): how many; the same for all.
        batch (`int`, *optional*, defaults to 32): images a step, drawn anew for each pass over them.
        seed (`int`, *optional*, defaults to 0): of the order.
        loss (callable, *optional*): the mean loss of `(logits, labels)`; cross-entropy by default.
        progress (callable, *optional*): a [`Progress`].
        on_message (callable, *optional*): sees every message, for an audit.

    Raises:
        [`FingerprintError`]: if this is process 0, there are fewer images than a batch, labels are missing, or the
            owner stops or sends what isn't due.
    """
    progress = progress or silent
    _check_role(owner=False)
    if len(images) != len(labels) or not 1 <= batch <= len(images):
        raise FingerprintError(f"{len(images)} images, {len(labels)} labels and batches of {batch} don't go together.")
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
    """All that a holder ever sends of its images: their codes, each with its own noise, `(n, *code_shape)`."""
    parts = []
    for part in images.split(batch_size):
        normal = noise.draw(part, bottleneck.code_shape)
        parts.append(bottleneck.send(partition.client_part(part), normal).cpu())
    return torch.cat(parts)


def _check_role(owner: bool) -> None:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        raise FingerprintError("Private training needs an owner and a data holder or more: launch two processes.")
    if (dist.get_rank() == OWNER) != owner:
        role = "the owner's is process 0" if owner else "process 0 is the owner's"
        raise FingerprintError(f"This is process {dist.get_rank()}, and {role}: call the other loop here.")
