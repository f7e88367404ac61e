"""Find the model's tensors in an unpickled file, where training scripts nest them in dictionaries and lists.

A base must be unambiguous, since copies need every tensor: a dictionary of tensors, a dictionary under a known key, or
a pickled module, whose tensors get their state dict names. For a suspect, every tensor at any depth counts.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, InvalidPickleError, OpaqueKey
from hf_fingerprint.checkpoints.formats.pytorch.quantized_tensors import packed_parameters
from hf_fingerprint.checkpoints.formats.pytorch.torch_calls import SubclassTensor
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, NumpyArray, Storage
from hf_fingerprint.checkpoints.limits import MAX_NESTED_PARTS, MAX_TENSORS
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


MAX_DEPTH, MAX_NESTED_TENSORS = 8, MAX_TENSORS
_MODULE_DEPTH = 64
_NESTS = (dict, list, tuple, CallRecord)
_COST_OF_OBJECT = 4
WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "module", "net")
_STATE = re.compile(
    r"(\w+_)?(optim(izers?)?|sched(uler)?s?|scalers?|amp|rng|random|callbacks|loops)(_(states?|dict))*", re.IGNORECASE
)
_SHOWN = 3
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def model_tensors(loaded: Any, path: Path) -> dict[Any, LazyTensor]:
    """The tensors of a base's file: of its dictionary or module, or of the one under a known key (`state_dict`, ...).

    Training state and single numbers next to that key are ignored, and so are NumPy arrays next to tensors.

    Args:
        loaded (anything): content of the file.
        path (`Path`): the file, for errors.

    Raises:
        [`CheckpointError`]: if the file holds no tensors, or further ones elsewhere, which makes the model ambiguous.
    """
    walk = _BoundedWalk()
    is_kind = _is_torch_tensor if walk.contains(loaded, _is_torch_tensor, set()) else _is_tensor
    wrapper = _wrapper_of(loaded)
    nest = walk.as_state_dict(loaded if wrapper is None else loaded[wrapper])
    if not isinstance(nest, dict):
        raise CheckpointError(
            f"{path} holds {_describe_value(nest)}, not a dictionary of tensors: export its weights."
        )
    tensors = {name: value for name, value in nest.items() if is_kind(value)}
    seen: set[int] = set()
    nested = [
        name
        for name, value in nest.items()
        if not (wrapper is None and _is_state(name)) and walk.contains(value, is_kind, seen)
    ]
    if wrapper is not None:
        nested = [f"{wrapper}.{_key_text(name)}" for name in nested]
        for name, value in loaded.items():
            if name in WRAPPERS or _is_state(name):
                continue
            if value.numel() > 1 if is_kind(value) else walk.contains(value, is_kind, seen):
                nested.append(name)
    if nested:
        names = [printable(_key_text(name))[:80] for name in nested]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        place = "its top level" if wrapper is None else wrapper
        place = f" next to those in {place}" if tensors else f", and none in {place}"
        raise CheckpointError(
            f"{path} holds tensors in {', '.join(names[:_SHOWN])}{more}{place}: save the model's state dict alone."
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: is it the right file?")
    return tensors


def all_tensors(loaded: Any, left_out: dict[str, str]) -> Iterator[tuple[str, LazyTensor]]:
    """Yields every tensor of a suspect's file with its name: the keys that lead to it, joined by dots.

    Tensors under a known key keep their own names. Duplicate names get a number.

    Args:
        loaded (anything): content of the file.
        left_out (`dict[str, str]`): receives the values nested deeper than [`MAX_DEPTH`], and the number of tensors
            beyond [`MAX_NESTED_TENSORS`].
    """
    walk, own = _BoundedWalk(everything=True), loaded
    for _ in range(MAX_DEPTH):
        wrapper = _wrapper_of(own)
        if wrapper is None:
            break
        own = own[wrapper]
    waiting: deque[tuple[str, Any, int, bool]] = deque([("", own, 0, False), ("", loaded, 0, False)])
    seen: set[int] = set()
    beyond: set[int] = set()
    yielded: set[int] = set()
    packed_parts: list[Any] = []  # keeps them alive, since `seen` has their ids
    taken: dict[str, int] = {}
    count = 0
    while waiting:
        prefix, nest, depth, is_attribute = waiting.popleft()
        if id(nest) in seen:
            continue
        seen.add(id(nest))
        is_attribute = is_attribute or _is_module(nest)
        for key, value in walk.items(nest) if _is_nest(nest) else [("tensor", nest)]:
            name = prefix + _key_text(key)
            if isinstance(value, SubclassTensor) and depth + 1 < MAX_DEPTH:
                waiting.append((f"{name}.", _inner_values(value), depth + 1, is_attribute))
            elif _is_tensor(value):
                if nest is not value and is_attribute and id(value) in yielded:
                    continue
                yielded.add(id(value))
                count += 1
                if count <= MAX_NESTED_TENSORS:
                    yield unique_name(name, taken), value
            elif (packed := packed_parameters(name, value)) is not None:
                if id(value) not in seen:
                    seen.add(id(value))
                    packed_parts.append(packed[1])
                    waiting.append((f"{packed[0]}.", packed[1], depth, is_attribute))
            elif _is_nest(value) and depth + 1 < MAX_DEPTH:
                waiting.append((f"{name}.", value, depth + 1, is_attribute))
            elif walk.contains(value, _is_tensor, beyond):
                left_out[printable(name)] = f"nested deeper than {MAX_DEPTH}"
    if count > MAX_NESTED_TENSORS:
        left_out["..."] = f"{count - MAX_NESTED_TENSORS} tensors beyond the limit of {MAX_NESTED_TENSORS}"


def unique_name(name: str, taken: dict[str, int]) -> str:
    """The name, with a number appended if it is taken. `taken` maps each name to the next number to try."""
    found, number = name, taken.get(name, 2)
    while found in taken:
        found, number = f"{name}#{number}", number + 1
    taken[name] = number
    taken.setdefault(found, 2)
    return found


class _BoundedWalk:
    """A walk through nested values that visits at most [`MAX_NESTED_PARTS`], since values may contain each other.

    With `everything`, it also visits what a module has besides its state dict.
    """

    def __init__(self, everything: bool = False) -> None:
        self._left, self._everything = MAX_NESTED_PARTS, everything

    def items(self, nest: Any) -> Iterator[tuple[Any, Any]]:
        """Yields the key or index and the value of each item in a container or call record."""
        if isinstance(nest, dict):
            yield from self._spend_each(nest.items())
        elif not isinstance(nest, CallRecord):
            yield from self._spend_each(enumerate(nest))
        elif _is_module(nest):
            yield from self._module_parts(nest, self._everything)
        else:
            self._spend(_COST_OF_OBJECT)
            for part in (nest.kind, nest.args, nest.state, nest.items, nest.pairs):
                if isinstance(part, CallRecord):
                    yield "made", part
                elif part and isinstance(part, _NESTS):
                    yield from self.items(part)

    def contains(self, value: Any, is_kind: Callable[[Any], bool], seen: set[int]) -> bool:
        """Whether a value contains a tensor at any depth, outside the containers in `seen`."""
        waiting = [value] if _is_nest(value) else []
        while waiting:
            nest = waiting.pop()
            if id(nest) in seen:
                continue
            seen.add(id(nest))
            for _, inner in self.items(nest):
                if is_kind(inner):
                    return True
                if _is_nest(inner):
                    waiting.append(inner)
        return False

    def as_state_dict(self, value: Any) -> Any:
        """The state dict of a module; any other value unchanged."""
        return dict(self._module_parts(value)) if _is_module(value) else value

    def _module_parts(self, top: CallRecord, everything: bool = False) -> Iterator[tuple[str, Any]]:
        """Yields the tensors of a module with their state dict names, then with `everything` its other attributes."""
        waiting: deque[tuple[str, CallRecord, int]] = deque([("", top, 0)])
        others: list[tuple[str, Any]] = []
        while waiting:
            prefix, module, depth = waiting.popleft()
            for key, value in self._spend_each(_module_entries(module)):
                if isinstance(value, LazyTensor):
                    yield prefix + _key_text(key), value
                elif depth < _MODULE_DEPTH and _is_module(value):
                    waiting.append((f"{prefix}{_key_text(key)}.", value, depth + 1))
                elif everything and value and _is_nest(value):
                    others.append((prefix + _key_text(key), value))
            if everything:
                attributes = self._spend_each(_module_attributes(module))
                others += [(prefix + _key_text(key), value) for key, value in attributes]
        yield from others

    def _spend_each(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for each in items:
            self._spend(1)
            yield each

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise InvalidPickleError(f"more than {MAX_NESTED_PARTS:,} nested values")


def _wrapper_of(loaded: Any) -> str | None:
    if not isinstance(loaded, dict):
        return None
    found = ((each, loaded.get(each)) for each in WRAPPERS)
    return next((each for each, value in found if isinstance(value, dict) or _is_module(value)), None)


def _is_module(value: Any) -> bool:
    """Whether a value is a pickled module, of PyTorch or TorchScript."""
    if not isinstance(value, CallRecord) or not isinstance(value.state, dict):
        return False
    if isinstance(value.kind, GlobalRef) and value.kind.module.startswith("__torch__"):
        return True
    return all(isinstance(value.state.get(part), dict) for part in _MODULE_PARTS)


def _module_entries(module: CallRecord) -> Iterator[tuple[Any, Any]]:
    """Yields the parameters, persistent buffers and submodules of a module."""
    state = module.state
    if not isinstance(state.get("_modules"), dict):  # TorchScript has them among the attributes
        yield from state.items()
        return
    left = state.get("_non_persistent_buffers_set")
    passing = {each for each in left if isinstance(each, str)} if isinstance(left, list) else set()
    yield from state["_parameters"].items()
    yield from ((key, value) for key, value in state["_buffers"].items() if key not in passing)
    yield from state["_modules"].items()


def _module_attributes(module: CallRecord) -> Iterator[tuple[Any, Any]]:
    """Yields what may hold tensors in a pickled module besides its parameters, buffers and submodules."""
    if isinstance(module.state.get("_modules"), dict):
        for key, value in module.state.items():
            if key not in _MODULE_PARTS and value and (_is_tensor(value) or _is_nest(value)):
                yield key, value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, LazyTensor)


def _inner_values(value: SubclassTensor) -> dict[Any, Any]:
    """What a subclass's tensor holds, and its shape as a tensor, from which its codes can be understood."""
    for each in value.inner.values():
        if isinstance(each, SubclassTensor):
            each.outer_shape = None  # it is the layout of the codes
    if value.outer_shape is not None and "shape" not in value.inner:
        sizes = np.array(value.outer_shape, "<i8")
        storage = Storage("shape", "int64", len(sizes), data=sizes.view(np.uint8))
        value.inner["shape"] = LazyTensor("int64", (len(sizes),), (1,), 0, storage)
    return value.inner


def _is_torch_tensor(value: Any) -> bool:
    """Whether a value is a tensor rather than a NumPy array."""
    return isinstance(value, LazyTensor) and not isinstance(value, NumpyArray)


def _is_nest(value: Any) -> bool:
    return isinstance(value, _NESTS)


def _key_text(key: Any) -> str:
    if isinstance(key, str | int):
        return str(key)
    return f"<{key.kind if isinstance(key, OpaqueKey) else type(key).__name__}>"


def _describe_value(value: Any) -> str:
    """The kind of a value with its article, for errors."""
    if isinstance(value, CallRecord | GlobalRef):
        named = value.kind if isinstance(value, CallRecord) else value
        return f"an object ({printable(named.name)[:80]})" if isinstance(named, GlobalRef) else "an object"
    return "a tensor alone" if isinstance(value, LazyTensor) else f"a {type(value).__name__}"


def _is_state(name: Any) -> bool:
    """Whether a key holds training state."""
    return isinstance(name, str) and bool(_STATE.fullmatch(name))
