"""Divides a pre-norm transformer's residual stream into segments, each with the layers that touch it.

A segment ends in a layer normalization. The layer before it wrote to the stream last; the layers after it read what
was normalized. SliceGPT gives each segment a basis of its own.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.extraction.alignment.activation_matching import record_activations
from hf_fingerprint.extraction.alignment.suspect_model import build_base_model
from hf_fingerprint.models import map_parameter_names, synthetic_images


class StreamSegment(NamedTuple):
    """The layers that touch one segment of the stream, by the names of their weights in the base's files.

    Attributes:
        readers (`dict[str, np.ndarray]`): the gain of the normalization before each layer, `(channels,)`.
        writers (`dict[str, np.ndarray]`): the layer scale after the layer that wrote last, `(channels,)`, ones if
            there is none; empty if no such layer is known.
        channels (`int`): the channels of the stream.
    """

    readers: dict[str, np.ndarray]
    writers: dict[str, np.ndarray]
    channels: int


def find_segments(original: Checkpoint) -> list[StreamSegment]:
    """The segments of the base's stream, in order. Runs the base once; empty if it has no such stream.

    Args:
        original ([`Checkpoint`]): the base's open files.

    Raises:
        [`BuildError`]: if the base can't be built.
    """
    ours = build_base_model(original)
    file_names = map_parameter_names(ours.module, original)
    layers = {n.rpartition(".")[0]: name for n, name in file_names.items() if n.endswith(".weight")}
    found = record_activations(ours.module, synthetic_images(ours, 1), list(layers))
    widths = Counter(len(each.gain) for each in found.values() if each.gain is not None)
    if not widths:
        return []
    width = widths.most_common(1)[0][0]
    segments: list[StreamSegment] = []
    readers: dict[str, np.ndarray] = {}
    writers: dict[str, np.ndarray] = {}
    for layer, each in found.items():  # in the order in which they ran
        name = layers[layer]
        info = original.tensors[name]
        if each.gain is not None and len(each.gain) == info.columns == width:  # else as between stages, with a kernel
            readers[name] = each.gain
        elif len(each.outputs) == info.rows == width:
            if readers:
                segments.append(StreamSegment(readers, writers, width))
                readers = {}
            writers = {name: np.ones(width) if each.scale is None else each.scale}
    return [*segments, StreamSegment(readers, writers, width)]
