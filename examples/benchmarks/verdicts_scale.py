"""The size of the benchmark of verdicts, and helpers that make vaults, bases and records."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch

from examples._common.real_inputs import lite0
from examples.benchmarks.speed import AMPLITUDE, PASSPHRASE, unbuilt
from hf_fingerprint import FingerprintConfig, Issuer, Vault
from hf_fingerprint.vault import Base


@dataclass(frozen=True)
class Scale:
    """The size of a run.

    Attributes:
        model (`str`): the backbone, `"lite0"` with its ImageNet weights or a small timm architecture.
        copies (`int`): copies of each of two bases that tie.
        steps (`int`): training steps of fine-tuned copies.
        bases (`int`): registered fine-tunes of one backbone.
        recorded (`int`): copies on record of each of these.
        pairs (`int`): timed pairs of traces.
        recipients, suspects (`int`): recipients of a vault, and suspects whose top scorers are verified.
        queries (`int`): traces of the adaptive attacker.
        ways (`int`): ways to make a suspect unreadable, of six.
        models, megabytes (`int`): number and size of the watched models.
    """

    model: str
    copies: int
    steps: int
    bases: int
    recorded: int
    pairs: int
    recipients: int
    suspects: int
    queries: int
    ways: int
    models: int
    megabytes: int


FULL = Scale("lite0", 20, 10, 50, 20, 9, 1000, 1000, 1000, 6, 10, 1000)
QUICK = Scale("test_efficientnet", 1, 1, 3, 2, 1, 40, 6, 150, 2, 5, 30)


def backbone(scale: Scale) -> torch.nn.Module:
    """Returns the model that bases start from, the same every time."""
    if scale.model == "lite0":
        return lite0()
    torch.manual_seed(0)
    return timm.create_model(scale.model).eval()


def new_vault(folder: Path) -> Vault:
    """Returns an unlocked vault."""
    vault = Vault.create(folder, PASSPHRASE)
    vault.unlock(PASSPHRASE)
    return vault


@contextlib.contextmanager
def opened(
    model: Path, vault: Vault, recipients: int, alpha: float | None = None, coalition: int | None = None
) -> Iterator[Issuer]:
    """Registers a base at a fixed amplitude, without measuring its output, and yields its issuer."""
    with unbuilt():
        issuer = Issuer(model, vault, FingerprintConfig(None, None, coalition, recipients, alpha, AMPLITUDE))
    with issuer:
        yield issuer


def record(vault: Vault, base: Base, names: Iterable[str]) -> None:
    """Records copies with keys but without files."""
    for name in names:
        copy, key = vault.begin_copy(base, name, Path("nowhere") / name)
        vault.mark_written(copy, key, "00" * 32)


def drifted(arrays: dict[str, np.ndarray], rng: np.random.Generator, low: float, high: float) -> dict[str, np.ndarray]:
    """Returns weights with white noise on each tensor of two axes or more, a random share of its deviation."""
    found = {}
    for name, array in arrays.items():
        if array.ndim >= 2:
            noise = rng.standard_normal(array.shape, dtype=np.float32)
            array = array + (rng.uniform(low, high) * array.std() * noise).astype(array.dtype)
        found[name] = array
    return found
