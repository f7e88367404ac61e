import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.codes.deepmarks.block_design import SIZES, BlockDesign, difference_set
from hf_fingerprint.errors import CodeError


PLANE = BlockDesign(31)


def coalitions(points, sizes):
    return itertools.chain.from_iterable(itertools.combinations(range(points), size) for size in sizes)


def anded(design, coalition):
    return design.codewords[list(coalition)].all(axis=0)


@pytest.mark.parametrize("points", SIZES)
def test_every_difference_set_is_perfect(points):
    members = difference_set(points)
    differences = sorted((a - b) % points for a, b in itertools.permutations(members, 2))
    assert differences == list(range(1, points))
    assert members[:2] == (0, 1)


def test_sizes_are_the_planes_of_prime_power_order():
    assert SIZES == (7, 13, 21, 31, 57, 73, 91, 133, 183, 273, 307, 381, 553, 651, 757, 871, 993)


@pytest.mark.parametrize("points", SIZES[:8])
def test_blocks_have_k_points_and_two_of_them_share_one(points):
    design = BlockDesign(points)
    blocks = (~design.codewords).astype(int)
    k = design.block_size
    assert np.array_equal(blocks @ blocks.T, (k - 1) * np.eye(points, dtype=int) + 1)
    assert design.resilience == k - 1
    assert points == k * (k - 1) + 1
    assert np.array_equal(design.signs, np.where(design.codewords, 1.0, -1.0))


def test_the_design_cannot_be_changed_by_accident():
    with pytest.raises(ValueError):
        PLANE.codewords[0, 0] = True
    with pytest.raises(ValueError):
        PLANE.signs[0, 0] = 1


@pytest.mark.parametrize(("points", "largest"), [(7, 2), (13, 3), (21, 4), (31, 5)])
def test_every_coalition_up_to_the_resilience_is_named_and_nobody_else(points, largest):
    design = BlockDesign(points)
    assert design.resilience == largest
    for coalition in coalitions(points, range(1, largest + 1)):
        assert design.coalition_of(anded(design, coalition)) == coalition


@pytest.mark.parametrize("points", [7, 13])
def test_of_all_words_only_the_ands_of_coalitions_accuse(points):
    design = BlockDesign(points)
    expected = {
        anded(design, coalition).tobytes(): coalition for coalition in coalitions(points, range(1, design.block_size))
    }
    for bits in itertools.product([False, True], repeat=points):
        word = np.array(bits)
        assert design.coalition_of(word) == expected.get(word.tobytes(), ())


@given(
    coalition=st.sets(st.integers(0, 30), min_size=0, max_size=8),
    flips=st.sets(st.integers(0, 30), max_size=6),
)
def test_a_word_that_no_small_coalition_has_accuses_nobody(coalition, flips):
    word = anded(PLANE, coalition)
    word[list(flips)] ^= True
    # the coalitions that could have left the word are found by search, not by the blocks' geometry
    possible = [j for j in range(31) if not (word & ~PLANE.codewords[j]).any()]
    explained = [c for size in range(1, 6) for c in itertools.combinations(possible[:12], size)]
    explained = [c for c in explained if np.array_equal(anded(PLANE, c), word)]
    accused = PLANE.coalition_of(word)
    assert accused == (explained[0] if explained else ())
    assert len(explained) <= 1


def test_all_ones_and_all_zeros_accuse_nobody():
    assert PLANE.coalition_of(np.ones(31, dtype=bool)) == ()
    assert PLANE.coalition_of(np.zeros(31, dtype=bool)) == ()
    assert PLANE.covered_by(np.ones(31)) == ()
    assert PLANE.covered_by(np.zeros(31)) == tuple(range(31))


@settings(max_examples=200)
@given(coalition=st.sets(st.integers(0, 30), min_size=1, max_size=5))
def test_an_average_of_five_codewords_at_the_papers_threshold_is_their_and(coalition):
    extracted = PLANE.codewords[list(coalition)].mean(axis=0)
    assert np.array_equal(PLANE.hard_bits(extracted), anded(PLANE, coalition))
    assert PLANE.coalition_of(PLANE.hard_bits(extracted)) == tuple(sorted(coalition))


def test_a_bit_is_one_only_above_the_threshold():
    extracted = np.linspace(0, 1, 31)
    assert np.array_equal(PLANE.hard_bits(extracted, threshold=extracted[20]), np.arange(31) > 20)


def test_bit_flips_cover_innocents_whom_the_consistency_check_spares():
    rng = np.random.default_rng(5)
    without = with_check = 0
    for _ in range(2000):
        coalition = rng.choice(31, rng.integers(1, 6), replace=False)
        word = anded(PLANE, coalition) ^ (rng.random(31) < 0.1)
        covered, accused = PLANE.covered_by(word), PLANE.coalition_of(word)
        assert set(accused) <= set(covered)
        without += len(set(covered) - set(coalition))
        with_check += len(set(accused) - set(coalition))
    assert without > 100
    assert with_check < without / 20


def test_flipped_bits_can_frame_an_innocent_even_so():
    """The rule for bits has no bound: an innocent's zeros on top of the colluders' are another coalition."""
    assert PLANE.coalition_of(anded(PLANE, (3,)) & PLANE.codewords[8]) == (3, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_readings_that_are_not_finite_are_refused(value):
    with pytest.raises(CodeError, match="not finite"):
        PLANE.hard_bits(np.where(np.arange(31) == 4, value, 0.5))


def test_readings_and_words_of_another_length_are_refused():
    with pytest.raises(CodeError, match=r"the shape \(31,\), got \(31, 1\)\."):
        PLANE.hard_bits(np.zeros((31, 1)))
    with pytest.raises(CodeError, match=r"A word of this code has 31 bits, not the shape \(7,\)\."):
        PLANE.coalition_of(np.zeros(7, dtype=bool))
    with pytest.raises(CodeError, match="call `hard_bits` on the signal first"):
        PLANE.covered_by(np.full(31, 0.5))


@pytest.mark.parametrize(
    ("points", "near"), [(111, "73, 91 or 133"), (43, "21, 31 or 57"), (0, "7, 13 or 21"), (1057, "757, 871 or 993")]
)
def test_sizes_without_a_plane_are_refused_with_what_is_near(points, near):
    with pytest.raises(CodeError, match=f"no projective plane with {points} points: choose {near}, or"):
        BlockDesign(points)
