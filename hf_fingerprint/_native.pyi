"""The passes of `_native.c`. Arrays are contiguous; signs are bits, the highest of a byte first, 1 for -1."""

from typing_extensions import Buffer

WIDTHS: int  # versions of each pass, for vectors of different width, that this processor runs

def use_width(number: int) -> None:
    """Chooses a version, from 0, the plainest; the widest is the default. For tests."""

def pack_biased(stream: Buffer, thresholds: Buffer, out: Buffer) -> None:
    """Packs whether each `uint16` of some rows of a stream is below its position's threshold."""

def score_packed(packed: Buffer, weights: Buffer, out: Buffer, length: int) -> None:
    """Sums the `float32` weights of set bits for each row and function, in single precision within 4,096 positions."""

def read_weights(
    theirs: Buffer,
    theirs_half: bool,
    ours: Buffer,
    ours_half: bool,
    inverse: Buffer,
    columns: int,
    clip: float,
    signs: Buffer,
    position: int,
    sums: Buffer,
) -> tuple[float, float, float, int]:
    """Adds the signed, normalized and clipped differences of some rows to `sums`, without weights that are dropped.

    Tensors are `float32`, or `bfloat16` if half. Returns the differences' energy, the product of both tensors, the
    square of the base's, and how many weights were dropped.
    """

def read_files(
    theirs: tuple[int, int, bool],
    ours: tuple[int, int, bool],
    inverse: Buffer,
    columns: int,
    clip: float,
    signs: Buffer,
    position: int,
    sums: Buffer,
    step: int,
    their_buffer: Buffer,
    our_buffer: Buffer,
) -> tuple[float, float, float, int]:
    """[`read_weights`] of tensors in two files, `step` rows at a time, a multiple of 8.

    A file is its descriptor, the offset of the first row, and whether it is `bfloat16`. Raises an `EOFError` if one
    ends too soon, and an `OSError` if it can't be read.
    """

def fold_weights(values: Buffer, signs: Buffer, position: int, sums: Buffer) -> None:
    """Adds signed `float32` values to consecutive positions, from a multiple of 8."""

def add_mark(values: Buffer, amplitude: Buffer, signs: Buffer) -> None:
    """Adds each row's signed amplitude to its `float32` weights that are not 0."""

def add_mark_half(values: Buffer, amplitude: Buffer, signs: Buffer, random: Buffer) -> None:
    """[`add_mark`] for `bfloat16` weights, rounded up with the probability of the remainder by `uint16` numbers."""
