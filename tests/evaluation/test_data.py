import contextlib
import json
import sys
from io import BytesIO
from shutil import copytree
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from PIL import Image as Pictures

from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import FingerprintError, FingerprintWarning
from hf_fingerprint.evaluation import EvaluationData, load_data
from hf_fingerprint.evaluation.class_numbers import class_names_of
from hf_fingerprint.models import build_model
from tests.helpers.error_checks import refused
from tests.helpers.evaluation_runs import CLASSES, save_images
from tests.helpers.loopback_hub import LoopbackHub


@pytest.fixture(scope="module")
def model(place):
    with open_checkpoint(place / "model") as opened:
        return build_model(opened)


def same_images(one, other):
    return sum(any(torch.equal(a, b) for b in other) for a in one)


def test_a_tenth_is_the_attackers_and_none_of_it_is_for_testing(place, model):
    data = load_data(place / "images", model)

    assert data.attacker[0].shape == (4, 3, 32, 32)
    assert data.test[0].shape == (36, 3, 32, 32)
    assert sorted(torch.cat([data.attacker[1], data.test[1]]).tolist()) == sorted([0, 1, 2, 3] * 10)
    assert same_images(data.attacker[0], data.test[0]) == 0


def test_classes_are_numbered_in_the_order_of_their_names_and_images_preprocessed(place, model):
    data = load_data(place / "images", model)
    with Pictures.open(place / "images" / "bee" / "3.png") as image:
        bee = model.preprocess(image)
    labels = [
        label
        for images, labels in (data.attacker, data.test)
        for x, label in zip(images, labels, strict=True)
        if torch.equal(x, bee)
    ]

    assert labels == [1]


LABELS = Labels(["cat", "dog", "ant", "bee"])


def warned_of(*arguments, **keywords):
    with pytest.warns(FingerprintWarning) as caught:
        data = load_data(*arguments, **keywords)
    return data, " ".join(str(each.message) for each in caught)


def test_folders_with_the_names_of_the_models_classes_are_these_classes(tmp_path, model, monkeypatch):
    data = load_data(save_images(tmp_path, ["BEE", "cat"], each=15), model, labels=LABELS)

    assert set(data.test[1].tolist()) == {0, 3}
    rows = Rows({"picture": Pictures.new("RGB", (32, 32)), "kind": 1 + i % 2} for i in range(40))
    fake_datasets(monkeypatch, lambda name: {"train": rows})
    assert set(load_data("org/pictures", model, labels=LABELS).test[1].tolist()) == {3, 0}


def test_folders_that_match_no_class_are_named_with_the_closest_and_left_out(tmp_path, model):
    save_images(tmp_path, ["bees", "cat", "dog", "zebra"], each=15)
    data, text = warned_of(tmp_path, model, labels=LABELS)

    assert set(data.test[1].tolist()) == {0, 1} and len(data.test[1]) + len(data.attacker[1]) == 30
    assert "left out: bees (closest: bee), zebra. To include them, rename them" in text


def test_if_no_folder_matches_classes_are_numbered_in_order_with_a_warning(tmp_path, model):
    data, text = warned_of(save_images(tmp_path, ["n1", "n2", "n3", "n4"]), model, labels=LABELS)

    assert set(data.test[1].tolist()) == {0, 1, 2, 3}
    assert "n1 counts as cat: if that is wrong, rename" in text


def test_a_class_without_images_is_named(tmp_path, model):
    save_images(tmp_path, ["ant", "cat"], each=15)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.heic").write_bytes(b"no known format")

    assert "have no images (PNG, JPEG, WebP, ...): dog" in warned_of(tmp_path, model, labels=LABELS)[1]


def test_the_names_of_classes_are_those_of_the_configuration(place, tmp_path):
    folder = copytree(place / "model", tmp_path / "model")
    with open_checkpoint(folder) as opened:
        assert class_names_of(opened) is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"label_names": CLASSES}))
    with open_checkpoint(folder) as opened:
        assert class_names_of(opened).names == tuple(CLASSES)


def test_folders_named_by_numbers_are_classes_of_that_number(tmp_path, model):
    data = load_data(save_images(tmp_path, ["1", "3"], each=15), model)

    assert set(data.test[1].tolist()) == {1, 3}


def test_parts_for_training_and_testing_are_kept_apart(tmp_path, model):
    save_images(tmp_path / "train", CLASSES, each=10, seed=1)
    save_images(tmp_path / "val", CLASSES, each=6, seed=2)
    data = load_data(tmp_path, model, images=20)
    test = [model.preprocess(Pictures.open(path)) for path in (tmp_path / "val").rglob("*.png")]

    assert len(data.test[0]) == 20
    assert len(data.attacker[0]) == 4
    assert same_images(data.test[0], test) == 20
    assert same_images(data.attacker[0], test) == 0


def test_the_same_images_are_chosen_again_and_their_digest_differs_with_them(place, model):
    one, two, fewer = (load_data(place / "images", model, images=n) for n in (36, 36, 20))

    assert one.digest == two.digest != fewer.digest
    assert torch.equal(one.test[0], two.test[0])


def test_chance_is_the_share_of_the_commonest_class():
    images = torch.zeros(4, 3, 8, 8)

    assert EvaluationData("some", (images, images), (images, torch.tensor([0, 2, 2, 1]))).chance == 0.5


