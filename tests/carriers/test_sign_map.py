import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.carriers import MarkDelta, TensorProjection, TensorUpdate, sign_map
from hf_fingerprint.carriers.sign_map import SignMap


SECRET = bytes(range(32))
NAME = "blocks.0.weight"


@pytest.fixture(params=[1 << 19, 64], ids=["one block", "many blocks"], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(sign_map, "BLOCK", request.param)


def tensor(rows, columns, seed=0):
    """Weights and their rows' amplitudes."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, columns)).astype(np.float32), rng.uniform(0.1, 1, rows).astype(np.float32)


def read(part, weights, first_row=0):
    out = torch.zeros(part.length)
    part.read(torch.from_numpy(weights), first_row, out)
    return out


SHAPES = [(37, 27, 64), (16, 9, 4096), (64, 72, 128), (5, 3, 64), (300, 77, 1024), (1, 1, 64)]


@pytest.mark.parametrize(("rows", "columns", "length"), SHAPES)
def test_it_reads_what_the_trace_reads(rows, columns, length):
    weights, amplitude = tensor(rows, columns)
    expected = np.zeros(length)
    TensorProjection(SECRET, NAME, length).read(weights * amplitude[:, None], expected)

    np.testing.assert_allclose(read(SignMap(SECRET, NAME, amplitude, columns, length), weights), expected, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "length"), SHAPES)
def test_a_copy_marked_in_closed_form_reads_as_its_codeword(rows, columns, length):
    weights, amplitude = tensor(rows, columns)
    bits = np.random.default_rng(1).integers(0, 2, length).astype(bool)
    marked = weights.copy()
    mark = MarkDelta(SECRET, NAME, amplitude, np.packbits(bits))
    TensorUpdate(SECRET, NAME, "F32", columns, [mark])(marked.reshape(-1).view(np.uint8))
    part, energy = SignMap(SECRET, NAME, amplitude, columns, length), torch.zeros(length)
    part.energy(energy)

    change = read(part, marked) - read(part, weights)

    used = energy > 0
    np.testing.assert_allclose(
        (change[used] / energy[used]).numpy(), np.where(bits, 1, -1)[used.numpy()], rtol=0, atol=2e-4
    )
    assert float(energy.sum()) == pytest.approx(columns * np.square(amplitude).sum(), rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.data())
def test_signal_and_gradient_are_additive_over_any_split_of_the_rows(rows, columns, data):
    weights, amplitude = tensor(rows, columns)
    cut = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    part = SignMap(SECRET, NAME, amplitude, columns, 64)
    direction = torch.from_numpy(np.random.default_rng(2).standard_normal(64).astype(np.float32))
    whole, pieces, sums = torch.zeros(rows, columns), torch.zeros(rows, columns), torch.zeros(64)

    part.adjoint(direction, 0, whole)
    for start, stop in itertools.pairwise(cut):
        if data.draw(st.booleans()):
            part.keep(start, stop - start)
        part.adjoint(direction, start, pieces[start:stop])
        part.read(torch.from_numpy(weights[start:stop]), start, sums)
        part = SignMap(SECRET, NAME, amplitude, columns, 64)

    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(sums, read(part, weights), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(1, 40), st.sampled_from([64, 72, 1024]))
def test_the_gradient_is_the_adjoint_of_the_signal(rows, columns, length):
    weights, amplitude = tensor(rows, columns)
    part = SignMap(SECRET, NAME, amplitude, columns, length)
    direction = torch.from_numpy(np.random.default_rng(2).standard_normal(length).astype(np.float32))
    gradient = torch.zeros(rows, columns)

    part.adjoint(direction, 0, gradient)

    left = float((gradient.double() * torch.from_numpy(weights)).sum())
    right = float(direction.double() @ read(part, weights).double())
    assert left == pytest.approx(right, abs=1e-3)


def test_kept_signs_are_those_derived():
    weights, amplitude = tensor(40, 7)
    part = SignMap(SECRET, NAME, amplitude, 7, 64)
    derived = read(part, weights[11:33], 11)

    part.keep(11, 22)

    torch.testing.assert_close(read(part, weights[11:33], 11), derived)
    torch.testing.assert_close(
        read(part, weights[20:25], 20), read(SignMap(SECRET, NAME, amplitude, 7, 64), weights[20:25], 20)
    )


def test_the_gradient_is_added_to_what_is_there_in_its_own_type():
    _, amplitude = tensor(8, 8)
    part, direction = SignMap(SECRET, NAME, amplitude, 8, 64), torch.ones(64)
    alone, added = torch.zeros(8, 8), torch.ones(8, 8, dtype=torch.bfloat16)

    part.adjoint(direction, 0, alone)
    part.adjoint(direction, 0, added)

    torch.testing.assert_close(added.float(), 1 + alone, atol=1e-2, rtol=0)


def test_it_shows_no_secret():
    part = SignMap(SECRET, NAME, tensor(4, 4)[1], 4, 64)

    assert repr(part) == "SignMap(rows=4, columns=4, length=64)"
