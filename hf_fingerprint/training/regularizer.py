"""The loss term `R(w) = mean_i (y_i(w) - b_i)^2` for a model under training, and its gradient in closed form.

The extracted signal `y(w) = (X (a w) - y_ref) / e` is linear in w. `y_ref` is the signal of the reference, and `e_i`
is the energy (sum of squared amplitudes) at position i, so that `y = b` for a copy marked in closed form. All sums are
over the carriers that train; see `frozen_carriers.py`. R takes two passes over them and memory for V numbers and a
block. After arXiv 1804.03648, `L = L_0 + gamma MSE(f, X w)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, Protocol

import torch

from hf_fingerprint.checkpoints.memory import check_not_wrapped
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import CarrierError, FingerprintError
from hf_fingerprint.training.shards import all_reduce_sum, local_gradient, local_shard


MIN_COSINE = 0.2
Location = tuple[torch.nn.Module, str]  # a parameter's module and attribute


class LinearMap(Protocol):
    """One tensor's part of the map X."""

    rows: int
    columns: int
    length: int

    def to(self, device: torch.device) -> None:
        """Moves the map's data to a device."""

    def keep(self, first_row: int, rows: int) -> None:
        """Caches data on the device that would otherwise be derived in each pass."""

    def read(self, weights: torch.Tensor, first_row: int, out: torch.Tensor) -> None:
        """Adds the signal of some rows to `out`, shape `(V,)`."""

    def adjoint(self, direction: torch.Tensor, first_row: int, out: torch.Tensor) -> None:
        """Adds the gradient of `<direction, signal>` to `out`, shape `(rows, columns)`."""


@dataclass(frozen=True)
class Measurement:
    """The result of one pass over the carriers, on their device.

    Attributes:
        loss (`torch.Tensor` of shape `()`): R.
        agreement (`torch.Tensor` of shape `()`): the share of positions whose signal has the bit's sign.
        direction (`torch.Tensor` of shape `(V,)`): the gradient of R with respect to the sums `X (a w)`.
    """

    loss: torch.Tensor
    agreement: torch.Tensor
    direction: torch.Tensor


