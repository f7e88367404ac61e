"""Finds the record of a model by the content of its tensors, whichever library named them.

timm and transformers name the same tensors differently, transformers 5 renames them on load, and a module lacks what
its class has no use for. So a model has a base's weights if it has all of the base's carriers and no weights of its
own, by dtype, shape and SHA-256.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, content_hash, digest_tensors
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.tensor_names import canonical_name
from hf_fingerprint.registration.hash_cache import cache_hash, cached_hash
from hf_fingerprint.vault import Base, CopyRecord, Vault


Content = tuple[str, tuple[int, ...], str]  # dtype, shape, digest
Names = dict[str, str]  # from a base's tensor names to a model's
_WEIGHTS = READABLE | {"I8", "U8"}  # other dtypes are those of counters and indexes, which loaders add and drop


def find_same_weights(
    bases: Sequence[Base], tensors: Mapping[str, TensorInfo], digests: Mapping[str, str]
) -> tuple[Base, Names] | None:
    """The base whose weights a model has, with the model's tensor names by the base's; `None` if there is none.

    Args:
        bases (sequence of [`Base`]): the bases on record. Of several that match, the smallest is found.
        tensors (mapping of `str` to [`TensorInfo`]): the model's tensors.
        digests (mapping of `str` to `str`): hexadecimal SHA-256 of each.
    """
    by_content: dict[Content, list[str]] = defaultdict(list)
    for name, info in tensors.items():
        by_content[info.dtype, info.shape, digests[name]].append(name)
    found = [(base, names) for base in bases if (names := _match_contents(base, by_content)) is not None]
    return min(found, key=lambda each: len(each[0].tensors), default=None)


def find_recorded_copies(
    model: Checkpoint, bases: Sequence[Base], copies: Sequence[CopyRecord], digests: Mapping[str, str] | None = None
) -> list[CopyRecord]:
    """The copies on record whose content hash is a model's; see [`possible_hashes`], which takes the arguments."""
    hashed = [copy for copy in copies if copy.content_hash is not None]
    hashes = possible_hashes(model, bases, digests) if hashed else set()
    return [copy for copy in hashed if copy.content_hash in hashes]


def possible_hashes(
    model: Checkpoint, bases: Sequence[Base], digests: Mapping[str, str] | None = None, vault: Vault | None = None
) -> set[str]:
    """The content hashes that a copy on record has if it is a model: under its own tensor names or those of a base.

    Args:
        model ([`Checkpoint`]): the open model. It is hashed if it has tensors for all weights of a base.
        bases (sequence of [`Base`]): the bases on record.
        digests (mapping of `str` to `str`, *optional*): hexadecimal SHA-256 of each tensor, if they are known.
        vault ([`Vault`], *optional*): caches the hash of a model whose tensors have the bases' names.
    """
    layout = Counter((info.dtype, info.shape) for info in model.tensors.values())
    fitting = [base for base in bases if not Counter(_weight_layout(base)) - layout]
    if digests is None and not fitting:
        return set()
    known = None if vault is None else cached_hash(model, vault)
    if known is not None and all(_has_layout(model.tensors, base) for base in fitting):
        return {known}
    digests = digest_tensors(model) if digests is None else digests
    found = content_hash(model.tensors, digests)
    if vault is not None:
        cache_hash(model, vault, found)
    return {found, *(_hash_as(base, model.tensors, digests) for base in fitting)}


def copy_hash(base: Base, digests: Mapping[str, str]) -> str:
    """The content hash of a base's copy in which the tensors named in `digests` have these, under the base's names."""
    return content_hash(base.tensors, {name: record.digest for name, record in base.tensors.items()} | dict(digests))


def _match_contents(base: Base, by_content: Mapping[Content, list[str]]) -> Names | None:
    """The model's names of a base's tensors, if it has all carriers and no weights of its own."""
    contents: set[Content] = set(base.tensors.values())
    if any(content[0] in _WEIGHTS and content not in contents for content in by_content):
        return None
    names: Names = {}
    taken: set[str] = set()
    for by_name in (True, False):  # tensors of equal content, such as zeros, are matched by their names
        for name, record in base.tensors.items():
            candidates = by_content.get(record, [])
            if by_name:
                wanted = canonical_name(name)
                candidates = [each for each in candidates if each == name or canonical_name(each) == wanted]
                candidates = [name] if name in candidates else candidates
            if name not in names and candidates:
                names[name] = next((each for each in candidates if each not in taken), candidates[0])
                taken.add(names[name])
    return names if all(carrier.name in names for carrier in base.carriers) else None


def _has_layout(tensors: Mapping[str, TensorInfo], base: Base) -> bool:
    """Whether a model has the names, dtypes and shapes of all of a base's tensors, and no others."""
    return tensors.keys() == base.tensors.keys() and all(
        (info.dtype, info.shape) == (base.tensors[name].dtype, base.tensors[name].shape)
        for name, info in tensors.items()
    )


def _weight_layout(base: Base) -> list[tuple[str, tuple[int, ...]]]:
    return [(record.dtype, record.shape) for record in base.tensors.values() if record.dtype in _WEIGHTS]


def _hash_as(base: Base, tensors: Mapping[str, TensorInfo], digests: Mapping[str, str]) -> str:
    """The content hash of a model under a base's names; tensors without a namesake count as unchanged."""
    by_name = {canonical_name(name): name for name in tensors}
    known = {name: by_name.get(canonical_name(name), "") for name in base.tensors}
    return copy_hash(base, {name: digests[theirs] for name, theirs in known.items() if theirs})
