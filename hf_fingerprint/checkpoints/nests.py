"""Which tensors of an unpickled file are the model's, where training scripts nest them in dictionaries and lists.

A base has to say it clearly, since copies need every tensor: a dictionary of tensors, or one under a known key. Of a
suspect every tensor counts, wherever it lies.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints.names import printable
from hf_fingerprint.errors import CheckpointError


DEPTH, MOST_TENSORS = 8, 100_000
_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "module", "net")
_STATE = re.compile(
    r"(\w+_)?(optim(izers?)?|sched(uler)?s?|scalers?|amp|rng|random|callbacks|loops)(_(states?|dict))*", re.IGNORECASE
)
_SHOWN = 3


def only_tensors(loaded: Any, kind: type, path: Path) -> dict[Any, Any]:
    """The tensors of a base's file: those of the dictionary, or of the one under a known key (`state_dict`, ...). The
    state of a training and single numbers beside it are passed over.

    Args:
        loaded (anything): what the file holds.
        kind (`type`): `torch.Tensor`.
        path (`Path`): the file, for what is said of it.

    Raises:
        [`CheckpointError`]: if it holds no tensors, or others beside these: then which ones are the model's is
        anybody's guess.
    """
    wrapper = _wrapper_of(loaded)
    nest = loaded if wrapper is None else loaded[wrapper]
    if not isinstance(nest, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(nest).__name__}, not a dictionary of tensors: export its weights."
        )
    tensors = {name: value for name, value in nest.items() if isinstance(value, kind)}
    seen: set[int] = set()
    nested = [
        name for name, value in nest.items() if not (wrapper is None and _is_state(name)) and _holds(value, kind, seen)
    ]
    if wrapper is not None:
        nested = [f"{wrapper}.{name}" for name in nested]
        for name, value in loaded.items():
            if name in _WRAPPERS or _is_state(name):
                continue
            if _elements(value) > 1 if isinstance(value, kind) else _holds(value, kind, seen):
                nested.append(name)
    if nested:
        names = [printable(str(name))[:80] for name in nested]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        place = "" if wrapper is None else f" beside those in {wrapper}" if tensors else f", and none in {wrapper}"
        place = place or (" beside those at its top" if tensors else ", and none at its top")
        raise CheckpointError(
            f"{path} holds tensors in {', '.join(names[:_SHOWN])}{more}{place}: save the model's state dict alone."
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: is it the right file?")
    return tensors


def all_tensors(loaded: Any, kind: type, left_out: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Every tensor of a suspect's file with its name: the keys on the way to it, joined by dots. Those under a known
    key keep their own names. A name that is taken is given a number.

    Args:
        loaded (anything): what the file holds.
        kind (`type`): `torch.Tensor`.
        left_out (`dict[str, str]`): takes what lies deeper than [`DEPTH`], and how many there are above
            [`MOST_TENSORS`].
    """
    own = loaded
    for _ in range(DEPTH):
        wrapper = _wrapper_of(own)
        if wrapper is None:
            break
        own = own[wrapper]
    waiting: deque[tuple[str, Any, int]] = deque([("", own, 0), ("", loaded, 0)])
    seen: set[int] = set()
    beyond: set[int] = set()
    taken: dict[str, int] = {}
    count = 0
    while waiting:
        prefix, nest, depth = waiting.popleft()
        if id(nest) in seen:
            continue
        seen.add(id(nest))
        for key, value in _items(nest) if _is_nest(nest) else [("tensor", nest)]:
            name = prefix + _spelled(key)
            if isinstance(value, kind):
                count += 1
                if count <= MOST_TENSORS:
                    yield free_name(name, taken), value
            elif _is_nest(value) and depth + 1 < DEPTH:
                waiting.append((f"{name}.", value, depth + 1))
            elif _holds(value, kind, beyond):
                left_out[printable(name)] = f"nested deeper than {DEPTH}"
    if count > MOST_TENSORS:
        left_out["..."] = f"{count - MOST_TENSORS} tensors more than the {MOST_TENSORS} that are read"


def free_name(name: str, taken: dict[str, int]) -> str:
    """The name, or with a number if it is taken. `taken` holds each name and the number to try next."""
    found, number = name, taken.get(name, 2)
    while found in taken:
        found, number = f"{name}#{number}", number + 1
    taken[name] = number
    taken.setdefault(found, 2)
    return found


def _wrapper_of(loaded: Any) -> str | None:
    if not isinstance(loaded, Mapping):
        return None
    return next((wrapper for wrapper in _WRAPPERS if isinstance(loaded.get(wrapper), Mapping)), None)


def _is_nest(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _items(nest: Any) -> Iterable[tuple[Any, Any]]:
    return nest.items() if isinstance(nest, Mapping) else enumerate(nest)


def _spelled(key: Any) -> str:
    return str(key) if isinstance(key, str | int) else f"<{type(key).__name__}>"


def _is_state(name: Any) -> bool:
    """Whether a key is one of a training's state."""
    return isinstance(name, str) and bool(_STATE.fullmatch(name))


def _elements(tensor: Any) -> int:
    return int(tensor.numel())


def _holds(value: Any, kind: type, seen: set[int]) -> bool:
    """Whether there is a tensor anywhere in a nest, but for what was looked through before."""
    waiting = [value] if _is_nest(value) else []
    while waiting:
        nest = waiting.pop()
        if id(nest) in seen:
            continue
        seen.add(id(nest))
        for _, inner in _items(nest):
            if isinstance(inner, kind):
                return True
            if _is_nest(inner):
                waiting.append(inner)
    return False
