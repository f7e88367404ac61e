"""The ancestor of an evaluated model: public weights that the attacker has, by the names of the model's parameters."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorReader, content_hash, digest_tensors
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.evaluation.testbed import Testbed
from hf_fingerprint.extraction import to_base_names


if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class AncestorModel:
    """An ancestor's weights.

    Attributes:
        name (`str`): its folder or Hub id.
        content_hash (`str`): see [`content_hash`].
        reader ([`TensorReader`]): the open ancestor under the base's names.
        state (`dict[str, torch.Tensor]`): its tensors as float32, by the names of the evaluated model's parameters.
    """

    name: str
    content_hash: str
    reader: TensorReader = field(repr=False)
    state: "State" = field(repr=False)


def read_ancestor(testbed: Testbed, ancestor: Checkpoint) -> AncestorModel:
    """The weights of an open ancestor. Tensors that it lacks or has in another shape are left out.

    Raises:
        [`FingerprintError`]: if it has less than half of the evaluated model's weights.
    """
    import torch

    reader = to_base_names(testbed.base, ancestor)
    namesakes = Namesakes(reader.tensors, normalize_name)
    found: State = {}
    total = 0
    for name, (file_name, shape) in testbed.parameters().items():
        total += int(np.prod(shape))
        info = namesakes.find(file_name)
        if info is not None and tuple(info.shape) == shape:
            found[name] = torch.tensor(to_float32(reader.read(info), info.dtype).reshape(shape))
    if 2 * sum(tensor.numel() for tensor in found.values()) < total:
        raise FingerprintError(
            f"{ancestor.source.name} has less than half of the weights of {testbed.base.source}: give the model that "
            "it was fine-tuned from, or leave out the ancestor."
        )
    return AncestorModel(ancestor.source.name, content_hash(ancestor.tensors, digest_tensors(ancestor)), reader, found)
