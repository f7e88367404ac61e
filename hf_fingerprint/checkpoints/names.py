"""Tensor names: one spelling for those that wrappers decorate, and one line for those that are shown."""

import re
from collections.abc import Collection
from functools import lru_cache

from hf_fingerprint.printable import printable as printable


_PREFIXES = ("module.", "_orig_mod.", "timm_model.", "base_model.model.", "model_ema.", "ema.", "model.", "backbone.")


_ADAPTER = re.compile(r"[._](lora_\w+|ia3_l|hada_w\w*|lokr_w\w*|oft_[rRs]|vera_lambda_\w|boft_[RPs])([._]|$)")
_SAVED_ALONG = re.compile(r"base_model\.|.*\bmodules_to_save\b")


def is_adapter(names: Collection[str]) -> bool:
    """Whether tensors of these names are an adapter's (peft's LoRA and the like), and no model's."""
    own = sum(bool(_ADAPTER.search(name)) for name in names)
    return own > 0 and all(_ADAPTER.search(name) or _SAVED_ALONG.match(name) for name in names)


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
