"""A base's carriers in the model under training, and the map X over them.

These are plain numbers. The first of several processes computes them from the vault and broadcasts them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from hf_fingerprint.carriers.sign_map import Scratch, SignMap
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import BuildError, FingerprintError
from hf_fingerprint.models import build_model, map_parameter_names
from hf_fingerprint.vault import Base


@dataclass(frozen=True)
class LocatedCarrier:
    """A carrier in the model.

    Attributes:
        name (`str`): its name in the base.
        parameter (`str`): its name in the model.
        amplitude (`np.ndarray` of shape `(rows,)`): the mark's amplitude in each output channel.
        columns (`int`): weights per row.
    """

    name: str
    parameter: str
    amplitude: np.ndarray
    columns: int


@dataclass(frozen=True)
class LocatedCarriers:
    """The map X over a base's carriers.

    Attributes:
        secret (`bytes`): the model secret.
        length (`int`): V, the code length.
        carriers (`tuple[LocatedCarrier, ...]`): the carriers in the base's order.
    """

    secret: bytes = field(repr=False)
    length: int
    carriers: tuple[LocatedCarrier, ...]

    @property
    def weights(self) -> int:
        """The number of their weights."""
        return sum(len(c.amplitude) * c.columns for c in self.carriers)

    def split(self, parameters: Collection[str]) -> tuple["LocatedCarriers", "LocatedCarriers"]:
        """The carriers in these parameters of the model, and the others."""
        chosen, others = (tuple(c for c in self.carriers if (c.parameter in parameters) is x) for x in (True, False))
        return replace(self, carriers=chosen), replace(self, carriers=others)

    def maps(self) -> dict[str, SignMap]:
        """Each carrier's part of X, by the carrier's name in the model."""
        scratch, length = Scratch(), self.length
        return {
            c.parameter: SignMap(self.secret, c.name, c.amplitude, c.columns, length, scratch) for c in self.carriers
        }

    def energy(self) -> torch.Tensor:
        """The sum of squared amplitudes at each position: `float32` of shape `(V,)`."""
        out = torch.zeros(self.length)
        for part in self.maps().values():
            part.energy(out)
        return out

    def sums(self, checkpoint: Checkpoint) -> np.ndarray:
        """`X (a w)` of a checkpoint, read tensor by tensor: `float32` of shape `(V,)`."""
        out, maps = torch.zeros(self.length), self.maps()
        for c in self.carriers:
            info = checkpoint.tensors[c.name]
            values = to_float32(checkpoint.read(info, out=np.empty(info.nbytes, np.uint8)), info.dtype)
            maps[c.parameter].read(torch.from_numpy(values.reshape(-1, c.columns)), 0, out)
        return out.numpy()


def locate_carriers(base: Base, original: Checkpoint, model_shapes: Mapping[str, tuple[int, ...]]) -> LocatedCarriers:
    """Finds a base's carriers in a model, by their names or by the names that a loader gives them.

    Args:
        base ([`Base`]): the base.
        original ([`Checkpoint`]): the base's weights.
        model_shapes (mapping): the shapes of the model's parameters by normalized name.

    Raises:
        [`FingerprintError`]: if the model lacks carriers.
    """
    shapes = base.carrier_shapes
    names = {name: normalize_name(name) for name in shapes}
    found = {file: name for file, name in names.items() if model_shapes.get(name) == shapes[file]}
    reason = ""
    if len(found) < len(shapes):
        renamed: dict[str, str] = {}
        try:
            renamed = map_parameter_names(build_model(original).module, original)
        except BuildError as error:
            reason = f" Loaders may have renamed them, but {error}"
        names = {file: normalize_name(name) for name, file in renamed.items() if file in shapes}
        found |= {file: name for file, name in names.items() if model_shapes.get(name) == shapes[file]}
    missing = [name for name in shapes if name not in found]
    if missing:
        raise FingerprintError(
            f"The model lacks {len(missing)} of the {len(shapes)} carriers of base {base.base_id}, such as "
            f"{missing[0]}: give the model of {base.source}.{reason}"
        )
    carriers = tuple(
        LocatedCarrier(c.name, found[c.name], np.array(c.amplitude), int(np.prod(shapes[c.name][1:])))
        for c in base.carriers
    )
    return LocatedCarriers(base.secret, base.length, carriers)
