"""Whom questions are put to: anything that is called with an image and returns the class it tells.

```python
labels = read_labels("models/base/config.json")
suspect = from_url("https://models.example/classify", labels, token=os.environ["TOKEN"])
suspect = from_inference_client("org/name", labels)
suspect = from_folder("models/found", labels)  # runs nothing that came with it
suspect = from_pipeline(pipeline, labels)  # of transformers, loaded by you
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


class Suspect(Protocol):
    """What answers.

    Attributes:
        name (`str`): for people and transcripts, without secrets.
        retries (`int`): requests made again so far.

    One that knows the base's classes has `classes` besides, how many there are: bases with others are not asked about.
    """

    name: str

    @property
    def retries(self) -> int: ...

    def __call__(self, image: np.ndarray) -> int | None:
        """The class that the suspect tells of an image.

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`): `uint8`, RGB.

        Returns:
            `int` or `None`: `None` if it gave no usable answer.
        """
        ...


class SuspectClient:
    """A suspect that is asked in one way and whose replies are read in one way.

    Args:
        name (`str`): for people and transcripts, without secrets.
        predict (callable): from an image `(height, width, 3)`, `uint8`, to a reply that [`parse_response`] reads.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        field (`str`, *optional*): where in the reply the class is, as for [`parse_response`].
        retry_policy ([`RetryPolicy`], *optional*): for what is asked over a network; none by default.
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
        """Requests made again so far."""
        return 0 if self._retry_policy is None else self._retry_policy.retries

    def __call__(self, image: np.ndarray) -> int | None:
        """The class told of an image `(height, width, 3)`, `uint8`; `None` if there was no usable answer.

        Raises:
            [`FingerprintError`]: if it can't be asked, or the first answers all tell no class of the base's.
        """
        check_image(image)
        if self._retry_policy is None:
            return self._parse(self._predict(image))
        answered = self._retry_policy(lambda: [self._predict(image)], self.name)
        return None if answered is None else self._parse(answered[0])


def from_callable(
    function: Callable[[Any], Any], labels: Labels | Sequence[str], name: str | None = None
) -> SuspectClient:
    """Asks a function.

    Args:
        function (callable): from a PIL image, RGB, to a class or scores in any shape that [`parse_response`] reads.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        name (`str`, *optional*): of the suspect; by default the function's.
    """
    called = name or f"python:{getattr(function, '__qualname__', type(function).__name__)}"

    def predict(image: np.ndarray) -> Any:
        from PIL import Image

        try:
            return function(Image.fromarray(image))
        except FingerprintError:
            raise
        except Exception as error:
            raise FingerprintError(
                f"{called} failed on an image ({type(error).__name__}): see that it classifies RGB images of PIL."
            ) from error

    return SuspectClient(called, predict, labels)


def from_pipeline(
    pipeline: Callable[[Any], Any], labels: Labels | Sequence[str], name: str | None = None
) -> SuspectClient:
    """Asks a transformers image-classification pipeline. Loading one from a suspect's folder follows what its files
    say: for a folder use [`from_folder`].

    Args:
        pipeline (`transformers.Pipeline`): from a PIL image to a list of `{"label", "score"}`, or the model's output.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        name (`str`, *optional*): of the suspect; by default where its model is from.
    """
    where = getattr(getattr(pipeline, "model", None), "name_or_path", "") or type(pipeline).__name__
    return from_callable(pipeline, labels, name or f"pipeline:{where}")


def from_folder(folder: str | Path, labels: Labels | Sequence[str]) -> SuspectClient:
    """Asks a model on this machine, a folder or file of timm or transformers; never with code that came with it.

    Raises:
        [`FingerprintError`]: if there is none, or it can't be run here.
    """
    from hf_fingerprint.checkpoints import open_checkpoint
    from hf_fingerprint.models import build_model, logits_of

    with open_checkpoint(f"local-dir:{folder}") as opened:
        model = build_model(opened)

    def scores(image: Any) -> Any:
        import torch

        with torch.inference_mode():
            given = model.preprocess(image.convert("L" if model.size[0] == 1 else "RGB"))
            return logits_of(model.module(given[None]))

    return from_callable(scores, labels, f"pipeline:{folder}")


def check_image(image: np.ndarray) -> None:
    """Refuses what is no picture of 8 bits and 3 channels.

    Raises:
        [`FingerprintError`]: if it isn't.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise FingerprintError(
            f"A question of {image.dtype} and shape {image.shape} is no picture: give (height, width, 3) uint8."
        )
