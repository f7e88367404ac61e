"""The logits, or the features, in what a model returns."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

EMBEDDINGS = ("image_embeds", "pooler_output", "last_hidden_state")  # of transformers' outputs


def logits_of(output: Any, kind: str | None = None) -> "torch.Tensor":
    """The logits in a model's output; where it has none, or for `kind="features"`, its pooled features, else its tokens.

    Args:
        output: a tensor (timm), an object with `logits` or features (transformers), or a tuple that starts with either.
        kind (`str`, *optional*): the kind of the output, see [`output_kind`].
    """
    if isinstance(output, tuple | list):
        output = output[0]
    names = (*EMBEDDINGS, "logits") if kind == "features" else ("logits", *EMBEDDINGS)
    found = (getattr(output, name, None) for name in names)
    return next((each for each in found if each is not None), output)