@pytest.mark.parametrize(
    ("classes", "each", "said"),
    [
        ([], 0, "no class folders"),
        (CLASSES, 4, "16 labeled images"),
        (["0"], 30, "only one class"),
        (["7", "1"], 20, "7"),
    ],
)
def test_images_that_tell_nothing_are_refused(tmp_path, model, classes, each, said):
    (tmp_path / "images").mkdir()

    assert said in refused(load_data, save_images(tmp_path / "images", classes, each), model)


def test_classes_that_are_not_the_models_are_refused(tmp_path, model):
    text = refused(load_data, save_images(tmp_path, ["ant", "bee", "cat"]), model)

    assert "3 classes and the model 4" in text


def test_a_broken_image_is_named(tmp_path, model):
    save_images(tmp_path, CLASSES)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")

    assert ".png can't be read" in refused(load_data, tmp_path, model)


def test_as_many_labels_as_images_are_required():
    images = torch.zeros(4, 3, 8, 8)

    assert "4 images and 3 labels" in refused(
        EvaluationData, "some", (images, torch.zeros(4)), (images, torch.zeros(3))
    )


class Builder:
    """A dataset as the library finds it, before it is downloaded."""

    def __init__(self, load):
        self._load = load

    def download_and_prepare(self):
        pass

    def as_dataset(self):
        return self._load()


def fake_datasets(monkeypatch, load, version="5.2.0", reader="parquet"):
    module = ModuleType("datasets")
    module.__version__, module.Image = version, Image
    kind = type("Parquet", (Builder,), {"__module__": f"datasets.packaged_modules.{reader}.{reader}"})
    module.load_dataset_builder = lambda name: kind(lambda: load(name))
    monkeypatch.setitem(sys.modules, "datasets", module)


class Image:
    """A feature of the datasets library."""

    def __init__(self, decode: bool = True):
        assert not decode, "pictures are opened where their size is looked at"


class ClassLabel:
    """Another."""

    names = CLASSES


def encoded(picture):
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class Rows(list):
    """A split of that library: rows by number, columns by name."""

    features: ClassVar[dict[str, object]] = {"note": SimpleNamespace(), "picture": Image(False), "kind": ClassLabel()}

    def cast_column(self, name, feature):
        """The pictures as files."""
        return Rows({**row, name: {"bytes": encoded(row[name]), "path": None}} for row in self)

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_a_dataset_is_read_by_its_columns_of_images_and_classes(monkeypatch, model):
    rows = Rows({"picture": Pictures.new("RGB", (32, 32), (i, 0, 0)), "kind": i % 4} for i in range(40))
    fake_datasets(monkeypatch, lambda name: {"train": rows, "test": Rows(rows[:8])})
    data = load_data("org/pictures", model)

    assert len(data.attacker[0]) == 4
    assert sorted(data.test[1].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.name == "org/pictures"


def test_a_dataset_without_classes_is_refused(monkeypatch, model):
    rows = Rows([{"picture": None, "kind": 0}])
    rows.features = {"picture": Image(False)}
    fake_datasets(monkeypatch, lambda name: {"train": rows})

    assert "no class label column" in refused(load_data, "org/pictures", model)


def test_a_dataset_that_can_not_be_had_is_named(monkeypatch, model):
    def load(name):
        raise ConnectionError("a long story\nof two lines")

    fake_datasets(monkeypatch, load)
    text = refused(load_data, "org/pictures", model)

    assert "org/pictures" in text
    assert "ConnectionError" in text


def test_datasets_need_their_library(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "datasets", None)

    assert "pip install 'datasets>=4'" in refused(load_data, "org/pictures", model)


def test_a_library_that_may_run_scripts_is_refused(monkeypatch, model):
    fake_datasets(monkeypatch, pytest.fail, version="3.6.0")

    assert "may run scripts of org/pictures" in refused(load_data, "org/pictures", model)


@pytest.mark.parametrize("reader", ["pandas", "webdataset", "json"])
def test_a_dataset_that_is_read_by_other_than_plain_readers_is_refused(monkeypatch, model, reader):
    fake_datasets(monkeypatch, pytest.fail, reader=reader)

    assert "not stored as images" in refused(load_data, "org/pictures", model)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub for the real library, which works its places out when it is imported."""
    datasets = pytest.importorskip("datasets")
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        yield server


def test_a_dataset_of_images_on_the_hub_is_read_by_the_real_library(hub, tmp_path, model):
    save_images(tmp_path / "pictures" / "train", CLASSES)
    hub.add("org/pictures", tmp_path / "pictures", kind="dataset")

    data = load_data("org/pictures", model)

    assert len(data.attacker[1]) + len(data.test[1]) == 40


@pytest.mark.parametrize("with_images", [False, True])
def test_a_script_that_comes_with_a_dataset_is_never_run(hub, tmp_path, model, with_images):
    folder, marker = tmp_path / "pictures", tmp_path / "was run"
    folder.mkdir()
    (folder / "pictures.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    if with_images:
        save_images(folder / "train", CLASSES)
    hub.add("org/pictures", folder, kind="dataset")

    with contextlib.suppress(FingerprintError):
        load_data("org/pictures", model)

    assert not marker.exists()
