"""How much the benchmark of verdicts does, and what its parts begin with: vaults, bases, copies on record."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch

from examples._common.real_inputs import lite0
from examples.benchmarks.speed import EPS, PASSPHRASE, unbuilt
from hf_fingerprint import FingerprintConfig, Issuer, Vault
from hf_fingerprint.vault import Base


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        model (`str`): the backbone, `"lite0"` with its ImageNet weights or the name of a small one of timm's.
        copies (`int`): copies of each of two bases that tie.
        steps (`int`): training steps of what is fine-tuned.
        bases (`int`): fine-tunes of one backbone that are registered, each with as many `recorded` copies.
        recorded (`int`): see `bases`.
        pairs (`int`): pairs of traces that are timed.
        recipients, suspects (`int`): of the vault whose top scorers are verified.
        queries (`int`): traces that an attacker has.
        ways (`int`): ways to make a suspect unreadable, of six.
        models, megabytes (`int`): what an author has who is watched.
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
    """The model that bases begin with, the same every time."""
    if scale.model == "lite0":
        return lite0()
    torch.manual_seed(0)
    return timm.create_model(scale.model).eval()


def new_vault(folder: Path) -> Vault:
    """A vault that is open for tracing."""
    vault = Vault.create(folder, PASSPHRASE)
    vault.unlock(PASSPHRASE)
    return vault


@contextlib.contextmanager
def opened(
    model: Path, vault: Vault, recipients: int, alpha: float | None = None, coalition: int | None = None
) -> Iterator[Issuer]:
    """A base that is registered at a fixed strength, since what the mark does to the output is not measured here."""
    with unbuilt():
        issuer = Issuer(model, vault, FingerprintConfig(None, None, coalition, recipients, alpha, EPS))
    with issuer:
        yield issuer


def record(vault: Vault, base: Base, names: Iterable[str]) -> None:
    """Copies that are on record, with keys, and whose files nobody needs."""
    for name in names:
        copy, key = vault.begin_copy(base, name, Path("nowhere") / name)
        vault.mark_written(copy, key, "00" * 32)


def drifted(arrays: dict[str, np.ndarray], rng: np.random.Generator, low: float, high: float) -> dict[str, np.ndarray]:
    """Weights with white noise on each tensor of two axes or more, of a share of its size between two bounds."""
    found = {}
    for name, array in arrays.items():
        if array.ndim >= 2:
            noise = rng.standard_normal(array.shape, dtype=np.float32)
            array = array + (rng.uniform(low, high) * array.std() * noise).astype(array.dtype)
        found[name] = array
    return found
