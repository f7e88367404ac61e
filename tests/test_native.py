"""The compiled passes agree with numpy's, which they stand for, at every width of vectors that this machine has."""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.carriers import MarkDelta, TensorProjection, TensorUpdate, deltas, projection
from hf_fingerprint.carriers.rounding import round_stochastically
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import from_float32
from hf_fingerprint.codes import FairSigns, Tardos, biased, scoring
from hf_fingerprint.codes.scoring import error_bound, weigh_codewords
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction import tensor_sums
from hf_fingerprint.extraction.tensor_sums import TensorSums
from hf_fingerprint.keys import Stream
from hf_fingerprint.native import passes as COMPILED
from tests.helpers.checkpoint_files import entry, raw_safetensors


SECRET = bytes(range(32))
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38, -3.4e38]
USERS = projection, deltas, biased, scoring, tensor_sums
WIDTHS = range(COMPILED.WIDTHS if COMPILED else 0)

pytestmark = pytest.mark.skipif(COMPILED is None, reason="the package was built without a compiler")


def make_both(width, make):
    """What a function makes by the passes of one width, and by numpy."""
    COMPILED.use_width(width)
    try:
        fast = make()
    finally:
        COMPILED.use_width(max(WIDTHS))
    with pytest.MonkeyPatch.context() as patch:
        for module in USERS:
            patch.setattr(module, "passes", None)
        return fast, make()


@pytest.fixture(params=WIDTHS)
def compiled(request):
    """[`make_both`] for one width."""
    return partial(make_both, request.param)


def weights(rng, shape, special):
    values = rng.standard_normal(shape).astype(np.float32)
    if special:
        chosen = rng.random(shape) < 0.1
        values[chosen] = rng.choice(np.float32(SPECIAL), int(chosen.sum()))
    return values


def to_bytes(values, dtype):
    raw = np.ascontiguousarray(values).view(np.uint32)
    return raw.view(np.uint8).reshape(-1) if dtype == "F32" else (raw >> 16).astype("<u2").view(np.uint8).reshape(-1)


class Tensor:
    """What a tensor's sums are made of, without files."""

    def __init__(self, rng, rows, columns, length, dtypes):
        self.base = SimpleNamespace(secret=SECRET, length=length)
        self.carrier = SimpleNamespace(name="layer.weight")
        self.base_info, self.info = (SimpleNamespace(dtype=dtype, columns=columns) for dtype in dtypes)
        self.inverse = (1 / rng.uniform(1e-3, 1e-1, rows)).astype(np.float32)
        self.rows, self.scale = slice(0, rows), 1.0

    def rescaled(self, theirs):
        return theirs


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 700),
    st.sampled_from([8, 64, 72, 4096]),
    st.tuples(*[st.sampled_from(["F32", "BF16"])] * 2),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("width", WIDTHS)
def test_differences_are_read_as_by_numpy(width, rows, columns, length, dtypes, special, seed):
    rng = np.random.default_rng(seed)
    ours = weights(rng, (rows, columns), False)
    theirs = ours + 0.03 * weights(rng, (rows, columns), special)
    place, cut = Tensor(rng, rows, columns, length, dtypes), rows // 16 * 8
    raw, suspect_raw = (
        to_bytes(each, dtype).reshape(rows, -1) for each, dtype in zip((ours, theirs), dtypes, strict=True)
    )

    def read():
        sums = TensorSums(place, np.float32(1.5), None, None)
        for part in [slice(0, cut), slice(cut, rows)][cut == 0 :]:
            sums.add(part, raw[part].reshape(-1), suspect_raw[part].reshape(-1))
        return sums

    fast, reference = make_both(width, read)
    np.testing.assert_array_equal(fast.sums, reference.sums)
    assert (fast.done, fast.dropped, fast.missing is None) == (
        reference.done,
        reference.dropped,
        reference.missing is None,
    )
    if fast.missing is not None:
        np.testing.assert_array_equal(fast.missing, reference.missing)
    assert fast.weight == pytest.approx(reference.weight, rel=1e-4)
    if np.abs(theirs[np.isfinite(theirs)]).max(initial=0) < 1e6:  # else all is lost in one product's rounding
        assert fast.coefficient == pytest.approx(reference.coefficient, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("length", [8, 72, 1024])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (16, 9), (40, 129), (24, 256)])
