"""Presents a suspect under the base's tensor names, if it has those of the other library.

timm and transformers name the same tensors differently, and one tensor in timm (`qkv`) is three in transformers. The
    bytes are the same, so nothing is copied.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.tensor_names import normalize_name, to_timm
from hf_fingerprint.vault import Base


_FUSED, _SPLIT = ".attn.qkv.", (".attn.q.", ".attn.k.", ".attn.v.")
ByteRange = tuple[TensorInfo, int, int]  # a tensor of the file, its first byte and the end


class RenamedWeights:
    """A suspect under the base's tensor names.

    Attributes:
        source ([`Source`]): the suspect's source.
        tensors (`dict[str, TensorInfo]`): its tensors by the base's names, or by their own if the base has none.
    """

    def __init__(self, suspect: TensorReader, byte_ranges: dict[str, list[ByteRange]]):
        self.source = suspect.source
        self._suspect, self._byte_ranges = suspect, byte_ranges
        used = {info.name for parts in byte_ranges.values() for info, _, _ in parts}
        self.tensors = {name: info for name, info in suspect.tensors.items() if name not in used}
        for name, parts in byte_ranges.items():
            first, nbytes = parts[0][0], sum(stop - start for _, start, stop in parts)
            shape = first.shape if nbytes == first.nbytes else (nbytes // first.row_bytes, *first.shape[1:])
            self.tensors[name] = replace(first, name=name, shape=shape, nbytes=nbytes)

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, written to `out` if given."""
        if info.name not in self._byte_ranges:
            return self._suspect.read(info, start, stop, out)
        stop = info.nbytes if stop is None else stop
        out = np.empty(stop - start, np.uint8) if out is None else out
        begin = 0
        for part, first, last in self._byte_ranges[info.name]:
            low, high = max(start - begin, 0), min(stop - begin, last - first)
            if low < high:
                target = slice(begin + low - start, begin + high - start)
                out[target] = self._suspect.read(part, first + low, first + high)
            begin += last - first
        return out[: stop - start]


def to_base_names(base: Base, suspect: TensorReader) -> TensorReader:
    """The suspect under the base's tensor names, or unchanged if it already has them or has too few of the tensors."""
    suspect_names = {normalize_name(name) for name in suspect.tensors}
    if 2 * sum(normalize_name(name) in suspect_names for name in base.tensors) >= len(base.tensors):
        return suspect
    by_timm_name = {to_timm(normalize_name(name)): info for name, info in suspect.tensors.items()}
    byte_ranges = {name: list(_byte_ranges(to_timm(normalize_name(name)), by_timm_name)) for name in base.tensors}
    found = {name: parts for name, parts in byte_ranges.items() if parts}
    return RenamedWeights(suspect, found) if 2 * len(found) >= len(base.tensors) else suspect


def _byte_ranges(name: str, by_timm_name: dict[str, TensorInfo]) -> Iterator[ByteRange]:
    """The bytes of the suspect that hold the tensor of this name in timm."""
    if name in by_timm_name:
        yield by_timm_name[name], 0, by_timm_name[name].nbytes
        return
    split = next((each for each in _SPLIT if each in name), None)
    if split is not None:
        whole = by_timm_name.get(name.replace(split, _FUSED))
        if whole is not None and whole.rows % 3 == 0:
            third, index = whole.nbytes // 3, _SPLIT.index(split)
            yield whole, index * third, (index + 1) * third
    elif _FUSED in name:
        parts = [by_timm_name.get(name.replace(_FUSED, each)) for each in _SPLIT]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts) and len({(part.dtype, part.shape) for part in known}) == 1:
            yield from ((part, 0, part.nbytes) for part in known)
