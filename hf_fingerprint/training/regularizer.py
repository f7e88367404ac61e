"""The DeepMarks term for a model under training: `R(w) = mean_i (y_i(w) - b_i)^2` and its gradient, in closed form.

The reading `y(w) = (X (a w) - y_ref) / e` is linear, `y_ref` being the reference's reading and `e_i` the energy (the
squared amplitudes) of position i, so that `y = b` for a copy marked in closed form. Two passes over the carriers give
everything; beside the carriers it takes V numbers and one block. Reference: arXiv 1804.03648, `L = L_0 + gamma *
MSE(f, X w)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch

from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import CarrierError, FingerprintError
from hf_fingerprint.training.shards import all_reduce_sum, local_gradient, local_shard


MIN_COSINE = 0.2


class LinearMap(Protocol):
    """One tensor's part of the projection."""

    rows: int
    columns: int
    length: int

    def to(self, device: torch.device) -> None:
        """Moves what the passes need to a device."""

    def keep(self, first_row: int, rows: int) -> None:
        """Keeps on the device what could be derived at each pass."""

    def read(self, weights: torch.Tensor, first_row: int, out: torch.Tensor) -> None:
        """Adds the reading of some rows to `out`, shape `(V,)`."""

    def adjoint(self, direction: torch.Tensor, first_row: int, out: torch.Tensor) -> None:
        """Adds the gradient of `<u, reading>` to `out`, shape `(rows, columns)`."""


@dataclass(frozen=True)
class Measurement:
    """What one pass over the carriers gives, on their device.

    Attributes:
        loss (`torch.Tensor` of shape `()`): R.
        agreement (`torch.Tensor` of shape `()`): share of positions whose reading has the bit's sign.
        direction (`torch.Tensor` of shape `(V,)`): the gradient of R by the sums `X (a w)`.
    """

    loss: torch.Tensor
    agreement: torch.Tensor
    direction: torch.Tensor


