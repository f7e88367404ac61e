"""Checkpoints in every form, read and copied block by block."""

from hf_fingerprint.checkpoints.places import cleared_on_failure, folder_of
from hf_fingerprint.checkpoints.ranges import RangedCheckpoint, Weights, open_ranges
from hf_fingerprint.checkpoints.reader import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.safetensors_file import TensorInfo
from hf_fingerprint.checkpoints.source import Source, resolve
from hf_fingerprint.checkpoints.writer import WrittenCopy, replace_tensor, sync, write_copy


__all__ = [
    "Checkpoint",
    "RangedCheckpoint",
    "Source",
    "TensorInfo",
    "Weights",
    "WrittenCopy",
    "cleared_on_failure",
    "content_hash",
    "digest_tensors",
    "folder_of",
    "open_checkpoint",
    "open_ranges",
    "replace_tensor",
    "resolve",
    "sync",
    "write_copy",
]
