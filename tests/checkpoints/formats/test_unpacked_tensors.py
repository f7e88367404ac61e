"""Tensors whose bytes are unpacked when they are read."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES
from hf_fingerprint.checkpoints.formats.unpacked_tensors import UnpackedTensor


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_damaged_parts_are_no_numbers_and_others_are_read(dtype):
    content = np.zeros(64, np.uint8)

    def unpack(start, stop):
        if stop > 32:
            raise InvalidFileError("damaged")
        return content[start:stop]

    tensor = UnpackedTensor(dtype, (8,), unpack)

    assert (to_float32(tensor.read(0, 32), DTYPES[dtype]) == 0).all()
    assert np.isnan(to_float32(tensor.read(32, 64), DTYPES[dtype])).all()
    assert len(tensor.read(9, 9)) == 0
