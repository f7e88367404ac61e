"""Files of PyTorch's lite interpreter in FlatBuffers."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.mobile_files import FORMAT
from tests.helpers.forms import FORMS, copy_weights, read_tensor


PATH = FORMS / "vit/made/static_int8_flatbuffer.ptl"


def test_quantized_weights_have_the_names_of_their_modules():
    assert FORMAT.matches(PATH.read_bytes()[:512], PATH)
    left_out: dict[str, str] = {}

    found = dict(FORMAT.load(PATH, left_out).tensors)

    assert not left_out
    expected = copy_weights("vit")
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        step = 2 * np.abs(value).max() / 255 if name.endswith("weight") and value.ndim > 1 else 0
        assert np.abs(read_tensor(found[name]) - value).max() <= 0.51 * step


def test_it_is_a_suspect():
    with open_checkpoint(PATH, suspect=True) as opened:
        assert opened.tensors["head.weight"].shape == (5, 48)
        assert "qint8" in opened.container.dtypes


@pytest.mark.parametrize("length", [0, 4, 8, 40, 1000, 100_000])
def test_a_file_that_is_cut_off_is_refused(tmp_path, length):
    path = tmp_path / "cut.ptl"
    path.write_bytes(PATH.read_bytes()[:length])

    with pytest.raises(InvalidFileError):
        FORMAT.load(path, {})


def test_values_that_refer_to_themselves_end(tmp_path):
    content = bytearray(PATH.read_bytes())
    path = tmp_path / "loop.ptl"
    for at in range(0, 4000, 36):  # a number of each kind in the tables of the module
        changed = bytearray(content)
        changed[at : at + 4] = (7).to_bytes(4, "little")
        path.write_bytes(changed)
        try:
            FORMAT.load(path, {})
        except InvalidFileError:
            continue
