"""What the labels of trigger images cost ordinary images, and its gradient; see `optimize.py`.

With F the features `(views * images, width)`, M' the metric and G = F M' F^T + ridge, the cost is

    sum over images q of sum over views v, w of  d[v, q]  G^-1[(v, q), (w, q)]  d[w, q]

where d holds the missing logits. [`LabelCost`] keeps F M' and G, and changes the rows of a few images at a time, so
that a step costs one inverse. Its gradient is that of [`log_cost`], which is the reference.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_fingerprint.blackbox.trigger_set.classifier_head import Head
from hf_fingerprint.blackbox.trigger_set.triggers import MARGIN


if TYPE_CHECKING:
    from torch import Tensor

GRAM_RIDGE = 1e-2  # added to the Gram matrix, as a share of its mean diagonal


class LabelCost:
    """The cost of the labels of trigger images, by the features of these in several views.

    Args:
        features (sequence of `torch.Tensor` of shape `(n, width)`): of the trigger images in each view.
        heads (sequence of [`Head`]): the head of each view.
        metric (`torch.Tensor` of shape `(width, width)`, `float64`): see [`inverse_second_moment`].
    """

    def __init__(self, features: "Sequence[Tensor]", heads: Sequence[Head], metric: "Tensor"):
        import torch

        self._heads, self._metric, self._count = heads, metric, len(features[0])
        self._features = torch.cat(list(features)).double()
        self._projected = self._features @ metric
        self._gram = self._projected @ self._features.T
        self._missing = torch.stack([missing_logits(f.double(), h) for f, h in zip(features, heads, strict=True)])

    def update(self, view: int, images: slice, features: "Tensor") -> "Tensor":
        """Replaces the features of some images in one view.

        Args:
            view (`int`): the view.
            images (`slice`): the images.
            features (`torch.Tensor` of shape `(m, width)`): theirs.

        Returns:
            `torch.Tensor` of the shape and type of `features`: the gradient of the logarithm of the cost.
        """
        import torch

        rows = slice(view * self._count + images.start, view * self._count + images.stop)
        new = features.detach().double()
        self._features[rows], self._projected[rows] = new, new @ self._metric
        changed = self._projected[rows] @ self._features.T
        self._gram[rows], self._gram[:, rows] = changed, changed.T
        wide = new.requires_grad_(True)
        with torch.enable_grad():
            missing = missing_logits(wide, self._heads[view])
        self._missing[view, images] = missing.detach()

        inverse = _inverse(self._gram)
        views, count = self._missing.shape
        lead = (self._missing[..., None] * inverse.reshape(views, count, -1)).sum(0)  # d^T G^-1 of each image
        by_view = lead.reshape(count, views, count).diagonal(dim1=0, dim2=2)  # (views, count)
        cost = (by_view * self._missing).sum()
        (by_logits,) = torch.autograd.grad((missing * 2 * by_view[view, images]).sum(), wide)
        by_gram = -2 * (lead[:, rows].T @ lead) @ self._projected
        return ((by_gram + by_logits) / cost).to(features.dtype)


def log_cost(features: "Sequence[Tensor]", heads: Sequence[Head], metric: "Tensor") -> "Tensor":
    """The logarithm of what the missing logits of all trigger images cost ordinary images.

    Args:
        features (sequence of `torch.Tensor` of shape `(n, width)`): of the trigger images in each view, `float64`.
        heads, metric: see [`LabelCost`].
    """
    import torch

    flat = torch.cat(list(features))
    count = len(features[0])
    costs = _inverse(flat @ metric @ flat.T).reshape(len(heads), count, len(heads), count).diagonal(dim1=1, dim2=3)
    missing = torch.stack([missing_logits(each, head) for each, head in zip(features, heads, strict=True)])
    return torch.einsum("vq,vwq,wq->", missing, costs, missing).log()


def missing_logits(features: "Tensor", head: Head) -> "Tensor":
    """How many logits each image lacks for a label other than the model's own, in the mean: `(n,)`."""
    logits = features @ head.matrix().double().T
    if (bias := head.layer.bias) is not None:
        logits = logits + bias.detach().to(logits)
    return MARGIN + logits.logsumexp(1) - logits.mean(1)


def identity_like(square: "Tensor") -> "Tensor":
    """The identity matrix of the size, the type and the device of another."""
    import torch

    return torch.eye(len(square), dtype=square.dtype, device=square.device)


def _inverse(gram: "Tensor") -> "Tensor":
    import torch

    ridge = GRAM_RIDGE * gram.detach().diagonal().mean()
    factor, _ = torch.linalg.cholesky_ex(gram + ridge * identity_like(gram))  # unchecked, or a GPU would be waited for
    return torch.cholesky_inverse(factor)
