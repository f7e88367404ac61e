import numpy as np
import pytest

from hf_fingerprint.blackbox import synthetic_cover
from hf_fingerprint.errors import CodeError


KEY = bytes(range(32))
# frozen, up to a gray level where another transform rounds otherwise
SOME_PIXELS = [
    [[78, 100, 113], [165, 158, 136], [215, 226, 151], [153, 108, 74]],
    [[164, 216, 198], [138, 110, 109], [129, 144, 97], [124, 125, 124]],
    [[104, 96, 126], [77, 83, 125], [114, 108, 90], [159, 180, 169]],
    [[151, 138, 162], [10, 14, 77], [166, 184, 156], [48, 106, 52]],
]


def test_a_cover_is_the_keys_for_ever():
    cover = synthetic_cover(KEY, 0)

    assert np.allclose(cover[::56, ::56], SOME_PIXELS, atol=1)
    assert np.array_equal(cover, synthetic_cover(KEY, 0))


@pytest.mark.parametrize("other", [(KEY, 1), (bytes(32), 0)])
def test_another_key_or_index_is_another_picture(other):
    one, two = (cover.astype(float).ravel() for cover in (synthetic_cover(KEY, 0), synthetic_cover(*other)))

    assert abs(np.corrcoef(one, two)[0, 1]) < 0.5


@pytest.mark.parametrize("size", [224, 225, 384])
def test_cover_images_look_like_photographs(size):
    cover = synthetic_cover(KEY, 3, size)

    assert (cover.dtype, cover.shape) == (np.uint8, (size, size, 3))
    assert 8 <= cover.min() < 60
    assert 196 < cover.max() <= 247
    gray = cover.mean(2)
    assert np.corrcoef(gray[:, :-1].ravel(), gray[:, 1:].ravel())[0, 1] > 0.8
    assert np.corrcoef(cover[..., 0].ravel(), cover[..., 2].ravel())[0, 1] > 0.3


def test_a_small_cover_is_refused():
    with pytest.raises(CodeError, match="223 pixels is too small: choose 224 or more"):
        synthetic_cover(KEY, 0, 223)
