"""Suspects: callables that take an image and return the class that a model predicts.

```python
labels = read_labels("models/base/config.json")
suspect = from_url("https://models.example/classify", labels, token=os.environ["TOKEN"])
suspect = from_inference_client("org/name", labels)
suspect = from_folder("models/found", labels)  # runs no code from the folder
suspect = from_pipeline(pipeline, labels)  # a transformers pipeline that you loaded
suspect = from_callable(lambda image: scores_of(image), labels)
suspect(image)  # 281
```
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.blackbox.client.parsing import ResponseParser
from hf_fingerprint.blackbox.client.retries import RetryPolicy
from hf_fingerprint.errors import FingerprintError


Classifier = Callable[[Any], Any]  # from a PIL image


class Suspect(Protocol):
    """A model under suspicion.

    A suspect may also have an attribute `classes`, its number of classes: [`query`] then skips bases with another one.

    Attributes:
        name (`str`): shown to users and kept in transcripts, without secrets.
        retries (`int`): requests repeated so far.
    """

    name: str

    @property
    def retries(self) -> int: ...

    def __call__(self, image: np.ndarray) -> int | None:
        """The class predicted for an RGB image `(height, width, 3)`, `uint8`; `None` without a usable response."""


class SuspectClient:
    """A suspect made of a function that sends an image and a parser of its responses.

    Args:
        name (`str`): shown to users and kept in transcripts, without secrets.
        predict (callable): from an image `(height, width, 3)`, `uint8`, to a response that [`parse_response`] reads.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        field (`str`, *optional*): the field that holds the class; see [`parse_response`].
        retry_policy ([`RetryPolicy`], *optional*): for suspects over a network.
    """

    def __init__(
        self,
        name: str,
        predict: Callable[[np.ndarray], Any],
        labels: Labels | Sequence[str],
        field: str | None = None,
        retry_policy: RetryPolicy | None = None,
    ):
        self.name = name
        self._predict, self._parse, self._retry_policy = predict, ResponseParser(name, labels, field), retry_policy
        self.classes = len(labels)

    def __repr__(self) -> str:
        return f"<suspect {self.name}>"

    @property
    def retries(self) -> int:
        """Requests repeated so far."""
        return 0 if self._retry_policy is None else self._retry_policy.retries

    def __call__(self, image: np.ndarray) -> int | None:
        """The class predicted for an image; see [`Suspect`].

        Raises:
            [`FingerprintError`]: if the suspect can't be queried, or its first responses predict no class of the base.
        """
        check_image(image)
        if self._retry_policy is None:
            return self._parse(self._predict(image))
        response = self._retry_policy(lambda: [self._predict(image)], self.name)  # a list, as None is a response too
        return None if response is None else self._parse(response[0])


def from_callable(function: Classifier, labels: Labels | Sequence[str], name: str | None = None) -> SuspectClient:
    """A suspect that calls a function.

    Args:
        function (callable): from an RGB PIL image to a class or scores in any format that [`parse_response`] reads.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        name (`str`, *optional*): the suspect's; by default the function's.
    """
    name = name or f"python:{getattr(function, '__qualname__', type(function).__name__)}"

    def predict(image: np.ndarray) -> Any:
        from PIL import Image

        try:
            return function(Image.fromarray(image))
        except FingerprintError:
            raise
        except Exception as error:
            problem = f"{name} failed on an image ({type(error).__name__})"
            raise FingerprintError(f"{problem}: make sure that it classifies RGB PIL images.") from error

    return SuspectClient(name, predict, labels)


def from_pipeline(pipeline: Classifier, labels: Labels | Sequence[str], name: str | None = None) -> SuspectClient:
    """A suspect that calls a transformers image-classification pipeline.

    For a suspect's folder use [`from_folder`]: loading a pipeline from a folder may run code from it.

    Args:
        pipeline (`transformers.Pipeline`): from a PIL image to a list of `{"label", "score"}`, or the model's output.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        name (`str`, *optional*): the suspect's; by default the name or path of its model.
    """
    model = getattr(getattr(pipeline, "model", None), "name_or_path", "") or type(pipeline).__name__
    return from_callable(pipeline, labels, name or f"pipeline:{model}")


def from_folder(folder: str | Path, labels: Labels | Sequence[str]) -> SuspectClient:
    """A suspect that runs a local timm or transformers model; it never runs code from the folder.

    Raises:
        [`FingerprintError`]: if there is no model, or it can't be run.
    """
    from hf_fingerprint.checkpoints import open_checkpoint
    from hf_fingerprint.logits import logits_of
    from hf_fingerprint.models import build_model

    with open_checkpoint(f"local-dir:{folder}") as opened:
        model = build_model(opened)

    def scores(image: Any) -> Any:
        import torch

        with torch.inference_mode():
            pixels = model.preprocess(image.convert("L" if model.size[0] == 1 else "RGB"))
            return logits_of(model.module(pixels[None]))

    return from_callable(scores, labels, f"pipeline:{folder}")


def check_image(image: np.ndarray) -> None:
    """Checks that an image is `(height, width, 3)`, `uint8`.

    Raises:
        [`FingerprintError`]: if it isn't.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"An array of {image.dtype} and shape {image.shape}"
        raise FingerprintError(f"{found} is not an image: give (height, width, 3) uint8.")
