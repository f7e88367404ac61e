"""Labeled images to evaluate on: a folder with one subfolder per class, a dataset id, or tensors.

The attacker gets images too, but fewer than the owner: at most a tenth of those to train on.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.errors import FingerprintError, FingerprintWarning
from hf_fingerprint.evaluation.class_numbers import number_classes
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import BuiltModel, prepare_image, to_device


if TYPE_CHECKING:
    import torch


IMAGES = 1000
ATTACKER_SHARE = 10
MIN_IMAGES = 2 * ATTACKER_SHARE
_WITHOUT_SCRIPTS = 4  # the first version of datasets that loads none
_BUILDER_MODULES, _ALLOWED_BUILDERS = "datasets.packaged_modules.", frozenset(["imagefolder", "parquet", "arrow"])
_TRAIN, _TEST = ("train", "training"), ("test", "validation", "val", "valid", "eval")
Source = Path | Callable[[], tuple[Path | bytes, str]]  # of an image; a function also returns its name
Splits = dict[str, list[tuple[Source, str]]]  # the images of each split, each with the name of its class


@dataclass(frozen=True)
class EvaluationData:
    """Preprocessed images, `(n, channels, height, width)`, and their classes, `(n,)`.

    Attributes:
        name (`str`): their name in the report.
        attacker (`tuple[torch.Tensor, torch.Tensor]`): the attacker's images and labels.
        test (`tuple[torch.Tensor, torch.Tensor]`): images and labels to measure accuracy on.
    """

    name: str
    attacker: "tuple[torch.Tensor, torch.Tensor]"
    test: "tuple[torch.Tensor, torch.Tensor]"

    def __post_init__(self) -> None:
        for images, labels in (self.attacker, self.test):
            if not len(images) or len(images) != len(labels):
                raise FingerprintError(
                    f"{self.name} has {len(images)} images and {len(labels)} labels: give one label per image."
                )
        if len(self.test[1].unique()) < 2:
            raise FingerprintError(f"{self.name} has test images of only one class: give images of several classes.")

    def on(self, device: "str | torch.device | None") -> "EvaluationData":
        """The same images and labels on a device, where models then run; `None` leaves them where they are."""
        if device is None:
            return self
        pairs = (self.attacker, self.test)
        attacker, test = ((to_device(images, device), to_device(labels, device)) for images, labels in pairs)
        return EvaluationData(self.name, attacker, test)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 digest of all images and labels, a part of each trial's key."""
        hasher = hashlib.sha256()
        for tensor in (*self.attacker, *self.test):
            hasher.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            hasher.update(tensor.contiguous().cpu().numpy().tobytes())
        return hasher.hexdigest()

    @property
    def chance(self) -> float:
        """The accuracy of always predicting the most frequent class."""
        return float(self.test[1].bincount().max()) / len(self.test[1])


