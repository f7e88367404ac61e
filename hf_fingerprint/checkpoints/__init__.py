"""Checkpoints in every form, read and copied block by block."""

from hf_fingerprint.checkpoints.reader import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.safetensors_file import TensorInfo
from hf_fingerprint.checkpoints.source import Source, resolve
from hf_fingerprint.checkpoints.writer import WrittenCopy, sync, write_copy


__all__ = [
    "Checkpoint",
    "Source",
    "TensorInfo",
    "WrittenCopy",
    "content_hash",
    "digest_tensors",
    "open_checkpoint",
    "resolve",
    "sync",
    "write_copy",
]
