import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.weigh import TensorExtraction, extract_tensor
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.vault import Base, Calibration, Carrier, TensorRecord
from tests.helpers.small_models import issue_plain


NAME = "blocks.1.mlp.fc1.weight"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, with one carrier in view, and the weights of a marked copy."""
    plain = issue_plain(tmp_path_factory.mktemp("case"))
    (carrier,) = (c for c in plain.base.carriers if c.name == NAME)
    with open_checkpoint(plain.model) as original:
        own, theirs = plain.own[NAME], plain.copy[NAME]
        yield SimpleNamespace(base=plain.base, carrier=carrier, original=original, own=own, theirs=theirs)


def read(case: SimpleNamespace, theirs: np.ndarray, tmp_path: Path) -> TensorExtraction:
    save_file({"x": theirs}, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        return extract_tensor(case.base, case.carrier, case.original, suspect, suspect.tensors["x"])


def naive(case: SimpleNamespace, theirs: np.ndarray) -> SimpleNamespace:
    """A reference implementation: one weight after another, with only the key streams of the package."""
    secret, length = case.base.secret, case.base.length
    ours, theirs = case.own.astype(np.float64), theirs.astype(np.float64)
    amplitude = case.carrier.amplitude.astype(np.float64)[:, None]
    lost = (theirs == 0) | ~np.isfinite(theirs)
    with np.errstate(invalid="ignore"):
        difference = (theirs - ours) / amplitude
    rows = np.unique(np.linspace(0, len(ours) - 1, 16).astype(int))
    sample = np.abs(difference[rows][~lost[rows]])
    clip = max(3 * 1.4826 * np.median(sample), 1.5) if len(sample) else 1.5
    difference = np.where(lost, 0, np.clip(difference, -clip, clip))
    weight = 1 / max((difference**2).sum() / max((~lost).sum(), 1), 0.1)
    first = int(Stream(derive(secret, "offset", NAME)).take(8).view("<u8")[0] % np.uint64(length // 8)) * 8
    bits = np.unpackbits(Stream(derive(secret, "signs", NAME)).take(-(-ours.size // 8)))[: ours.size]
    sums, missing = np.zeros(length), np.zeros(length)
    for k, (d, gone, bit) in enumerate(zip(difference.ravel(), lost.ravel(), bits, strict=True)):
        sums[(first + k) % length] += -d if bit else d
        missing[(first + k) % length] += gone
    return SimpleNamespace(sums=sums, missing=missing, offset=first, weight=weight, dropped=int(lost.sum()), clip=clip)


def drifted(case: SimpleNamespace, size: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(case.own.shape).astype(np.float32)
    return case.theirs + size * case.carrier.amplitude[:, None] * noise


@pytest.mark.parametrize("drift", [0, 0.3, 5])
@pytest.mark.parametrize("zeros", [0, 0.4])
def test_an_extraction_is_that_of_a_naive_implementation(case, tmp_path, drift, zeros):
    theirs = drifted(case, drift)
    theirs[np.random.default_rng(1).random(theirs.shape) < zeros] = 0

    found, expected = read(case, theirs, tmp_path), naive(case, theirs)

    assert np.allclose(found.sums, expected.sums, atol=2e-3)
    assert found.offset == expected.offset
    assert found.weight == pytest.approx(expected.weight, rel=1e-3)
    assert (found.weights, found.dropped) == (theirs.size, expected.dropped)
    assert found.sample.clip == pytest.approx(expected.clip, rel=1e-3)
    assert (found.missing is None) == (zeros == 0)
    assert zeros == 0 or np.array_equal(found.missing, expected.missing)
    assert np.abs(found.sums).max() > 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_weights_that_say_nothing_are_dropped_and_counted(case, tmp_path, value):
    theirs, mask = drifted(case, 0.1), np.random.default_rng(2).random(case.own.shape) < 0.1
    theirs[mask] = value

    found, expected = read(case, theirs, tmp_path), naive(case, theirs)

    assert found.dropped == mask.sum() == expected.dropped
    assert np.array_equal(found.missing, expected.missing)
    assert np.allclose(found.sums, expected.sums, atol=2e-3)
    assert found.weight == pytest.approx(expected.weight, rel=1e-3)


def test_the_base_itself_reads_as_nothing(case, tmp_path):
    found = read(case, case.own, tmp_path)

    assert not found.sums.any()
    assert (found.dropped, found.missing) == (0, None)
    assert found.weight == 10


def test_an_untouched_copy_reads_as_its_codeword(case, tmp_path):
    found = read(case, case.theirs, tmp_path)

    assert case.own.size == 9216
    counts = np.bincount((found.offset + np.arange(9216)) % 2048, minlength=2048)
    assert np.allclose(np.abs(found.sums), counts, rtol=1e-3)
    assert found.weight == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("gone", ["all zero", "all NaN"])
def test_a_tensor_that_is_gone_says_nothing(case, tmp_path, gone):
    theirs = np.full_like(case.own, 0 if gone == "all zero" else np.nan)

    found = read(case, theirs, tmp_path)

    assert not found.sums.any()
    assert found.dropped == theirs.size == found.missing.sum()
    assert np.isfinite(found.weight)


def test_outliers_are_clipped_so_that_a_few_cannot_shout(case, tmp_path):
    theirs = drifted(case, 0.2)
    quiet = read(case, theirs, tmp_path)
    theirs.reshape(-1)[5000:5010] = 1e6

    loud = read(case, theirs, tmp_path)

    assert np.abs(loud.sums - quiet.sums).sum() <= 10 * 2 * loud.sample.clip * 1.01
    assert loud.weight == pytest.approx(quiet.weight, rel=0.05)


def test_a_tensor_that_drifted_far_says_little(case, tmp_path):
    weights = [read(case, drifted(case, size), tmp_path).weight for size in (0, 1, 10, 100)]

    assert weights == sorted(weights, reverse=True)
    assert weights[0] / weights[3] > 5000


def test_rows_without_amplitude_are_not_read(tmp_path, case):
    amplitude = case.carrier.amplitude.copy()
    amplitude[:100] = 0
    silent = Carrier(NAME, case.carrier.eps, amplitude)
    save_file({"x": drifted(case, 50)}, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        found = extract_tensor(case.base, silent, case.original, suspect, suspect.tensors["x"])

    assert np.isfinite(found.sums).all()
    assert np.isfinite(found.weight)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_of_the_suspect_give_the_same(case, tmp_path, dtype):
    single, other = read(case, case.theirs, tmp_path), read(case, case.theirs.astype(dtype), tmp_path)

    assert np.corrcoef(single.sums, other.sums)[0, 1] > 0.99


def test_the_sample_measures_how_similar_the_tensors_are(case, tmp_path):
    both, theirs, ours, distance = read(case, case.theirs, tmp_path).sample.products

    assert both / np.sqrt(theirs * ours) == pytest.approx(1, abs=1e-4)
    assert np.sqrt(distance / ours) == pytest.approx(0.003, rel=0.01)
    assert ours == pytest.approx((case.own.astype(np.float64) ** 2).sum(), rel=0.5)


def test_memory_stays_small_for_a_tensor_of_64_megabytes(tmp_path):
    rows, columns, rng = 4096, 4096, np.random.default_rng(0)
    weights = rng.standard_normal((rows, columns), np.float32)
    save_file({"w": weights}, tmp_path / "base.safetensors")
    weights += np.float32(0.01)
    weights[::7] = 0
    save_file({"w": weights}, tmp_path / "suspect.safetensors")
    del weights
    carrier = Carrier("w", 0.01, np.full(rows, 0.01, np.float32))
    record, calibration = TensorRecord("F32", (rows, columns), ""), Calibration("none", 0, 1e-4, None, None)
    base = Base(
        "x", "x", None, "", {"w": record}, (carrier,), "tardos", 65536, 3, 1, "", 1e-6, 4, calibration, bytes(32)
    )
    with (
        open_checkpoint(tmp_path / "base.safetensors") as own,
        open_checkpoint(tmp_path / "suspect.safetensors") as suspect,
    ):
        tracemalloc.start()
        found = extract_tensor(base, carrier, own, suspect, suspect.tensors["w"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert found.weights == 1 << 24
    assert found.dropped == 586 * 4096
    assert peak < 20 << 20


def uneven(case: SimpleNamespace, alone: float = 0.25, seed: int = 0) -> np.ndarray:
    """The copy after a drift that left this share of its columns alone; with some weights pruned."""
    rng = np.random.default_rng(seed)
    amplitude = case.carrier.amplitude[:, None]
    share = np.where(rng.random(case.own.shape[1]) < alone, 0.5, 40.0)
    theirs = case.theirs + amplitude * share * rng.standard_normal(case.own.shape)
    theirs[rng.random(theirs.shape) < 0.05] = 0
    return theirs.astype(np.float32)


def test_columns_that_stayed_count_for_what_they_say(case, tmp_path):
    theirs = uneven(case)
    found = read(case, theirs, tmp_path)

    lost, amplitude = theirs == 0, case.carrier.amplitude.astype(np.float64)[:, None]
    difference = (theirs.astype(np.float64) - case.own) / amplitude
    squares = np.where(lost, 0, difference**2)
    rows = squares.sum(1) / (~lost).sum(1)
    columns = (squares / rows[:, None]).sum(0) / (~lost).sum(0)
    rows = (squares / columns).sum(1) / (~lost).sum(1)
    weights = np.where(lost, 0, 1 / np.maximum(rows[:, None] * columns, 0.1))
    clipped = np.clip(difference, -1.5 / np.sqrt(np.maximum(weights, 1e-9)), 1.5 / np.sqrt(np.maximum(weights, 1e-9)))
    first = (
        int(Stream(derive(case.base.secret, "offset", NAME)).take(8).view("<u8")[0] % np.uint64(case.base.length // 8))
        * 8
    )
    bits = np.unpackbits(Stream(derive(case.base.secret, "signs", NAME)).take(-(-theirs.size // 8)))[: theirs.size]
    places = (first + np.arange(theirs.size)) % case.base.length
    sums, masses = np.zeros(case.base.length), np.zeros(case.base.length)
    np.add.at(sums, places, ((1 - 2.0 * bits) * (weights * clipped).ravel()))
    np.add.at(masses, places, weights.ravel())
    assert found.masses == pytest.approx(masses, rel=1e-3, abs=1e-6)
    assert found.sums == pytest.approx(sums, rel=1e-3, abs=1e-3)
    assert (found.weight, found.missing, found.dropped) == (1.0, None, int(lost.sum()))


def test_columns_of_equal_drift_count_equally(case, tmp_path):
    found = read(case, uneven(case, 0.0), tmp_path)

    assert found.masses is None
    assert found.weight < 0.01


@pytest.mark.parametrize("absurd", [1e30, 3e38, np.inf, -np.inf, np.nan])
def test_absurd_weights_among_those_that_drifted_unevenly_do_no_harm(case, tmp_path, absurd):
    theirs = uneven(case)
    theirs[3, 7], theirs[11] = absurd, absurd

    found, before = read(case, theirs, tmp_path), read(case, uneven(case), tmp_path)

    assert np.isfinite(found.sums).all()
    assert np.isfinite(found.masses).all()
    assert np.corrcoef(found.sums, before.sums)[0, 1] > 0.95


def trained_after_pruning(case: SimpleNamespace, share: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The copy after its smallest weights were set to 0 and all were trained, and which stayed."""
    stayed = np.abs(case.theirs) >= np.quantile(np.abs(case.theirs), share)
    noise = size * case.carrier.amplitude[:, None] * np.random.default_rng(3).standard_normal(case.own.shape)
    return (np.where(stayed, case.theirs, 0) + noise).astype(np.float32), stayed


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("size", [0.5, 5])
def test_weights_pruned_before_training_do_not_count(case, tmp_path, share, size):
    theirs, stayed = trained_after_pruning(case, share, size)
    without = theirs.copy()
    without[~stayed] = 0  # as an attacker who doesn't train leaves them

    found, expected = read(case, theirs, tmp_path), read(case, without, tmp_path)

    assert found.sample.mixture.share == pytest.approx(share, abs=0.05)
    assert found.dropped == 0
    assert np.corrcoef(found.sums, expected.sums)[0, 1] > 0.9
    assert found.masses.sum() == pytest.approx(stayed.sum() / (1 + size**2), rel=0.5)


