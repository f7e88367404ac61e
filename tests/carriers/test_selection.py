import functools

import pytest
import timm
import torch
from torch import nn

from hf_fingerprint.carriers import can_carry, select_by_name, select_from_model
from hf_fingerprint.checkpoints import TensorInfo
from hf_fingerprint.checkpoints.dtypes import SIZES


DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def info(name, shape, dtype="F32"):
    count = 1
    for size in shape:
        count *= size
    return TensorInfo(name, dtype, tuple(shape), 0, 0, count * SIZES[dtype])


def infos(shapes):
    return {name: info(name, shape) for name, shape in shapes.items()}


def infos_of(model):
    return {name: info(name, tensor.shape, DTYPES[tensor.dtype]) for name, tensor in model.state_dict().items()}


def layers(model):
    """The weights of all convolution and linear modules, by their types alone."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kinds)}


def from_timm(name):
    return timm.create_model(name, pretrained=False).eval()


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=5,
        )
    )


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], num_labels=5)
    )


def swin():
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(
        SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=5
        )
    )


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_labels=5)
    )


def wrapped():
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_vit", num_labels=5))


def distilled():
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5)


def resnext():
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], cardinality=32, base_width=4, num_classes=5)


# how it is made, the height of an image it takes, its stem, its classifiers
MODELS = {
    "test_vit": (lambda: from_timm("test_vit"), 160, "patch_embed.proj", {"head"}),
    "test_resnet": (lambda: from_timm("test_resnet"), 64, "conv1.0", {"fc"}),
    "test_efficientnet": (lambda: from_timm("test_efficientnet"), 64, "conv_stem", {"classifier"}),
    "resnet10t": (lambda: from_timm("resnet10t"), 64, "conv1.0", {"fc"}),
    "convnext_atto": (lambda: from_timm("convnext_atto"), 64, "stem.0", {"head.fc"}),
    "mobilenetv3_small_050": (lambda: from_timm("mobilenetv3_small_050"), 64, "conv_stem", {"classifier"}),
    "distilled": (distilled, 32, "patch_embed.proj", {"head", "head_dist"}),
    "resnext": (resnext, 64, "conv1", {"fc"}),
    "vit": (vit, 32, "vit.embeddings.patch_embeddings.projection", {"classifier"}),
    "resnet": (resnet, 32, "resnet.embedder.embedder.convolution", {"classifier.1"}),
    "swin": (swin, 32, "swin.embeddings.patch_embeddings.projection", {"classifier"}),
    "convnext": (convnext, 32, "convnext.embeddings.patch_embeddings", {"classifier"}),
    "wrapped": (wrapped, 160, "timm_model.patch_embed.proj", {"timm_model.head"}),
}
# what names and shapes alone get wrong: a grouped convolution that reads 4 channels looks like a stem
BY_NAME_LEFT_OUT = {"resnext": {"layer1.0.conv2.weight"}}


@functools.cache
def built(name):
    make, size, stem, classifiers = MODELS[name]
    model = make().eval()
    return model, size, {f"{stem}.weight"}, {f"{layer}.weight" for layer in classifiers}


@pytest.mark.parametrize("name", MODELS)
def test_from_a_model_all_layers_but_stem_and_classifier_are_chosen(name):
    model, size, stem, classifiers = built(name)
    chosen = select_from_model(model, torch.zeros(1, 3, size, size))
    ends = stem | classifiers
    assert ends < layers(model)
    assert len(chosen) == len(set(chosen))
    assert set(chosen) == layers(model) - ends
    assert set(chosen) <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", MODELS)
def test_by_name_the_same_are_chosen(name):
    model, _, stem, classifiers = built(name)
    tensors = infos_of(model)
    chosen = select_by_name(tensors)
    carriers = {layer for layer in layers(model) - stem - classifiers if can_carry(tensors[layer])}
    assert set(chosen) == carriers - BY_NAME_LEFT_OUT.get(name, set())
    assert chosen == [tensor for tensor in tensors if tensor in set(chosen)]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_chosen_has_two_dimensions_or_more_and_is_no_embedding_or_norm(name):
    model, size, _, _ = built(name)
    tensors = infos_of(model)
    for chosen in (select_by_name(tensors), select_from_model(model, torch.zeros(1, 3, size, size))):
        assert chosen
        for tensor in chosen:
            assert tensors[tensor].dtype == "F32"
            assert len(tensors[tensor].shape) > 1
            assert not any(word in tensor for word in ("norm", "cls_token", "pos_embed", "position", "bias"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "timm_model.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "vit", "resnet"])
def test_wrappers_around_names_change_nothing(name, prefix):
    tensors = infos_of(built(name)[0])
    wrapped_tensors = {prefix + tensor: info(prefix + tensor, i.shape, i.dtype) for tensor, i in tensors.items()}
    assert select_by_name(wrapped_tensors) == [prefix + tensor for tensor in select_by_name(tensors)]


def test_selecting_leaves_the_model_as_it_was():
    model, size, _, _ = built("test_resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    select_from_model(model, torch.randn(1, 3, size, size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_model_carries_the_same_and_stays_frozen():
    model, size, _, _ = built("test_resnet")
    images = torch.zeros(1, 3, size, size)
    free = select_from_model(model, images)
    try:
        model.requires_grad_(False)
        with torch.no_grad():
            assert select_from_model(model, images) == free
        assert not any(parameter.requires_grad for parameter in model.parameters())
    finally:
        model.requires_grad_(True)


def test_hooks_are_removed_even_when_the_model_fails():
    model, _, _, _ = built("test_vit")
    with pytest.raises(AssertionError):
        select_from_model(model, torch.zeros(1, 3, 24, 24))
    assert all(not module._forward_hooks for module in model.modules())


class WithSpares(nn.Module):
    """A head for training that no forward pass runs, and a head named as nobody would."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(16, 7)
        self.zeta = nn.Linear(16, 5)
        self.body = nn.Conv2d(8, 16, 3)
        self.entry = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return self.zeta(self.body(self.entry(images)).mean((2, 3)))


