"""What stands for the things that a pickle would make."""

from typing import Any


MAX_SMALL_INT = 1 << 60  # larger numbers may be built so that a dictionary compares each with all others


class InvalidPickleError(Exception):
    """What is no pickle, is cut off or damaged, or goes on for longer than any checkpoint; says which, in a few
    words."""


class InertObject:
    """A thing that a pickle describes. It is equal to nothing but itself."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Takes what the pickle would have set the thing's attributes to."""


class GlobalRef(InertObject):
    """What a pickle calls by a module and a name in it, which are never looked up."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class CallRecord(InertObject):
    """What a pickle would have made by a call.

    Attributes:
        kind (anything): what would have been called: a [`GlobalRef`], or whatever else the pickle says.
        args (anything): with what.
        state (anything): what its attributes would have been set to.
        items (`list` or `None`): what would have been appended to it, if anything.
        pairs (`dict` or `None`): what would have been set under keys, if anything.
    """

    __slots__ = ("args", "items", "kind", "pairs", "state")

    def __init__(self, kind: Any, args: Any):
        self.kind, self.args = kind, args
        self.state: Any = None
        self.items: list[Any] | None = None
        self.pairs: dict[Any, Any] | None = None

    def set_state(self, state: Any) -> None:
        self.state = state


class OpaqueKey(InertObject):
    """A key of a dictionary that is neither text nor a small number."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind


def as_key(key: Any) -> Any:
    """What stands for a key in a dictionary: texts and small numbers as they are."""
    if type(key) is str or key is None or (isinstance(key, int) and -MAX_SMALL_INT < key < MAX_SMALL_INT):
        return key
    return OpaqueKey(type(key).__name__)
