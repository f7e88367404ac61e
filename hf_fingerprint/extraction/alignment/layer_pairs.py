"""The carriers with their counterparts in a suspect, and the activations of both."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import BuildError, FingerprintWarning
from hf_fingerprint.extraction.alignment.activation_matching import ActivationPairs, record_activation_pairs
from hf_fingerprint.extraction.alignment.aligned import load_tensor
from hf_fingerprint.extraction.alignment.attention_layers import Attention, find_attentions
from hf_fingerprint.extraction.alignment.duplicate_units import DuplicateUnits, find_duplicate_units
from hf_fingerprint.extraction.alignment.residual_rotation import RotationTransform, fit_rotation_transforms
from hf_fingerprint.extraction.alignment.suspect_model import build_base_model, load_into_base_model, without_blocks
from hf_fingerprint.extraction.match import match_unmarked_names
from hf_fingerprint.models import map_parameter_names
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch

SOME_ATTENTIONS, SOME_OTHERS = 2, 3  # enough to recognize an unrelated model
T = TypeVar("T")


class LayerPairs:
    """The carriers, their counterparts and the activations of both; for the arguments see [`align_suspect`]."""

    def __init__(
        self,
        base: Base,
        original: Checkpoint,
        suspect: TensorReader,
        matches: dict[str, TensorInfo],
        device: "str | torch.device | None" = None,
    ):
        self._base, self._original, self._suspect = base, original, suspect
        self.counterparts = add_namesakes(base, suspect, matches)
        self.activations: ActivationPairs = {}
        self._attentions: list[Attention] = []
        self._duplicates: dict[str, DuplicateUnits | None] = {}
        self._run_models(device)

    def load_pair(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The base's tensor and the suspect's, each `(rows, channels in, kernel)`."""
        ours = load_tensor(self._original, self._original.tensors[name])
        return ours, load_tensor(self._suspect, self.counterparts[name])

    def add_unmarked_layers(self) -> list[str]:
        """Adds the unmarked layers, and returns their names: an image's channels and the classes keep their order."""
        found = match_unmarked_names(self._base, self._original, self._suspect)
        found = {name: info for name, info in found.items() if len(info.shape) in (2, 4) and 0 not in info.shape}
        self.counterparts |= found
        return list(found)

    def duplicates(self, name: str) -> DuplicateUnits | None:
        """The duplicate input channels of the suspect's tensor, if it has more channels than the base's."""
        channels = self.counterparts[name].shape[1]
        if name not in self.activations or channels <= self._original.tensors[name].shape[1]:
            return None
        inputs = self.activations[name][1].inputs
        if name not in self._duplicates and len(inputs) == channels:  # not a depthwise convolution
            infos = (each for each in self.counterparts.values() if each.shape[0] == channels)
            writers = (load_tensor(self._suspect, each) for each in infos)
            self._duplicates[name] = find_duplicate_units(inputs, writers)
        return self._duplicates.get(name)

    def fit_rotations(self, names: set[str]) -> dict[str, RotationTransform]:
        """The transforms that align these if the stream or heads were rotated; attentions are fitted as a whole."""
        attentions = [each for each in self._attentions if names & {*each.inputs, each.output}]
        together = names.union(*({*each.inputs, each.output} for each in attentions))
        matrices = [name for name in sorted(together & self.counterparts.keys()) if self._is_matrix(name)]
        found = fit_rotation_transforms(matrices, attentions, self.activations, self.load_pair)
        return {name: transform for name, transform in found.items() if name in names}

    def sample_layers(self, names: set[str]) -> set[str]:
        """Some attentions and some other layers, spread over the depth."""
        attentions = [{*each.inputs, each.output} for each in self._attentions if names & {*each.inputs, each.output}]
        others = sorted(names.difference(*attentions))
        return set().union(*_spread(attentions, SOME_ATTENTIONS), _spread(others, SOME_OTHERS))

    def _is_matrix(self, name: str) -> bool:
        shape = self._original.tensors[name].shape
        return len(shape) == 2 and shape == self.counterparts[name].shape

    def _run_models(self, device: "str | torch.device | None") -> None:
        """Runs the base and the suspect on the same inputs, if both can be run."""
        try:
            ours = build_base_model(self._original)
        except BuildError as error:
            message = f"{error} Permuted channels are found by their weights alone."
            warnings.warn(message, FingerprintWarning, stacklevel=2)
            return
        file_names = map_parameter_names(ours.module, self._original)
        theirs = load_into_base_model(ours, file_names, self._suspect)
        if theirs is None:
            return
        carriers = {n.rpartition(".")[0]: name for n, name in file_names.items() if name in self.counterparts}
        without_blocks(ours.module, theirs.dropped)
        found = record_activation_pairs(ours, theirs.module, {module: module for module in carriers}, device)
        self.activations = {carrier: found[module] for module, carrier in carriers.items() if module in found}
        self._attentions = [
            Attention(tuple(carriers[name] for name in each.inputs), carriers[each.output], each.heads)
            for each in find_attentions(ours.module)
            if carriers.keys() >= {*each.inputs, each.output}
        ]


def add_namesakes(base: Base, suspect: TensorReader, matches: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The counterparts of carriers: namesakes, which may have another shape, or else those that were matched."""
    namesakes = Namesakes({n: info for n, info in suspect.tensors.items() if len(info.shape) > 1}, normalize_name)
    return matches | {c.name: info for c in base.carriers if (info := namesakes.find(c.name)) is not None}


def _spread(items: Sequence[T], count: int) -> Sequence[T]:
    """At most `count` of the items: the first and others, evenly spread."""
    return items[:: max(1, -(-len(items) // count))]
