"""Conversion of raw tensor bytes to float32 and back, by safetensors dtype."""

import numpy as np


SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
READABLE = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
WRITABLE = frozenset({"F32", "F16", "BF16"})


def _float8_table(exponent_bits: int, special: str) -> np.ndarray:
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    magnitude = codes & 0x7F
    value[(magnitude == 0x7F) if special == "fn" else (magnitude >= 0x7C)] = np.nan
    return np.where(codes & 0x80, -value, value).astype(np.float32)


_FLOAT8 = {"F8_E4M3": _float8_table(4, "fn"), "F8_E5M2": _float8_table(5, "ieee")}


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """`float32` values of raw bytes (`uint8`, one dimension) of a [`READABLE`] dtype; a view for F32."""
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOAT8:
        return _FLOAT8[dtype][raw]
    with np.errstate(over="ignore"):
        return raw.view({"F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Raw bytes (`uint8`, one dimension) of `float32` values that a [`WRITABLE`] dtype represents exactly."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if dtype == "BF16":
        flat = (flat.view(np.uint32) >> 16).astype("<u2")
    elif dtype == "F16":
        flat = flat.astype("<f2")
    return flat.view(np.uint8)
