"""A response is the slope of what a value does with the owner's delta, and claims nothing of a constant."""

import numpy as np
import pytest

from hf_fingerprint.extraction.response import BINS, Response


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constants_have_no_response(value):
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal(50_000)
    which = np.clip((deltas + 4) * BINS / 8, 0, BINS - 1).astype(int)
    response = Response.measure(which, deltas, np.full(len(deltas), value), 0.1)

    assert not np.square(response.gains).max() > 1e-6