def test_marks_and_projections_are_those_of_numpy(compiled, length, rows, columns):
    rng = np.random.default_rng(rows * columns)
    values, amplitude = weights(rng, (rows, columns), False), rng.uniform(0, 1, rows).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    codeword = rng.integers(0, 256, length // 8).astype(np.uint8)

    def mark():
        marked = values.copy()
        TensorProjection(SECRET, "layer", length).write(marked, amplitude, codeword)
        return marked

    def read():
        out = np.zeros(length, np.float32)
        TensorProjection(SECRET, "layer", length).read(values, out)
        return out

    for make in (mark, read):
        np.testing.assert_array_equal(*compiled(make))
    assert ((mark() != values) <= (values != 0)).all()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize(("rows", "columns"), [(8, 3), (40, 129), (9, 5000)])
def test_copies_are_those_of_numpy(compiled, dtype, rows, columns):
    """Bytes for bytes: a copy's content hash must not depend on the machine that made it."""
    rng = np.random.default_rng(rows)
    values, amplitude = weights(rng, (rows, columns), False), rng.uniform(0, 0.01, rows).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    values[0, 0] = -0.0
    raw = from_float32(round_stochastically(values, dtype, Stream(SECRET)), dtype)

    def update():
        changed, cut = raw.copy().reshape(rows, -1), rows // 16 * 8
        mark = MarkDelta(SECRET, "layer", amplitude, rng_codeword)
        make = TensorUpdate(SECRET, "layer", dtype, columns, [mark])
        for part in [slice(0, cut), slice(cut, rows)][cut == 0 :]:
            make(changed[part].reshape(-1))
        return changed

    rng_codeword = rng.integers(0, 256, 72 // 8).astype(np.uint8)
    fast, reference = compiled(update)
    np.testing.assert_array_equal(fast, reference)
    assert (fast.reshape(-1) != raw).any()


@pytest.mark.parametrize("length", [64, 104, 4096 + 8, 3 * 4096])
def test_codewords_are_those_of_numpy(compiled, length):
    codebook, keys = Tardos(length, 10, SECRET), [bytes([i]) * 32 for i in range(70)]
    np.testing.assert_array_equal(*compiled(lambda: codebook.packed(keys)))


@pytest.mark.parametrize("length", [64, 104, 4096 + 8, 3 * 4096])
@pytest.mark.parametrize("count", [0, 1, 4, 37])
def test_scores_are_those_of_numpy_up_to_their_error(compiled, length, count):
    rng = np.random.default_rng(length + count)
    packed, values = (
        FairSigns(length).packed([bytes([i]) * 32 for i in range(count)]),
        rng.standard_cauchy((3, length)),
    )
    exact = np.unpackbits(packed, axis=1).astype(np.float64).reshape(count, length) @ values.T
    for found in compiled(lambda: weigh_codewords(packed, values.astype(np.float32))):
        assert found.shape == (count, 3)
        assert (np.abs(found - exact) <= error_bound(values)).all()


def test_arrays_that_do_not_fit_are_refused():
    """Nothing outside an array is ever read or written."""
    f4, u1, u2 = (lambda n, dtype=dtype: np.zeros(n, dtype) for dtype in (np.float32, np.uint8, np.uint16))
    passes = COMPILED
    for call in (
        lambda: passes.pack_biased(u2(64), u2(64), u1(7)),
        lambda: passes.pack_biased(u2(65), u2(64), u1(8)),
        lambda: passes.pack_biased(u2(12), u2(12), u1(1)),
        lambda: passes.pack_biased(u2(0), u2(0), u1(0)),
        lambda: passes.score_packed(u1(9), f4(64), np.zeros(1), 64),
        lambda: passes.score_packed(u1(8), f4(63), np.zeros(1), 64),
        lambda: passes.score_packed(u1(8), f4(64), np.zeros(2), 64),
        lambda: passes.score_packed(u1(8), f4(64), np.zeros(1), -64),
        lambda: passes.fold_weights(f4(16), u1(1), 0, f4(8)),
        lambda: passes.fold_weights(f4(16), u1(2), 8, f4(8)),
        lambda: passes.fold_weights(f4(16), u1(2), -8, f4(8)),
        lambda: passes.fold_weights(f4(16), u1(2), 4, f4(8)),
        lambda: passes.fold_weights(f4(16), u1(2), 0, f4(12)),
        lambda: passes.fold_weights(f4(0), u1(0), 0, f4(0)),
        lambda: passes.add_mark(f4(15), f4(2), u1(2)),
        lambda: passes.add_mark(f4(16), f4(0), u1(2)),
        lambda: passes.add_mark(f4(16), f4(2), u1(1)),
        lambda: passes.add_mark_half(u2(16), f4(2), u1(2), u2(15)),
        lambda: passes.add_mark_half(u2(16), f4(2), u1(1), u2(16)),
        lambda: passes.add_mark_half(u2(15), f4(2), u1(2), u2(15)),
        lambda: passes.read_weights(f4(16), False, f4(15), False, f4(2), 8, 1.5, u1(2), 0, f4(8)),
        lambda: passes.read_weights(f4(16), False, f4(16), True, f4(2), 8, 1.5, u1(2), 0, f4(8)),
        lambda: passes.read_weights(f4(16), False, f4(16), False, f4(3), 8, 1.5, u1(2), 0, f4(8)),
        lambda: passes.read_weights(f4(16), False, f4(16), False, f4(2), -8, 1.5, u1(2), 0, f4(8)),
        lambda: passes.read_weights(f4(16), False, f4(16), False, f4(2), 8, 1.5, u1(1), 0, f4(8)),
        lambda: passes.read_weights(f4(16), False, f4(16), False, f4(2), 8, 1.5, u1(2), 8, f4(8)),
        lambda: passes.use_width(-1),
        lambda: passes.use_width(len(WIDTHS)),
    ):
        with pytest.raises(ValueError, match="don't fit"):
            call()
    with pytest.raises((ValueError, TypeError, BufferError)):
        read_only = f4(16)
        read_only.flags.writeable = False
        passes.add_mark(read_only, f4(2), u1(2))


def test_the_package_works_without_the_compiled_passes():
    script = """
import sys
sys.modules["hf_fingerprint._native"] = None
from hf_fingerprint import native
from hf_fingerprint.carriers.rounding import round_stochastically
from hf_fingerprint.checkpoints.dtypes import from_float32
from hf_fingerprint.codes import FairSigns
assert native.passes is None
print(FairSigns(64).packed([bytes(32)]).tobytes().hex())
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == FairSigns(64).packed([bytes(32)]).tobytes().hex()


@pytest.mark.parametrize("dtypes", [("F32", "F32"), ("BF16", "BF16"), ("F32", "BF16"), ("BF16", "F32")])
@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (24, 3), (70, 20_000)])
def test_files_are_read_as_by_numpy(compiled, tmp_path, dtypes, rows, columns):
    rng = np.random.default_rng(rows)
    ours = weights(rng, (rows, columns), False)
    theirs = ours + np.float32(0.03) * weights(rng, (rows, columns), True)
    files = []
    for name, values, dtype in zip(("ours", "theirs"), (ours, theirs), dtypes, strict=True):
        head = {"layer.weight": entry([rows, columns], 0, rows * columns * (4 if dtype == "F32" else 2), dtype)}
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(raw_safetensors(head, to_bytes(values, dtype).tobytes()))
        files.append(open_checkpoint(path, suspect=True))
    place = Tensor(rng, rows, columns, 72, dtypes)
    place.original, place.suspect = files
    place.base_info, place.info = (each.tensors["layer.weight"] for each in files)
    place.rows = slice(rows // 3 // 8 * 8, rows)

    def read():
        sums = TensorSums(place, np.float32(1.5), None, None)
        if not sums.add_files():
            sums.add_blocks()
        return sums

    with files[0], files[1]:
        fast, reference = compiled(read)
    np.testing.assert_array_equal(fast.sums, reference.sums)
    assert (fast.done, fast.dropped) == (reference.done, reference.dropped)
    assert fast.dropped or rows * columns < 100
    np.testing.assert_array_equal(fast.missing, reference.missing)
    assert fast.weight == pytest.approx(reference.weight, rel=1e-4)


def test_a_file_that_shrank_meanwhile_is_named(tmp_path):
    files = []
    for name in ("ours", "theirs"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(raw_safetensors({"layer.weight": entry([8, 8], 0, 256)}, bytes(256)))
        files.append(open_checkpoint(path, suspect=True))
    place = Tensor(np.random.default_rng(0), 8, 8, 72, ("F32", "F32"))
    place.original, place.suspect = files
    place.base_info, place.info = (each.tensors["layer.weight"] for each in files)
    os.truncate(tmp_path / "theirs.safetensors", 100)
    with files[0], files[1], pytest.raises(CheckpointError, match=r"theirs.safetensors ends too soon"):
        TensorSums(place, np.float32(1.5), None, None).add_files()
