from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from hf_fingerprint.carriers import MarkDelta, TensorUpdate
from hf_fingerprint.checkpoints import RangedCheckpoint, open_checkpoint, open_ranged_checkpoint
from hf_fingerprint.codes import Tardos
from hf_fingerprint.extraction import Looks, extract
from hf_fingerprint.extraction.extraction_sums import CarrierRows, ExtractionSums
from hf_fingerprint.extraction.looks import plan_looks
from hf_fingerprint.extraction.match import has_unambiguous_names
from hf_fingerprint.extraction.weigh import extract_tensor
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.vault import Base, Calibration, Carrier, TensorRecord
from tests.helpers.loopback_hub import LoopbackHub


SHAPES = {"x.weight": (900, 300), "small.weight": (48, 48), "y.weight": (700, 500), "conv.weight": (99, 17, 3, 3)}
EPS = {"x.weight": 0.003, "small.weight": 0.01, "y.weight": 0.003, "conv.weight": 0.005}


def make_base(
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    eps: dict[str, float] = EPS,
    secret: bytes = bytes(32),
    length: int = 4096,
) -> Base:
    rng = np.random.default_rng(5)
    carriers = [Carrier(n, eps[n], (0.001 * rng.uniform(0.5, 2, s[0])).astype(np.float32)) for n, s in shapes.items()]
    calibration = Calibration("none", 0, 1e-4, None, None)
    records = {name: TensorRecord("F32", shape, "") for name, shape in shapes.items()}
    return Base(
        "x", "x", None, "", records, tuple(carriers), Tardos.family, length, 3, 1, "", 1e-6, 4, calibration, secret
    )


