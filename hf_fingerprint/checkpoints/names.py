"""Tensor names: one spelling for those that wrappers decorate, and one line for those that are shown."""

from functools import lru_cache


_PREFIXES = ("module.", "_orig_mod.", "timm_model.", "base_model.model.", "model_ema.", "ema.", "model.", "backbone.")


@lru_cache(1 << 14)
def normalise(name: str) -> str:
    """The name without what wrappers put before it (DDP, compile, transformers' TimmWrapper, PEFT, EMA)."""
    begin, stripped = 0, True
    while stripped:  # of a hostile name a million times, so nothing is copied
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix, begin):
                begin, stripped = begin + len(prefix), True
    name = name[begin:]
    while "._orig_mod." in name:
        name = name.replace("._orig_mod.", ".")
    return name


def printable(name: str) -> str:
    """A name from a file that may be hostile, on one line."""
    return "".join(c if c.isprintable() else " " for c in name)
