import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.extraction.channel_similarity import assign_channels


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 12), more=st.integers(0, 6))
def test_no_channel_is_assigned_twice(seed, rows, more):
    similarity = np.random.default_rng(seed).integers(0, 3, (rows, rows + more)).astype(float)
    chosen, _ = assign_channels(similarity)
    assert len(set(chosen.tolist())) == rows


@pytest.mark.parametrize("contested", [0, 2])
def test_only_contested_channels_are_assigned_jointly(contested):
    similarity = np.eye(5, 7)
    similarity[:contested, 6] = 2
    chosen, steps = assign_channels(similarity)
    assert (chosen == 6).sum() == min(contested, 1)
    assert steps == contested**2 * 4