class TorchAttention(nn.Module):
    """An encoder of torchvision's or OpenAI's kind."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(3, 16, 8, 8)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Linear(16, 16)
        self.classifier = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.entry(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.classifier(self.mlp(tokens).mean(1))


def test_stem_and_classifier_are_known_by_what_runs_first_and_what_makes_the_classes():
    model = WithSpares().eval()
    assert select_from_model(model, torch.zeros(2, 3, 16, 16)) == ["body.weight"]


def test_what_timms_configuration_calls_stem_and_classifier_is_left_out():
    """Some have two of either, as CrossViT, and one of them neither runs first nor last."""
    model = WithSpares().eval()
    model.entry = nn.Sequential(model.entry, nn.Conv2d(8, 8, 1))
    images = torch.zeros(2, 3, 16, 16)
    assert set(select_from_model(model, images)) == {"entry.1.weight", "body.weight"}
    model.pretrained_cfg = {"first_conv": ("entry.0", "entry.1"), "classifier": "zeta"}
    assert select_from_model(model, images) == ["body.weight"]


def test_what_makes_the_classes_of_a_map_is_left_out():
    class Segmenter(WithSpares):
        def forward(self, images):
            return self.classes(self.body(self.entry(images)))

    model = Segmenter()
    model.classes = nn.Conv2d(16, 6, 1)

    assert select_from_model(model.eval(), torch.zeros(2, 3, 16, 16), "dense") == ["body.weight"]


def test_what_makes_the_features_is_no_classifier():
    class Headless(WithSpares):
        def forward(self, images):
            return self.zeta(self.body(self.entry(images)).mean((2, 3)))

    images = torch.zeros(2, 3, 16, 16)

    assert select_from_model(Headless().eval(), images, "features") == ["body.weight", "zeta.weight"]
    assert select_from_model(Headless().eval(), images, "single_label") == ["body.weight"]


def test_the_input_projection_of_torchs_own_attention_is_chosen():
    chosen = select_from_model(TorchAttention().eval(), torch.zeros(2, 3, 32, 32))
    assert {"attention.in_proj_weight", "mlp.weight"} <= set(chosen)
    assert not {"entry.weight", "classifier.weight"} & set(chosen)


def test_the_output_projection_of_torchs_own_attention_is_chosen():
    """It is a linear layer whose weight is used without its forward being called."""
    assert "attention.out_proj.weight" in select_from_model(TorchAttention().eval(), torch.zeros(2, 3, 32, 32))


def test_torchs_own_attention_is_chosen_by_name():
    chosen = select_by_name(infos_of(TorchAttention()))
    assert chosen == ["attention.in_proj_weight", "attention.out_proj.weight", "mlp.weight"]


def test_layers_whose_weights_are_used_without_calling_them_are_chosen():
    """BEiT, EVA-02 and Swin v2 pass `qkv.weight` to `F.linear`: a quarter of a transformer's weights."""
    from timm.models.beit import Beit

    model = Beit(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5).eval()
    chosen = select_from_model(model, torch.zeros(1, 3, 32, 32))
    assert set(chosen) == layers(model) - {"patch_embed.proj.weight", "head.weight"}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 3), (8, 4, 3, 3), (8, 1, 3, 3), (8, 4, 3, 3, 3), (1, 4)])
