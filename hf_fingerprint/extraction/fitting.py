"""Which carriers a suspect may hold, according to the shapes of its tensors alone."""

from collections import Counter
from collections.abc import Iterable
from math import prod

from hf_fingerprint.checkpoints import TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.extraction.codes import CodeTensors, stored_name
from hf_fingerprint.extraction.layouts import Shape, find_layouts, refines, squeeze
from hf_fingerprint.extraction.slices import find_slices, find_stacked_slices
from hf_fingerprint.vault import Base


MAX_SHAPES = 1 << 12  # distinct shapes of a suspect's tensors that are considered


def carriers_with_fitting_shape(
    base: Base, suspect: TensorReader, whole: bool = False, equal_only: bool = False
) -> list[str]:
    """The carriers that can be paired by shape with distinct tensors of the suspect, in any layout, or with slices of
    tensors, or that can be put together from its tensors. With `whole`, these must have as many weights together; with
    `equal_only`, slices are equal parts, as fused projections and stacked layers are."""
    shapes = base.carrier_shapes
    left = Counter(info.shape for info in suspect.tensors.values() if info.dtype in READABLE)
    codes = CodeTensors(suspect, {prod(shape) for shape in shapes.values()}).codes.values()
    left.update(shape for _, shape in {(stored_name(info.name), info.shape) for info in codes})
    left = Counter(dict(left.most_common(MAX_SHAPES)))
    found = []
    for name in [*shapes]:
        if left[shapes[name]]:
            left[shapes[name]] -= 1
            found.append(name)
            del shapes[name]
    by_size: dict[int, list[Shape]] = {}
    for shape in left:
        by_size.setdefault(prod(shape), []).append(shape)
    for name in [*shapes]:
        for shape in by_size.get(prod(shapes[name]), ()):
            if left[shape] and find_layouts(shape, shapes[name]):
                left[shape] -= 1
                found.append(name)
                del shapes[name]
                break
    weights = {shape: count * prod(shape) for shape, count in left.items() if count}
    known: dict[tuple[Shape, Shape], bool] = {}
    for name, shape in shapes.items():
        for other in weights:
            if (shape, other) not in known:
                known[shape, other] = _is_slice(shape, other, equal_only) or _is_slice(other, shape, equal_only)
            needed = prod(shape) if whole else min(prod(shape), prod(other))
            if weights[other] >= needed and known[shape, other]:
                weights[other] -= prod(shape)
                found.append(name)
                break
    return found


def _is_slice(shape: Shape, whole: Shape, equal_only: bool) -> bool:
    """Whether a tensor of a shape may be a slice of one of another, with axes permuted, or adjacent ones merged."""
    size = prod(shape)
    if not size < prod(whole):
        return False

    def extents(slices: Iterable[tuple[tuple[int, int], ...]]) -> set[Shape]:
        return {squeeze(tuple(end - begin for begin, end in bounds)) for bounds in slices}

    own = squeeze(shape)
    return any(
        sorted(each) == sorted(own) or refines(each, own) or refines(own, each)
        for each in extents(find_slices(whole, size, equal_only)) | extents(find_stacked_slices(whole, size))
    )
