"""Checks and scales an extracted signal before it is decoded.

Decisions must not depend on the unit of a signal or of its mass, and the square of 1e-162 is 0. So every function
that takes a signal first scales it to numbers of order 1. The factors are powers of two, which change no digit.
"""

from typing import NamedTuple

import numpy as np

from hf_fingerprint.errors import CodeError


MIN_MASS = 2.0**-60  # share of the largest mass; a position below it counts as not read
MAX_FLOAT = float(np.finfo(np.float64).max)


class Signal(NamedTuple):
    """An extracted signal and its mass, scaled to numbers of order 1.

    Attributes:
        values (`np.ndarray` of shape `(V,)`): the signal over `2^exponent`; the largest magnitude is in [1, 2), or 0.
        mass (`np.ndarray` of shape `(V,)`): the mass over `2^mass_exponent`.
        exponent, mass_exponent (`int`): the exponents.
    """

    values: np.ndarray
    mass: np.ndarray
    exponent: int
    mass_exponent: int


def to_unit_scale(values: np.ndarray) -> tuple[np.ndarray, int]:
    """`(values / 2^exponent, exponent)`, with the largest magnitude in [1, 2); zeros stay 0.

    Args:
        values (`np.ndarray`): finite numbers, of any shape.
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    exponent = int(np.frexp(largest)[1]) - 1 if largest > 0 else 0
    return np.ldexp(values, -exponent), exponent


def from_unit_scale(values: np.ndarray, exponent: int) -> np.ndarray:
    """`values * 2^exponent`, clipped to the range of `float64`."""
    with np.errstate(over="ignore"):
        return np.clip(np.ldexp(values, exponent), -MAX_FLOAT, MAX_FLOAT)


def to_signal(extracted: np.ndarray, mass: np.ndarray, length: int) -> Signal:
    """Checks an extracted signal of V positions and scales it to order 1.

    A position without mass, or with less than `2^-60` of the largest, counts as not read: its value becomes 0. A
    value that dwarfs the rest stays, since the bound holds for it too.

    Args:
        extracted, mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        length (`int`): V.

    Raises:
        [`CodeError`]: if either is not V finite real numbers, or a mass is negative.
    """
    values, weight = _check_numbers(extracted, "extracted signal", length), _check_numbers(mass, "mass", length)
    if (weight < 0).any():
        raise CodeError("The mass of the extracted signal has negative values: extract it from the suspect again.")
    weight, mass_exponent = to_unit_scale(weight)
    read = weight >= MIN_MASS
    values, exponent = to_unit_scale(np.where(read, values, 0.0))
    return Signal(values, np.where(read, weight, 0.0), exponent, mass_exponent)


def _check_numbers(values: np.ndarray, name: str, length: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (length,):
        raise CodeError(f"The {name} must have the code's shape ({length},), got {found.shape}.")
    if found.dtype.kind not in "fiub":
        raise CodeError(f"The {name} must hold real numbers, got {found.dtype}.")
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise CodeError(f"The {name} has values that are not finite: extract it from the suspect again.")
    return found
