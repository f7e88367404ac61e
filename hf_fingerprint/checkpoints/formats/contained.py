"""Open the tensors of a suspect in a format of `registry.py`, and describe how its weights are stored."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor
from hf_fingerprint.checkpoints.formats.containers import Format, InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.nesting import unique_name
from hf_fingerprint.checkpoints.formats.pytorch.pickled import is_valid_name
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY, TensorInfo
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, LazyTensor
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MAX_EXPANSION_RATIO, MAX_NAME
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_COMPUTED_RATIO = 8  # float32 to codes of 4 bits
_MAX_PRODUCER = 80


@dataclass(frozen=True)
class Container:
    """How the weights of a suspect are stored.

    Attributes:
        format (`str`): the format, such as `"safetensors"`, `"PyTorch"` or `"ONNX"`.
        producer (`str`): the program that wrote them, as the file says; printable.
        tensors (`int`): how many tensors were found and can be read.
        dtypes (`tuple[str, ...]`): their types as stored, such as `"F32"` or `"int8"`.
    """

    format: str
    producer: str = ""
    tensors: int = 0
    dtypes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As a JSON-serializable dictionary."""
        return asdict(self)


class ContainedTensors(NamedTuple):
    """The tensors of the files of one container.

    Attributes:
        infos (`list[TensorInfo]`): names, dtypes and shapes, in the order of the files.
        memory (`dict[str, LazyTensor]`): access to their bytes.
        producer (`str`): the program that wrote the first file.
        companions (`tuple[Path, ...]`): further files that hold weights.
    """

    infos: list[TensorInfo]
    memory: dict[str, LazyTensor]
    producer: str
    companions: tuple[Path, ...]


def load_contained(form: Format, paths: tuple[Path, ...], left_out: dict[str, str]) -> ContainedTensors:
    """The tensors of a suspect's files of one format, which are read when they are used.

    Args:
        form ([`Format`]): the format.
        paths (`tuple[Path, ...]`): one file or all parts.
        left_out (`dict[str, str]`): receives the unreadable tensors, each with a short reason.

    Raises:
        [`CheckpointError`]: if a file can't be read, or holds no tensors.
    """
    found = ContainedTensors([], {}, "", ())
    producers: list[str] = []
    companions: list[Path] = []
    taken: dict[str, int] = {}
    for number, path in enumerate(paths):
        unread: dict[str, str] = {}
        try:
            loaded = form.load(path, unread)
            size = sum(each.stat().st_size for each in (path, *loaded.companions))
        except InvalidFileError as error:
            problem = printable(str(error))[:300]
            raise CheckpointError(
                f"{path} is not a complete {form.name} file ({problem}): download it again."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
        left_out.update((printable(name[:MAX_NAME]), printable(why)[:300]) for name, why in unread.items())
        budget = size * MAX_EXPANSION_RATIO + MAX_EXPANSION
        for name, tensor in loaded.tensors:
            cost = tensor.nbytes // _COMPUTED_RATIO if isinstance(tensor, ComputedTensor) else tensor.nbytes
            reason = _unreadable_reason(tensor, cost, budget)
            name = name[:MAX_NAME] if is_valid_name(name[:MAX_NAME]) else "unnamed"
            if reason is not None:
                left_out[printable(name)] = reason
                continue
            budget -= cost
            name = unique_name(name, taken)
            found.memory[name] = tensor
            found.infos.append(TensorInfo(name, DTYPES[tensor.dtype], tensor.shape, number, 0, tensor.nbytes))
        producers.append(printable(loaded.producer)[:_MAX_PRODUCER])
        companions += loaded.companions
    if not found.infos and not left_out:
        raise CheckpointError(f"{paths[0]} is a {form.name} file without weights: is it the right file?")
    return found._replace(producer=producers[0], companions=tuple(dict.fromkeys(companions)))


def describe_container(
    name: str, producer: str, infos: Iterable[TensorInfo], memory: dict[str, LazyTensor]
) -> Container:
    """How the tensors of a checkpoint are stored.

    Args:
        name (`str`): the format.
        producer (`str`): the program that wrote it.
        infos (iterable of [`TensorInfo`]): its tensors.
        memory (`dict[str, LazyTensor]`): access to their bytes, if it is no safetensors file.
    """
    infos = list(infos)
    stored = {str(getattr(memory.get(info.name), "stored", info.dtype)) for info in infos}
    return Container(name, producer, len(infos), tuple(sorted({DTYPES.get(each, each) for each in stored})))


def _unreadable_reason(tensor: LazyTensor, cost: int, budget: int) -> str | None:
    """Why a tensor can't be read, or `None`."""
    if (reason := tensor.unreadable_reason()) is not None:
        return reason
    if not tensor.numel():
        return EMPTY
    return "larger than its file" if cost > budget else None
