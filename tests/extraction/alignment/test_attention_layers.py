import timm
from transformers import ViTConfig, ViTForImageClassification

from hf_fingerprint.extraction.alignment.attention_layers import Attention, find_attentions


def test_timms_attentions_are_found():
    model = timm.create_model("test_vit")

    found = list(find_attentions(model))

    assert found[0] == Attention(("blocks.0.attn.qkv",), "blocks.0.attn.proj", model.blocks[0].attn.num_heads)
    assert len(found) == len(model.blocks)


def test_transformers_attentions_are_found():
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=16, patch_size=8
    )
    model = ViTForImageClassification(config)

    found = list(find_attentions(model))

    layers = dict(model.named_modules())
    assert [each.heads for each in found] == [3, 3]
    for each in found:
        assert [layers[name].out_features for name in (*each.inputs, each.output)] == [24] * 4


def test_a_network_of_convolutions_has_none():
    assert not list(find_attentions(timm.create_model("test_resnet")))
