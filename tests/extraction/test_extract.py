from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_info, threadpool_limits

from hf_fingerprint import Issuer
from hf_fingerprint.carriers import position_counts
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction import Extraction, extract
from hf_fingerprint.extraction.extraction_sums import CarrierRows, ExtractionSums, clip_positions
from hf_fingerprint.extraction.weigh import extract_tensor
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, two copies' weights and the codeword of the first."""
    root = tmp_path_factory.mktemp("case")
    vault = unlocked_vault(root / "vault")
    with Issuer(save_plain(root / "model"), vault, PLAIN_SETTINGS) as issuer:
        copies = list(issuer.issue_all(["alice", "bob"], root / "copies"))
        base = issuer.base
    arrays = [load_file(copy.path / "model.safetensors") for copy in copies]
    keys = vault.copy_keys(vault.copies())
    with open_checkpoint(root / "model") as original:
        own = load_file(root / "model" / "model.safetensors")
        yield SimpleNamespace(
            base=base, original=original, own=own, arrays=arrays, codewords=[base.codebook().codeword(k) for k in keys]
        )


def read(case: SimpleNamespace, arrays: dict[str, np.ndarray], tmp_path: Path) -> Extraction:
    save_file(arrays, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        return extract(case.base, case.original, suspect)


def test_a_whole_mark_reads_as_mass_times_its_codeword(case, tmp_path):
    for arrays, codeword in zip(case.arrays, case.codewords, strict=True):
        extraction = read(case, arrays, tmp_path)

        assert np.allclose(extraction.values, extraction.mass * codeword, rtol=1e-3)
        assert extraction.mass.min() > 40
    assert not np.array_equal(*case.codewords)


def blas_threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


@pytest.fixture
def two_blas_threads():
    """Set by a thread that ends, since only one thread at a time can set limits."""

    def set_threads(limits):
        thread = Thread(target=threadpool_limits, args=(limits, "blas"))
        thread.start()
        thread.join()

    before = max(blas_threads())
    set_threads(2)
    yield
    set_threads(before)


@pytest.mark.parametrize("fails", [False, True])
def test_extractions_that_overlap_leave_blas_with_its_threads(case, two_blas_threads, fails):
    before, first_began, second_began, first_ended = blas_threads(), Event(), Event(), Event()
    name = case.base.carriers[0].name
    part = CarrierRows(case.base.carriers[0], case.original.tensors[name], slice(0, 8))

    def first(_):
        assert set(blas_threads()) == {1}
        first_began.set()
        assert second_began.wait(60)
        if fails:
            raise InterruptedError

    def second(_):
        second_began.set()
        assert first_ended.wait(60)

    sums = [ExtractionSums(case.base, case.original, case.original, None) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(sums[0].add, [part], first)
        assert first_began.wait(60)
        other = pool.submit(sums[1].add, [part], second)
        assert isinstance(one.exception(60), InterruptedError) == fails
        first_ended.set()
        other.result(60)
        assert blas_threads() == before


def test_the_base_reads_as_nothing(case, tmp_path):
    extraction = read(case, case.own, tmp_path)

    assert not extraction.values.any()
    assert (extraction.lineage.descends, extraction.lineage.drift) == (True, 0)
    assert extraction.lineage.cosine == pytest.approx(1)


def test_an_extraction_adds_up_over_tensors(case, tmp_path):
    names = [carrier.name for carrier in case.base.carriers]
    halves = [{n: a for n, a in case.arrays[0].items() if n in part} for part in (names[:6], names[6:])]

    whole, parts = read(case, case.arrays[0], tmp_path), [read(case, half, tmp_path) for half in halves]

    assert np.allclose(parts[0].values + parts[1].values, whole.values, atol=1e-3)
    assert np.allclose(parts[0].mass + parts[1].mass, whole.mass)
    assert parts[0].tensors_matched + parts[1].tensors_matched == whole.tensors_matched == 17
    assert parts[0].weights_read + parts[1].weights_read == whole.weights_read == 131_328


def test_an_extraction_is_the_weighted_sum_of_its_tensors(case, tmp_path):
    noise = np.random.default_rng(0)
    arrays = {
        n: (a + 0.001 * i * noise.standard_normal(a.shape)).astype(a.dtype) if a.dtype == np.float32 else a
        for i, (n, a) in enumerate(case.arrays[0].items())
    }
    extraction = read(case, arrays, tmp_path)

    values, mass, weights = np.zeros(2048), np.zeros(2048), set()
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        for carrier in case.base.carriers:
            part = extract_tensor(case.base, carrier, case.original, suspect, suspect.tensors[carrier.name])
            values += part.weight * part.sums
            mass += part.weight * position_counts(part.weights, part.offset, 2048)
            weights.add(part.weight)
    assert len(weights) == 17
    assert np.allclose(extraction.mass, mass)
    assert np.allclose(extraction.values, clip_positions(values, mass))


def test_the_average_of_two_copies_reads_as_the_average_of_their_codewords(case, tmp_path):
    mixed = {n: (a + case.arrays[1][n]) / np.float32(2) for n, a in case.arrays[0].items() if a.dtype == np.float32}

    extraction = read(case, mixed, tmp_path)

    expected = (case.codewords[0] + case.codewords[1]) / 2
    assert set(np.unique(expected)) == {-1, 0, 1}
    assert np.corrcoef(extraction.values / extraction.mass, expected)[0, 1] > 0.999


def test_dropped_weights_take_their_mass_with_them(case, tmp_path):
    rng = np.random.default_rng(1)
    pruned = {n: a * (rng.random(a.shape) > 0.5) if a.dtype == np.float32 else a for n, a in case.arrays[0].items()}
    pruned = {n: a.astype(case.arrays[0][n].dtype) for n, a in pruned.items()}

    whole, extraction = read(case, case.arrays[0], tmp_path), read(case, pruned, tmp_path)

    assert extraction.weights_dropped == pytest.approx(131_328 / 2, rel=0.02)
    assert extraction.weights_read + extraction.weights_dropped == 131_328
    assert extraction.mass.sum() == pytest.approx(whole.mass.sum() / 2, rel=0.02)
    assert np.allclose(extraction.values, extraction.mass * case.codewords[0], rtol=1e-3, atol=0.1)


def test_nothing_in_common_extracts_nothing(case, tmp_path):
    extraction = read(case, {"x": np.ones((3, 5), np.float32)}, tmp_path)

    assert not extraction.values.any()
    assert not extraction.mass.any()
    assert (extraction.tensors_matched, extraction.weights_read, extraction.weights_dropped) == (0, 0, 0)
    assert (extraction.lineage.descends, extraction.lineage.cosine, extraction.lineage.drift) == (False, 0, 0)


def test_strangers_do_not_descend(case, tmp_path):
    lineage = read(case, plain_arrays(7), tmp_path).lineage

    assert not lineage.descends
    assert abs(lineage.cosine) < 0.05
    assert lineage.drift == pytest.approx(2**0.5, rel=0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-42, -1e30, 3e38])
def test_readings_of_absurd_weights_are_finite(case, tmp_path, value):
    arrays = dict(case.arrays[0])
    for i, carrier in enumerate(case.base.carriers):
        if i % 2:
            arrays[carrier.name] = np.full_like(arrays[carrier.name], value)

    extraction = read(case, arrays, tmp_path)

    assert np.isfinite(extraction.values).all()
    assert np.isfinite(extraction.mass).all()
    assert (extraction.mass >= 0).all()
    assert np.isfinite([extraction.lineage.cosine, extraction.lineage.drift]).all()


def test_progress_counts_the_carriers_weights(case, tmp_path):
    save_file(case.arrays[0], tmp_path / "suspect.safetensors")
    steps = []
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        extract(case.base, case.original, suspect, lambda *step: steps.append(step))

    extracted = [done for step, done, _ in steps if step == "extracting"]
    assert extracted == sorted(set(extracted))
    assert extracted[-1] == case.base.carrier_weights
    assert len(extracted) == 17


def test_another_file_in_the_bases_place_is_refused(case, tmp_path):
    arrays = case.own | {"conv.weight": case.own["conv.weight"].reshape(48, -1)}
    save_file(arrays, tmp_path / "other.safetensors")
    with (
        open_checkpoint(tmp_path / "other.safetensors") as other,
        pytest.raises(CheckpointError, match=r"tensor conv\.weight is missing or differs"),
    ):
        extract(case.base, other, case.original)


def test_no_codeword_is_looked_at(case, tmp_path):
    """The bound relies on it: extractions don't depend on the recipients."""
    other_code = replace(case.base, coalition=9, alpha=0.1, expected_recipients=7)
    save_file(case.arrays[0], tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        one = extract(case.base, case.original, suspect)
        two = extract(other_code, case.original, suspect)

    assert np.array_equal(one.values, two.values)
    with pytest.raises(FrozenInstanceError):
        one.values = None


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8), st.lists(st.floats(0, 1e3), min_size=8, max_size=8))
def test_clipping_keeps_signs_and_never_enlarges(values, mass):
    values, mass = np.array(values), np.array(mass)
    mass[np.array(mass) < 1e-3] = 0

    clipped = clip_positions(values, mass)

    assert np.isfinite(clipped).all()
    assert (np.abs(clipped) <= np.abs(values) * (1 + 1e-9) + 1e-300).all()
    assert (clipped * values >= 0).all()
    assert not clipped[mass == 0].any()


def test_a_position_blown_up_is_cut_and_the_usual_ones_are_kept():
    rng = np.random.default_rng(0)
    strength, mass = rng.choice([-1.0, 1.0], 1000), rng.uniform(1, 3, 1000)
    loud = strength * mass
    loud[3] = 1e4

    clipped = clip_positions(loud, mass)

    others = np.arange(1000) != 3
    assert np.allclose(clipped[others], loud[others])
    assert clipped[3] < loud[3] / 10
    assert np.allclose(clip_positions(strength * mass, mass), strength * mass)
