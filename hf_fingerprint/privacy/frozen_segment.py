"""Codes taken deeper than the cut.

A cut near the images keeps a holder's front small and lets the owner train almost all of the model, but what tells
classes apart is written large only further inside. So a holder may run the base on from the cut, as it was before any
training, and make its codes there; they say more about classes and less about pictures. The cut stays where it is:
the back is trained from there on.
"""

from copy import deepcopy

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.partition import Partition


class FrozenSegment(torch.nn.Module):
    """The run of a model from a cut to a deeper module, as it is now, frozen.

    Args:
        partition ([`Partition`]): of the model, which is copied whole.
        at (`str`): the deeper module, as `named_modules` calls it; nothing may lead around it either.

    Attributes:
        deep_partition ([`Partition`]): the copy, cut at that module.
        shape (`tuple[int, ...]`): of one image's features there.

    Raises:
        [`FingerprintError`]: if the model can't be cut there, or that module isn't behind the cut.
    """

    def __init__(self, partition: Partition, at: str):
        super().__init__()
        self.model = deepcopy(partition.model).eval().requires_grad_(False)
        self._near, self.deep_partition = (Partition(self.model, name, partition.size) for name in (partition.at, at))
        if not self._near.client_tensors < self.deep_partition.client_tensors:
            raise FingerprintError(f"{at} isn't behind {partition.at}: a lens reads on from the cut.")
        self.shape = self.deep_partition.shape

    def extra_repr(self) -> str:
        return f"from={self._near.at!r}, to={self.deep_partition.at!r}, shape={self.shape}"

    def train(self, mode: bool = True) -> "FrozenSegment":
        """Nothing: it stays at rest."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(batch, *shape)` further inside, for ones at the cut."""
        return self._near.forward_to_cut(features, self.deep_partition)
