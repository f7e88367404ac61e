"""Core ML models: `.mlmodel` files, packages (`.mlpackage`), and the compiled folders (`.mlmodelc`) in apps.

The file that is read is the `.mlmodel` itself, `Data/com.apple.CoreML/model.mlmodel` of a package, and `model.mil` or
`model.espresso.net` of a compiled folder. Weights next to it are found by the paths in it.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml import coreml_networks, coreml_programs
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import WeightFiles
from hf_fingerprint.checkpoints.formats.coreml.coreml_espresso import NET, WEIGHTS, load_network
from hf_fingerprint.checkpoints.formats.coreml.coreml_text import MAX_TEXT, TEXT_HEAD, ProgramText
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.protobuf import Message, first_numbers
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


MAX_DEPTH = 4  # of pipelines in pipelines
PROGRAM, NETWORKS, PIPELINE, PIPELINES = 502, (303, 403, 500), 202, (200, 201)
_TYPES = range(200, 4000)  # numbers of the fields that say what a model is
_HEAD_FIELDS = 16  # fields before it
_VERSION_KEY = "com.github.apple.coremltools.version"


def load_coreml(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of a Core ML model.

    Args:
        path (`Path`): its file.
        left_out (`dict[str, str]`): receives the unreadable weights, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is invalid, or no neural network.
        [`OSError`]: if it can't be read.
    """
    if path.name.lower().endswith(NET):
        return load_network(path, left_out)
    data, files = map_file(path), WeightFiles(path)
    if TEXT_HEAD.match(bytes(data[:512])):
        if len(data) > MAX_TEXT:
            raise InvalidFileError(f"a program of more than {MAX_TEXT:,} bytes")
        text = ProgramText(bytes(data).decode("utf-8", "replace"), files)
        found, producer = coreml_programs.program_weights(text.functions(), left_out), text.producer
    else:
        model = Message(data)
        found, producer = list(_model_weights(model, files, left_out, MAX_DEPTH)), _producer(model)
    return FoundTensors(found, producer, tuple(files.found.values()))


def _model_weights(
    model: Message, files: WeightFiles, left_out: dict[str, str], depth: int
) -> Iterator[tuple[str, LazyTensor]]:
    """The weights of a model, and of those in a pipeline."""
    if not depth:
        raise InvalidFileError("pipelines nested too deep")
    kinds = [number for number in model.numbers if number in _TYPES]
    if not kinds:
        raise InvalidFileError("no Core ML model, or one that is cut off")
    for number in kinds:
        inside = model.message(number) if number in (PROGRAM, PIPELINE, *NETWORKS, *PIPELINES) else None
        pipeline = inside.message(1) if inside is not None and number in PIPELINES else None
        pipeline = inside if number == PIPELINE else pipeline
        if pipeline is not None:
            names = pipeline.texts(2)
            for at, part in enumerate(pipeline.messages(1)):
                prefix = names[at] if at < len(names) else f"model{at}"
                lost: dict[str, str] = {}
                for name, tensor in _model_weights(part, files, lost, depth - 1):
                    yield f"{prefix}.{name}", tensor
                left_out.update((f"{prefix}.{name}", reason) for name, reason in lost.items())
        elif inside is not None and number == PROGRAM:
            yield from coreml_programs.program_weights(coreml_programs.read_program(inside, files), left_out)
        elif inside is not None and number in NETWORKS:
            yield from coreml_networks.network_weights(inside, left_out)


def _producer(model: Message) -> str:
    """The program that wrote a model."""
    description = model.message(2)
    metadata = description.message(100) if description is not None else None
    for entry in metadata.messages(100) if metadata is not None else ():
        if entry.text(1) == _VERSION_KEY:
            return f"coremltools {entry.text(2)}"
    return ""


def _matches(head: bytes, path: Path) -> bool:
    """Whether a file is the main file of a Core ML model."""
    if TEXT_HEAD.match(head):
        return True
    if path.name.lower().endswith(NET):
        return re.match(rb"\s*\{", head) is not None
    return head[:1] == b"\x08" and _is_model(path)


def _is_model(path: Path) -> bool:
    """Whether a protobuf file has a field that only models of Core ML have: ONNX's top-level fields end at 25."""
    try:
        return any(number in _TYPES for number in first_numbers(map_file(path), _HEAD_FIELDS))
    except OSError:
        return False


def _companions(name: str, names: Collection[str]) -> Iterable[str]:
    """The weight files of a model in a repo."""
    folder, _, file = name.rpartition("/")
    if file.endswith(NET):
        return [each for each in names if each == name.removesuffix(NET) + WEIGHTS]
    if file.endswith(".mil") or folder.endswith("Data/com.apple.CoreML"):
        return [each for each in names if each.startswith(f"{folder}/weights/") and each.endswith(".bin")]
    return ()


FORMAT = Format("Core ML", (".mlmodel", ".mil", NET), _matches, load_coreml, _companions)
