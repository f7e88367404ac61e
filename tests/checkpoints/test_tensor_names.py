import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.tensor_names import normalize_name, to_timm, to_transformers
from tests.helpers.checkpoint_files import NO_DEADLINE


PAIRS = {
    "cls_token": "vit.embeddings.cls_token",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "blocks.11.norm2.bias": "vit.encoder.layer.11.layernorm_after.bias",
    "blocks.3.attn.k.weight": "vit.encoder.layer.3.attention.attention.key.weight",
    "blocks.3.attn.proj.bias": "vit.encoder.layer.3.attention.output.dense.bias",
    "blocks.0.mlp.fc2.weight": "vit.encoder.layer.0.output.dense.weight",
    "norm.weight": "vit.layernorm.weight",
    "head.bias": "classifier.bias",
    "bn1.running_var": "resnet.embedder.embedder.normalization.running_var",
    "layer2.0.bn3.running_mean": "resnet.encoder.stages.1.layers.0.layer.2.normalization.running_mean",
    "layer4.2.downsample.0.weight": "resnet.encoder.stages.3.layers.2.shortcut.convolution.weight",
    "fc.weight": "classifier.1.weight",
}


@pytest.mark.parametrize("timm", PAIRS)
def test_each_name_has_one_of_the_other_library(timm):
    assert to_transformers(timm) == PAIRS[timm]
    assert to_timm(PAIRS[timm]) == timm
    assert to_timm(timm) == timm


@pytest.mark.parametrize(
    ("other", "timm"),
    [
        ("vit.layers.2.attention.q_proj.weight", "blocks.2.attn.q.weight"),
        ("vit.layers.2.mlp.fc1.bias", "blocks.2.mlp.fc1.bias"),
        ("dinov2.encoder.layer.0.layer_scale1.lambda1", "blocks.0.ls1.gamma"),
        ("deit.encoder.layer.0.layernorm_before.weight", "blocks.0.norm1.weight"),
    ],
)
def test_other_models_and_versions_of_transformers_are_known(other, timm):
    assert to_timm(other) == timm


@pytest.mark.parametrize("name", ["stages.0.blocks.0.conv_dw.weight", "embeddings", "layer1", ""])
def test_names_that_neither_library_uses_are_unchanged(name):
    assert to_timm(name) == name
    assert to_transformers(name) == name


@pytest.mark.parametrize(
    ("decorated", "wrapper"),
    [
        ("blocks.0.attn.qkv.weight", "nothing"),
        ("module.blocks.0.attn.qkv.weight", "DDP"),
        ("_orig_mod.blocks.0.attn.qkv.weight", "torch.compile"),
        ("timm_model.blocks.0.attn.qkv.weight", "transformers' TimmWrapper"),
        ("base_model.model.blocks.0.attn.qkv.weight", "PEFT"),
        ("base_model.model.timm_model.blocks.0.attn.qkv.weight", "PEFT around TimmWrapper"),
        ("module._orig_mod.timm_model.blocks.0.attn.qkv.weight", "DDP around compile around TimmWrapper"),
        ("_orig_mod.module.blocks.0.attn.qkv.weight", "compile around DDP"),
        ("ema.module.blocks.0.attn.qkv.weight", "EMA of DDP"),
        ("model_ema.blocks.0.attn.qkv.weight", "timm's EMA"),
        ("blocks.0._orig_mod.attn.qkv.weight", "compile of each block"),
        ("blocks.0._orig_mod.attn._orig_mod.qkv.weight", "compile of a block and of a layer in it"),
        ("module.blocks.0._orig_mod.attn.qkv.weight", "DDP around compiled blocks"),
    ],
)
def test_wrappers_prefixes_are_stripped(decorated, wrapper):
    assert normalize_name(decorated) == "blocks.0.attn.qkv.weight", wrapper


@pytest.mark.parametrize(
    "name",
    ["modules.0.weight", "modeling.weight", "backbones.0.weight", "head.module.weight", "stages.model"],
)
def test_names_that_only_look_wrapped_are_unchanged(name):
    assert normalize_name(name) == name


def test_names_that_differ_beyond_wrappers_stay_distinct():
    names = ["blocks.0.weight", "blocks.1.weight", "head.weight", "head.bias", "module.head.gamma"]

    assert len({normalize_name(name) for name in names}) == len(names)


@NO_DEADLINE
@given(
    st.lists(st.sampled_from(["module", "_orig_mod", "timm_model", "model", "blocks", "0", "attn"]), max_size=6),
    st.sampled_from(["weight", "bias", "model.weight", "module.weight"]),
)
def test_normalization_is_idempotent(parts, last):
    name = ".".join([*parts, last])

    assert normalize_name(normalize_name(name)) == normalize_name(name)