def marked(base: Base, own: dict[str, np.ndarray], key: bytes) -> dict[str, np.ndarray]:
    """A copy, marked in closed form."""
    codeword, found = base.codebook().packed([key])[0], {}
    for carrier in base.carriers:
        raw = own[carrier.name].copy().reshape(-1).view(np.uint8)
        columns = own[carrier.name].size // len(carrier.amplitude)
        mark = MarkDelta(base.secret, carrier.name, carrier.amplitude, codeword)
        TensorUpdate(key, carrier.name, "F32", columns, [mark])(raw)
        found[carrier.name] = raw.view(np.float32).reshape(own[carrier.name].shape)
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, and a noisy copy with pruned weights, on the disk."""
    root, rng = tmp_path_factory.mktemp("case"), np.random.default_rng(1)
    own = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    base = make_base()
    theirs = {
        n: (w + 0.002 * rng.standard_normal(w.shape)).astype(np.float32)
        for n, w in marked(base, own, b"\1" * 32).items()
    }
    theirs["y.weight"][rng.random((700, 500)) < 0.1] = 0
    save_file(own, root / "base.safetensors")
    save_file(theirs, root / "copy.safetensors")
    with open_checkpoint(root / "base.safetensors") as original:
        yield SimpleNamespace(base=base, own=own, theirs=theirs, original=original, copy=root / "copy.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def remote(hub: LoopbackHub, arrays: dict[str, np.ndarray], max_bytes: int | None = None) -> RangedCheckpoint:
    hub.add("org/suspect", {"model.safetensors": save(arrays)}, lfs=True)
    found = open_ranged_checkpoint("org/suspect", max_bytes)
    assert found is not None
    return found


def small_looks(monkeypatch: pytest.MonkeyPatch, weights: int = 1 << 14, piece: int = 1 << 15) -> None:
    """Looks that fit models of this size."""
    monkeypatch.setattr("hf_fingerprint.extraction.looks.FIRST_LOOK_WEIGHTS", weights)
    monkeypatch.setattr("hf_fingerprint.extraction.looks.MAX_RANGE_WEIGHTS", piece)


def rows_of(base: Base) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in base.tensors}
    for piece in (piece for look in plan_looks([base]) for piece in look):
        found[piece.name] += range(piece.start, piece.stop)
    return found


def test_the_strongest_come_first_then_the_larger_then_by_name():
    shapes = {"b": (64, 64), "a": (64, 64), "strong": (8, 8), "large": (128, 64)}
    base = make_base(shapes, {"b": 0.1, "a": 0.1, "strong": 0.2, "large": 0.1})

    (look,) = plan_looks([base])

    assert [piece.name for piece in look] == ["strong", "large", "a", "b"]


shapes_drawn = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 90)), min_size=1, max_size=8)


@given(shapes_drawn, st.integers(1, 3000), st.integers(100, 5000), st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_is_read_once_from_a_multiple_of_eight_and_each_look_doubles(drawn, first, piece, data):
    shapes = {f"t{i}": shape for i, shape in enumerate(drawn)}
    eps = {name: data.draw(st.sampled_from([0.01, 0.02])) for name in shapes}
    base = make_base(shapes, eps, length=64)
    with pytest.MonkeyPatch.context() as patch:
        small_looks(patch, first, piece)
        looks, rows = plan_looks([base]), rows_of(base)

    assert rows == {name: list(range(shape[0])) for name, shape in shapes.items()}
    assert all(p.start % 8 == 0 and (p.stop % 8 == 0 or p.stop == shapes[p.name][0]) for look in looks for p in look)
    done, slack = 0, 8 * max(columns for _, columns in drawn)
    for number, look in enumerate(looks):
        done += sum((p.stop - p.start) * shapes[p.name][1] for p in look)
        end = max(first, 256) << number
        assert done <= end + slack
        assert done >= end or look is looks[-1]
    assert all(looks)


def test_the_first_look_gives_every_position_a_few_weights():
    base = make_base({"w": (4096, 1024)}, {"w": 0.01}, length=65536)
    looks = plan_looks([base])

    assert [sum((p.stop - p.start) * 1024 for p in look) for look in looks] == [
        1 << 18,
        1 << 18,
        1 << 19,
        1 << 20,
        1 << 21,
    ]


def test_the_order_is_of_the_record_alone(case):
    """The order depends neither on the suspect nor on the secret or the recipients."""
    other = replace(case.base, secret=b"\7" * 32, alpha=0.1, expected_recipients=9)

    assert plan_looks([case.base]) == plan_looks([other])
    assert plan_looks.__code__.co_varnames[: plan_looks.__code__.co_argcount] == ("bases", "found")


def test_records_of_one_base_are_read_together_the_stronger_of_their_amplitudes_first(case):
    other = make_base({"x.weight": (900, 300), "extra.weight": (64, 64)}, {"x.weight": 0.02, "extra.weight": 0.001})
    other = replace(other, tensors=case.base.tensors | other.tensors)
    plan = plan_looks([replace(case.base, tensors=other.tensors), other])

    names = list(dict.fromkeys(piece.name for look in plan for piece in look))
    assert names == ["x.weight", "small.weight", "conv.weight", "y.weight", "extra.weight"]


@pytest.mark.parametrize("rows", [slice(0, 99), slice(0, 8), slice(8, 40), slice(48, 99), slice(96, 99)])
@pytest.mark.parametrize("name", ["conv.weight"])
def test_a_slice_of_rows_reads_as_a_naive_implementation_says(case, name, rows):
    base, ours, theirs = case.base, case.own[name].reshape(99, -1), case.theirs[name].reshape(99, -1)
    (carrier,) = (carrier for carrier in base.carriers if carrier.name == name)
    with open_checkpoint(case.copy) as suspect:
        found = extract_tensor(base, carrier, case.original, suspect, suspect.tensors[name], rows)

    first = int(Stream(derive(base.secret, "offset", name)).take(8).view("<u8")[0] % np.uint64(512)) * 8
    signs = 1.0 - 2 * np.unpackbits(Stream(derive(base.secret, "signs", name)).take(2000))[: ours.size]
    difference = (theirs.astype(float) - ours) / carrier.amplitude[:, None].astype(float)
    difference = np.clip(difference[rows], -found.sample.clip, found.sample.clip).ravel()
    numbers = np.arange(rows.start * 153, rows.stop * 153)
    sums = np.zeros(4096)
    np.add.at(sums, (first + numbers) % 4096, signs[numbers] * difference)
    assert np.allclose(found.sums, sums, atol=1e-3)
    assert found.offset == (first + rows.start * 153) % 4096
    assert found.weights == len(numbers)
    assert found.weight == pytest.approx(1 / max(np.mean(difference**2), 0.1), rel=1e-3)


def test_slices_of_a_tensor_add_up_to_the_tensor(case):
    """Exactly, except for each slice's own clip and weight."""
    (carrier,) = (carrier for carrier in case.base.carriers if carrier.name == "y.weight")
    with open_checkpoint(case.copy) as suspect:
        info = suspect.tensors["y.weight"]
        whole = extract_tensor(case.base, carrier, case.original, suspect, info)
        parts = [
            extract_tensor(case.base, carrier, case.original, suspect, info, rows)
            for rows in (slice(0, 8), slice(8, 304), slice(304, 700))
        ]

    assert np.corrcoef(sum(part.sums for part in parts), whole.sums)[0, 1] > 0.999
    assert np.array_equal(sum(part.missing for part in parts), whole.missing)
    assert sum(part.weights for part in parts) == whole.weights == 350_000
    assert sum(part.dropped for part in parts) == whole.dropped
    assert sum(part.sample.products for part in parts) == pytest.approx(whole.sample.products, rel=0.2)


