"""The interface of all attacks: a copy's state dict in, another state dict out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import BuiltModel
from hf_fingerprint.progress import Progress, silent


if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]
Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Attacker:
    """What an attacker has besides the copy's weights.

    Attributes:
        build (callable): makes the model in evaluation mode, with any weights.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): preprocessed as the model takes them. Models
            run on the device of this tensor.
        labels (`torch.Tensor` of shape `(n,)`): the classes of the images.
        batch (`int`, *optional*, defaults to 64): images per step.
        progress (callable, *optional*): a [`Progress`] for the steps of an attack.
        base (mapping of `str` to `torch.Tensor`, *optional*): the base's state dict, if the base is public.
        ancestor (mapping of `str` to `torch.Tensor`, *optional*): the state dict of the public model that the base was
            fine-tuned from, if there is one.
    """

    build: "Callable[[], torch.nn.Module]"
    images: "torch.Tensor"
    labels: "torch.Tensor"
    batch: int = 64
    progress: Progress = silent
    base: State | None = None
    ancestor: State | None = None

    def model(self, state: State) -> "torch.nn.Module":
        """The model with these weights, as many blocks and a stream as wide, in evaluation mode."""
        return fit_model(self.build(), state).to(self.images.device)

    def as_built_model(self, state: State) -> BuiltModel:
        """The same model on the CPU, as [`register`] takes it. Mean and deviation are set to 0.5: the attacker does
        not know the original preprocessing."""
        channels, height, width = self.images.shape[1:]
        half = (0.5,) * channels
        return BuiltModel(self.model(state).float().cpu(), (channels, height, width), half, half, _no_preprocessing)


def fit_model(model: "torch.nn.Module", state: State) -> "torch.nn.Module":
    """The model itself with these weights, as many blocks and a stream as wide, in evaluation mode."""
    from hf_fingerprint.attacks.depth import fit_depth
    from hf_fingerprint.attacks.stream_slicing import fit_slices

    fitted = fit_slices(fit_depth(model, state), state)
    fitted.load_state_dict(dict(state))
    return fitted.eval()


class AttackStep(Protocol):
    """An [`Attack`], or a [`Collusion`] or [`Merge`], which take several state dicts."""

    paper: ClassVar[str]
    needs_attacker: ClassVar[bool]
    takes_copies: ClassVar[bool]

    @property
    def strength(self) -> float:
        """The strength, as plots show it."""

    def __call__(self, given: Any, /, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The attacked weights."""


class Attack(ABC):
    """Base class of attacks on one copy. Subclasses are frozen dataclasses whose first field is the strength.

    Attributes:
        paper (`str`): the source.
        strengths (`tuple[float, ...]`): a sweep, from harmless to ruinous for the model.
        needs_attacker (`bool`): whether the attack runs or trains the model and so needs an [`Attacker`].
        takes_copies (`bool`): whether it takes a sequence of state dicts, as a [`Collusion`] does.
    """

    paper: ClassVar[str]
    strengths: ClassVar[tuple[float, ...]] = ()
    needs_attacker: ClassVar[bool] = False
    takes_copies: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The attacked weights. `state` is not changed, and may be on any device.

        Args:
            state (mapping of `str` to `torch.Tensor`): a copy's state dict.
            attacker ([`Attacker`], *optional*): the attacker's model, images and labels.

        Raises:
            [`FingerprintError`]: if a needed attacker is missing, or the model has nothing to attack.
        """

    @property
    def strength(self) -> float:
        """The first field, or 1 if it is not a number."""
        value = getattr(self, fields(self)[0].name)  # type: ignore[arg-type]
        return float(value) if isinstance(value, int | float) else 1.0

    def sweep(self) -> list[Self]:
        """The attack at each of its `strengths`, mildest first, or itself alone if it has none."""
        first = fields(self)[0].name  # type: ignore[arg-type]
        return [replace(self, **{first: strength}) for strength in self.strengths] or [self]  # type: ignore[type-var]

    def require_attacker(self, attacker: Attacker | None) -> Attacker:
        """The attacker. Raises a [`FingerprintError`] if it is `None`."""
        if attacker is None:
            raise FingerprintError(f"{type(self).__name__} runs the model: pass an Attacker with images and labels.")
        return attacker


@dataclass(frozen=True, init=False)
class Compose(Attack):
    """Attacks run one after another: `Compose(MagnitudePruning(0.5), FineTuning(1e-4))`. The first may be a collusion.

    Args:
        *steps ([`AttackStep`]): one or more attacks.
        varied_step (`int`, *optional*, defaults to 0): index of the step whose strength counts for all.
    """

    paper = "of its steps"
    steps: tuple[AttackStep, ...]
    varied_step: int

    def __init__(self, *steps: AttackStep, varied_step: int = 0):
        if not steps:
            raise FingerprintError("Compose needs at least one attack: pass one or more.")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "varied_step", varied_step)
        object.__setattr__(self, "paper", "; ".join(dict.fromkeys(step.paper for step in steps)))
        object.__setattr__(self, "needs_attacker", any(step.needs_attacker for step in steps))
        object.__setattr__(self, "takes_copies", steps[0].takes_copies)

    @property
    def strength(self) -> float:
        return self.steps[self.varied_step].strength

    def __call__(self, state: Any, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        for step in self.steps:
            state = step(state, attacker)
        return state

    def __repr__(self) -> str:
        return " then ".join(map(repr, self.steps))


def is_weight(tensor: "torch.Tensor") -> bool:
    """Whether a tensor is a matrix or kernel of floats, as opposed to a bias, a statistic or a counter."""
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0


def map_weights(
    state: State,
    change: "Callable[[torch.Tensor], torch.Tensor]",
    names: Container[str] | None = None,
    attacker: Attacker | None = None,
) -> "dict[str, torch.Tensor]":
    """The state with `change` applied to weights of two or more dimensions, by default to all. The rest is cloned.

    An attacker's weights are changed on the device of the images, one after another, and return to their own.
    """

    def changed(tensor: "torch.Tensor") -> "torch.Tensor":
        place = tensor.device if attacker is None else attacker.images.device
        return change(tensor.to(place)).to(tensor.device)

    return {
        name: changed(tensor) if is_weight(tensor) and (names is None or name in names) else tensor.clone()
        for name, tensor in state.items()
    }


def largest_weights(state: State, share: float) -> list[str]:
    """The names of the largest weight tensors, `share` of all."""
    names = sorted((n for n, t in state.items() if is_weight(t)), key=lambda name: -state[name].numel())
    return names[: round(share * len(names))]


def check_share(share: float) -> None:
    """Raises a [`FingerprintError`] if a share is not between 0 and 1."""
    if not 0 <= share <= 1:
        raise FingerprintError(f"A share must be between 0 and 1, got {share}: choose one in that range.")


def _no_preprocessing(image: Any) -> "torch.Tensor":
    raise FingerprintError("An attacker's images are preprocessed already: leave out the calibration images.")