class Regularizer:
    """One recipient's term, bound to the parameters of one model. Holds secrets: it can't be pickled, and a copy of
    the model that is made in memory shares it.

    Args:
        model (`torch.nn.Module`): the model, wrapped or not.
        maps (mapping): for each carrier, by its parameter's name in the model, its part of X.
        target (`torch.Tensor` of shape `(V,)`): b, or the reading to hold.
        reference (`torch.Tensor` of shape `(V,)`): `X (a w_ref)`.
        energy (`torch.Tensor` of shape `(V,)`): e; positions of 0 are left out.
        gram (`torch.Tensor` of shape `(V, V)`, *optional*): `A A^T` of the whole map, where it isn't diagonal.

    Raises:
        [`CarrierError`]: if the model lacks a carrier, or has it in another shape.
        [`FingerprintError`]: if the carriers are frozen or wrapped so that they can't be trained.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        maps: Mapping[str, LinearMap],
        target: torch.Tensor,
        reference: torch.Tensor,
        energy: torch.Tensor,
        gram: torch.Tensor | None = None,
    ):
        if not maps:
            raise CarrierError(
                "The model has no carriers, so there is nothing to hold the mark: give the base's model."
            )
        self._maps = dict(maps)
        _check_not_wrapped(model)
        self._carrier_locations = _carrier_locations(model, self._maps)
        self._used = energy > 0
        self._inverse = energy.where(self._used, energy.new_tensor(1.0)).reciprocal() * self._used
        self._target, self._reference, self._gram = target, reference, gram
        self._placed_on: torch.device | None = None
        self.length = len(target)

    def __reduce__(self) -> NoReturn:
        raise FingerprintError(
            "A fingerprint holds secrets and is never pickled: save the model's state_dict, or export the plain model."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Regularizer":
        return self

    def __repr__(self) -> str:
        return f"Regulariser(carriers={len(self._maps)}, length={self.length})"

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The carriers as the model holds them at present, by name."""
        return {name: getattr(module, attribute) for name, (module, attribute) in self._carrier_locations.items()}

    @property
    def training(self) -> bool:
        """Whether the layers that hold the mark are in training mode."""
        return any(module.training for module, _ in self._carrier_locations.values())

    def read(self) -> torch.Tensor:
        """`y(w)`, `float32` of shape `(V,)`, the same on every process."""
        return (self._sums() - self._reference) * self._inverse

    def measure(self) -> Measurement:
        """R, the agreement and R's gradient, by one pass over the carriers."""
        with torch.no_grad():
            residual = self.read() - self._target
            residual *= self._used
            agrees = (residual + self._target).sign() == self._target.sign()
            count = self._used.sum()
            return Measurement(
                residual.square().sum() / count,
                (agrees & self._used).sum() / count,
                residual * self._inverse * (2 / count),
            )

    def max_curvature(self) -> float:
        """R's largest curvature: plain gradient descent overshoots once learning rate times strength times this is
        above 2."""
        count = float(self._used.sum())
        if self._gram is not None:
            return 2 / count * float(torch.linalg.eigvalsh(self._gram)[-1])
        return 2 / count * float(self._inverse.max())

    def add_gradient(self, name: str, direction: torch.Tensor, first_row: int, out: torch.Tensor) -> None:
        """Adds a carrier's part of a gradient, for some of its rows.

        Args:
            name (`str`): the carrier.
            direction (`torch.Tensor` of shape `(V,)`): from [`Measurement`], times the strength.
            first_row (`int`): which row of the tensor comes first.
            out (`torch.Tensor` of shape `(rows, columns)`): changed in place.
        """
        self._maps[name].adjoint(direction, first_row, out)

    def gradient(self, name: str, direction: torch.Tensor) -> torch.Tensor:
        """A carrier's part of a gradient, what of it is on this process, as the parameter's own kind of tensor; see
        [`Regularizer.add_gradient`]."""
        parameter = getattr(*self._carrier_locations[name])
        shard = local_shard(name, parameter)
        out = torch.zeros(shard.values.shape, device=shard.values.device)
        self.add_gradient(name, direction, shard.first_row, out)
        return local_gradient(parameter, out.to(parameter.dtype))

    def embed(self) -> None:
        """Writes the mark into the weights in closed form: the smallest change that makes R zero.

        Raises:
            [`FingerprintError`]: under ZeRO-3, which keeps the weights where this can't reach them.
        """
        with torch.no_grad():
            step = (self._target - self.read()) * self._used
            if self._gram is not None:
                step = torch.linalg.solve(self._gram, step)
            for name, parameter in self.parameters.items():
                if hasattr(parameter, "ds_id"):
                    raise FingerprintError(
                        f"{name} is partitioned by ZeRO-3, where a mark can't be put in at once: choose embed=False, "
                        f"or begin from an issued copy."
                    )
                parameter.add_(self.gradient(name, step))

    def check_related(self) -> None:
        """Refuses weights that have nothing to do with the reference: the cosine between their readings is that
        between the weights, give or take 1 / sqrt(V).

        Raises:
            [`FingerprintError`]: if they look re-initialised or of another model.
        """
        if not self._reference.any():
            return
        sums = self._sums()
        cosine = float(sums @ self._reference / (sums.norm() * self._reference.norm()).clamp_min(1e-30))
        if cosine < MIN_COSINE:
            raise FingerprintError(
                f"The model's weights are not those of the base it is marked against (cosine {cosine:.2f}): they were "
                f"re-initialised, or are another model's; load the base's weights before training."
            )

    def _sums(self) -> torch.Tensor:
        """`X (a w)` over all carriers and processes."""
        by_groups: dict[Any, torch.Tensor] = {}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                shard = local_shard(name, parameter)
                self._move_to(shard.values.device)
                if shard.groups not in by_groups:
                    by_groups[shard.groups] = torch.zeros_like(self._target)
                self._maps[name].read(shard.values, shard.first_row, by_groups[shard.groups])
            return sum(
                (all_reduce_sum(groups, sums) for groups, sums in by_groups.items()), torch.zeros_like(self._target)
            )

    def _move_to(self, device: torch.device) -> None:
        """Follows the model to its device; on an accelerator the signs are kept there, as bits."""
        if self._placed_on == device:
            return
        for name, parameter in self.parameters.items():
            self._maps[name].to(device)
            if device.type != "cpu":
                shard = local_shard(name, parameter)
                self._maps[name].keep(shard.first_row, len(shard.values))
        tensors = ("_target", "_reference", "_inverse", "_used", "_gram")
        for attribute in tensors:
            value = getattr(self, attribute)
            setattr(self, attribute, None if value is None else value.to(device))
        self._placed_on = device


def _check_not_wrapped(model: torch.nn.Module) -> None:
    if any(hasattr(module, "peft_config") for module in model.modules()):
        raise FingerprintError(
            "The model is wrapped by PEFT, whose base weights don't train: merge the adapter first, and mark the "
            "merged model."
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise FingerprintError(
            "The model is wrapped by FSDP1, whose flattened weights can't be marked: use FSDP2 (fsdp_version: 2)."
        )


def parameter_locations(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str]]:
    """Where each parameter is: by its name without what wrappers add, the module and the attribute.

    Raises:
        [`FingerprintError`]: if the model is wrapped so that a mark can't be trained into it (PEFT, FSDP1).
    """
    _check_not_wrapped(model)
    found = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{attribute}".replace("_checkpoint_wrapped_module.", "")
                found[normalize_name(name.removeprefix("."))] = (module, attribute)
    return found


def _carrier_locations(
    model: torch.nn.Module, maps: Mapping[str, LinearMap]
) -> dict[str, tuple[torch.nn.Module, str]]:
    all_locations = parameter_locations(model)
    found = {}
    for name, part in maps.items():
        if normalize_name(name) not in all_locations:
            raise CarrierError(
                f"The model has no parameter {name}, which is a carrier of its base: give the base's model."
            )
        module, attribute = all_locations[normalize_name(name)]
        parameter = getattr(module, attribute)
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if len(shape) < 2 or (shape[0], shape[1:].numel()) != (part.rows, part.columns):
            raise CarrierError(
                f"{name} has shape {tuple(shape)} in the model, and {part.rows} x {part.columns} weights in its base: "
                f"give the base's model."
            )
        if not parameter.requires_grad:
            raise FingerprintError(
                f"{name} is a carrier and is frozen: unfreeze it, or issue the copy in closed form after training."
            )
        found[name] = (module, attribute)
    return found