def test_looks_over_everything_say_what_the_same_slices_say_of_a_file(case, hub, monkeypatch):
    small_looks(monkeypatch)
    looks = Looks([(case.base, case.original)], remote(hub, case.theirs))

    extractions = [extractions[0] for extractions in looks.extractions()]

    carriers = {carrier.name: carrier for carrier in case.base.carriers}
    with open_checkpoint(case.copy) as suspect:
        sums = ExtractionSums(case.base, case.original, suspect)
        for look, found in zip(plan_looks([case.base]), extractions, strict=True):
            sums.add([CarrierRows(carriers[p.name], suspect.tensors[p.name], slice(p.start, p.stop)) for p in look])
            expected = sums.extraction(carriers)
            assert np.array_equal(found.values, expected.values)
            assert np.array_equal(found.mass, expected.mass)
            assert found.lineage == expected.lineage
        whole = extract(case.base, case.original, suspect)
    assert len(extractions) == 7
    assert looks.complete
    last = extractions[-1]
    assert (last.weights_read, last.weights_dropped) == (whole.weights_read, whole.weights_dropped)
    assert last.tensors_matched == whole.tensors_matched == 4
    assert np.corrcoef(last.values, whole.values)[0, 1] > 0.999
    assert np.allclose(last.mass, whole.mass, rtol=0.05)
    assert last.lineage.cosine == pytest.approx(whole.lineage.cosine, abs=1e-4)
    assert last.lineage.drift == pytest.approx(whole.lineage.drift, rel=0.1)


def test_one_look_at_whole_tensors_extracts_the_same_as_the_file(case, hub, monkeypatch):
    small_looks(monkeypatch, 1 << 20, 1 << 22)
    (extractions,) = Looks([(case.base, case.original)], remote(hub, case.theirs)).extractions()

    with open_checkpoint(case.copy) as suspect:
        whole = extract(case.base, case.original, suspect)
    # one piece a tensor, in another order: sums of float64 differ by rounding only
    assert np.allclose(extractions[0].values, whole.values, rtol=1e-12, atol=1e-9)
    assert np.allclose(extractions[0].mass, whole.mass, rtol=1e-12)


def test_looks_read_no_byte_twice_and_no_more_than_they_use(case, hub, monkeypatch):
    small_looks(monkeypatch)
    suspect = remote(hub, case.theirs)
    headers, steps = suspect.bytes_fetched, []

    weights = [
        r[0].weights_read + r[0].weights_dropped
        for r in Looks([(case.base, case.original)], suspect).extractions(lambda *step: steps.append(step))
    ]

    assert weights == sorted(set(weights))
    assert weights[-1] == case.base.carrier_weights
    assert steps[-1] == ("extracting", case.base.carrier_weights, case.base.carrier_weights)
    assert suspect.bytes_fetched <= suspect.total_bytes + headers
    assert suspect._fetched == []


