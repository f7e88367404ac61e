"""Checkpoints in every form, read and copied block by block."""

from hf_fingerprint.checkpoints.contents import Contents, LeftOut, contents_of
from hf_fingerprint.checkpoints.files import sync
from hf_fingerprint.checkpoints.folders import cleared_on_failure, folder_of, full_disk, lacks_room
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo
from hf_fingerprint.checkpoints.ranged_files import TooLarge
from hf_fingerprint.checkpoints.ranges import RangedCheckpoint, Weights, open_ranges
from hf_fingerprint.checkpoints.reader import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.source import Source, resolve
from hf_fingerprint.checkpoints.weight_sets import WeightSets, weight_sets
from hf_fingerprint.checkpoints.writer import WrittenCopy, goes_as_it_is, replace_tensor, write_copy


__all__ = [
    "Checkpoint",
    "Contents",
    "LeftOut",
    "RangedCheckpoint",
    "Source",
    "TensorInfo",
    "TooLarge",
    "WeightSets",
    "Weights",
    "WrittenCopy",
    "cleared_on_failure",
    "content_hash",
    "contents_of",
    "digest_tensors",
    "folder_of",
    "full_disk",
    "goes_as_it_is",
    "lacks_room",
    "open_checkpoint",
    "open_ranges",
    "replace_tensor",
    "resolve",
    "sync",
    "weight_sets",
    "write_copy",
]
