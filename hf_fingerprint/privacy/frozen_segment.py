"""Codes made deeper in the model than the cut.

A cut near the input keeps the client part small and lets the owner train almost the whole model, but classes separate
clearly only deeper in the model. A data holder can therefore run the frozen base on from the cut and make codes there,
which say more about classes and less about images. The cut does not move: the server part still trains from there.
"""

from copy import deepcopy

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.partition import Partition


class FrozenSegment(torch.nn.Module):
    """A frozen copy of a model's layers between the cut and a deeper module.

    Args:
        partition ([`Partition`]): the model and its cut. The model is copied.
        at (`str`): the deeper module, by its name in `named_modules`. No branch may bypass it.

    Attributes:
        deep_partition ([`Partition`]): the copy, cut at that module.
        shape (`tuple[int, ...]`): the shape of one image's features there.

    Raises:
        [`FingerprintError`]: if the model can't be cut there, or that module does not come after the cut.
    """

    def __init__(self, partition: Partition, at: str):
        super().__init__()
        self.model = deepcopy(partition.model).eval().requires_grad_(False)
        self._near, self.deep_partition = (Partition(self.model, name, partition.size) for name in (partition.at, at))
        if not self._near.client_tensors < self.deep_partition.client_tensors:
            raise FingerprintError(f"{at} does not come after {partition.at}: choose a deeper module for the segment.")
        self.shape = self.deep_partition.shape

    def extra_repr(self) -> str:
        return f"from={self._near.at!r}, to={self.deep_partition.at!r}, shape={self.shape}"

    def train(self, mode: bool = True) -> "FrozenSegment":
        """Does nothing: the segment stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The features `(batch, *shape)` at the deeper module, from those at the cut."""
        return self._near.forward_to_cut(features, self.deep_partition)
