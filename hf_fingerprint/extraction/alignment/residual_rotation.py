"""Aligns the layers of a transformer whose residual stream was rotated, or whose heads have another basis.

First the side of a weight that reads or writes the stream is rotated back, then the other side is aligned: heads by
their bases, hidden units by the weights. The rotation that remains then corrects the stream's basis, once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.extraction.alignment.activation_matching import Activations
from hf_fingerprint.extraction.alignment.attention_heads import fit_head_bases, match_heads
from hf_fingerprint.extraction.alignment.attention_layers import Attention
from hf_fingerprint.extraction.alignment.procrustes import fit_stream_rotation, nearest_orthogonal
from hf_fingerprint.extraction.alignment.weight_matching import SIMPLER_RATIO, match_weights


PASSES = 2
LoadPair = Callable[[str], tuple[np.ndarray, np.ndarray]]
ActivationPairs = Mapping[str, tuple[Activations, Activations]]
OtherSide = Callable[[np.ndarray], np.ndarray]  # aligns the side that isn't the stream's
MIN_GAIN_RATIO = 0.5
_TINY = 1e-12


@dataclass(frozen=True)
class StreamSide:
    """The side of a weight that touches the stream.

    Attributes:
        basis (`np.ndarray` of shape `(channels, channels)`): see [`fit_stream_rotation`]. If the suspect's stream was
            sliced, the rows of the channels that it lacks are 0.
        gains (pair of `np.ndarray`, *optional*): both models' normalization gains before a weight that reads it.
        scales (pair of `np.ndarray`, *optional*): both models' layer scales after a weight that writes to it.
    """

    basis: np.ndarray
    gains: tuple[np.ndarray, np.ndarray] | None = None
    scales: tuple[np.ndarray, np.ndarray] | None = None

    def align_suspect_side(self, values: np.ndarray) -> np.ndarray:
        """The suspect's weights, `(rows, columns)`, with the stream rotated back, and without its mean."""
        if self.gains is not None:
            return _remove_mean((values * self.gains[1]) @ self.basis, 1) * _safe_inverse(self.gains[0])
        if self.scales is not None:
            scaled = self.basis.T @ (values * self.scales[1][:, None])
            return _remove_mean(scaled, 0) * _safe_inverse(self.scales[0])[:, None]
        return values

    def project_base(self, values: np.ndarray) -> np.ndarray:
        """The base's weights without the part that [`align_suspect_side`] removes."""
        folded = self.fold_base(values)
        if self.gains is not None:
            kept = folded @ self.basis.T @ self.basis if self._is_sliced else folded
            return _remove_mean(kept, 1) * _safe_inverse(self.gains[0])
        if self.scales is not None:
            kept = self.basis.T @ (self.basis @ folded) if self._is_sliced else folded
            return _remove_mean(kept, 0) * _safe_inverse(self.scales[0])[:, None]
        return values

    def fold_base(self, values: np.ndarray) -> np.ndarray:
        """The base's weights with gains or scales folded in, and without the stream's mean."""
        if self.gains is not None:
            return _remove_mean(values * self.gains[0], 1)
        return values if self.scales is None else _remove_mean(values * self.scales[0][:, None], 0)

    @property
    def _is_sliced(self) -> bool:
        return not self.basis.any(1).all()

    def drift(self, ours: np.ndarray, back: np.ndarray) -> np.ndarray:
        """Factors, one for each channel of the stream, that undo the drift of the gain folded in before rotation.

        Fitted as `back = ours / drift + noise`; they broadcast over `(rows, columns)`.
        """
        if self.gains is None and (self.scales is None or np.all(self.scales[0] == 1)):
            return np.ones((1, 1))
        axis = 0 if self.gains is not None else 1
        power, products = ((ours * each).sum(axis, keepdims=True) for each in (ours, back))
        return np.divide(power, products, out=np.ones_like(power), where=products > MIN_GAIN_RATIO * power)

    def residual_product(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """`theirs ours^T` of the stream's channels, once both are aligned."""
        if self.gains is not None:
            return (theirs * self.gains[0]).T @ (ours * self.gains[0])
        if self.scales is not None:
            own = self.scales[0][:, None]
            return (theirs * own) @ (ours * own).T
        return np.zeros_like(self.basis)


@dataclass(frozen=True)
class RotationTransform:
    """Aligns a suspect's tensor: its stream side, then the other side, then the gains.

    The part that a normalization removes is taken from the base's weights.
    """

    side: StreamSide
    other: OtherSide
    drift: np.ndarray
    base: Callable[[], np.ndarray]

    def __call__(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's tensor aligned with the base's, `(rows, channels in, 1)`."""
        ours = self.base()
        back = self.other(self.side.align_suspect_side(theirs[:, :, 0].astype(np.float64))) * self.drift
        return (back + (ours - self.side.project_base(ours)))[:, :, None].astype(np.float32)


def fit_rotation_transforms(
    names: Iterable[str], attentions: Iterable[Attention], activations: ActivationPairs, load_pair: LoadPair
) -> dict[str, RotationTransform]:
    """Fits the transforms that align the layers of a transformer.

    Args:
        names (iterable of `str`): the carriers, all of them matrices.
        attentions (iterable of [`Attention`]): the attentions, by the carriers' names.
        activations (mapping): the activations of the carriers' modules in both models.
        load_pair (callable): returns the base's and the suspect's weights of a carrier, each `(rows, columns, 1)`.

    Returns:
        `dict[str, RotationTransform]`: by carrier; empty if no carrier reads a stream.
    """
    names = list(names)
    if (found := fit_stream_rotation(activations[name] for name in names if name in activations)) is None:
        return {}
    basis: np.ndarray = found
    complete = [each for each in attentions if {*each.inputs, each.output} <= set(names)]
    in_heads = {name for each in complete for name in (*each.inputs, each.output)}

    def pair(name: str) -> tuple[StreamSide, np.ndarray, np.ndarray]:
        ours, theirs = (values[:, :, 0].astype(np.float64) for values in load_pair(name))
        side = _stream_side(basis, activations.get(name), len(ours))
        return side, side.project_base(ours), side.align_suspect_side(theirs)

    for _ in range(PASSES):
        others: dict[str, OtherSide] = {}
        for each in complete:
            others |= _align_heads(each, {name: pair(name)[1:] for name in (*each.inputs, each.output)})
        left = np.zeros_like(basis)
        for name in names:
            side, ours, theirs = pair(name)
            if name not in in_heads:
                others[name] = _match_units(ours, theirs)
            left += side.residual_product(ours, others[name](theirs))
        basis = basis @ nearest_orthogonal(left)
    transforms: dict[str, RotationTransform] = {}
    for name, other in others.items():
        side, ours, theirs = pair(name)
        drift = side.drift(ours, other(theirs))
        transforms[name] = RotationTransform(side, other, drift, _base_loader(load_pair, name))
    return transforms


def _stream_side(basis: np.ndarray, activations: tuple[Activations, Activations] | None, rows: int) -> StreamSide:
    """The side of a weight that touches a stream of this basis; neither does in a stage of another width."""
    gains = scales = None
    if activations is not None and activations[0].gain is not None and activations[1].gain is not None:
        if len(activations[0].gain) == len(activations[1].gain) == len(basis):
            gains = activations[0].gain, activations[1].gain
    elif rows == len(basis):
        one = np.ones(rows)
        ours, theirs = (None, None) if activations is None else (activations[0].scale, activations[1].scale)
        scales = one if ours is None else ours, one if theirs is None else theirs
    return StreamSide(basis, gains, scales)


def _remove_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The values without their mean, which a normalization removes anyway."""
    return values - values.mean(axis, keepdims=True)


def _safe_inverse(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, out=np.zeros_like(values), where=np.abs(values) > _TINY)


def _match_units(ours: np.ndarray, theirs: np.ndarray) -> OtherSide:
    """Aligns permuted or rescaled hidden units by the weights alone."""
    found = match_weights(ours[:, :, None].astype(np.float32), theirs[:, :, None].astype(np.float32), None)
    return lambda values: found(values[:, :, None])[:, :, 0]


def _align_heads(attention: Attention, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, OtherSide]:
    """Aligns heads, if that explains more than so many parameters would; else the fit would absorb a part of the
    mark."""
    heads = attention.heads
    ours, theirs = ([pairs[name][which] for name in attention.inputs] for which in (0, 1))
    (q, k, v), (q2, k2, v2) = (np.concatenate(each).reshape(3, heads, -1, each[0].shape[1]) for each in (ours, theirs))
    o, o2 = (_split_rows(each.T, heads) for each in pairs[attention.output])
    order = match_heads((q, q2), (k, k2), (v, v2), (o, o2))
    scores, values = fit_head_bases(order, (q, q2), (k, k2)), fit_head_bases(order, (v, v2), (o, o2))

    def output(weights: np.ndarray) -> np.ndarray:
        return values.second(_split_rows(weights.T, heads)).reshape(weights.T.shape).T

    parts = [_per_head(scores.first, heads), _per_head(scores.second, heads), _per_head(values.first, heads)]

    def fused(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([part(each) for part, each in zip(parts, np.split(weights, 3), strict=True)])

    inputs = parts if len(attention.inputs) == 3 else [fused]
    others = {**dict(zip(attention.inputs, inputs, strict=True)), attention.output: output}
    share = len(q[0]) / (2 * q.shape[-1])  # 2 matrices for each head's 4
    before = sum(float(np.square(pairs[name][1] - pairs[name][0]).sum()) for name in others)
    left = sum(float(np.square(other(pairs[name][1]) - pairs[name][0]).sum()) for name, other in others.items())
    return dict.fromkeys(others, _identity) if (1 - share) * before <= SIMPLER_RATIO * left else others


def _identity(weights: np.ndarray) -> np.ndarray:
    return weights


def _per_head(transform: Callable[[np.ndarray], np.ndarray], heads: int) -> OtherSide:
    return lambda weights: transform(_split_rows(weights, heads)).reshape(weights.shape)


def _split_rows(weights: np.ndarray, parts: int) -> np.ndarray:
    """`(rows, n)` as `(parts, rows / parts, n)`."""
    return weights.reshape(parts, -1, weights.shape[-1])


def _base_loader(load_pair: LoadPair, name: str) -> Callable[[], np.ndarray]:
    return lambda: load_pair(name)[0][:, :, 0].astype(np.float64)
