"""What a reader of a weight format declares and returns.

A format is one module with a `FORMAT`, and one line in `registry.py`. Its reader gets a hostile file: it runs nothing,
follows no path out of the file's folder, and checks each size before it takes memory. It finds the tensors without
reading them: a [`LazyTensor`] is a view of the mapped file, and a [`ComputedTensor`] is dequantized as it is read.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


__all__ = ["Format", "FoundTensors", "InvalidFileError"]


class FoundTensors(NamedTuple):
    """The tensors of a weight file.

    Attributes:
        tensors (`list[tuple[str, LazyTensor]]`): names and tensors, in the order of the file; a name may repeat.
        producer (`str`): the program that wrote it, as the file says, such as `"pytorch 2.9"`; may be hostile.
        companions (`tuple[Path, ...]`): further files that hold its weights.
    """

    tensors: list[tuple[str, LazyTensor]]
    producer: str = ""
    companions: tuple[Path, ...] = ()


def _no_companions(name: str, names: Collection[str]) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Format:
    """A weight format that a suspect may have. Bases and copies are safetensors or PyTorch files.

    Attributes:
        name (`str`): its name, such as `"ONNX"`.
        suffixes (`tuple[str, ...]`): ends of the names of its files, in lower case.
        matches (callable): from the first 512 bytes of a file and its path to whether it has this format. It is called
            with any file, so it must be exact and cheap.
        load (callable): from a file's path and a dictionary to its [`FoundTensors`]; the dictionary receives the names
            of unreadable tensors, each with a short reason. Raises [`InvalidFileError`] or `OSError`.
        companions (callable, *optional*): from the path of a file in a repo, with `/`, and all paths there to those of
            the further files that hold its weights, to download them along.
    """

    name: str
    suffixes: tuple[str, ...]
    matches: Callable[[bytes, Path], bool] = field(repr=False)
    load: Callable[[Path, dict[str, str]], FoundTensors]
    companions: Callable[[str, Collection[str]], Iterable[str]] = _no_companions
