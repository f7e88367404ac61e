import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.errors import BuildError
from hf_fingerprint.models.building import build_model
from hf_fingerprint.models.weights import map_parameter_names
from tests.helpers.small_models import build, save_plain, save_timm, save_vit


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small models, made once."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        timm=save_timm(root / "timm", "test_vit"),
        grayscale=save_timm(root / "grayscale", "test_resnet", in_chans=1),
        vit=save_vit(root / "vit"),
        plain=save_plain(root / "plain"),
    )


def edited(model, folder, **changes):
    """A copy of a model with entries of its config changed."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_timm_folder_becomes_a_model_that_runs(models):
    import timm

    built = build(models.timm)

    original = timm.create_model(f"local-dir:{models.timm}", pretrained=True).eval()
    images = torch.randn(2, *built.size)
    with torch.no_grad():
        assert torch.equal(built.module(images), original(images))
    assert not built.module.training
    assert {p.dtype for p in built.module.parameters()} == {torch.float32}
    assert tuple(built.size) == (3, 160, 160)
    assert (tuple(built.mean), tuple(built.std)) == ((0.5,) * 3, (0.5,) * 3)


def test_a_transformers_folder_becomes_a_model_that_runs(models):
    from transformers import ViTForImageClassification

    built = build(models.vit)

    original = ViTForImageClassification.from_pretrained(models.vit).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(built.module(images).logits, original(images).logits)
    assert not built.module.training
    assert tuple(built.size) == (3, 32, 32)


def test_a_half_precision_model_runs_in_single_precision(models, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(models.timm, tmp_path / "half")
    state = {n: t.bfloat16() for n, t in load_file(models.timm / "model.safetensors").items()}
    save_file(state, tmp_path / "half" / "model.safetensors", {"format": "pt"})

    built = build(tmp_path / "half")

    parameters = dict(built.module.named_parameters())
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert torch.equal(parameters["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"].float())


def test_a_grayscale_model_takes_grayscale_images(models):
    built = build(models.grayscale)

    assert built.size[0] == len(built.mean) == len(built.std) == 1
    with torch.no_grad():
        assert built.module(torch.randn(1, *built.size)).shape == (1, 1000)


@pytest.mark.parametrize("form", ["timm", "vit"])
def test_preprocessing_returns_the_models_input(models, form):
    from PIL import Image

    built = build(getattr(models, form))
    white = Image.new("RGB", (90, 70), (255, 255, 255))

    made = built.preprocess(white)

    assert tuple(made.shape) == tuple(built.size)
    assert torch.allclose(made, torch.ones(()), atol=1e-5)  # (1 - mean) / std


def test_a_processor_decides_the_size_and_normalization(models, tmp_path):
    from transformers import ViTImageProcessor

    shutil.copytree(models.vit, tmp_path / "model")
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3)
    processor.save_pretrained(tmp_path / "model")

    built = build(tmp_path / "model")

    assert (tuple(built.mean), tuple(built.std)) == ((0.1, 0.2, 0.3), (0.4,) * 3)
    assert tuple(built.size) == (3, 32, 32)


_EVERYWHERE = ("module.", "_orig_mod.")


def refusal(folder) -> BuildError:
    """What building a folder is refused with: one sentence that names it."""
    with pytest.raises(BuildError) as caught:
        build(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)
    return caught.value


def test_a_single_file_is_not_built_with_a_config_next_to_it(models):
    assert "give the model's whole folder" in str(refusal(models.timm / "model.safetensors"))


def test_a_folder_without_a_config_is_not_built(models):
    assert "has no config.json" in str(refusal(models.plain))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"architecture": 1, "pretrained_cfg": 2}', '{"model_type": "no_such"}', "\udcff"],
    ids=range(8),
)
def test_an_empty_config_is_refused_in_one_sentence(tmp_path, text):
    folder = save_plain(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))

    refusal(folder)


def test_a_config_of_many_megabytes_is_refused(tmp_path):
    folder = save_plain(tmp_path / "model")
    (folder / "config.json").write_text("[" * (17 << 20))

    assert "may have 16 MB" in str(refusal(folder))


def test_an_unknown_architecture_is_named(models, tmp_path):
    assert "no_such_net" in str(refusal(edited(models.timm, tmp_path / "one", architecture="no_such_net")))
    assert "no_such_net" in str(refusal(edited(models.vit, tmp_path / "two", model_type="no_such_net")))


def test_an_architecture_registered_with_timm_by_other_code_is_not_built(models, tmp_path):
    from timm.models import register_model

    def evil_net(pretrained=False, **arguments):
        raise AssertionError("this is not timm's")

    register_model(evil_net)

    assert "not a timm architecture" in str(refusal(edited(models.timm, tmp_path / "model", architecture="evil_net")))


def test_an_unknown_argument_is_named(models, tmp_path):
    arguments = {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"}}

    error = refusal(edited(models.timm, tmp_path / "model", model_args=arguments))

    assert "pretrained_cfg_overlay among its model_args" in str(error)


def test_arguments_of_the_architecture_are_kept(tmp_path):
    arguments = {"img_size": 48, "patch_size": 8, "depth": 3, "mlp_ratio": 2.0, "qkv_bias": False, "num_classes": 7}
    folder = save_timm(tmp_path / "model", **arguments)

    built = build(folder)

    assert built.size == (3, 48, 48)
    assert len(built.module.blocks) == 3
    with torch.no_grad():
        assert built.module(torch.zeros(1, 3, 48, 48)).shape == (1, 7)


def test_weights_that_do_not_fit_the_config_are_named(models, tmp_path):
    error = str(refusal(edited(models.timm, tmp_path / "model", architecture="test_resnet", model_args={})))

    assert "lacks" in error and "conv1.1.running_mean" in error


@pytest.mark.parametrize("classes", [3, 0])
def test_a_head_of_another_size_is_never_initialized_at_random(tmp_path, classes):
    folder = save_timm(tmp_path / "model", num_classes=10)
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = config["model_args"]["num_classes"] = classes
    (folder / "config.json").write_text(json.dumps(config))

    if classes == 0:  # a backbone, whose every tensor is in the file
        assert build(folder).output == "features"
    else:
        assert "head.weight, head.bias" in str(refusal(folder))


@pytest.mark.parametrize(
    ("form", "prefix"),
    [("timm", "timm_model."), ("timm", "model."), *((f, p) for f in ("timm", "vit") for p in _EVERYWHERE)],
)
def test_wrapped_weights_are_the_models_own(models, tmp_path, form, prefix):
    folder = shutil.copytree(getattr(models, form), tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in state.items()}, folder / "model.safetensors")

    built, plain = build(folder), build(getattr(models, form))

    ours, theirs = built.module.state_dict(), plain.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_models_in_one_file_are_refused(models, tmp_path):
    folder = shutil.copytree(models.timm, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    both = {f"module.{n}": t for n, t in state.items()} | {f"model_ema.{n}": 2 * t for n, t in state.items()}
    save_file(both, folder / "model.safetensors")

    assert "two models" in str(refusal(folder))


def test_next_to_an_average_the_plain_weights_are_built(models, tmp_path):
    folder = shutil.copytree(models.timm, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    save_file(state | {f"model_ema.{n}": 2 * t for n, t in state.items()}, folder / "model.safetensors")

    assert torch.equal(build(folder).module.state_dict()["norm.weight"], state["norm.weight"])


def test_of_a_training_checkpoint_what_is_read_is_what_is_built(models, tmp_path):
    folder = shutil.copytree(models.timm, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    averaged = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, folder / "pytorch_model.bin")

    built = build(folder)

    with open_checkpoint(folder) as read:
        for name, tensor in built.module.state_dict().items():
            raw = read.read(read.tensors[name])
            assert np.array_equal(to_float32(raw, "F32").reshape(tensor.shape), tensor.numpy())


def test_a_missing_head_is_never_initialized_at_random(models, tmp_path):
    folder = shutil.copytree(models.vit, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    save_file(headless, folder / "model.safetensors", {"format": "pt"})

    assert "classifier.weight" in str(refusal(folder))
    assert build(edited(folder, tmp_path / "backbone", architectures=["ViTModel"])).output == "features"


def test_a_class_that_takes_no_pixels_is_refused(models, tmp_path):
    error = refusal(edited(models.vit, tmp_path / "model", architectures=["ViTForMaskedImageModeling"]))

    assert "ViTForMaskedImageModeling, which is not a transformers image classifier" in str(error)


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({}, None),
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"problem_type": "single_label_classification"}, "single_label"),
    ],
)
def test_the_kind_of_output_is_taken_from_the_config(models, tmp_path, changes, output):
    assert build(edited(models.vit, tmp_path / "model", **changes)).output == output


def test_one_logit_is_a_multi_label_output(tmp_path):
    assert build(save_timm(tmp_path / "timm", num_classes=1)).output == "multi_label"
    assert build(save_vit(tmp_path / "vit", num_labels=1)).output == "multi_label"
    assert build(save_vit(tmp_path / "else", num_labels=1, problem_type="regression")).output == "regression"


def test_a_segmenter_is_built_as_one(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    small = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "num_encoder_blocks": 2}
    more = {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
    config = SegformerConfig(**small, **more, decoder_hidden_size=16, num_labels=5)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")

    with pytest.warns(UserWarning, match="has no input size: the model is run at 224 pixels"):
        built = build(tmp_path / "model")

    assert built.output == "dense"
    with torch.no_grad():
        assert built.module(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 5, 16, 16)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_sizes_come_from_a_nested_config(tmp_path, name):
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{name}Config")(
        vision_config=small | {"image_size": 48, "patch_size": 16}, text_config=small, num_labels=3
    )
    getattr(transformers, f"{name}ForImageClassification")(config).save_pretrained(tmp_path / "model")

    built = build(tmp_path / "model")

    assert built.size == (3, 48, 48)
    with torch.no_grad():
        assert built.module(torch.zeros(1, 3, 48, 48)).logits.shape == (1, 3)


def test_a_model_that_takes_no_pixels_is_refused(tmp_path):
    from transformers import ImageGPTConfig, ImageGPTForImageClassification

    config = ImageGPTConfig(n_embd=16, n_layer=1, n_head=2, num_labels=3)
    ImageGPTForImageClassification(config).save_pretrained(tmp_path / "model")

    assert "that takes pixels" in str(refusal(tmp_path / "model"))


def test_a_missing_library_is_reported_with_the_install_command(models, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, name, None)

    error = refusal(models.timm)

    assert "can't be run without timm: pip install 'hf-fingerprint[models]'" in str(error)
    assert isinstance(error.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("raised", [ImportError("no operator nms"), AttributeError("a bug"), KeyError("x")])
def test_a_librarys_exception_is_reported_and_kept_as_the_cause(models, monkeypatch, raised):
    def broken(*arguments, **options):
        raise raised

    monkeypatch.setattr("timm.data.create_transform", broken)

    error = refusal(models.timm)

    assert type(raised).__name__ in str(error)
    assert error.__cause__ is raised


def test_building_prints_nothing(models, capfd, recwarn):
    build(models.timm)
    build(models.vit)

    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_parameters_are_found_in_the_file_by_name_and_shape(models):
    with open_checkpoint(models.timm) as checkpoint:
        module = build_model(checkpoint).module
        found = map_parameter_names(module, checkpoint)

    assert found == {name: name for name, _ in module.named_parameters()}
    assert len(found) > 50


def test_wrapped_names_are_found_and_other_shapes_are_not(models, tmp_path):
    arrays = {
        "timm_model.norm.weight": np.zeros(64, np.float32),
        "module.blocks.0.attn.qkv.weight": np.zeros((192, 64), np.float32),
        "blocks.1.attn.qkv.weight": np.zeros((191, 64), np.float32),
    }
    module = build(models.timm).module
    with open_checkpoint(save_plain(tmp_path / "file", arrays)) as checkpoint:
        found = map_parameter_names(module, checkpoint)

    assert found == {
        "norm.weight": "timm_model.norm.weight",
        "blocks.0.attn.qkv.weight": "module.blocks.0.attn.qkv.weight",
    }


@pytest.mark.parametrize("kind", ["TimmWrapperForImageClassification", "TimmWrapperModel"])
def test_a_folder_of_transformers_wrapper_is_built_by_timm(tmp_path, kind):
    import transformers

    config = transformers.TimmWrapperConfig(architecture="test_vit", num_labels=5, model_args={"img_size": 32})
    torch.manual_seed(0)
    wrapped = getattr(transformers, kind)(config).eval()
    wrapped.save_pretrained(tmp_path / "model")

    built = build(tmp_path / "model")

    images = torch.randn(2, *built.size)
    with torch.no_grad():
        given = wrapped(images)
        assert torch.equal(built.module(images), given.pooler_output if kind.endswith("Model") else given.logits)
    assert built.output == ("features" if kind.endswith("Model") else None)
