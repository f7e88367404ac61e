"""Presents a suspect under the base's tensor names, if it has those of the other library, or with a prefix.

timm and transformers name the same tensors differently, and one tensor in timm (`qkv`) is three in transformers. The
    bytes are the same, so nothing is copied.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.tensor_names import normalize_name, to_timm, to_transformers
from hf_fingerprint.extraction.layouts import PLAIN
from hf_fingerprint.extraction.placed import Piece, PlacedWeights, Placement, TensorView, full_bounds
from hf_fingerprint.vault import Base


_FUSED, _SPLIT = ".attn.qkv.", (".attn.q.", ".attn.k.", ".attn.v.")


def to_base_names(base: Base, suspect: TensorReader) -> TensorReader:
    """The suspect under the base's tensor names, or unchanged if it already has them or has too few of the tensors."""
    suspect_names = dict.fromkeys(map(normalize_name, suspect.tensors))  # in their order: of equals, the first counts
    if 2 * sum(normalize_name(name) in suspect_names for name in base.tensors) >= len(base.tensors):
        return suspect
    found = _find_placements(base, {name: name for name in suspect.tensors}, suspect)
    if 2 * len(found) < len(base.tensors):  # only then, so that no decoys under a prefix take their places
        stripped = _strip_prefix([normalize_name(name) for name in base.tensors], suspect_names)
        known = {name: stripped.get(normalize_name(name)) for name in suspect.tensors}
        found |= _find_placements(base, {name: new for name, new in known.items() if new is not None}, suspect)
    return PlacedWeights(suspect, found) if 2 * len(found) >= len(base.tensors) else suspect


def _find_placements(base: Base, names: Mapping[str, str], suspect: TensorReader) -> dict[str, Placement]:
    """Where the suspect has the base's tensors; `names` are those to know its tensors by."""
    by_timm_name = {to_timm(normalize_name(known)): suspect.tensors[name] for name, known in names.items()}
    found = {name: find_placement(to_timm(normalize_name(name)), by_timm_name) for name in base.tensors}
    return {name: each for name, each in found.items() if each is not None}


def _strip_prefix(wanted: Collection[str], names: Collection[str]) -> dict[str, str]:
    """The names without the prefix that most names of a base have among them in either library, such as that of a
    model in another one; only those that have it."""
    known = {*wanted, *map(to_timm, wanted), *map(to_transformers, wanted)}
    most_dots = max((name.count(".") for name in known), default=0)
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.rsplit(".", most_dots + 1)
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        counts.update(name.removesuffix(end) for end in ends if end in known)
    prefix = counts.most_common(1)[0][0] if counts else ""
    return {name: name.removeprefix(prefix) for name in names if prefix and name.startswith(prefix)}


def find_placement(name: str, by_timm_name: dict[str, TensorInfo]) -> Placement | None:
    """Where the suspect has the tensor of this name in timm."""
    if name in by_timm_name:
        info = by_timm_name[name]
        return Placement(info.shape, (Piece(TensorView.whole(info), 0, 0),))
    split = next((each for each in _SPLIT if each in name), None)
    if split is not None:
        fused = by_timm_name.get(name.replace(split, _FUSED))
        if fused is not None and fused.shape and fused.rows % 3 == 0:
            third, index = fused.rows // 3, _SPLIT.index(split)
            shape = (third, *fused.shape[1:])
            bounds = ((index * third, (index + 1) * third), *full_bounds(fused.shape)[1:])
            return Placement(shape, (Piece(TensorView(fused, bounds, PLAIN, shape), 0, 0),))
    elif _FUSED in name:
        parts = [by_timm_name.get(name.replace(_FUSED, each)) for each in _SPLIT]
        known = [part for part in parts if part is not None and part.shape]
        if len(known) == len(_SPLIT) and len({(part.dtype, part.shape) for part in known}) == 1:
            pieces = tuple(Piece(TensorView.whole(part), 0, number * part.rows) for number, part in enumerate(known))
            return Placement((3 * known[0].rows, *known[0].shape[1:]), pieces)
    return None
