import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.extraction.layouts import MAX_LAYOUTS, Layout, find_layouts


FORMS = {
    "the same": ((8, 4, 3, 3), lambda w: w),
    "OHWI": ((8, 4, 3, 3), lambda w: w.transpose(0, 2, 3, 1)),
    "HWIO": ((8, 4, 3, 3), lambda w: w.transpose(2, 3, 1, 0)),
    "depthwise 1HWC": ((8, 1, 3, 3), lambda w: w[:, 0].transpose(1, 2, 0)[None]),
    "depthwise HWIM": ((8, 1, 3, 3), lambda w: w.reshape(4, 2, 3, 3).transpose(2, 3, 0, 1)),
    "a transposed matrix": ((6, 5), lambda w: w.T),
    "a transposed square": ((6, 6), lambda w: w.T),
    "a matrix as a convolution": ((6, 5), lambda w: w[:, :, None, None]),
    "a convolution as a matrix": ((6, 5, 1, 1), lambda w: w.reshape(6, 5).T),
    "im2col": ((8, 4, 3, 3), lambda w: w.transpose(1, 2, 3, 0).reshape(-1, 8)),
    "five axes": ((8, 2, 3, 3), lambda w: w.reshape(4, 2, 2, 3, 3)),
    "heads": ((12, 8), lambda w: w.T.reshape(8, 3, 4)),
    "heads of an output": ((8, 12), lambda w: w.T.reshape(3, 4, 8)),
    "groups": ((8, 64), lambda w: w.reshape(8, 4, 16)),
    "flat": ((8, 4, 3, 3), lambda w: w.reshape(-1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_undone_by_a_layout(form):
    shape, make = FORMS[form]
    weights = np.arange(np.prod(shape)).reshape(shape)
    made = make(weights)

    found = find_layouts(made.shape, shape)

    assert len(found) == len(set(found)) <= MAX_LAYOUTS
    assert any(np.array_equal(layout.apply(made, shape), weights) for layout in found)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms())
def test_any_permutation_with_ones_and_merged_axes_is_undone(sizes, random):
    weights = np.arange(np.prod(sizes)).reshape(sizes)
    order = list(range(len(sizes)))
    random.shuffle(order)
    made = weights.transpose(order)
    at = random.randrange(len(sizes))
    made = made.reshape((*made.shape[:at], -1, *made.shape[at + 2 :])) if at + 1 < len(sizes) else made
    made = np.expand_dims(made, random.randrange(made.ndim + 1))

    layouts = find_layouts(made.shape, tuple(sizes))

    assert any(np.array_equal(layout.apply(made, tuple(sizes)), weights) for layout in layouts)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms())
def test_positions_say_where_each_weight_goes(sizes, random):
    order = list(range(len(sizes)))
    random.shuffle(order)
    layout = Layout(tuple(sizes), tuple(order))
    source = np.arange(np.prod(sizes))

    moved = layout.apply(source, (-1,))

    assert np.array_equal(moved[layout.positions(source)], source)


def test_other_sizes_have_no_layout_and_many_axes_have_few():
    assert find_layouts((3, 4), (4, 4)) == ()
    assert len(find_layouts((2,) * 12, (64, 64))) <= MAX_LAYOUTS
    assert len(find_layouts((2, 2, 2, 2, 2, 2), (4, 4, 4))) <= MAX_LAYOUTS
    assert find_layouts((7, 5), (7, 5)) == (Layout((35,), (0,)),)
