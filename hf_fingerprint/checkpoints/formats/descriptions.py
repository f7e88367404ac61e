"""Inert stand-ins for the objects that a pickle would create."""

from typing import Any


MAX_SMALL_INT = 1 << 60  # larger numbers may be crafted to collide in a dictionary


class InvalidFileError(Exception):
    """A weight file is damaged, truncated, or needs what is not read; the message says which in a few words."""


class InvalidPickleError(InvalidFileError):
    """A pickle is invalid, truncated, damaged or too long; the message says which in a few words."""


class InertObject:
    """An object that a pickle describes. It equals only itself."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Receives the state that the pickle would set."""


class GlobalRef(InertObject):
    """A module and a name that a pickle refers to. They are never looked up."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class CallRecord(InertObject):
    """A call that a pickle would make.

    Attributes:
        kind (anything): the callable: a [`GlobalRef`], or another value in the pickle.
        args (anything): its arguments.
        state (anything): state that would be set on the result.
        items (`list` or `None`): items that would be appended to the result.
        pairs (`dict` or `None`): items that would be set on the result by key.
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
    """A dictionary key other than a string or a small number.

    Attributes:
        kind (`str`): its type.
        value (anything): the key, which is not hashed.
    """

    __slots__ = ("kind", "value")

    def __init__(self, kind: str, value: Any = None):
        self.kind, self.value = kind, value


def as_key(key: Any) -> Any:
    """The key itself if it is a string, a small number or `None`, else an [`OpaqueKey`]."""
    if type(key) is str or key is None or (isinstance(key, int) and -MAX_SMALL_INT < key < MAX_SMALL_INT):
        return key
    return OpaqueKey(type(key).__name__, key)