def test_matrices_and_kernels_of_floats_can_carry(shape, dtype):
    assert can_carry(info("layer.weight", shape, dtype))


@pytest.mark.parametrize("dtype", sorted(SIZES.keys() - {"F32", "F16", "BF16"}))
def test_integers_doubles_and_floats_of_8_bits_cannot_carry(dtype):
    assert not can_carry(info("layer.weight", (8, 4), dtype))
    assert "b.weight" not in select_by_name({"b.weight": info("b.weight", (8, 4), dtype)})


@pytest.mark.parametrize("shape", [(), (64,), (8, 1), (8, 1, 1, 1), (0, 4), (8, 0), (1, 2, 3, 4, 5, 6)])
def test_other_shapes_cannot_carry(shape):
    """A row of one weight has its magnitude for amplitude, and one of none has nothing."""
    assert not can_carry(info("layer.weight", shape))


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.position_embeddings.weight",
        "embeddings.word_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "encoder.layernorm.weight",
        "blocks.0.norm1.weight",
        "blocks.0.bn1.weight",
        "pos_embed",
        "cls_token",
        "relative_position_bias_table",
        "blocks.0.attn.rel_pos_h",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc1.weight_scale",
        "blocks.0.gamma",
    ],
)
def test_names_of_embeddings_norms_and_other_parameters_are_never_chosen(name):
    """Even where their shape is that of a matrix."""
    shapes = {
        "blocks.0.mlp.fc2.weight": (32, 64),
        name: (64, 32),
        "blocks.1.mlp.fc2.weight": (32, 64),
        "head.weight": (5, 32),
    }
    assert select_by_name(infos(shapes)) == ["blocks.0.mlp.fc2.weight", "blocks.1.mlp.fc2.weight"]


def test_without_telling_names_the_stem_reads_the_image_and_the_classifier_is_the_last_matrix():
    shapes = {
        "0.weight": (16, 3, 3, 3),
        "1.weight": (16,),
        "3.weight": (32, 16, 3, 3),
        "6.weight": (64, 32),
        "8.weight": (10, 64),
    }
    assert select_by_name(infos(shapes)) == ["3.weight", "6.weight"]


def test_layers_deep_inside_are_not_taken_for_classifiers():
    shapes = {
        "conv1.weight": (16, 3, 3, 3),
        "layer1.0.se.fc.weight": (16, 16),
        "blocks.0.attn.inner.head.weight": (16, 16),
        "fc.weight": (10, 16),
    }
    assert "blocks.0.attn.inner.head.weight" in select_by_name(infos(shapes))
    assert "fc.weight" not in select_by_name(infos(shapes))


def test_nothing_is_chosen_from_nothing():
    assert select_by_name({}) == []
    assert select_by_name(infos({"norm.weight": (16,)})) == []


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.mlp_tokens.fc1.weight",  # MLP-Mixer
        "blocks.0.linear_tokens.weight",  # ResMLP
        "stages.3.blocks.4.token_mixer.proj.weight",  # EfficientFormer, FastViT, the MetaFormers
        "blocks_token_only.0.attn.q.weight",  # CaiT
    ],
)
def test_linear_layers_that_mix_tokens_are_no_token_embeddings(name):
    shapes = {"stem.proj.weight": (32, 3, 8, 8), name: (64, 32), "head.weight": (5, 32)}
    assert select_by_name(infos(shapes)) == [name]


def test_classifiers_inside_a_head_are_left_out_by_name():
    """LeViT wraps them in a module that normalizes first."""
    shapes = {
        "stem.conv1.linear.weight": (32, 3, 3, 3),
        "stages.0.blocks.0.mlp.ln1.linear.weight": (64, 32),
        "head.linear.weight": (5, 64),
        "head_dist.linear.weight": (5, 64),
    }
    assert select_by_name(infos(shapes)) == ["stages.0.blocks.0.mlp.ln1.linear.weight"]
