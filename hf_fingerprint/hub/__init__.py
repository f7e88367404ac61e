"""Copies on their way to the Hub: publishing, model cards, the vault's own repo."""

from hf_fingerprint.hub.publishing import Publisher, again, push_to_hub
from hf_fingerprint.hub.variants import Assignment, PublishedCopy, read_assignments
from hf_fingerprint.hub.vault_repo import PushedVault, pull_vault, push_vault
from hf_fingerprint.hub.watch import Sighting, watch


__all__ = [
    "Assignment",
    "PublishedCopy",
    "Publisher",
    "PushedVault",
    "Sighting",
    "again",
    "pull_vault",
    "push_to_hub",
    "push_vault",
    "read_assignments",
    "watch",
]