@pytest.mark.parametrize("budget", [140_000, 200_000, 1_000_000, 10**9])
def test_a_budget_is_kept_to_the_byte(case, hub, monkeypatch, budget):
    small_looks(monkeypatch)
    suspect = remote(hub, case.theirs, budget)
    headers = suspect.bytes_fetched

    looks = Looks([(case.base, case.original)], suspect)
    extractions = [extractions[0] for extractions in looks.extractions()]

    assert suspect.bytes_fetched <= max(budget, headers)
    assert looks.complete == (budget == 10**9)
    assert extractions
    assert len({extraction.weights_read for extraction in extractions}) == len(extractions)
    if 0 < budget - headers < 10**8:
        assert budget - suspect.bytes_fetched < 8 * 2000  # of rows that stay together
    assert (extractions[-1].weights_read == 0) == (budget < headers)


def test_batches_fit_the_memory_and_change_nothing(case, hub, monkeypatch):
    small_looks(monkeypatch, piece=1 << 13)
    suspect = remote(hub, case.theirs)
    (one,) = list(Looks([(case.base, case.original)], suspect).extractions())[-1]
    monkeypatch.setattr("hf_fingerprint.extraction.looks.BATCH_BYTES", 40_000)
    held = []
    fetch = RangedCheckpoint.fetch

    def watched(self, pieces):
        fetch(self, pieces)
        held.append(sum(len(data) for _, _, data in self._fetched))

    monkeypatch.setattr(RangedCheckpoint, "fetch", watched)

    (two,) = list(Looks([(case.base, case.original)], suspect).extractions())[-1]

    assert np.array_equal(one.values, two.values)
    assert max(held) <= 40_000 + 8 * 2000


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.timm_model."])
def test_tensors_are_matched_by_name_and_shape_and_the_missing_left_out(case, hub, monkeypatch, prefix):
    small_looks(monkeypatch, 1 << 20, 1 << 22)
    arrays = {prefix + n: w for n, w in case.theirs.items() if n != "x.weight"}
    arrays[prefix + "small.weight"] = np.ones((48, 49), np.float32)
    suspect = remote(hub, arrays | {"new": np.ones((900, 300), np.float32)})

    (extractions,) = Looks([(case.base, case.original)], suspect).extractions()

    assert extractions[0].tensors_matched == 2
    assert extractions[0].weights_read + extractions[0].weights_dropped == 700 * 500 + 99 * 153
    assert has_unambiguous_names(case.base, suspect)


def test_names_tell_nothing_if_there_are_too_few_or_two_of_one(case, hub):
    few = {n: w for n, w in case.theirs.items() if n == "x.weight"}
    assert not has_unambiguous_names(case.base, remote(hub, few))
    assert not has_unambiguous_names(
        case.base, remote(hub, case.theirs | {"module.small.weight": case.theirs["small.weight"]})
    )
    assert has_unambiguous_names(
        case.base, remote(hub, case.theirs | {"module.small.weight": np.ones((2, 2), np.float32)})
    )


def test_every_record_of_a_base_is_read_with_its_own_secret(case, hub, tmp_path, monkeypatch):
    small_looks(monkeypatch)
    other = replace(case.base, secret=b"\7" * 32)
    arrays = marked(other, case.own, b"\2" * 32)

    *_, (first, second) = Looks(
        [(case.base, case.original), (other, case.original)], remote(hub, arrays)
    ).extractions()

    codeword = other.codebook().codeword(b"\2" * 32)
    assert np.corrcoef(second.values / second.mass, codeword)[0, 1] > 0.99
    assert abs(np.corrcoef(first.values, codeword)[0, 1]) < 0.1


def test_a_base_that_is_another_one_is_refused(case, hub, tmp_path: Path):
    from hf_fingerprint.errors import CheckpointError
    from tests.helpers.error_checks import refused

    save_file({"x.weight": np.ones((2, 2), np.float32)}, tmp_path / "other.safetensors")
    with open_checkpoint(tmp_path / "other.safetensors") as other:
        text = refused(Looks, [(case.base, other)], remote(hub, case.theirs), error=CheckpointError)
    assert "missing or differs" in text
