"""Detect the format of a weight file from its first bytes."""

import re
from pathlib import Path

from hf_fingerprint.checkpoints.formats.containers import Format
from hf_fingerprint.checkpoints.formats.descriptions import InvalidPickleError
from hf_fingerprint.checkpoints.formats.registry import FORMATS
from hf_fingerprint.checkpoints.formats.zip_members import list_members
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


SAFETENSORS, PYTORCH = "safetensors", "PyTorch"
WEIGHT_SUFFIXES = re.compile(r"\.(safetensors|bin|pth|pt|ptl|ckpt|th|pkl|pickle)(\.tar)?$", re.IGNORECASE)
_HEAD_BYTES = 512
_OLD_PICKLE = re.compile(rb"\((dp|lp|i?d)\d|c[\w.]+\n[\w.]+\n")
_CONVERT = "convert it to safetensors"
_UNPACK = "unpack it"
_NOT_READ = f"which is not supported: {_CONVERT}"
_BUILT = "which is not supported: give the file that it was built from, such as ONNX, TFLite or PyTorch"
_INCOMPLETE = "is neither safetensors nor a PyTorch file, or is incomplete: download it again"
_NO_WEIGHTS = "is not a weight file: give a .safetensors file, a PyTorch file, a model folder or a Hub id"


_MAGICS: tuple[tuple[int, bytes, str], ...] = (  # offset, pattern of the bytes, message to follow the name
    (0, rb"version https://git-lfs\.github\.com/spec|version https://hawser",
     "is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download the file"),
    (0, rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|!--)",
     "is a web page, not the file: download it by its direct link (on the Hub, /resolve/ instead of /blob/)"),
    (0, rb"\s*<(\?xml|Error)", "is an XML document, not weights: download the file again"),
    (0, rb"\x1f\x8b", f"is packed (gzip): {_UNPACK}"),
    (0, rb"BZh\d", f"is packed (bzip2): {_UNPACK}"),
    (0, rb"\xfd7zXZ\x00", f"is packed (xz): {_UNPACK}"),
    (0, rb"\x28\xb5\x2f\xfd", f"is packed (zstd): {_UNPACK}"),
    (0, rb"7z\xbc\xaf\x27\x1c", f"is packed (7z): {_UNPACK}"),
    (257, rb"ustar", f"is packed (tar): {_UNPACK}"),
    (0, rb"SQLite format 3\x00", "is a database, not weights: check that it is the right file"),
    (4, rb"ET\d\d", f"is an ExecuTorch program, {_BUILT}"),
    (0, rb"ftrt|ptrt", f"is a TensorRT engine, {_BUILT}"),
    (0, rb"RKNN", f"is a Rockchip model (RKNN), {_BUILT}"),
    (0, rb"IMOD", f"is an Ascend model (.om), {_BUILT}"),
    (0, rb"7767517\s", f"is an NCNN graph, {_BUILT}"),
    (0, rb"pbze", f"is a compressed Core ML network, {_BUILT}"),
    (0, rb"Salted__|age-encryption\.org/|-----BEGIN", "is encrypted: decrypt it first"),
    (0, rb"\x89PNG|\xff\xd8\xff|%PDF|RIFF", "is an image, not weights: check that it is the right file"),
)  # fmt: skip
_BY_NAME: tuple[tuple[str, str], ...] = (  # pattern of a lower-case name, message to follow the name
    (r"^saved_model\.pb$|\.data-\d+-of-\d+$",
     "is a part of a TensorFlow SavedModel, which is not supported: save it as .keras, or convert it to TFLite"),
    (r"\.pb$", f"holds TensorFlow, {_NOT_READ}"),
    (r"^group\d+-shard\d+of\d+(\.bin)?$",
     "is a part of a TensorFlow.js model, which is not supported: convert it back to Keras or TFLite"),
    (r"\.ot$", f"holds tch (Rust), {_NOT_READ}"),
    (r"\.pdparams$", f"holds PaddlePaddle, {_NOT_READ}"),
    (r"\.params$", f"holds MXNet, {_NOT_READ}"),
    (r"\.(engine|plan|trt)$", f"holds TensorRT, {_BUILT}"),
    (r"\.mnn$", f"holds MNN, {_BUILT}"),
    (r"\.(om|dlc|rknn)$", f"is compiled for one kind of chip, {_BUILT}"),
)  # fmt: skip
_ZIP_FORMATS = (  # pattern of a member's name, message to follow the zip's name
    (
        r"(\A|/)(serialized_exported_program\.json|archive_format|models/\w+\.json)$",
        "was compiled by AOTInductor, which keeps weights in machine code: give the exported program or a state dict",
    ),
    (r"\A(dlc\.metadata|model\.params\.bin)\Z", f"is a Qualcomm model (.dlc), {_BUILT}"),
    (r"MAR-INF/MANIFEST\.json\Z", f"is a TorchServe archive: {_UNPACK}"),
)


