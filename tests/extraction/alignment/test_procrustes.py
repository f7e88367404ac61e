import numpy as np
import pytest

from hf_fingerprint.extraction.alignment import procrustes
from hf_fingerprint.extraction.alignment.activation_matching import Activations
from hf_fingerprint.extraction.alignment.procrustes import (
    SliceEquation,
    fit_stream_rotation,
    fit_stream_slice,
    nearest_orthogonal,
)


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


def sliced_layers(rng, kept, noise):
    """Two layers' weights, a slice, the weights in it with factors and noise, and the factors."""
    found = nearest_orthogonal(rng.standard_normal((CHANNELS, CHANNELS)))[:, :kept]
    layers = []
    for rows, spread in ((3 * CHANNELS, 0.5), (4 * CHANNELS, 0.0)):
        ours = rng.standard_normal((rows, CHANNELS)) * np.exp(-2 * np.linspace(0, 1, CHANNELS))
        factors = np.exp(spread * rng.standard_normal(kept))
        theirs = (ours @ found + noise * ours.std() * rng.standard_normal((rows, kept))) * factors
        layers.append((ours, theirs, factors))
    return found, layers


@pytest.mark.parametrize("kept", [CHANNELS, CHANNELS - 5, CHANNELS // 2])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_slice_and_the_factors_of_its_layers_are_found(kept, noise):
    expected, layers = sliced_layers(np.random.default_rng(0), kept, noise)

    found, factors = fit_stream_slice([SliceEquation.of(ours, theirs) for ours, theirs, _ in layers])

    assert found.T @ found == pytest.approx(np.eye(kept), abs=1e-9)
    assert np.abs(found - expected).max() < 1e-6 + 2 * noise
    for own, (_, _, true) in zip(factors, layers, strict=True):
        assert own == pytest.approx(true, rel=1e-4 + 5 * noise)


def test_the_steps_after_least_squares_lessen_the_residual(monkeypatch):
    _, layers = sliced_layers(np.random.default_rng(0), CHANNELS - 5, 0.2)
    equations = [SliceEquation.of(ours, theirs / factors) for ours, theirs, factors in layers]
    residuals = []
    for steps in (0, 1, 10):
        monkeypatch.setattr(procrustes, "MAX_STEPS", steps)
        found, _ = fit_stream_slice(equations)
        residuals.append(sum(np.square(ours @ found - theirs / factors).sum() for ours, theirs, factors in layers))

    assert residuals[0] > residuals[1] > residuals[2]


def test_a_direction_that_no_layer_has_is_left_out():
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((100, CHANNELS))
    ours -= ours.mean(1, keepdims=True)

    found, _ = fit_stream_slice([SliceEquation.of(ours, ours @ nearest_orthogonal(ours.T @ ours))])

    assert np.linalg.matrix_rank(found) == CHANNELS - 1
    assert np.abs(found.sum(0)).max() < 1e-9
