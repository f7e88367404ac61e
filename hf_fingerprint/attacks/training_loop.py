"""A plain training loop: what thieves do with images of their own."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attacker, logits
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OPTIMIZERS = ("adamw", "sgd")
MOMENTUM = 0.9


def train(
    model: "torch.nn.Module",
    attacker: Attacker,
    loss: "Loss",
    optimizer: "torch.optim.Optimizer",
    steps: int,
    seed: int,
    images: "torch.Tensor | None" = None,
    after_step: Callable[[], None] | None = None,
) -> "torch.nn.Module":
    """Trains a model in place, in the mode it is in, on batches picked at random, and returns it in evaluation mode.

    Args:
        model (`torch.nn.Module`): the model.
        attacker ([`Attacker`]): has the size of a batch and the [`Progress`].
        loss (callable): from logits `(batch, classes)` and the indices `(batch,)` of the images to a scalar.
        optimizer (`torch.optim.Optimizer`): over the parameters to train.
        steps (`int`): how many.
        seed (`int`): of the picks, and of dropout.
        images (`torch.Tensor`, *optional*): to train on instead of the thief's.
        after_step (callable, *optional*): what is done to the weights after each step.

    Raises:
        [`FingerprintError`]: if the loss is no number any more.
    """
    import torch

    images = attacker.images if images is None else images
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for step in range(steps):
            pick = torch.randint(len(images), (attacker.batch,), generator=generator).to(images.device)
            value = loss(logits(model, images[pick]), pick)
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
    """AdamW, or SGD with momentum 0.9.

    Raises:
        [`FingerprintError`]: if the name is another one.
    """
    import torch

    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
    raise FingerprintError(f"There is no optimizer {name} here: choose {' or '.join(OPTIMIZERS)}.")


def cpu_state_dict(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """A model's weights, on the processor, apart from it."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def predict_logits(model: "torch.nn.Module", images: "torch.Tensor", batch: int) -> "torch.Tensor":
    """A model's logits, `(n, classes)`, without gradients."""
    import torch

    with torch.no_grad():
        return torch.cat([logits(model, part) for part in images.split(batch)])


def kl_divergence(
    student_logits: "torch.Tensor", expected: "torch.Tensor", temperature: float = 1.0
) -> "torch.Tensor":
    """Mean KL divergence from the expected logits to those told, both `(n, classes)`, in nats."""
    from torch.nn.functional import kl_div

    student_logits, expected = (
        (values.float() / temperature).log_softmax(-1) for values in (student_logits, expected)
    )
    return kl_div(student_logits, expected, reduction="batchmean", log_target=True)
