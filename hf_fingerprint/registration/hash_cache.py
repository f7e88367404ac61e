"""The vault's cache of content hashes: files are hashed again only if their size, times or inodes changed.

Only the hashes of files are cached. A view of a file has another hash, and memory changes unnoticed.
"""

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.vault import Vault


def cached_hash(checkpoint: Checkpoint, vault: Vault) -> str | None:
    """The content hash of an open checkpoint from the vault's cache; `None` if it is not known, or not cached."""
    source = checkpoint.source
    return vault.cached_content_hash(source.name, checkpoint.state()) if _is_cached(checkpoint) else None


def cache_hash(checkpoint: Checkpoint, vault: Vault, known: str) -> None:
    """Caches the content hash of an open checkpoint, if it may be."""
    if _is_cached(checkpoint):
        vault.cache_content_hash(checkpoint.source.name, checkpoint.state(), known)


def _is_cached(checkpoint: Checkpoint) -> bool:
    return type(checkpoint) is Checkpoint and not checkpoint.source.in_memory
