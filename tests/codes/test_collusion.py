import numpy as np
import pytest

from hf_fingerprint.codes import FORGERIES, forge
from hf_fingerprint.errors import CodeError


COPIES = np.array([[1.0, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1]])
MANY = np.repeat(COPIES, 2000, axis=1)


def by_weights(strategy, copies, weights, rng):
    """The same, weight by weight: keyed signs, the colluders' choice among the values they see, signs undone."""
    signs = rng.choice([-1.0, 1.0], (weights, copies.shape[1]))
    seen = signs * copies[:, None, :]
    low, high = seen.min(axis=0), seen.max(axis=0)
    chosen = {
        "average": seen.mean(axis=0),
        "minimum": low,
        "maximum": high,
        "min-max": (low + high) / 2,
        "median": np.median(seen, axis=0),
        "random extreme": np.where(rng.random(low.shape) < 0.5, low, high),
        "random pick": np.take_along_axis(seen, rng.integers(len(seen), size=(1, *low.shape)), axis=0)[0],
        "minority": np.where(low == high, low, np.where(np.median(seen, axis=0) == high, low, high)),
    }[strategy]
    return (signs * chosen).mean(axis=0)


@pytest.mark.parametrize(
    "strategy", [s for s in FORGERIES if s not in ("weighted average", "layer interleaving", "block interleaving")]
)
def test_a_forgery_is_distributed_as_one_made_weight_by_weight(strategy):
    """Mean, spread and tails where 3, 2, 1 and 0 of three colluders hold +1, with ten weights a position."""
    drawn, _ = forge(strategy, MANY, 10, 0.0, np.random.default_rng(0))
    made = by_weights(strategy, MANY, 10, np.random.default_rng(1))
    for mine, theirs in zip(drawn.reshape(4, 2000), made.reshape(4, 2000), strict=True):
        assert mine.mean() == pytest.approx(theirs.mean(), abs=0.04)
        assert mine.std() == pytest.approx(theirs.std(), abs=0.03)
        np.testing.assert_allclose(np.quantile(mine, [0.1, 0.9]), np.quantile(theirs, [0.1, 0.9]), atol=0.21)


@pytest.mark.parametrize("strategy", FORGERIES)
def test_what_all_colluders_agree_on_shows_and_shares_sum_to_one(strategy):
    forged, shares = forge(strategy, MANY, 46, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(forged.reshape(4, 2000)[[0, 3]], [[1.0] * 2000, [-1.0] * 2000])
    assert shares.sum() == pytest.approx(1)
    assert np.all(shares >= 0)


@pytest.mark.parametrize("strategy", ["weighted average", "layer interleaving"])
def test_uneven_shares_are_those_of_the_signal(strategy):
    copies = np.random.default_rng(5).choice([-1.0, 1.0], (40, 4000))
    forged, shares = forge(strategy, copies, 46, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(forged, shares @ copies)
    assert shares.max() > 2 * shares.mean()
    assert ((shares > 0).sum() == 27) == (strategy == "layer interleaving")


def test_drift_is_averaged_over_the_weights_of_a_position():
    quiet, noisy = (forge("average", MANY, 25, drift, np.random.default_rng(0))[0] for drift in (0.0, 5.0))
    assert (noisy - quiet).std() == pytest.approx(1.0, rel=0.05)


def test_a_forgery_that_is_not_known_is_refused():
    with pytest.raises(CodeError, match="tie-dye"):
        forge("tie-dye", COPIES, 10, 0.0, np.random.default_rng(0))
