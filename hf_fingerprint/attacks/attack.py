"""What every attack is: the weights of a copy in, other weights out, with what a thief has besides."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import BuiltModel
from hf_fingerprint.progress import Progress, silent


if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Attacker:
    """What a thief has beside the copy's weights.

    Attributes:
        build (callable): makes the model that the weights are of, in evaluation mode, whatever weights it has.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): preprocessed as the model takes them; models
            run on the device they are on.
        labels (`torch.Tensor` of shape `(n,)`): their classes.
        batch (`int`): images of a step.
        progress (callable, *optional*): a [`Progress`] for the steps of an attack.
        base (mapping of `str` to `torch.Tensor`, *optional*): the weights of the base, if it is public.
    """

    build: "Callable[[], torch.nn.Module]"
    images: "torch.Tensor"
    labels: "torch.Tensor"
    batch: int = 64
    progress: Progress = silent
    base: "State | None" = None

    def model(self, state: "State") -> "torch.nn.Module":
        """The model with these weights, in evaluation mode."""
        model = self.build()
        model.load_state_dict(dict(state))
        return model.to(self.images.device).eval()

    def built(self, state: "State") -> BuiltModel:
        """The same, on the processor, as registering takes it; what its preprocessing was is a thief's guess."""
        channels, height, width = self.images.shape[1:]
        half = (0.5,) * channels
        return BuiltModel(self.model(state).float().cpu(), (channels, height, width), half, half, _no_preprocessing)


class AttackStep(Protocol):
    """An [`Attack`], or a collusion, which takes several state dicts."""

    paper: ClassVar[str]
    needs_attacker: ClassVar[bool]

    @property
    def strength(self) -> float:
        """How strong, for a plot's axis."""

    def __call__(self, given: Any, /, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The attacked weights."""


class Attack(ABC):
    """What a thief does to a copy; a small frozen dataclass whose first field is the strength.

    Attributes:
        paper (`str`): where it comes from.
        strengths (`tuple[float, ...]`): a sweep, from what nobody notices to what ruins the model.
        needs_attacker (`bool`): whether it runs the model or trains it, and so needs a [`Attacker`].
    """

    paper: ClassVar[str]
    strengths: ClassVar[tuple[float, ...]] = ()
    needs_attacker: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, state: "State", attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The attacked weights; those given stay as they are.

        Args:
            state (mapping of `str` to `torch.Tensor`): a copy's state dict.
            attacker ([`Attacker`], *optional*): what the thief has besides.

        Raises:
            [`FingerprintError`]: if the attack needs a thief and there is none, or the model has nothing to attack.
        """

    @property
    def strength(self) -> float:
        """The first field; 1 if that is no number."""
        value = getattr(self, fields(self)[0].name)  # type: ignore[arg-type]
        return float(value) if isinstance(value, int | float) else 1.0

    def sweep(self) -> list[Self]:
        """The same attack in each of its `strengths`, mild ones first; alone if it has but one."""
        first = fields(self)[0].name  # type: ignore[arg-type]
        return [replace(self, **{first: strength}) for strength in self.strengths] or [self]  # type: ignore[type-var]

    def require_attacker(self, attacker: Attacker | None) -> Attacker:
        """The thief, if there is one.

        Raises:
            [`FingerprintError`]: if there is none.
        """
        if attacker is None:
            raise FingerprintError(f"{type(self).__name__} runs the model: give a Thief with images and their labels.")
        return attacker


@dataclass(frozen=True, init=False)
class Compose(Attack):
    """Attacks one after another: `Then(MagnitudePruning(0.5), FineTuning(1e-4))`. The first may be a collusion.

    Args:
        steps ([`AttackStep`]): one or more.
        varied_step (`int`, *optional*, defaults to 0): the step whose strength is the whole's.
    """

    paper = "of its steps"
    steps: tuple[AttackStep, ...]
    varied_step: int

    def __init__(self, *steps: AttackStep, varied_step: int = 0):
        if not steps:
            raise FingerprintError("Then chains attacks: give it at least one.")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "varied", varied_step)
        object.__setattr__(self, "paper", "; ".join(dict.fromkeys(step.paper for step in steps)))
        object.__setattr__(self, "needs_thief", any(step.needs_attacker for step in steps))

    @property
    def strength(self) -> float:
        return self.steps[self.varied_step].strength

    def __call__(self, state: Any, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        for step in self.steps:
            state = step(state, attacker)
        return state

    def __repr__(self) -> str:
        return " then ".join(map(repr, self.steps))


def logits(model: "torch.nn.Module", images: "torch.Tensor") -> "torch.Tensor":
    """What a classifier of timm or transformers answers, `(n, classes)`."""
    output = model(images)
    return getattr(output, "logits", output)


def is_weight(tensor: "torch.Tensor") -> bool:
    """Whether a tensor is a matrix or kernel of floats, not a bias, a statistic or a counter."""
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0


def map_weights(
    state: "State", change: "Callable[[torch.Tensor], torch.Tensor]", names: Container[str] | None = None
) -> "dict[str, torch.Tensor]":
    """The state with `change` made to the weights of two or more dimensions, all or those named; the rest cloned."""
    return {
        name: change(tensor) if is_weight(tensor) and (names is None or name in names) else tensor.clone()
        for name, tensor in state.items()
    }


def largest(state: "State", share: float) -> list[str]:
    """The names of the largest weight tensors, this share of them."""
    names = sorted((n for n, t in state.items() if is_weight(t)), key=lambda name: -state[name].numel())
    return names[: round(share * len(names))]


def check_fraction(share: float) -> None:
    """Refuses a share that is none.

    Raises:
        [`FingerprintError`]: if it isn't between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise FingerprintError(f"{share} is no share: choose between 0 and 1.")


def _no_preprocessing(image: Any) -> "torch.Tensor":
    raise FingerprintError("A thief's images are preprocessed already: leave the folder of calibration images out.")
