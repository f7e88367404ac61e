"""The schemes by which quantized weights are recognized."""

from hf_fingerprint.checkpoints.schemes import bitsandbytes, compressed_tensors, gptq, hqq, mlx, quanto, torchao
from hf_fingerprint.checkpoints.schemes.scheme import Scheme


SCHEMES: tuple[Scheme, ...] = (
    torchao.PLAIN,
    torchao.TILES,
    torchao.SHARDS,
    torchao.NF4,
    bitsandbytes.INT8,
    bitsandbytes.FOUR_BITS,
    quanto.EIGHT_BITS,
    quanto.STACKED,
    hqq.GROUPS,
    compressed_tensors.PACKED,
    compressed_tensors.PLAIN,
    mlx.GROUPS,
    gptq.COLUMNS,
)
