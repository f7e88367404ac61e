import numpy as np
import pytest

from hf_fingerprint.extraction.alignment.activation_matching import Activations
from hf_fingerprint.extraction.alignment.procrustes import fit_stream_rotation, nearest_orthogonal


CHANNELS, SAMPLES = 24, 400


def seen(rng, basis, gain, shift, drift=0.0):
    """What two modules that read a normalized stream are given, the second's stream in another basis."""
    stream = rng.standard_normal((CHANNELS, SAMPLES))
    stream -= stream.mean(0)
    rotated = basis @ (stream + drift * rng.standard_normal(stream.shape))
    nothing = np.zeros((1, SAMPLES))
    return (
        Activations(stream * gain[:, None] + shift[:, None], nothing, gain, shift),
        Activations(rotated, nothing, np.ones(CHANNELS), np.zeros(CHANNELS)),
    )


def rotation(rng):
    """A rotation that keeps the mean."""
    keep = np.eye(CHANNELS) - 1 / CHANNELS
    square = keep @ rng.standard_normal((CHANNELS, CHANNELS)) @ keep
    return nearest_orthogonal(square + np.full((CHANNELS, CHANNELS), 1.0))


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_a_rotated_stream_is_found_from_all_that_read_it(drift):
    rng = np.random.default_rng(0)
    basis = rotation(rng)
    pairs = [seen(rng, basis, rng.uniform(0.5, 2, CHANNELS), rng.standard_normal(CHANNELS), drift) for _ in range(3)]

    found = fit_stream_rotation(pairs)

    flat = np.eye(CHANNELS) - 1 / CHANNELS
    assert found @ flat == pytest.approx(basis @ flat, abs=1e-9 + 0.3 * drift)
    assert found @ found.T == pytest.approx(np.eye(CHANNELS), abs=1e-9)


def test_streams_that_have_nothing_in_common_have_no_basis():
    rng = np.random.default_rng(0)
    one = np.ones(CHANNELS), np.zeros(CHANNELS)
    ours, theirs = (Activations(rng.standard_normal((CHANNELS, 5000)), np.zeros((1, 1)), *one) for _ in range(2))

    assert fit_stream_rotation([(ours, theirs)]) is None


def test_modules_without_a_normalization_are_ignored():
    rng = np.random.default_rng(0)
    plain = Activations(rng.standard_normal((CHANNELS, 50)), np.zeros((1, 50)))

    assert fit_stream_rotation([(plain, plain)]) is None
    assert fit_stream_rotation([]) is None
