"""The schemes to compare: DeepMarks as in the paper, the public toolbox's variant, and `spread`.

Each arm makes a loss term for a user and decodes suspects: users named, innocents accused, wrong bits.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.reproduction.models import Architecture, save_state
from hf_fingerprint import FingerprintConfig, Vault, register
from hf_fingerprint.carriers.filter_mean import FilterMeanMap
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.codes import decode
from hf_fingerprint.extraction import extract
from hf_fingerprint.models import BuiltModel
from hf_fingerprint.training import DeepMarks, DeepMarksLoss, Fingerprint
from hf_fingerprint.training.deepmarks_preset import default_layers
from hf_fingerprint.training.regularizer import Regularizer, parameter_locations


STRENGTH = 1.0
SCRATCH_AMPLITUDE = 0.1
RECIPIENTS = 1000
PASSPHRASE = "a passphrase for the reproduction"
Term = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class ArmVerdict:
    """The result of decoding a suspect.

    Attributes:
        named (`dict[str, tuple[int, ...]]`): users that each of its decoders names.
        wrong, bits (`int`): wrong bits of user 0, and the number of bits.
        score (`float`): of user 0: bits' mean agreement for a design, standard deviations for `spread`.
    """

    named: dict[str, tuple[int, ...]]
    wrong: int
    bits: int
    score: float


class DesignArm:
    """The `deepmarks` preset with (31,6,1): both decoders on one extracted signal."""

    name = "deepmarks"

    def __init__(self, start: nn.Module, seed: int, embed: bool):
        self.scheme = DeepMarks(_key(seed), 31, default_layers(start))
        self._embed = embed

    def term(self, model: nn.Module, user: int) -> Term:
        """Returns the loss term that trains a user's fingerprint into a model."""
        return DeepMarksLoss(model, self.scheme.fingerprint(user), STRENGTH, self._embed)

    def decode_suspect(self, suspect: nn.Module) -> ArmVerdict:
        """Decodes a suspect."""
        extracted = self.scheme.extract(suspect)
        found, truth = self.scheme.decode(extracted), self.scheme.design.codewords[0]
        agreement = float(np.mean(extracted * self.scheme.design.signs[0]))
        named = {"deepmarks, 0.85 and AND": found.coalition, "deepmarks, soft decoder": found.soft.accused}
        return ArmVerdict(named, int((found.bits != truth).sum()), len(truth), agreement)


class ToolboxArm:
    """The public toolbox's variant: the first layer, X uniform on [0, 1), 31 random bits of one owner, no users."""

    name = "toolbox"

    def __init__(self, start: nn.Module, seed: int):
        self._rng = np.random.default_rng(seed)
        self._layer = next(name for name, place in parameter_locations(start).items() if getattr(*place).ndim == 4)
        shape = getattr(*parameter_locations(start)[self._layer]).shape
        self._matrix = self._rng.uniform(0, 1, (31, shape[1:].numel()))
        self._bits = self._rng.integers(0, 2, 31) * 2.0 - 1
        self._rows = shape[0]

    def term(self, model: nn.Module, user: int) -> Term:
        """Returns the loss term; there is one owner, so all users get the same bits."""
        maps = {self._layer: FilterMeanMap(self._matrix, self._rows)}
        target = torch.from_numpy(self._bits.astype(np.float32))
        bound_term = _Fixed(Regularizer(model, maps, target, torch.zeros(31), torch.ones(31)))
        return DeepMarksLoss(model, bound_term, STRENGTH, embed=False)

    def decode_suspect(self, suspect: nn.Module) -> ArmVerdict:
        """Decodes a suspect; the scheme names nobody."""
        out = torch.zeros(31)
        weights = getattr(*parameter_locations(suspect)[self._layer]).detach().flatten(1)
        FilterMeanMap(self._matrix, self._rows).read(weights, 0, out)
        wrong = int((np.sign(out.numpy()) != self._bits).sum())
        return ArmVerdict({"toolbox": ()}, wrong, 31, 1 - 2 * wrong / 31)


@dataclass(frozen=True)
class _Fixed:
    regularizer: Regularizer

    def bind(self, model: nn.Module, optimizer: Any = None) -> Regularizer:
        return self.regularizer


class SpreadArm:
    """The default scheme, with the starting model as base, decoded as in `trace` among 1,000 recipients."""

    name = "spread"

    def __init__(self, start: nn.Module, seed: int, vault: Vault, work: Path, shape: Architecture, scratch: bool):
        self._vault, self._work = vault, work
        amplitude = SCRATCH_AMPLITUDE if scratch else shape.amplitude
        config = FingerprintConfig(
            max_kl=shape.max_kl, expected_recipients=RECIPIENTS, coalition=5, amplitude=amplitude
        )
        self._folder = save_state(start, work / "base")
        size = (shape.channels, shape.size, shape.size)
        half = (0.5,) * shape.channels
        built = BuiltModel(copy.deepcopy(start).eval(), size, half, half, lambda image: image)
        self.base = register(self._folder, vault, config, built=built, as_base=True)  # overwriting starts from a copy
        self._marks: dict[int, Fingerprint] = {}
        stream = np.random.default_rng(seed)
        self._innocents = [stream.bytes(32) for _ in range(RECIPIENTS)]

    def term(self, model: nn.Module, user: int) -> Term:
        """Returns the loss term of a user; the mark is embedded in closed form and kept by the training."""
        self._marks[user] = Fingerprint(self._folder, f"user-{user}", self._vault)
        return DeepMarksLoss(model, self._marks[user], STRENGTH, embed=True)

    def decode_suspect(self, suspect: nn.Module) -> ArmVerdict:
        """Traces a suspect among the trained users and innocents, 1,000 in all."""
        file = save_state(suspect, self._work / "suspect") / "model.safetensors"
        with open_checkpoint(self._folder) as original, open_checkpoint(file) as opened:
            extracted = extract(self.base, original, opened)
        users = sorted(self._marks)
        copies = [self._vault.copies(self.base.base_id, f"user-{user}")[0] for user in users]
        keys = [self._vault.copy_key(copy) for copy in copies]
        candidate_keys = [*keys, *self._innocents[len(keys) :]]
        codebook = self.base.codebook()
        found = decode(codebook, candidate_keys, extracted.values, extracted.mass, self.base.alpha)
        named = tuple(users[i] if i < len(users) else RECIPIENTS + i for i in found.accused)
        truth = codebook.codeword(keys[0])
        wrong = int((np.sign(extracted.values) != truth)[extracted.mass > 0].sum())
        return ArmVerdict({"spread": named}, wrong, self.base.length, float(found.scores[0]))


def make_arm(
    name: str, start: nn.Module, seed: int, vault: Vault, work: Path, shape: Architecture, scratch: bool
) -> DesignArm | ToolboxArm | SpreadArm:
    """Returns the arm of a name, for models that start their training from `start`."""
    if name == SpreadArm.name:
        return SpreadArm(start, seed, vault, work, shape, scratch)
    if name == DesignArm.name:
        return DesignArm(start, seed, shape.embed and not scratch)
    return ToolboxArm(start, seed)


def _key(seed: int) -> bytes:
    return np.random.default_rng([seed, 31]).bytes(32)
