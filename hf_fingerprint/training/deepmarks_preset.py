"""The `deepmarks` preset: the paper's original scheme, for reproductions and comparisons.

```python
scheme = DeepMarks(key, layers=("layer3.0.conv2.weight",))  # key: 32 secret bytes
loss = DeepMarksLoss(model, scheme.fingerprint(user), strength=1.0, embed=False)
...
found = scheme.decode(scheme.extract(suspect))
found.coalition, found.soft.accused
```

A fingerprint is `f = U b`, where b is the user's codeword of a (v, k, 1) design. The loss `MSE(f, X mean_f(w))` embeds
it in chosen convolutions (arXiv 1804.03648). The paper's decoder thresholds bits at 0.85 and names the coalition whose
AND they are, without any bound for innocents. The soft decoder accuses with a proven bound. `spread`, the default of
this package, replaces the whole scheme.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from hf_fingerprint.carriers.filter_mean import FilterMeanMap, gaussian_projection, orthonormal
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.codes.deepmarks.block_design import BlockDesign
from hf_fingerprint.codes.deepmarks.soft_decoding import SoftDecoding, soft_decode
from hf_fingerprint.errors import CarrierError, CodeError, FingerprintError
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.training.regularizer import Regularizer, parameter_locations


@dataclass(frozen=True)
class DesignDecoding:
    """The results of both decoders.

    Attributes:
        bits (`np.ndarray` of shape `(v,)`): the bits at the paper's threshold, `bool`.
        coalition (`tuple[int, ...]`): the users named by the paper's rule, without a bound. Empty if the bits are not
            the AND of at most k - 1 codewords.
        soft ([`SoftDecoding`]): the soft decoder's result, with a bound over all innocents.
    """

    bits: np.ndarray
    coalition: tuple[int, ...]
    soft: SoftDecoding


class DeepMarks:
    """The scheme of one owner: a key, a design and the convolutions that carry it.

    Args:
        key (`bytes`): 32 secret bytes from which X and U derive. Protect it like a vault.
        points (`int`, *optional*, defaults to 31): v, the number of users and of code positions.
        layers (sequence of `str`, *optional*): names of convolution weights; by default see [`default_layers`].

    Raises:
        [`CodeError`]: if the key does not have 32 bytes, or there is no design on `points` points.
    """

    def __init__(self, key: bytes, points: int = 31, layers: Sequence[str] | None = None):
        if len(key) != SECRET_BYTES:
            raise CodeError(f"A DeepMarks key has {SECRET_BYTES} bytes, not {len(key)}: make one with new_secret().")
        self._key = key
        self.design = BlockDesign(points)
        self.layers = None if layers is None else tuple(normalize_name(name) for name in layers)

    def __repr__(self) -> str:
        return f"DeepMarks(points={self.design.points}, layers={self.layers})"

    def __reduce__(self) -> NoReturn:
        raise FingerprintError("A DeepMarks scheme holds its key and can't be pickled: create it again from the key.")

    def fingerprint(self, user: int) -> "DeepMarksFingerprint":
        """The fingerprint of one user, for a callback, a timm task or a [`DeepMarksLoss`]."""
        if not 0 <= user < self.design.points:
            raise CodeError(f"There is no user {user}: choose 0 to {self.design.points - 1}.")
        return DeepMarksFingerprint(self, user)

    def maps(self, model: nn.Module) -> dict[str, FilterMeanMap]:
        """The map `U^T X` of each carrier of a model, by name.

        Raises:
            [`CarrierError`]: if layers are missing, or their filters have fewer weights than the code has positions.
        """
        shapes = {name: getattr(*place).shape for name, place in parameter_locations(model).items()}
        chosen = self.layers or default_layers(model)
        missing = [name for name in chosen if name not in shapes or len(shapes[name]) < 2]
        if missing or not chosen:
            raise CarrierError(f"The model has no convolution {', '.join(missing) or 'at all'}: choose other layers.")
        points, columns = self.design.points, sum(shapes[name][1:].numel() for name in chosen)
        if columns < points:
            raise CarrierError(
                f"{', '.join(chosen)}: a filter has {columns} weights and the code {points} positions: choose a "
                f"larger layer, more layers, or a smaller design."
            )
        u = orthonormal(self._key, points)
        found = {}
        for name in chosen:
            x = gaussian_projection(self._key, name, points, shapes[name][1:].numel())
            found[name] = FilterMeanMap(u.T @ x, shapes[name][0])
        return found

    def extract(self, model: nn.Module) -> np.ndarray:
        """The extracted signal `y = U^T X mean_f(w)` of a suspect, `float64` of shape `(v,)`; b for a copy."""
        places, out = parameter_locations(model), torch.zeros(self.design.points)
        with torch.no_grad():
            for name, part in self.maps(model).items():
                part.read(getattr(*places[name]).detach().flatten(1).cpu(), 0, out)
        return out.double().numpy()

    def decode(self, extracted: np.ndarray, coalition: int | None = None, alpha: float = 1e-6) -> DesignDecoding:
        """Runs both decoders on an extracted signal; see [`soft_decode`] for `coalition` and `alpha`."""
        bits = self.design.hard_bits((extracted + 1) / 2)
        soft = soft_decode(self.design, extracted, coalition, alpha)
        return DesignDecoding(bits, self.design.coalition_of(bits), soft)


@dataclass(frozen=True)
class DeepMarksFingerprint:
    """One user's fingerprint of a scheme.

    Attributes:
        scheme ([`DeepMarks`]): the owner's scheme.
        user (`int`): the user, 0 to v - 1.
    """

    scheme: DeepMarks
    user: int

    def bind(self, model: nn.Module, optimizer: Any = None) -> Regularizer:
        """The paper's loss term for a model, `MSE(f, X w) = |U^T X w - b|^2 / v`. All its layers must train."""
        maps, points = self.scheme.maps(model), self.scheme.design.points
        target = torch.from_numpy(self.scheme.design.signs[self.user].astype(np.float32))
        gram = sum((part.gram() for part in maps.values()), torch.zeros(points, points))
        return Regularizer(model, maps, target, torch.zeros(points), torch.ones(points), gram)


def default_layers(model: nn.Module) -> tuple[str, ...]:
    """The name of the ungrouped convolution with the largest filters, the last of several."""
    found = [
        (module.weight.shape[1:].numel(), number, normalize_name(f"{name}.weight".removeprefix(".")))
        for number, (name, module) in enumerate(model.named_modules())
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    ]
    return (max(found)[2],) if found else ()
