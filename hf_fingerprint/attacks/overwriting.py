"""Overwriting: the mark of another vault on top of the owner's. The attacker has this library and none of the keys."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.issuing import Issuer
from hf_fingerprint.models import BuiltModel
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.sealing import new_identity


if TYPE_CHECKING:
    import torch

FILE = "model.safetensors"
_FASTEST = FingerprintConfig(coalition=1, expected_recipients=1, calibration_images=32)


@dataclass(frozen=True)
class Overwriting(Attack):
    """Registers the copy as a base in a throwaway vault and issues a marked copy of it, `times` times.

    The vault and all files are in a temporary folder that only the current user can read, deleted afterwards.

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
        from safetensors.torch import load_file, save

        if self.amplitude is None:
            self.require_attacker(attacker)
        found = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        for number in range(1, self.times + 1):
            built = None if attacker is None else attacker.as_built_model(found)
            with TemporaryDirectory(prefix="overwriting-") as folder:
                model = Path(folder, "model", FILE)  # no vault is made next to a model
                model.parent.mkdir()
                model.write_bytes(save({name: tensor.contiguous() for name, tensor in found.items()}))
                found = load_file(self._overwrite_once(Path(folder), model, built))
                if attacker is not None:
                    attacker.progress("overwriting", number, self.times)
        return found

    def _overwrite_once(self, folder: Path, model: Path, built: BuiltModel | None) -> Path:
        """The file of a marked copy of `model`, issued from a new vault in `folder`."""
        vault = Vault.create(folder / "vault", public_key=new_identity()[1])
        register(model, vault, replace(self.config, amplitude=self.amplitude), built=built)
        with Issuer(model, vault) as issuer:
            copy = issuer.issue("anybody", folder / "copy")
        return next(copy.path.glob("*.safetensors"))
