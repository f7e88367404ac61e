"""Publish copies on the Hub, share the vault through a repo, and watch for leaks."""

from hf_fingerprint.hub.publishing import Publisher, push_to_hub, reissue_assignments
from hf_fingerprint.hub.variants import Assignment, PublishedCopy, read_assignments, read_recipients
from hf_fingerprint.hub.vault_repo import PushedVault, pull_vault, push_vault
from hf_fingerprint.hub.watch import WatchResult, watch


__all__ = [
    "Assignment",
    "PublishedCopy",
    "Publisher",
    "PushedVault",
    "WatchResult",
    "pull_vault",
    "push_to_hub",
    "push_vault",
    "read_assignments",
    "read_recipients",
    "reissue_assignments",
    "watch",
]