def detect_format(path: Path) -> str:
    """The name of a file's format: [`SAFETENSORS`], [`PYTORCH`], or that of a [`Format`] that suspects may have.

    Raises:
        [`CheckpointError`]: if it is not supported, with what it is and what to do.
    """
    found = inspect_file(path)
    if is_format(found):
        return found
    raise CheckpointError(f"{path.parent / printable(path.name)} {found}.")


def is_format(found: str) -> bool:
    """Whether what [`inspect_file`] found is the name of a supported format rather than a message."""
    return found in (SAFETENSORS, PYTORCH) or other_format(found) is not None


def is_packed(found: str) -> bool:
    """Whether what [`inspect_file`] found is the message about an archive or a packed file."""
    return found.endswith(_UNPACK)


def other_format(name: str) -> Format | None:
    """The format of this name that only suspects may have, or `None`."""
    return next((form for form in FORMATS if form.name == name), None)


def is_supported(path: Path) -> bool:
    """Whether a file can be opened and has a supported format, whatever its name."""
    try:
        return path.is_file() and is_format(inspect_file(path))
    except CheckpointError:
        return False


def unsupported_reason(path: Path) -> str | None:
    """The message for a file in a known but unsupported format, to follow its name, or `None`."""
    found = inspect_file(path)
    return None if is_format(found) or found in (_INCOMPLETE, _NO_WEIGHTS) else found


def inspect_file(path: Path) -> str:
    """The name of a file's format as [`detect_format`] gives it, or a message about the file, to follow its name.

    Raises:
        [`CheckpointError`]: if it can't be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        size = path.stat().st_size
    except OSError as error:
        shown = path.parent / printable(path.name)
        raise CheckpointError(f"{shown} can't be read: {error.strerror or error}.") from None
    if not size:
        return "is empty: download it again"
    # before the other formats, whose magic bytes are short
    if head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size:
        return SAFETENSORS
    for form in FORMATS:
        if form.matches(head, path):
            return form.name
    if head[:4] == b"PK\x03\x04":
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return PYTORCH if first.endswith(b"/data.pkl") and first.count(b"/") == 1 else _describe_zip(path)
    if (head[0] == 0x80 and head[1:2] in b"\x02\x03\x04\x05") or _OLD_PICKLE.match(head):
        return PYTORCH
    for at, magic, message in _MAGICS:
        if re.match(magic, head[at:], re.DOTALL | re.IGNORECASE):
            return _legacy_tar_message(head) or message
    return _describe_by_name(path, head)


def _legacy_tar_message(head: bytes) -> str | None:
    """The message for a tar of PyTorch before 0.2, or `None`."""
    if head[257:262] == b"ustar" and head.startswith((b"sys_info", b"pickle", b"storages", b"tensors")):
        return "is in PyTorch's format of before 2017: load it with PyTorch and save it again"
    return None


def _describe_by_name(path: Path, head: bytes) -> str:
    """The format or message for a file whose first bytes are not known, by its name."""
    suffix = path.suffix.lower()
    if suffix == ".bin" and (path.with_suffix(".xml").is_file() or path.name.lower().startswith("openvino")):
        return "holds OpenVINO weights, which are read with their graph: give the .xml file next to it"
    for pattern, message in _BY_NAME:
        if re.search(pattern, path.name.lower()):
            return message
    for form in FORMATS:
        if path.name.lower().endswith(form.suffixes):
            return f"is not a complete {form.name} file: download it again"
    if suffix == ".safetensors":
        return SAFETENSORS  # its reader reports the damage
    if not any(head):
        return "begins with zeros only, as interrupted downloads do: download it again"
    return _INCOMPLETE if WEIGHT_SUFFIXES.search(path.name) else _NO_WEIGHTS


def _describe_zip(path: Path) -> str:
    try:
        names = list_members(path)
    except InvalidPickleError:
        return PYTORCH  # its reader reports the damage
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
    if any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
        return PYTORCH
    messages = (message for pattern, message in _ZIP_FORMATS if any(re.search(pattern, name) for name in names))
    return next(messages, f"is packed (zip): {_UNPACK}")
