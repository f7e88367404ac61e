import numpy as np
import pytest

from hf_fingerprint.blackbox.client.class_names import Labels, read_labels
from hf_fingerprint.blackbox.client.suspects import from_callable, from_folder, from_pipeline
from tests.helpers.error_checks import refused
from tests.helpers.loopback_suspect import image_of_class
from tests.helpers.small_models import build, save_timm


NAMES = [f"class {index}" for index in range(10)]


def red(image) -> int:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))[0]


@pytest.mark.parametrize(
    "function",
    [
        red,
        lambda image: NAMES[red(image)].upper(),
        lambda image: np.eye(10)[red(image)],
        lambda image: np.eye(10)[red(image)].tolist(),
        lambda image: [{"label": name, "score": i == red(image) or 0.0} for i, name in enumerate(NAMES)][red(image) :],
    ],
    ids=["int", "name", "array", "list", "dicts"],
)
def test_a_function_gets_a_pil_image(function):
    suspect = from_callable(function, NAMES)

    assert [suspect(image_of_class(predicted_labels)) for predicted_labels in (3, 9, 0)] == [3, 9, 0]
    assert suspect.retries == 0


def test_scores_in_torch_are_understood():
    torch = pytest.importorskip("torch")
    suspect = from_callable(lambda image: torch.eye(10)[red(image)][None], NAMES)

    assert suspect(image_of_class(7)) == 7


def test_a_function_that_fails_is_named_with_its_cause():
    def broken(image):
        raise ZeroDivisionError("deep inside")

    said = refused(from_callable(broken, NAMES, "python:mine:broken"), image_of_class(1))

    assert "python:mine:broken" in said and "ZeroDivisionError" in said


def test_a_function_without_a_name_of_the_bases_is_refused_in_the_beginning():
    suspect = from_callable(lambda image: f"Klasse {red(image)}", NAMES)
    assert suspect(image_of_class(1)) is suspect(image_of_class(2)) is None

    assert "Klasse 3" in refused(suspect, image_of_class(3))


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), "u1")],
)
def test_what_is_no_picture_is_refused(image):
    refused(from_callable(red, NAMES), image)


def test_a_folder_is_run_as_timm_would_run_it(tmp_path):
    torch = pytest.importorskip("torch")
    folder = save_timm(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    from PIL import Image

    model = build(folder)
    with torch.no_grad():
        scores = model.module(model.preprocess(Image.fromarray(image))[None])[0]
    suspect = from_folder(folder, Labels.numbered(len(scores)))

    assert suspect(image) == int(scores.argmax())
    assert suspect.name == f"pipeline:{folder}"


def test_a_folder_that_cannot_be_run_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    assert str(tmp_path) in refused(from_folder, tmp_path, NAMES)


def test_a_pipeline_of_transformers_is_queried(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "Cat", 1: "dog", 2: "owl"},
    )
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("image-classification", model=model, image_processor=processor)
    labels = read_labels(tmp_path / "config.json")
    image = np.random.default_rng(1).integers(0, 256, (48, 40, 3)).astype(np.uint8)
    from PIL import Image

    scores = model(**processor(Image.fromarray(image), return_tensors="pt")).logits[0]

    assert labels.names == ("Cat", "dog", "owl")
    assert from_pipeline(pipeline, labels)(image) == int(scores.argmax())
    assert from_pipeline(lambda i: model(**processor(i, return_tensors="pt")), labels)(image) == int(scores.argmax())
