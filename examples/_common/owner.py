"""Steps that all examples share: an empty output folder, an owner's vault with two copies, and a checked trace."""

import shutil
import sys
from pathlib import Path

from hf_fingerprint import FingerprintConfig, Issuer, Vault, trace
from hf_fingerprint.cli.output import echo_err


RECIPIENT, OTHERS = "alice", ["bob", "carol"]
PASSPHRASE = "a passphrase for the example"
CONFIG = FingerprintConfig(coalition=3, expected_recipients=10)


def empty_folder(out: Path) -> Path:
    """Returns an empty folder. Deletes an earlier run of the example; exits if the folder holds anything else."""
    if out.exists() and any(out.iterdir()) and not (out / "vault").is_dir():
        sys.exit(f"{out} is not the folder of an earlier run: choose another folder with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def make_owner_vault(base: Path, out: Path) -> Vault:
    """Returns a vault with the base registered and a copy issued to each of the other recipients."""
    vault = Vault.create(out / "vault", PASSPHRASE)
    with Issuer(base, vault, CONFIG) as issuer:
        list(issuer.issue_all(OTHERS, out / "copies"))
    return vault


def expect_trace(suspect: Path, vault: Vault | Path, recipient: str = RECIPIENT) -> None:
    """Traces a suspect and prints the result; exits with 1 unless exactly this recipient is accused."""
    result = trace(suspect, vault, passphrase=PASSPHRASE)
    print(result)
    accused = [score.recipient for score in result.accused]
    if accused != [recipient]:
        echo_err(f"The example expected {recipient} and found {accused}.")
        sys.exit(1)
