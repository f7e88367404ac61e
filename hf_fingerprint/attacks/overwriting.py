"""Overwriting: the mark of another vault on top of the owner's. The attacker has this library and none of the keys."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.issuing import issue
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.sealing import new_identity


if TYPE_CHECKING:
    import torch

_FASTEST = FingerprintConfig(coalition=1, expected_recipients=1, calibration_images=32)


@dataclass(frozen=True)
class Overwriting(Attack):
    """Registers the copy as a base in a throwaway vault and issues a marked copy of it, `times` times.

    The vault is in a temporary folder that only the current user can read, deleted afterwards.

    Args:
        amplitude (`float`, *optional*, defaults to 0.003): the strength: the new mark's amplitude, as a share of each
            row's root mean square. `None` spends the output budget of `config`, which needs an attacker.
        times (`int`, *optional*, defaults to 1): how many marks to write, each over the last.
        config ([`FingerprintConfig`], *optional*): configuration of the throwaway vaults. The default has a code for
            one recipient, which is the fastest to register. The damage does not depend on the code.

    Raises:
        [`FingerprintError`]: if the weights can't be marked.
    """

    paper = "T. Wang, F. Kerschbaum, Attacks on digital watermarks for deep neural networks, ICASSP 2019"
    strengths = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    amplitude: float | None = 0.003
    times: int = 1
    config: FingerprintConfig = _FASTEST

    def __post_init__(self) -> None:
        if self.times < 1:
            raise FingerprintError(f"Overwriting got times={self.times}: choose 1 or more.")

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        if self.amplitude is None:
            self.require_attacker(attacker)
        found = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        for number in range(1, self.times + 1):
            built = None if attacker is None else attacker.as_built_model(found)
            with TemporaryDirectory(prefix="overwriting-") as folder:
                vault = Vault.create(Path(folder, "vault"), public_key=new_identity()[1])
                register(found, vault, replace(self.config, amplitude=self.amplitude), built=built)
                found = issue(found, "anybody", vault)
                if attacker is not None:
                    attacker.progress("overwriting", number, self.times)
        return found
