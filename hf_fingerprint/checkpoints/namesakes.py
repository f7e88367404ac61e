"""Tensors of one model by the names that another model has them under."""

from collections.abc import Callable, Mapping

from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo
from hf_fingerprint.checkpoints.tensor_names import canonical_name


class Namesakes:
    """Finds a model's tensors of floating-point numbers by other models' names. Of several namesakes, the last counts.

    Args:
        tensors (mapping of `str` to [`TensorInfo`]): the model's tensors.
        name_as (callable, *optional*, defaults to [`canonical_name`]): what makes names comparable; [`normalize_name`]
            leaves those of timm and of transformers apart.

    Attributes:
        by_name (`dict[str, TensorInfo]`): the tensors by their comparable names.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], name_as: Callable[[str], str] = canonical_name):
        self.by_name = {name_as(name): info for name, info in tensors.items() if info.dtype in READABLE}
        self._name_as = name_as

    def find(self, name: str) -> TensorInfo | None:
        """The tensor that has this name; `None` if there is none."""
        return self.by_name.get(self._name_as(name))

    def find_shaped(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
        """The tensors by the wanted names, where they have the wanted shapes."""
        found = {name: self.find(name) for name in wanted}
        return {name: info for name, info in found.items() if info is not None and info.shape == wanted[name]}
