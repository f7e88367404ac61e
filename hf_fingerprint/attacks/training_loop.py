"""The training loop of attackers who have images."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attacker, Loss
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import for_convolutions


if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("adamw", "sgd")
MOMENTUM = 0.9


def train(
    model: "torch.nn.Module",
    attacker: Attacker,
    loss: Loss,
    optimizer: "torch.optim.Optimizer",
    steps: int,
    seed: int,
    images: "torch.Tensor | None" = None,
    after_step: Callable[[], None] | None = None,
) -> "torch.nn.Module":
    """Trains a model in place on random batches, without changing its mode, and returns it in evaluation mode.

    Args:
        model (`torch.nn.Module`): the model.
        attacker ([`Attacker`]): its `batch` and `progress` are used.
        loss (callable): maps logits `(batch, classes)` and the images' indices `(batch,)` to a scalar.
        optimizer (`torch.optim.Optimizer`): over the parameters to train.
        steps (`int`): the number of steps.
        seed (`int`): seed of the batches and of dropout.
        images (`torch.Tensor`, *optional*): images to train on, by default the attacker's.
        after_step (callable, *optional*): called after each step, for example to project the weights.

    Raises:
        [`FingerprintError`]: if the loss becomes infinite or NaN.
    """
    import torch

    images = attacker.images if images is None else images
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for step in range(steps):
            pick = torch.randint(len(images), (attacker.batch,), generator=generator).to(images.device)
            value = loss(logits_of(model(for_convolutions(images[pick]))), pick)
            if not value.isfinite():
                raise FingerprintError(f"Training diverged at step {step + 1}: choose a smaller learning rate.")
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
            attacker.progress("training", step + 1, steps)
    return model.eval()


def make_optimizer(
    parameters: "Iterable[torch.nn.Parameter]", name: str, lr: float, weight_decay: float = 0.0
) -> "torch.optim.Optimizer":
    """AdamW, or SGD with momentum 0.9. Raises a [`FingerprintError`] if `name` is neither."""
    import torch

    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
    raise FingerprintError(f"There is no optimizer called {name!r}: choose {' or '.join(OPTIMIZERS)}.")


def cpu_state_dict(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """A copy of the model's state dict on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def predict_logits(model: "torch.nn.Module", images: "torch.Tensor", batch: int) -> "torch.Tensor":
    """A model's logits, `(n, classes)`, without gradients."""
    import torch

    with torch.no_grad():
        return torch.cat([logits_of(model(for_convolutions(part))) for part in images.split(batch)])


def kl_divergence(logits: "torch.Tensor", expected: "torch.Tensor", temperature: float = 1.0) -> "torch.Tensor":
    """The mean KL divergence of a model's logits from the expected ones, both `(n, classes)`, in nats."""
    from torch.nn.functional import kl_div

    student, target = ((values.float() / temperature).log_softmax(-1) for values in (logits, expected))
    return kl_div(student, target, reduction="batchmean", log_target=True)