class Regularizer:
    """The loss term R for one recipient and model. It holds secrets: it can't be pickled, and deep copies share it.

    Args:
        model (`torch.nn.Module`): the model, wrapped or not.
        maps (mapping): each trained carrier's part of X, by its name in the model.
        target (`torch.Tensor` of shape `(V,)`): b, or the signal to preserve.
        reference (`torch.Tensor` of shape `(V,)`): `X (a w_ref)`.
        energy (`torch.Tensor` of shape `(V,)`): e. Positions with energy 0 are ignored.
        gram (`torch.Tensor` of shape `(V, V)`, *optional*): `X X^T`, if it is not diagonal.

    Raises:
        [`CarrierError`]: if the model lacks a carrier or has it in another shape.
        [`FingerprintError`]: if carriers are frozen, or wrapped so that they can't be trained.
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
            raise CarrierError("The model has no carriers to hold the mark: give the base's model.")
        self._maps = dict(maps)
        check_not_wrapped(model)
        self._carrier_locations = _carrier_locations(model, self._maps)
        self._used = energy > 0
        self._inverse = energy.where(self._used, energy.new_tensor(1.0)).reciprocal() * self._used
        self._target, self._reference, self._gram = target, reference, gram
        self._placed_on: torch.device | None = None
        self.length = len(target)

    def __reduce__(self) -> NoReturn:
        raise FingerprintError("A fingerprint holds secrets and can't be pickled: save the model's state_dict.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Regularizer":
        return self

    def __repr__(self) -> str:
        return f"Regularizer(carriers={len(self._maps)}, length={self.length})"

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The model's current carrier parameters, by name."""
        return {name: getattr(module, attribute) for name, (module, attribute) in self._carrier_locations.items()}

    @property
    def training(self) -> bool:
        """Whether any layer with a carrier is in training mode."""
        return any(module.training for module, _ in self._carrier_locations.values())

    def extract(self) -> torch.Tensor:
        """The extracted signal `y(w)`, `float32` of shape `(V,)`, equal on all processes."""
        return (self._sums() - self._reference) * self._inverse

    def measure(self) -> Measurement:
        """R, the agreement and R's gradient, from one pass over the carriers."""
        with torch.no_grad():
            residual = self.extract() - self._target
            residual *= self._used
            agrees = (residual + self._target).sign() == self._target.sign()
            count = self._used.sum()
            return Measurement(
                residual.square().sum() / count,
                (agrees & self._used).sum() / count,
                residual * self._inverse * (2 / count),
            )

    def max_curvature(self) -> float:
        """The largest curvature of R. Gradient descent overshoots if it times learning rate and strength exceeds 2."""
        largest = self._inverse.max() if self._gram is None else torch.linalg.eigvalsh(self._gram)[-1]
        return 2 / float(self._used.sum()) * float(largest)

    def add_gradient(self, name: str, direction: torch.Tensor, first_row: int, out: torch.Tensor) -> None:
        """Adds the gradient for some rows of a carrier to `out`.

        Args:
            name (`str`): the carrier's name in the model.
            direction (`torch.Tensor` of shape `(V,)`): that of a [`Measurement`], times the strength.
            first_row (`int`): index of the first row.
            out (`torch.Tensor` of shape `(rows, columns)`): changed in place.
        """
        self._maps[name].adjoint(direction, first_row, out)

    def gradient(self, name: str, direction: torch.Tensor) -> torch.Tensor:
        """The gradient for this process's shard of a carrier, as the same kind of tensor as the parameter; see
        [`Regularizer.add_gradient`]."""
        parameter = getattr(*self._carrier_locations[name])
        shard = local_shard(name, parameter)
        out = torch.zeros(shard.values.shape, device=shard.values.device)
        self.add_gradient(name, direction, shard.first_row, out)
        return local_gradient(parameter, out.to(parameter.dtype))

    def embed(self) -> None:
        """Writes the mark into the weights in closed form, by the smallest change that makes R zero.

        Raises:
            [`FingerprintError`]: under ZeRO-3, whose partitioned weights can't be changed here.
        """
        with torch.no_grad():
            step = (self._target - self.extract()) * self._used
            if self._gram is not None:
                step = torch.linalg.solve(self._gram, step)
            for name, parameter in self.parameters.items():
                if hasattr(parameter, "ds_id"):
                    raise FingerprintError(
                        f"{name} is partitioned by ZeRO-3, where the mark can't be embedded before training: choose "
                        f"embed=False, or begin from an issued copy."
                    )
                parameter.add_(self.gradient(name, step))

    def check_related(self) -> None:
        """Checks that the weights are related to the reference. The cosine between their signals equals that between
        the weights, up to about 1 / sqrt(V).

        Raises:
            [`FingerprintError`]: if the weights seem reinitialized or those of another model.
        """
        if not self._reference.any():
            return
        sums = self._sums()
        cosine = float(sums @ self._reference / (sums.norm() * self._reference.norm()).clamp_min(1e-30))
        if cosine < MIN_COSINE:
            raise FingerprintError(
                f"The model's weights are unrelated to its base (cosine {cosine:.2f}), so they were reinitialized or "
                f"are another model's: load the base's weights before training."
            )

    def _sums(self) -> torch.Tensor:
        """`X (a w)`, summed over all carriers and processes."""
        by_groups: dict[Any, torch.Tensor] = {}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                shard = local_shard(name, parameter)
                self._move_to(shard.values.device)
                if shard.groups not in by_groups:
                    by_groups[shard.groups] = torch.zeros_like(self._target)
                self._maps[name].read(shard.values, shard.first_row, by_groups[shard.groups])
            zeros = torch.zeros_like(self._target)
            return sum((all_reduce_sum(groups, sums) for groups, sums in by_groups.items()), zeros)

    def _move_to(self, device: torch.device) -> None:
        """Moves all data to the model's device. On an accelerator, signs are cached there as bits."""
        if self._placed_on == device:
            return
        for name, parameter in self.parameters.items():
            self._maps[name].to(device)
            if device.type != "cpu":
                shard = local_shard(name, parameter)
                self._maps[name].keep(shard.first_row, len(shard.values))
        for attribute in ("_target", "_reference", "_inverse", "_used", "_gram"):
            value = getattr(self, attribute)
            setattr(self, attribute, None if value is None else value.to(device))
        self._placed_on = device


def parameter_locations(model: torch.nn.Module) -> dict[str, Location]:
    """The module and attribute of each parameter, by its name without the prefixes that wrappers add.

    Raises:
        [`FingerprintError`]: if the model is wrapped so that a mark can't be trained into it (PEFT, FSDP1).
    """
    check_not_wrapped(model)
    found = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{attribute}".replace("_checkpoint_wrapped_module.", "")
                found[normalize_name(name.removeprefix("."))] = (module, attribute)
    return found


def parameter_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, whole even if it is partitioned; for the names see [`parameter_locations`]."""
    return {name: _whole_shape(getattr(*place)) for name, place in parameter_locations(model).items()}


def _whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _carrier_locations(model: torch.nn.Module, maps: Mapping[str, LinearMap]) -> dict[str, Location]:
    all_locations, found = parameter_locations(model), {}
    for name, part in maps.items():
        if normalize_name(name) not in all_locations:
            raise CarrierError(f"The model has no parameter {name}, a carrier of its base: give the base's model.")
        found[name] = all_locations[normalize_name(name)]
        parameter = getattr(*found[name])
        shape = _whole_shape(parameter)
        if len(shape) < 2 or (shape[0], prod(shape[1:])) != (part.rows, part.columns):
            raise CarrierError(
                f"{name} has shape {shape} in the model, and {part.rows} x {part.columns} weights in its base: "
                f"give the base's model."
            )
        if not parameter.requires_grad:
            raise FingerprintError(f"{name} is a frozen carrier: unfreeze it, or choose other layers.")
    return found
