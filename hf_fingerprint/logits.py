"""Unwrap the logits or features from a model's output."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

EMBEDDINGS = ("image_embeds", "pooler_output", "last_hidden_state")  # of transformers' outputs


def logits_of(output: Any, kind: str | None = None) -> "torch.Tensor":
    """The logits of a model's output; its pooled features or tokens if it has no logits, or for `kind="features"`.

    Args:
        output (anything): a tensor (timm), an object with logits or features (transformers), or a tuple that starts
            with one of these.
        kind (`str`, *optional*): the kind of the model's output.
    """
    if isinstance(output, tuple | list):
        output = output[0]
    names = (*EMBEDDINGS, "logits") if kind == "features" else ("logits", *EMBEDDINGS)
    found = (getattr(output, name, None) for name in names)
    return next((each for each in found if each is not None), output)