def test_columns_that_no_training_moved_count_for_what_they_say(case, tmp_path):
    """In idle channels pruned weights are still 0, and a few of those kept did not change."""
    theirs, stayed = trained_after_pruning(case, 0.9, 8)
    idle = np.arange(case.own.shape[1]) % 4 > 0
    theirs[:, idle] = np.where(stayed, case.theirs, 0)[:, idle]

    found = read(case, theirs, tmp_path)

    assert found.sample.mixture is not None
    assert np.median(found.sample.columns[idle]) < 0.2 < 1 < np.median(found.sample.columns[~idle])
    idle_alone = np.where(idle, np.where(stayed, case.theirs, 0), 0).astype(np.float32)
    assert np.corrcoef(found.sums, read(case, idle_alone, tmp_path).sums)[0, 1] > 0.9


def test_absurd_weights_among_those_pruned_and_trained_do_no_harm(case, tmp_path):
    theirs = trained_after_pruning(case, 0.9, 2)[0]
    before = read(case, theirs, tmp_path)
    theirs[3, :4] = np.nan, np.inf, -np.inf, 3e38

    found = read(case, theirs, tmp_path)

    assert np.isfinite(found.sums).all()
    assert np.isfinite(found.masses).all()
    assert found.dropped == 3
    assert np.corrcoef(found.sums, before.sums)[0, 1] > 0.95
