"""Normalize tensor names: strip wrappers' prefixes, and translate between timm and transformers.

Queries, keys and values are one tensor in timm (`qkv`) and three in transformers.
"""

import re
from collections.abc import Collection
from functools import cache, lru_cache


_WRAPPERS = ("module.", "_orig_mod.", "timm_model.", "base_model.model.", "model_ema.", "ema.", "model.", "backbone.")
_ADAPTER = re.compile(r"[._](lora_\w+|ia3_l|hada_w\w*|lokr_w\w*|oft_[rRs]|vera_lambda_\w|boft_[RPs])([._]|$)")
_SAVED_ALONG = re.compile(r"base_model\.|.*\bmodules_to_save\b")
_OPTIMIZER_STATE = re.compile(r"(^|\.)state\.\d+\.\w+$")
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
_PREFIX = re.compile(r"^(vit|deit|dinov2|beit|resnet)\.")
_VIT = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("blocks.#.norm1", "encoder.layer.#.layernorm_before"),
    ("blocks.#.norm2", "encoder.layer.#.layernorm_after"),
    ("blocks.#.attn.q", "encoder.layer.#.attention.attention.query"),
    ("blocks.#.attn.k", "encoder.layer.#.attention.attention.key"),
    ("blocks.#.attn.v", "encoder.layer.#.attention.attention.value"),
    ("blocks.#.attn.proj", "encoder.layer.#.attention.output.dense"),
    ("blocks.#.mlp.fc1", "encoder.layer.#.intermediate.dense"),
    ("blocks.#.mlp.fc2", "encoder.layer.#.output.dense"),
    ("norm", "layernorm"),
    ("head", "classifier"),
)
_NEWER_VIT = (
    ("blocks.#.norm1", "encoder.layer.#.norm1"),
    ("blocks.#.norm2", "encoder.layer.#.norm2"),
    ("blocks.#.mlp", "encoder.layer.#.mlp"),
    ("blocks.#.ls1.gamma", "encoder.layer.#.layer_scale1.lambda1"),
    ("blocks.#.ls2.gamma", "encoder.layer.#.layer_scale2.lambda1"),
    ("blocks.#.norm1", "layers.#.layernorm_before"),
    ("blocks.#.norm2", "layers.#.layernorm_after"),
    ("blocks.#.attn.q", "layers.#.attention.q_proj"),
    ("blocks.#.attn.k", "layers.#.attention.k_proj"),
    ("blocks.#.attn.v", "layers.#.attention.v_proj"),
    ("blocks.#.attn.proj", "layers.#.attention.o_proj"),
    ("blocks.#.mlp", "layers.#.mlp"),
)
_RESNET = (
    ("conv1", "embedder.embedder.convolution"),
    ("bn1", "embedder.embedder.normalization"),
    ("layer#.#.conv#", "encoder.stages.#.layers.#.layer.#.convolution"),
    ("layer#.#.bn#", "encoder.stages.#.layers.#.layer.#.normalization"),
    ("layer#.#.downsample.0", "encoder.stages.#.layers.#.shortcut.convolution"),
    ("layer#.#.downsample.1", "encoder.stages.#.layers.#.shortcut.normalization"),
    ("fc", "classifier.1"),
)
_ONE_BASED = "layer#.#."  # timm counts a ResNet's stages, convolutions and normalizations from 1


def is_optimizer_state(name: str) -> bool:
    """Whether a tensor has the name that PyTorch's optimizers give their state: `optimizer.state.3.exp_avg`, or in
    sharded checkpoints `optimizer.state.fc.weight.exp_avg`."""
    module, _, kind = name.rpartition(".")
    return _OPTIMIZER_STATE.search(name) is not None or (kind in _MOMENTS and "state" in module.split("."))


def is_adapter(names: Collection[str]) -> bool:
    """Whether tensors of these names belong to an adapter (LoRA and others in peft) rather than a model."""
    own = sum(bool(_ADAPTER.search(name)) for name in names)
    return own > 0 and all(_ADAPTER.search(name) or _SAVED_ALONG.match(name) for name in names)


@lru_cache(1 << 14)
def normalize_name(name: str) -> str:
    """The name without wrappers' prefixes (DDP, compile, transformers' TimmWrapper, PEFT, EMA)."""
    begin, stripped = 0, True
    while stripped:  # copies nothing, since a hostile name may have a million prefixes
        stripped = False
        for prefix in _WRAPPERS:
            if name.startswith(prefix, begin):
                begin, stripped = begin + len(prefix), True
    name = name[begin:]
    while "._orig_mod." in name:
        name = name.replace("._orig_mod.", ".")
    return name


@lru_cache(1 << 14)
def canonical_name(name: str) -> str:
    """The name that timm gives the tensor, without wrappers' prefixes."""
    return to_timm(normalize_name(name))


def to_timm(name: str) -> str:
    """The timm name of a transformers tensor; other names unchanged."""
    bare = _PREFIX.sub("", name)
    for timm, theirs in (*_RESNET, *_VIT, *_NEWER_VIT):
        if match := _pattern(theirs).fullmatch(bare):
            return _fill_template(timm, match, 1 if timm.startswith(_ONE_BASED) else 0)
    return name


def to_transformers(name: str) -> str:
    """The transformers name of a timm tensor; other names unchanged."""
    for library, rules in (("vit.", _VIT), ("resnet.", _RESNET)):
        for timm, theirs in rules:
            if match := _pattern(timm).fullmatch(name):
                filled = _fill_template(theirs, match, -1 if timm.startswith(_ONE_BASED) else 0)
                return filled if filled.startswith("classifier") else library + filled
    return name


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)") + r"((?:\.\w+)*)")


def _fill_template(template: str, match: re.Match[str], more: int) -> str:
    """Fills the matched numbers into the template, with `more` added to the first and third."""
    *numbers, rest = match.groups()
    for place, number in enumerate(numbers):
        template = template.replace("#", str(int(number) + (more if place != 1 else 0)), 1)
    return template + rest
