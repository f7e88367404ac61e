"""Labelled images to evaluate on: a folder with a sub-folder for each class, an id of the `datasets` library, or
tensors that the caller has.

A thief has some images too, though fewer than the owner: at most a tenth of those to train on.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_fingerprint.attacks.attack import logits
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import BuiltModel, prepare_image


if TYPE_CHECKING:
    import torch


IMAGES = 1000
ATTACKER_SHARE = 10
MIN_IMAGES = 2 * ATTACKER_SHARE
_WITHOUT_SCRIPTS = 4  # the first version of datasets that loads none
_BUILDER_MODULES, _ALLOWED_BUILDERS = "datasets.packaged_modules.", frozenset(["imagefolder", "parquet", "arrow"])
_TRAIN, _TEST = ("train", "training"), ("test", "validation", "val", "valid", "eval")
Samples = list[tuple[Any, int]]  # paths, or functions that get a picture and its name, each with its class


@dataclass(frozen=True)
class EvaluationData:
    """Preprocessed images, `(n, channels, height, width)`, and their classes, `(n,)`.

    Attributes:
        name (`str`): what they are, for the report.
        attacker (`tuple[torch.Tensor, torch.Tensor]`): what the thief has to attack with.
        test (`tuple[torch.Tensor, torch.Tensor]`): what accuracy is measured on.
    """

    name: str
    attacker: "tuple[torch.Tensor, torch.Tensor]"
    test: "tuple[torch.Tensor, torch.Tensor]"

    def __post_init__(self) -> None:
        for images, labels in (self.attacker, self.test):
            if not len(images) or len(images) != len(labels):
                raise FingerprintError(
                    f"{self.name} has {len(images)} images and {len(labels)} labels: give as many of one as of the "
                    f"other."
                )
        if len(self.test[1].unique()) < 2:
            raise FingerprintError(f"{self.name} has test images of one class alone: give images of several.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it: results on other images are other results."""
        hasher = hashlib.sha256()
        for tensor in (*self.attacker, *self.test):
            hasher.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            hasher.update(tensor.contiguous().cpu().numpy().tobytes())
        return hasher.hexdigest()

    @property
    def chance(self) -> float:
        """The accuracy of always naming the commonest class."""
        return float(self.test[1].bincount().max()) / len(self.test[1])


