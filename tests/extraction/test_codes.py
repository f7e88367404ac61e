"""Integers are seen as the codes that they may hold."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.codes import CodeTensors, stored_name


CODES = np.random.default_rng(0).integers(0, 16, (16, 24)).astype(np.uint8)
PACKED = {
    "bytes": (CODES, 0),
    "low first": (CODES[:, ::2] | CODES[:, 1::2] << 4, 0),
    "high first": (CODES[:, ::2] << 4 | CODES[:, 1::2], 0),
    "halves": (CODES[:8] | CODES[8:] << 4, 0),
    "halves, high first": (CODES[:8] << 4 | CODES[8:], 0),
    "signed": ((CODES[:, ::2] | CODES[:, 1::2] << 4).view(np.int8), 8),
    "rows of 32 bits": ((CODES.astype(np.int32).reshape(16, 3, 8) << (4 * np.arange(8, dtype=np.int32))).sum(2), 0),
    "columns of 32 bits": (
        (CODES.astype(np.int32).reshape(2, 8, 24) << (4 * np.arange(8, dtype=np.int32)[:, None])).sum(1),
        0,
    ),
}


@pytest.mark.parametrize("packing", PACKED)
def test_one_of_the_packings_gives_the_codes(tmp_path, packing):
    stored, half = PACKED[packing]
    stored = stored.astype(np.int32) if stored.dtype == np.int64 else stored
    save_file({"w": np.ascontiguousarray(stored)}, tmp_path / "s.safetensors")
    expected = ((CODES.astype(np.float32) + half) % 16 - half) if half else CODES.astype(np.float32)
    with open_checkpoint(tmp_path / "s.safetensors", suspect=True) as suspect:
        codes = CodeTensors(suspect, ())
        found = {name: codes.read(info).view(np.float32).reshape(info.shape) for name, info in codes.codes.items()}
        assert {stored_name(name) for name in found} == {"w"}
        right = [name for name, values in found.items() if np.array_equal(values, expected)]
        assert len(right) == 1

        info, whole = codes.codes[right[0]], expected.tobytes()
        for start, stop in ((0, 4), (4, 12), (100, 404), (len(whole) - 4, len(whole))):
            out = np.empty(stop - start, np.uint8)
            assert codes.read(info, start, stop).tobytes() == codes.read(info, start, stop, out).tobytes()
            assert out.tobytes() == whole[start:stop]
