"""What every example of training does besides training: a vault, two other recipients' copies, and the verdict."""

import shutil
import sys
from pathlib import Path

from hf_fingerprint import FingerprintConfig, Issuer, Vault, trace
from hf_fingerprint.cli.output import echo_err
from hf_fingerprint.cli.trace_output import print_trace


RECIPIENT, OTHERS = "alice", ["bob", "carol"]
PASSPHRASE = "a passphrase for the example"
SETTINGS = FingerprintConfig(coalition=3, expected_recipients=10)


def empty_folder(out: Path) -> Path:
    """A folder for an example's files; one with an earlier run's is emptied, any other is left alone."""
    if out.exists() and any(out.iterdir()) and not (out / "vault").is_dir():
        sys.exit(f"{out} holds something else than an earlier run: choose another folder with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def make_owner_vault(base: Path, out: Path) -> Vault:
    """A vault that knows the base, with a copy issued in closed form to everybody but the recipient."""
    vault = Vault.create(out / "vault", PASSPHRASE)
    with Issuer(base, vault, SETTINGS) as issuer:
        list(issuer.issue_all(OTHERS, out / "copies"))
    return vault


def expect_trace(suspect: Path, vault: Vault | Path, recipient: str = RECIPIENT) -> None:
    """Traces a suspect and prints what was found; exits with 1 unless it is this recipient and nobody else."""
    result = trace(suspect, vault, passphrase=PASSPHRASE)
    print_trace(result)
    accused = [score.recipient for score in result.accused]
    if accused != [recipient]:
        echo_err(f"The example expected {recipient} and found {accused}.")
        sys.exit(1)
