"""Fits the scales of integer codes to the base's weights, when a suspect's file doesn't tell them.

Quantization schemes give a scale, and often a zero point, to the whole tensor, to each row or column, or to each group
of 32, 64 or 128 weights; or a table gives the value of each code. Each scheme is fitted by least squares, and the one
with the best residual is used. A penalty on its parameters (BIC) keeps a scheme of many from absorbing the mark, and
nothing here sees a codeword.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np


GROUPS = (32, 64, 128)
MAX_LEVELS = 256  # of a table
SAMPLE_ROWS, SAMPLE_WEIGHTS = 256, 1 << 19  # the rows by which a scheme is chosen, a multiple of every group
PENALTY = 2.0  # times that of the BIC: the residual is the mark's as well as rounding's
_TINY = 1e-30


class CodeScheme(NamedTuple):
    """A quantization scheme.

    Attributes:
        block (`tuple[int, int]`): rows and columns of the blocks that share a scale.
        zeros (`bool`): whether each block has its own zero point. Else all have that of the tensor.
        table (`bool`): whether a table gives the value of each code, to be scaled.
    """

    block: tuple[int, int]
    zeros: bool
    table: bool = False


@dataclass(frozen=True)
class ScaleFit:
    """The scales of a tensor's codes.

    Attributes:
        scheme ([`CodeScheme`]): the scheme.
        scales, zeros (`np.ndarray`): by block, `float32`.
        levels (`np.ndarray` or `None`): the values of a table.
        lowest (`int`): the code of its first level.
    """

    scheme: CodeScheme
    scales: np.ndarray
    zeros: np.ndarray
    levels: np.ndarray | None = None
    lowest: int = 0

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """The weights of a tensor's codes, `float32` in their shape."""
        values = _as_matrix(codes)
        if self.levels is not None:
            values = _look_up(self.levels, values, self.lowest)
        blocks = _in_blocks(values, self.scheme.block)
        found = (blocks - self.zeros[:, None, :, None]) * self.scales[:, None, :, None]
        return found.astype(np.float32).reshape(codes.shape)


def fit_scales(codes: np.ndarray, weights: np.ndarray) -> ScaleFit:
    """Fits scales to a tensor's codes.

    Args:
        codes (`np.ndarray`): the codes, in the carrier's shape.
        weights (`np.ndarray`): the base's weights, in the same shape.
    """
    whole, ours = _as_matrix(codes), _as_matrix(weights)
    kernel = prod(codes.shape[2:])
    rows = min(len(whole), SAMPLE_ROWS, max(1, SAMPLE_WEIGHTS // whole.shape[1]))
    some, reference = whole[:rows], ours[:rows]
    best, least = CodeScheme((len(whole), whole.shape[1]), True), np.inf
    levels = len(np.unique(some)) if float(np.ptp(some)) < MAX_LEVELS else None
    for scheme in _schemes(whole.shape, kernel, levels is not None):
        block = min(scheme.block[0], rows), scheme.block[1]
        if rows % block[0]:
            continue
        fitted = _fit(some, reference, scheme._replace(block=block))
        parameters = (1 + scheme.zeros) * fitted.scales.size + (levels or 0) * scheme.table
        residual = float(np.square(fitted(some) - reference, dtype=np.float64).mean())
        score = some.size * np.log(residual + _TINY) + PENALTY * parameters * np.log(some.size)
        if score < least:
            best, least = scheme, score
    return _fit(whole, ours, best)


def _schemes(shape: tuple[int, int], kernel: int, has_levels: bool) -> Iterator[CodeScheme]:
    """The schemes that fit a matrix, where `kernel` columns belong to an input channel."""
    rows, columns = shape
    blocks = [(rows, columns), (1, columns), (rows, kernel)]
    blocks += [(1, group) for group in GROUPS if columns % group == 0]
    blocks += [(group, 1) for group in GROUPS if rows % group == 0]
    for block in dict.fromkeys(blocks):
        yield CodeScheme(block, False)
        yield CodeScheme(block, True)
        if has_levels:
            yield CodeScheme(block, False, True)


def _fit(codes: np.ndarray, weights: np.ndarray, scheme: CodeScheme) -> ScaleFit:
    if scheme.table:
        return _fit_table(codes, weights, scheme)
    x, y = _in_blocks(codes, scheme.block), _in_blocks(weights, scheme.block)
    if scheme.zeros:
        x_mean, y_mean = _mean(x), _mean(y)
        scales = _ratio(_mean(x * y) - x_mean * y_mean, _mean(x * x) - x_mean**2)
        zeros = x_mean - _ratio(y_mean, scales)
        return ScaleFit(scheme, scales, zeros)
    whole = float(x.mean(dtype=np.float64)), float(y.mean(dtype=np.float64))
    power = float(np.square(x, dtype=np.float64).mean()) - whole[0] ** 2
    slope = (float((x * y).mean(dtype=np.float64)) - whole[0] * whole[1]) / max(power, _TINY)
    zero = np.float32(round(whole[0] - whole[1] / slope) if slope else 0.0)
    x = x - zero
    scales = _ratio(_mean(x * y), _mean(x * x))
    return ScaleFit(scheme, scales, np.full_like(scales, zero))


def _fit_table(codes: np.ndarray, weights: np.ndarray, scheme: CodeScheme) -> ScaleFit:
    """Levels that are the mean of the weights at each code, in units of a block's size, and each block's scale."""
    lowest = int(codes.min())
    y = _in_blocks(weights, scheme.block)
    sizes = np.sqrt(_mean(y * y))
    units = (y / np.maximum(sizes, _TINY)[:, None, :, None]).reshape(-1)
    places = (codes.reshape(-1) - lowest).astype(np.int64)
    counts = np.bincount(places, minlength=MAX_LEVELS)
    levels = (np.bincount(places, units, MAX_LEVELS) / np.maximum(counts, 1)).astype(np.float32)
    x = _in_blocks(_look_up(levels, codes, lowest), scheme.block)
    scales = _ratio(_mean(x * y), _mean(x * x))
    return ScaleFit(scheme, scales, np.zeros_like(scales), levels, lowest)


def _look_up(levels: np.ndarray, codes: np.ndarray, lowest: int) -> np.ndarray:
    places = np.clip(codes - np.float32(lowest), 0, len(levels) - 1).astype(np.intp)
    found: np.ndarray = levels[places]
    return found


def _as_matrix(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _in_blocks(matrix: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The matrix as `(blocks down, rows, blocks across, columns)`."""
    rows, columns = matrix.shape
    return matrix.reshape(rows // block[0], block[0], columns // block[1], block[1])


def _mean(blocks: np.ndarray) -> np.ndarray:
    found: np.ndarray = blocks.mean((1, 3), dtype=np.float64)
    return found


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    usable = np.abs(bottom) > _TINY
    return np.divide(top, bottom, out=np.zeros_like(bottom, np.float64), where=usable).astype(np.float32)
