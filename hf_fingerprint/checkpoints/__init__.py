"""Checkpoints in all supported formats, read and copied block by block."""

from hf_fingerprint.checkpoints.contents import FolderContents, SkippedFile, list_contents
from hf_fingerprint.checkpoints.files import sync
from hf_fingerprint.checkpoints.folders import disk_full_error, is_disk_full_error, remove_on_failure, resolve_parent
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions
from hf_fingerprint.checkpoints.ranged_files import DownloadLimitError
from hf_fingerprint.checkpoints.ranges import RangedCheckpoint, TensorReader, open_ranged_checkpoint
from hf_fingerprint.checkpoints.reader import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.source import Source, resolve
from hf_fingerprint.checkpoints.weight_sets import WeightSets, find_weight_sets
from hf_fingerprint.checkpoints.writer import WrittenCopy, can_publish_unchanged, rewrite_tensors, write_copy


__all__ = [
    "NO_OPTIONS",
    "Checkpoint",
    "DownloadLimitError",
    "FolderContents",
    "HubOptions",
    "RangedCheckpoint",
    "SkippedFile",
    "Source",
    "TensorInfo",
    "TensorReader",
    "WeightSets",
    "WrittenCopy",
    "can_publish_unchanged",
    "content_hash",
    "digest_tensors",
    "disk_full_error",
    "find_weight_sets",
    "is_disk_full_error",
    "list_contents",
    "open_checkpoint",
    "open_ranged_checkpoint",
    "remove_on_failure",
    "resolve",
    "resolve_parent",
    "rewrite_tensors",
    "sync",
    "write_copy",
]
