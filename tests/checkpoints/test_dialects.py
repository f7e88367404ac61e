import pytest

from hf_fingerprint.checkpoints.dialects import to_timm, to_transformers


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
def test_names_that_neither_library_gives_stay(name):
    assert to_timm(name) == name
    assert to_transformers(name) == name
