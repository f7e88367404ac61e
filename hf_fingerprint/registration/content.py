"""Which registered base, if any, a checkpoint is: by its content hash, computed in full once for files that stand
still."""

from hf_fingerprint.checkpoints import Checkpoint, content_hash, digest_tensors
from hf_fingerprint.vault import Vault


def weights_hash(checkpoint: Checkpoint, vault: Vault) -> str:
    """The content hash of an open checkpoint, from the vault's memory of files that didn't change, else from the
    bytes."""
    place, state = checkpoint.source.name, checkpoint.state()
    known = vault.recall_content(place, state)
    if known is None:
        known = content_hash(checkpoint.tensors, digest_tensors(checkpoint))
        vault.remember_content(place, state, known)
    return known
