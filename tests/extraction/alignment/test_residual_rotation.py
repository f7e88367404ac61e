import numpy as np
import pytest

from hf_fingerprint.extraction.alignment.residual_rotation import StreamSide


ROWS, CHANNELS = 200, 24


def drifted(shape, seed=0):
    """Weights, gains near 1, and the weights with the gains taken out, on top of noise."""
    rng = np.random.default_rng(seed)
    ours = rng.standard_normal((ROWS, CHANNELS))
    gains = rng.uniform(0.8, 1.25, shape)
    return ours, gains, ours / gains + 0.3 * rng.standard_normal(ours.shape)


@pytest.mark.parametrize(("axis", "shape"), [(0, (1, CHANNELS)), (1, (ROWS, 1))])
def test_gains_that_drifted_before_they_were_folded_are_fitted(axis, shape):
    ours, gains, back = drifted(shape)
    pair = np.full(shape[1 - axis], 2.0), np.ones(shape[1 - axis])
    side = StreamSide(np.eye(CHANNELS), gains=pair) if axis == 0 else StreamSide(np.eye(ROWS), scales=pair)

    found = side.drift(ours, back)

    left = [np.square(np.log(gains / each)).mean() ** 0.5 for each in (1.0, found)]
    assert found.shape == shape
    assert left[1] < (0.25 if axis == 0 else 0.75) * left[0]


def test_where_nothing_could_be_folded_nothing_is_fitted():
    ours, _, back = drifted((1, CHANNELS))

    for side in (
        StreamSide(np.eye(CHANNELS)),
        StreamSide(np.eye(ROWS), scales=(np.ones(ROWS), np.ones(ROWS))),
    ):
        assert side.drift(ours, back) == 1


def test_a_channel_that_is_gone_is_not_changed():
    ours, _, back = drifted((1, CHANNELS))
    back[:, 3], back[:, 5] = 0, -ours[:, 5]
    gains = np.ones(CHANNELS), np.ones(CHANNELS)

    found = StreamSide(np.eye(CHANNELS), gains=gains).drift(ours, back)

    assert found[0, 3] == found[0, 5] == 1
    assert np.isfinite(found).all()


@pytest.mark.parametrize("reads", [True, False])
def test_what_a_slice_keeps_of_the_base_is_what_it_gives_back(reads):
    rng = np.random.default_rng(0)
    basis = np.zeros((CHANNELS, CHANNELS))
    basis[:15] = np.linalg.qr(rng.standard_normal((CHANNELS, CHANNELS)))[0][:15]
    pair = rng.uniform(0.5, 2, CHANNELS), np.ones(CHANNELS)
    side = StreamSide(basis, gains=pair) if reads else StreamSide(basis, scales=pair)
    ours = rng.standard_normal((ROWS, CHANNELS) if reads else (CHANNELS, ROWS))
    folded = side.fold_base(ours)

    back = side.align_suspect_side(folded @ basis.T if reads else basis @ folded)

    assert back == pytest.approx(side.project_base(ours), abs=1e-9)
    assert np.linalg.norm(back) < 0.95 * np.linalg.norm(ours)