def load_data(
    folder_or_id: str | Path, model: BuiltModel, images: int = IMAGES, seed: int = 0, labels: Labels | None = None
) -> EvaluationData:
    """Loads labeled images with the model's own preprocessing.

    A folder has one subfolder per class, directly or under `train` and `test` (or `val`). A subfolder's name is a
    class number, or else the name of one of the model's classes; if none is, classes are numbered in the order of
    their names. Without a `test` part, the attacker gets a tenth of the images and the rest is for testing.

    Args:
        folder_or_id (`str` or `Path`): a folder, or the id of a dataset with images and class labels.
        model ([`BuiltModel`]): the classifier.
        images (`int`, *optional*, defaults to 1,000): the most images to test on, and the most for the attacker.
        seed (`int`, *optional*, defaults to 0): seed of the choice of images.
        labels ([`Labels`], *optional*): the names of the model's classes.

    Raises:
        [`FingerprintError`]: if images are missing or too few, or their classes do not fit the model.

    Warns:
        [`FingerprintWarning`]: if classes of the data are no class of the model, or have no images.
    """
    import torch

    folder, where = Path(folder_or_id), str(folder_or_id)
    named, names = _read_folder(folder) if folder.is_dir() else _read_dataset(where)
    empty = set(names).difference(name for split in named.values() for _, name in split)
    if empty:
        _warn_empty(where, sorted(empty))
    numbers: Mapping[str, int | None] = {name: int(name) for name in names if name.isdecimal()}
    in_order = False
    if not folder.is_dir() or len(numbers) < len(names):
        numbers, in_order = number_classes(where, names, labels)
    splits = {split: [(i, n) for i, c in pairs if (n := numbers[c]) is not None] for split, pairs in named.items()}
    train, test = (next((splits[name] for name in names if splits.get(name)), []) for names in (_TRAIN, _TEST))
    labeled = train or test or [pair for split in splits.values() for pair in split]
    if len(labeled) < MIN_IMAGES:
        raise FingerprintError(f"{folder_or_id} has {len(labeled)} labeled images: give at least {MIN_IMAGES}.")
    _check_classes(where, len(names) if in_order else None, {label for _, label in test + labeled}, model)
    rng = np.random.default_rng(seed)
    order = [labeled[i] for i in rng.permutation(len(labeled))]
    attacker_samples = order[: min(images, len(labeled) // ATTACKER_SHARE)]
    test_samples = order[len(labeled) // ATTACKER_SHARE :]
    if train and test:
        test_samples = [test[i] for i in rng.permutation(len(test))]

    def to_tensors(pairs: list[tuple[Source, int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        pixels = [_prepare(image, model) for image, _ in pairs]
        return torch.stack(pixels), torch.tensor([label for _, label in pairs])

    return EvaluationData(where, to_tensors(attacker_samples), to_tensors(test_samples[:images]))


def _read_folder(root: Path) -> tuple[Splits, list[str]]:
    """The images of each split of a folder, and the names of its classes, in order."""
    from torchvision.datasets import ImageFolder

    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    parts = {name: path for name, path in below.items() if name in _TRAIN + _TEST} or {"": root}
    found: Splits = {}
    names: set[str] = set()
    for part, path in parts.items():
        try:
            read = ImageFolder(path, allow_empty=True)
        except (FileNotFoundError, OSError):
            raise FingerprintError(f"{path} has no class folders: put each class into its own folder.") from None
        found[part] = [(Path(image), read.classes[c]) for image, c in read.samples]
        names.update(read.classes)
    return found, sorted(names)


def _read_dataset(name: str) -> tuple[Splits, list[str]]:
    """The images of each split of a dataset of the `datasets` library, read on use, and the names of its classes, in
    order. No scripts or pickles are loaded: the library runs none since version 4, and only its own readers are
    allowed here."""
    try:
        import datasets
    except ImportError:
        raise FingerprintError(
            f"{name} is not a folder, and dataset ids need the datasets library: give a folder of images, or "
            f"`pip install 'datasets>=4'`."
        ) from None
    if int(datasets.__version__.partition(".")[0]) < _WITHOUT_SCRIPTS:
        raise FingerprintError(
            f"datasets {datasets.__version__} may run scripts of {name}: `pip install 'datasets>=4'`."
        )
    try:
        builder = datasets.load_dataset_builder(name)
        readers = {part.__module__.removeprefix(_BUILDER_MODULES).partition(".")[0] for part in type(builder).__mro__}
        if not readers & _ALLOWED_BUILDERS:
            raise FingerprintError(f"{name} is not stored as images, parquet or arrow tables: give an image folder.")
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except FingerprintError:
        raise
    except Exception as error:  # the library raises many kinds of errors
        raise FingerprintError(
            f"{name} is neither a folder nor an available dataset ({type(error).__name__}): check the spelling and "
            f"the network."
        ) from None
    found: Splits = {}
    names: list[str] = []
    for split, rows in loaded.items():
        kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
        image, label = (next((c for c, k in kinds.items() if k == kind), None) for kind in ("Image", "ClassLabel"))
        if image is None or label is None:
            raise FingerprintError(f"{name} has no image or no class label column: give a dataset with both.")
        names = list(rows.features[label].names)
        rows = rows.cast_column(image, datasets.Image(decode=False))
        labeled = [(i, c) for i, c in enumerate(rows[label]) if c is not None and c >= 0]
        found[str(split).lower()] = [(partial(_image_of, rows, i, image), names[c]) for i, c in labeled]
    return found, names


def _image_of(rows: Any, index: int, column: str) -> tuple[Path | bytes, str]:
    """An image's path or content, and its name in errors."""
    image = rows[index][column] or {}
    content, path = image.get("bytes"), image.get("path")
    return content if content is not None else Path(path or ""), f"image {index} of the dataset"


def _warn_empty(where: str, names: list[str]) -> None:
    shown = ", ".join(names[:5]) + f", and {len(names) - 5:,} more" * (len(names) > 5)
    warnings.warn(
        FingerprintWarning(f"Classes of {where} have no images (PNG, JPEG, WebP, ...): {shown}. Check the folders."),
        stacklevel=3,
    )


def _check_classes(name: str, classes: int | None, labels: set[int], model: BuiltModel) -> None:
    """Raises an error if the classes do not fit the model."""
    import torch

    with torch.inference_mode():
        model_classes = logits_of(model.module(torch.zeros(1, *model.size))).shape[-1]
    if classes is not None and classes != model_classes:
        raise FingerprintError(
            f"{name} has {classes} classes and the model {model_classes}: name the class folders by the model's class "
            f"names or numbers, or give data for the model's task."
        )
    if max(labels) >= model_classes:
        raise FingerprintError(
            f"{name} has a class {max(labels)}, but the model's classes end at {model_classes - 1}: give data for the "
            f"model's task."
        )


def _prepare(image: Source, model: BuiltModel) -> "torch.Tensor":
    if isinstance(image, Path):
        return prepare_image(image, model)
    source, name = image()
    return prepare_image(source, model, name)
