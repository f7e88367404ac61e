"""What a suspect's weights say, as it enters the codes: checked, and brought to numbers of order 1.

What is decided must not depend on the unit of a reading or of its mass, and the square of 1e-162 is 0. So whatever
takes a reading brings it here first. The factors are powers of two: they change no digit, however small or large the
numbers.
"""

from typing import NamedTuple

import numpy as np

from hf_fingerprint.errors import CodeError


MIN_MASS = 2.0**-60  # of the largest: below it nothing was read
MAX_FLOAT = float(np.finfo(np.float64).max)


class Signal(NamedTuple):
    """A reading and its mass, brought to numbers of order 1.

    Attributes:
        values (`np.ndarray` of shape `(V,)`): the reading over `2^exponent`, the largest magnitude in [1, 2) or all 0.
        mass (`np.ndarray` of shape `(V,)`): likewise, with an exponent of its own.
        exponent (`int`): of the reading.
        mass_exponent (`int`): of the mass.
    """

    values: np.ndarray
    mass: np.ndarray
    exponent: int
    mass_exponent: int


def to_unit_scale(values: np.ndarray) -> tuple[np.ndarray, int]:
    """`(values / 2^exponent, exponent)`, the largest magnitude in [1, 2); zeros stay as they are.

    Args:
        values (`np.ndarray`): finite numbers, of any shape.
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    exponent = int(np.frexp(largest)[1]) - 1 if largest > 0 else 0
    return np.ldexp(values, -exponent), exponent


def from_unit_scale(values: np.ndarray, exponent: int) -> np.ndarray:
    """`values * 2^exponent`; what is too large for a number becomes the largest there is."""
    with np.errstate(over="ignore"):
        scaled = np.ldexp(values, exponent)
    return np.clip(scaled, -MAX_FLOAT, MAX_FLOAT)


def to_signal(extracted: np.ndarray, mass: np.ndarray, length: int) -> Signal:
    """Checks a reading of V positions and brings it to order 1; what is of order 1 comes back as it is.

    A position without mass, or with less than `2^-60` of the largest, was not read: its value is taken for 0. One
    value that dwarfs the rest is left, since the bound holds for it too; it then speaks alone.

    Args:
        extracted (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        mass (`np.ndarray` of shape `(V,)`): likewise.
        length (`int`): V.

    Raises:
        [`CodeError`]: if either is not V finite real numbers, or a mass is negative.
    """
    values, weight = _check_numbers(extracted, "reading", length), _check_numbers(mass, "mass", length)
    if (weight < 0).any():
        raise CodeError("The reading has positions of negative mass, so it can't be decoded: read the suspect again.")
    weight, mass_exponent = to_unit_scale(weight)
    read = weight >= MIN_MASS
    values, exponent = to_unit_scale(np.where(read, values, 0.0))
    return Signal(values, np.where(read, weight, 0.0), exponent, mass_exponent)


def _check_numbers(values: np.ndarray, name: str, length: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (length,):
        raise CodeError(f"A {name} of this code has {length} numbers, not the shape {found.shape}.")
    if found.dtype.kind not in "fiub":
        raise CodeError(f"A {name} is of real numbers, not of {found.dtype}, so it can't be decoded.")
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise CodeError(f"The {name} has values that are not finite, so it can't be decoded: read the suspect again.")
    return found
