"""Convolutions in onnxruntime's blocked layout."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.onnx.onnx_blocked import unblock_weights
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph, Node, StoredTensor
from tests.checkpoints.formats.onnx.test_onnx_files import form


DOMAIN = "com.microsoft.nchwc"


def blocked(values: np.ndarray, block: int, groups: int = 1) -> np.ndarray:
    """A filter as onnxruntime stores it."""
    channels = values.shape[1]
    by_output = channels == 1 if groups > 1 else channels < block
    padding = [-len(values) % block, 0 if by_output else -channels % block]
    padded = np.pad(values, [(0, padding[0]), (0, padding[1]), (0, 0), (0, 0)])
    outputs, inputs, height, width = padded.shape
    if by_output:
        moved = padded.reshape(outputs // block, block, inputs, height, width).transpose(0, 2, 3, 4, 1)
    else:
        split = padded.reshape(outputs // block, block, inputs // block, block, height, width)
        moved = split.transpose(0, 2, 4, 5, 3, 1)
    return np.ascontiguousarray(moved).reshape(padded.shape)


def draw(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(sum(shape))
    scales = np.exp(generator.normal(0, 0.5, (shape[0], 1, 1, 1)))
    return (generator.normal(size=shape) * scales).astype(np.float32)


def put(graph: Graph, name: str, values: np.ndarray) -> None:
    graph.tensors[name] = StoredTensor("float32", values.shape, values.reshape(-1).view(np.uint8))


def chain(block: int, *filters: tuple[np.ndarray, int], channels: int = 0) -> Graph:
    """Blocked convolutions in a row, whose last result leaves the layout with so many channels."""
    graph = Graph()
    for place, (values, groups) in enumerate(filters):
        put(graph, f"w{place}", blocked(values, block, groups))
        put(graph, f"b{place}", np.pad(np.ones(len(values), np.float32), (0, -len(values) % block)))
        node = Node(DOMAIN, "Conv", [f"x{place}", f"w{place}", f"b{place}"], [f"x{place + 1}"], {"group": groups})
        graph.nodes.append(node)
    last = f"x{len(filters)}"
    graph.nodes.append(Node(DOMAIN, "ReorderOutput", [last], ["out"], {"channels": channels} if channels else {}))
    return graph


def unblocked(graph: Graph) -> dict[str, np.ndarray]:
    left_out: dict[str, str] = {}
    found = {name: stored_values(each) for name, each in unblock_weights(graph, left_out).items()}
    assert not left_out
    return found


def test_a_model_optimized_for_a_processor_has_the_weights_of_the_export():
    found, wanted = form("conv", "optimized_all.onnx"), form("conv", "legacy.onnx")

    left = list(wanted.values())
    for values in found.values():
        same = [place for place, each in enumerate(left) if np.array_equal(each, values)]
        assert same
        del left[same[0]]
    assert not left


@pytest.mark.parametrize("block", [8, 16])
def test_filters_of_each_kind_are_taken_out_of_their_blocks(block):
    stem, depthwise, point = draw(32, 3, 3, 3), draw(32, 1, 3, 3), draw(20, 32, 1, 1)
    grouped = draw(64, 16, 3, 3)
    found = unblocked(chain(block, (stem, 1), (depthwise, 32), (grouped, 4), (point, 1), channels=20))

    for name, values in (("w0", stem), ("w1", depthwise), ("w2", grouped), ("w3", point)):
        np.testing.assert_array_equal(found[name], values)
    assert found["b3"].shape == (20,)


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("shape", [(32, 3, 3, 3), (64, 32, 1, 1), (48, 16, 3, 3), (96, 8, 5, 5)])
def test_the_size_of_a_block_is_found_by_the_values_if_shapes_do_not_show_it(block, shape):
    values = draw(*shape)

    np.testing.assert_array_equal(unblocked(chain(block, (values, 1)))["w0"], values)


def test_padding_is_cut_where_nothing_tells_the_channels_but_zeros():
    first, second = draw(24, 16, 3, 3), draw(40, 24, 1, 1)
    found = unblocked(chain(16, (first, 1), (second, 1)))

    np.testing.assert_array_equal(found["w0"], first)
    np.testing.assert_array_equal(found["w1"], second)
    assert found["b0"].shape == (24,) and found["b1"].shape == (40,)


def test_channels_that_are_zero_are_kept_where_the_graph_tells_their_number():
    values = draw(32, 16, 3, 3)
    values[-3:] = 0
    graph = chain(16, (values, 1), channels=32)
    put(graph, "b0", np.zeros(32, np.float32))

    np.testing.assert_array_equal(unblocked(graph)["w0"], values)


def test_rows_can_be_read_one_by_one():
    values = draw(40, 32, 3, 3)
    tensor = unblock_weights(chain(8, (values, 1), channels=40), {})["w0"]
    row = tensor.nbytes // 40

    for place in (0, 7, 8, 39):
        read = tensor.read(place * row, (place + 1) * row).view("<f4").reshape(values.shape[1:])
        np.testing.assert_array_equal(read, values[place])


@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (8, 9, 1, 1), (8, 8), (0, 8, 1, 1), (16, 1 << 24, 1, 1)])
def test_filters_that_are_no_blocks_are_left_out(shape):
    graph, left_out = Graph(), dict[str, str]()
    graph.tensors["w"] = StoredTensor("float32", shape, np.zeros(4 * min(int(np.prod(shape)), 1000), np.uint8))
    graph.nodes.append(Node(DOMAIN, "Conv", ["x", "w"], ["y"], {}))

    assert not unblock_weights(graph, left_out)
    assert list(left_out) == ["w"]