def load_data(folder_or_id: str | Path, model: BuiltModel, images: int = IMAGES, seed: int = 0) -> EvaluationData:
    """Labelled images through the model's own preprocessing.

    A folder has a sub-folder for each class, perhaps under `train` and `test` (or `val`). Classes are numbered by
    the sub-folders' names if these are numbers, else in the names' order. Without a `test` part, the thief gets a
    tenth of the images and the rest is for testing.

    Args:
        folder_or_id (`str` or `Path`): a folder, or the id of a dataset with images and class labels.
        model ([`BuiltModel`]): the classifier.
        images (`int`, *optional*, defaults to 1,000): how many to test on, at most; the thief gets at most as many.
        seed (`int`, *optional*, defaults to 0): of the choice.

    Raises:
        [`FingerprintError`]: if there are no such images, too few, or their classes are not the model's.
    """
    import torch

    folder = Path(folder_or_id)
    splits, classes = _read_folder(folder) if folder.is_dir() else _read_dataset(str(folder_or_id))
    train, test = (next((splits[name] for name in names if splits.get(name)), []) for names in (_TRAIN, _TEST))
    labeled = train or test or [pair for split in splits.values() for pair in split]
    if len(labeled) < MIN_IMAGES:
        raise FingerprintError(f"{folder_or_id} holds {len(labeled)} labelled images: give {MIN_IMAGES} or more.")
    _check_classes(str(folder_or_id), classes, {label for _, label in test + labeled}, model)
    rng = np.random.default_rng(seed)
    order = [labeled[i] for i in rng.permutation(len(labeled))]
    attacker_samples = order[: min(images, len(labeled) // ATTACKER_SHARE)]
    test_samples = (
        [test[i] for i in rng.permutation(len(test))] if train and test else order[len(labeled) // ATTACKER_SHARE :]
    )

    def to_tensors(pairs: Samples) -> "tuple[torch.Tensor, torch.Tensor]":
        pixels = [_prepare(image, model) for image, _ in pairs]
        return torch.stack(pixels), torch.tensor([label for _, label in pairs])

    return EvaluationData(str(folder_or_id), to_tensors(attacker_samples), to_tensors(test_samples[:images]))


def _read_folder(root: Path) -> tuple[dict[str, Samples], int | None]:
    """The images of each part of a folder, and how many classes there are, unless folders' names number them."""
    from torchvision.datasets import ImageFolder

    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    parts = {name: path for name, path in below.items() if name in _TRAIN + _TEST} or {"": root}
    found: dict[str, Samples] = {}
    classes: int | None = None
    for name, path in parts.items():
        try:
            read = ImageFolder(path, allow_empty=True)
        except (FileNotFoundError, OSError):
            raise FingerprintError(
                f"{path} has no class folders: put the images of each class into a folder of its own."
            ) from None
        numbered = all(each.isdecimal() for each in read.classes)
        found[name] = [(Path(image), int(read.classes[c]) if numbered else c) for image, c in read.samples]
        classes = classes if numbered else max(classes or 0, len(read.classes))
    return found, classes


def _read_dataset(name: str) -> tuple[dict[str, Samples], int | None]:
    """The same for a dataset of the `datasets` library, whose images are read when they are needed.

    Neither scripts nor pickles are loaded: the library has run none since version 4, and only its own readers of
    images and tables are used.
    """
    try:
        import datasets
    except ImportError:
        raise FingerprintError(
            f"{name} is not a folder, and datasets need the library: give a folder of images, or `pip install "
            f"'datasets>=4'`."
        ) from None
    if int(datasets.__version__.partition(".")[0]) < _WITHOUT_SCRIPTS:
        raise FingerprintError(
            f"datasets {datasets.__version__} may run a script that comes with {name}: `pip install 'datasets>=4'`."
        )
    try:
        builder = datasets.load_dataset_builder(name)
        readers = {part.__module__.removeprefix(_BUILDER_MODULES).partition(".")[0] for part in type(builder).__mro__}
        if not readers & _ALLOWED_BUILDERS:
            raise FingerprintError(
                f"{name} is not stored as images or as parquet or arrow tables: give a folder of its images."
            )
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except FingerprintError:
        raise
    except Exception as error:  # whatever that library, or the Hub behind it, has against it
        raise FingerprintError(
            f"{name} is neither a folder nor a dataset that can be had ({type(error).__name__}): check the spelling "
            f"and the network."
        ) from None
    found: dict[str, Samples] = {}
    classes: int | None = None
    for split, rows in loaded.items():
        kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
        image, label = (next((c for c, k in kinds.items() if k == kind), None) for kind in ("Image", "ClassLabel"))
        if image is None or label is None:
            raise FingerprintError(
                f"{name} has no column of images and one of class labels: give a dataset for image classification."
            )
        classes = rows.features[label].num_classes
        rows = rows.cast_column(image, datasets.Image(decode=False))
        found[str(split).lower()] = [
            (partial(_image_of, rows, i, image), c) for i, c in enumerate(rows[label]) if c is not None and c >= 0
        ]
    return found, classes


def _image_of(rows: Any, index: int, column: str) -> tuple[Path | bytes, str]:
    """An image's file, or what it holds, and what to call it."""
    image = rows[index][column] or {}
    content, path = image.get("bytes"), image.get("path")
    return content if content is not None else Path(path or ""), f"image {index} of the dataset"


def _check_classes(name: str, classes: int | None, labels: set[int], model: BuiltModel) -> None:
    """Refuses images whose classes can't be the model's."""
    import torch

    with torch.inference_mode():
        labeled = logits(model.module, torch.zeros(1, *model.size)).shape[-1]
    if classes is not None and classes != labeled:
        raise FingerprintError(
            f"{name} has {classes} classes and the model {labeled}: name the class folders by the model's class "
            f"numbers, or give the data that it was trained for."
        )
    if max(labels) >= labeled:
        raise FingerprintError(
            f"{name} has a class {max(labels)} and the model's end at {labeled - 1}: give the data that it was trained "
            f"for."
        )


def _prepare(image: Any, model: BuiltModel) -> "torch.Tensor":
    if isinstance(image, Path):
        return prepare_image(image, model)
    source, name = image()
    return prepare_image(source, model, name)
