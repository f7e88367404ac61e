import json
import shutil
import socket
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import build, save_plain, save_timm, save_vit

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import BuildError
from hf_fingerprint.models.building import build_model, names_in_file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small models, made once."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        timm=save_timm(root / "timm", "test_vit"),
        grey=save_timm(root / "grey", "test_resnet", in_chans=1),
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


def test_a_grey_model_takes_grey_images(models):
    built = build(models.grey)

    assert built.size[0] == len(built.mean) == len(built.std) == 1
    with torch.no_grad():
        assert built.module(torch.randn(1, *built.size)).shape == (1, 1000)


@pytest.mark.parametrize("form", ["timm", "vit"])
def test_preprocessing_makes_what_the_model_takes(models, form):
    from PIL import Image

    built = build(getattr(models, form))
    white = Image.new("RGB", (90, 70), (255, 255, 255))

    made = built.preprocess(white)

    assert tuple(made.shape) == tuple(built.size)
    assert torch.allclose(made, torch.ones(()), atol=1e-5)  # (1 - mean) / std


def test_a_processor_decides_the_size_and_normalisation(models, tmp_path):
    from transformers import ViTImageProcessor

    shutil.copytree(models.vit, tmp_path / "model")
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3)
    processor.save_pretrained(tmp_path / "model")

    built = build(tmp_path / "model")

    assert (tuple(built.mean), tuple(built.std)) == ((0.1, 0.2, 0.3), (0.4,) * 3)
    assert tuple(built.size) == (3, 32, 32)


def test_a_single_file_is_not_built_with_a_neighbours_config(models):
    with pytest.raises(BuildError):
        build(models.timm / "model.safetensors")


def test_a_folder_without_a_config_is_not_built(models):
    with pytest.raises(BuildError):
        build(models.plain)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"architecture": 1, "pretrained_cfg": 2}', '{"model_type": "no_such"}', "\udcff"],
    ids=range(8),
)
def test_a_config_that_says_nothing_is_no_obstacle(models, tmp_path, text):
    folder = save_plain(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(BuildError):
        build(folder)


def test_an_unknown_architecture_is_no_obstacle(models, tmp_path):
    with pytest.raises(BuildError):
        build(edited(models.timm, tmp_path / "one", architecture="no_such_net"))
    with pytest.raises(BuildError):
        build(edited(models.vit, tmp_path / "two", model_type="no_such_net"))


def test_weights_that_do_not_fit_the_config_are_no_obstacle(models, tmp_path):
    with pytest.raises(BuildError):
        build(edited(models.timm, tmp_path / "model", architecture="test_resnet"))


def test_a_missing_library_is_no_obstacle(models, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)

    with pytest.raises(BuildError):
        build(models.timm)


def evil(folder, marker) -> None:
    """Puts code into a model's folder that leaves a marker when it is run."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    classes = "class Evil:\n    from_pretrained = classmethod(lambda kind, *a, **k: kind())\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "processing_evil.py", "__init__.py"):
        (folder / name).write_text(code + classes)


@pytest.mark.parametrize("model_type", ["vit", "evil"])
@pytest.mark.parametrize("where", ["config", "processor", "both"])
def test_code_that_comes_with_a_model_is_never_run(models, tmp_path, model_type, where):
    marker = tmp_path / "was run"
    maps = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForImageClassification": "modeling_evil.Evil",
        "AutoImageProcessor": "processing_evil.Evil",
    }
    changes = {"model_type": model_type} | ({"auto_map": maps} if where != "processor" else {})
    folder = edited(models.vit, tmp_path / "model", **changes)
    if where != "config":
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "processing_evil.Evil"}})
        )
    evil(folder, marker)

    built = None
    with suppress(BuildError):
        built = build(folder)

    assert not marker.exists()
    assert built is None or type(built.module).__name__ == "ViTForImageClassification"
    assert built is None or model_type == "vit"


@pytest.mark.parametrize("architecture", ["hf-hub:org/evil", "hf_hub:org/evil", "local-dir:/etc"])
def test_a_config_cannot_make_timm_fetch_another_model(models, tmp_path, monkeypatch, architecture):
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)

    with pytest.raises(BuildError):
        build(edited(models.timm, tmp_path / "model", architecture=architecture))
    assert asked == []


def test_building_says_nothing_to_the_user(models, capfd, recwarn):
    build(models.timm)
    build(models.vit)

    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_parameters_are_found_in_the_file_by_name_and_shape(models):
    with open_checkpoint(models.timm) as checkpoint:
        module = build_model(checkpoint).module
        found = names_in_file(module, checkpoint)

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
        found = names_in_file(module, checkpoint)

    assert found == {
        "norm.weight": "timm_model.norm.weight",
        "blocks.0.attn.qkv.weight": "module.blocks.0.attn.qkv.weight",
    }
