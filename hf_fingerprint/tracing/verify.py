"""Tests the claim that a suspect comes from one recipient's copy."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.progress import Progress
from hf_fingerprint.registration import AncestorInput
from hf_fingerprint.tracing.result import TraceResult
from hf_fingerprint.tracing.trace import trace
from hf_fingerprint.vault import Vault


if TYPE_CHECKING:
    import torch


def verify(
    suspect: ModelInput,
    recipient: str,
    vault: Vault | str | Path,
    base: ModelInput | None = None,
    passphrase: str | None = None,
    *,
    progress: Progress | None = None,
    full: bool = False,
    max_bytes: int | None = None,
    all_scores: bool = False,
    ancestor: AncestorInput = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> TraceResult:
    """Tests one claim: that a suspect comes from a recipient's copy. No other recipient is scored.

    The bound pays for all copies in the vault, as in a trace. So even a claim that was chosen after a trace is
    confirmed for an innocent with probability at most alpha.

    Args:
        recipient (`str`): the recipient of the copy.
        suspect, vault, base, passphrase, progress, full, max_bytes, all_scores: see [`trace`].
        ancestor, device, revision, token, cache_dir, subfolder, variant: see [`trace`].

    Returns:
        [`TraceResult`]: the claim is confirmed if the recipient is accused.

    Raises:
        [`VaultError`]: if the vault has no copy for the recipient.
    """
    return trace(
        suspect,
        vault,
        base,
        passphrase,
        progress=progress,
        full=full,
        max_bytes=max_bytes,
        recipient=recipient,
        all_scores=all_scores,
        ancestor=ancestor,
        device=device,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        subfolder=subfolder,
        variant=variant,
    )
