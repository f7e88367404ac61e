"""What every attack is: the weights of a copy in, other weights out, with what a thief has besides."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Thief:
    """What a thief has beside the copy's weights.

    Attributes:
        build (callable): makes the model that the weights are of, in evaluation mode, whatever weights it has.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): preprocessed as the model takes them.
        labels (`torch.Tensor` of shape `(n,)`): their classes.
        batch (`int`): images of a step.
        advance (callable, *optional*): told the number of steps done.
    """

    build: "Callable[[], torch.nn.Module]"
    images: "torch.Tensor"
    labels: "torch.Tensor"
    batch: int = 64
    advance: Callable[[int], None] | None = None

    def model(self, state: "State") -> "torch.nn.Module":
        """The model with these weights, in evaluation mode."""
        model = self.build()
        model.load_state_dict(dict(state))
        return model.eval()


class Attack(ABC):
    """What a thief does to a copy; a small frozen dataclass whose first field is the strength.

    Attributes:
        paper (`str`): where it comes from.
        strengths (`tuple[float, ...]`): a sweep, from what nobody notices to what ruins the model.
        needs_thief (`bool`): whether it runs the model or trains it, and so needs a [`Thief`].
    """

    paper: ClassVar[str]
    strengths: ClassVar[tuple[float, ...]] = (1.0,)
    needs_thief: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, state: "State", thief: Thief | None = None) -> "dict[str, torch.Tensor]":
        """The attacked weights; those given stay as they are.

        Args:
            state (mapping of `str` to `torch.Tensor`): a copy's state dict.
            thief ([`Thief`], *optional*): what the thief has besides.

        Raises:
            [`FingerprintError`]: if the attack needs a thief and there is none, or the model has nothing to attack.
        """

    def equipped(self, thief: Thief | None) -> Thief:
        """The thief, if there is one.

        Raises:
            [`FingerprintError`]: if there is none.
        """
        if thief is None:
            raise FingerprintError(f"{type(self).__name__} runs the model: give a Thief with images and their labels.")
        return thief


def logits(model: "torch.nn.Module", images: "torch.Tensor") -> "torch.Tensor":
    """What a classifier of timm or transformers answers, `(n, classes)`."""
    output = model(images)
    return getattr(output, "logits", output)
