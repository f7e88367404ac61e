"""Measures the outcomes for suspects that can't be read, and what unrelated large models cost `watch`."""

import hashlib
import json
import math
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from rich.progress import track
from safetensors.numpy import load_file

from examples._common.real_inputs import save_timm
from examples._common.results import Figure
from examples.benchmarks.hub import own_hub
from examples.benchmarks.verdicts_scale import Scale, backbone, drifted, new_vault, opened
from hf_fingerprint import trace
from hf_fingerprint.hub import WatchResult, watch
from hf_fingerprint.outcomes import Outcome
from tests.helpers.loopback_hub import Blob, HubHandler, LoopbackHub


Arrays = dict[str, np.ndarray]
READABLE = (0.0, 0.1, 0.5)
STRANGERS = ("integers", "axes in another order", "deleted", "nested")  # for these, independent models are made too
LIMIT = 10_000_000
DTYPES = {"float32": "F32", "int64": "I64", "int8": "I8"}


def unreadable_figure(work: Path, scale: Scale) -> Figure:
    """Returns how often "nobody" is wrong for suspects whose carriers are mostly unreadable.

    The suspects are a copy of EfficientNet-Lite0 and a fine-tune of its public base. Nothing, a tenth or a half of the
    marked weights stays readable; the rest is made unreadable in several ways.
    """
    vault, rng = new_vault(work / "vault"), np.random.default_rng(3)
    with opened(save_timm(backbone(scale), work / "base"), vault, 1000) as issuer:
        copy = issuer.issue("the leaker", work / "copy").path
        carriers = [carrier.name for carrier in issuer.base.carriers]
    leak = load_file(copy / "model.safetensors")
    stranger = drifted(load_file(work / "base" / "model.safetensors"), rng, 0.005, 0.01)
    outcomes: dict[str, dict[str, Outcome]] = {"copy": {}, "stranger": {}}
    wrong = 0
    suspects = list(suspects_of(leak, stranger, carriers, scale.ways, work, rng))
    for who, how, write in track(suspects, "tracing what can't be read", transient=True):
        suspect = write()
        result = trace(suspect, vault)
        outcomes[who][how] = result.outcome
        wrong += sum(each.recipient != "the leaker" or who == "stranger" for each in result.accused)
        suspect.unlink()
    false_negatives = [how for how, outcome in outcomes["copy"].items() if outcome is Outcome.NOBODY]
    false_negatives += [
        f"stranger: {how}"
        for how, outcome in outcomes["stranger"].items()
        if outcome is Outcome.NOBODY and outcomes["copy"][how] is not Outcome.ACCUSED
    ]
    counted = {who: Counter(map(str, found.values())) for who, found in outcomes.items()}
    summary = "; ".join(
        f"{who}: " + ", ".join(f"{counted[who][str(o)]} {o}" for o in Outcome if counted[who][str(o)])
        for who in outcomes
    )
    return Figure(
        f"{len(suspects)} suspects of which nothing, a tenth, a half of the carriers can be read",
        f'{len(false_negatives)} times "nobody" where a verbatim copy would have been missed ({summary})',
        "never",
        not false_negatives and not wrong,
        {
            "missed": false_negatives,
            "wrongly_accused": wrong,
            "outcomes": {who: dict(o) for who, o in outcomes.items()},
        },
    )


def suspects_of(
    leak: Arrays, stranger: Arrays, carriers: list[str], ways: int, work: Path, rng: np.random.Generator
) -> Iterator[tuple[str, str, Callable[[], Path]]]:
    """Yields the kind of suspect, the change to it, and a function that writes it."""
    for how, write in list(WAYS.items())[:ways]:
        for share in READABLE:
            kept = sample_carriers(leak, carriers, share, rng)
            rest = [name for name in carriers if name not in kept]
            for who, arrays in (("copy", leak), ("stranger", stranger)):
                if who == "copy" or how in STRANGERS:
                    yield who, f"{how}, {share:.0%} left", lambda a=arrays, r=rest, w=write: w(a, r, work / "suspect")


def sample_carriers(arrays: Arrays, carriers: list[str], share: float, rng: np.random.Generator) -> set[str]:
    """Returns random carriers that hold at most this share of the marked weights."""
    budget = share * sum(arrays[name].size for name in carriers)
    kept: set[str] = set()
    for name in rng.permutation(carriers):
        if arrays[name].size <= budget:
            kept.add(str(name))
            budget -= arrays[name].size
    return kept


def save_changed(
    change: Callable[[str, np.ndarray], dict[str, tuple[str, np.ndarray]]],
) -> Callable[[Arrays, list[str], Path], Path]:
    """Returns a function that writes safetensors and replaces the listed tensors by the result of `change`."""

    def write(arrays: Arrays, rest: list[str], path: Path) -> Path:
        entries: dict[str, tuple[str, np.ndarray]] = {}
        for name, array in arrays.items():
            plain = {name: (DTYPES[str(array.dtype)], array)}
            entries |= change(name, array) if name in rest else plain
        return save_raw(entries, path.with_suffix(".safetensors"))

    return write


def _integers(name: str, array: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    return {name: ("I8", np.rint(array / np.abs(array).max() * 127).astype(np.int8))}


def _nested(arrays: Arrays, rest: list[str], path: Path) -> Path:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inner = {name: tensors.pop(name) for name in rest}
    torch.save({"trainer": {"run": {"weights": inner}}, "step": 7, **tensors}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


FILLER_WIDTH = 7
WAYS: dict[str, Callable[[Arrays, list[str], Path], Path]] = {
    "integers": save_changed(_integers),
    "an unknown dtype": save_changed(lambda name, array: {name: ("F8_E8M0", np.zeros(array.shape, np.uint8))}),
    "axes in another order": save_changed(lambda name, array: {name: ("F32", np.ascontiguousarray(array.T))}),
    "renamed and resized": save_changed(
        lambda name, array: {f"x{hashlib.sha1(name.encode()).hexdigest()[:8]}": ("F32", array[: len(array) // 2])}
    ),
    "deleted": save_changed(lambda name, array: {}),
    "nested": _nested,
}


def save_raw(entries: dict[str, tuple[str, np.ndarray]], path: Path) -> Path:
    """Writes a safetensors file with dtypes of any name."""
    header: dict[str, object] = {}
    begin = 0
    for name, (dtype, array) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}
        begin += array.nbytes
    with path.open("wb") as file:
        file.write(_header(header))
        for _, array in entries.values():
            file.write(np.ascontiguousarray(array).tobytes())
    return path


def _header(header: dict[str, object]) -> bytes:
    padded = json.dumps(header).encode()
    padded += b" " * (-len(padded) % 8)
    return len(padded).to_bytes(8, "little") + padded


def watching_figure(work: Path, scale: Scale) -> Figure:
    """Returns how many bytes `watch` fetches of an author's large models that are unrelated to the base.

    It also measures a model whose weights are a pickle, which has no header with shapes, and a leak.
    """
    vault = new_vault(work / "vault")
    with opened(save_timm(backbone(scale), work / "base"), vault, 1000) as issuer:
        leak = issuer.issue("the leaker", work / "leak").path
        shapes = {name: array.shape for name, array in load_file(work / "base" / "model.safetensors").items()}
    found: dict[str, list[WatchResult]] = {}
    fetched: dict[str, int] = {}
    with own_hub() as hub, counted() as sent:
        for i in range(scale.models):
            sizes = _other_shapes(shapes) if i % 5 == 4 else _layers(1024 + 64 * i, scale.megabytes)
            add(hub, f"author/unlike-{i}", save_sparse(sizes, scale.megabytes, work / f"{i}" / "model.safetensors"))
        add(hub, "pickles/unlike", save_pickle(_layers(1024, scale.megabytes), work / "pickle" / "pytorch_model.bin"))
        hub.add("leaks/leak", leak, lfs=True)
        for author in ("author", "pickles", "leaks"):
            sent.clear()
            found[author] = list(watch([author], vault))
            fetched[author] = sum(sent)
    wrong = any(one.accused for one in found["author"] + found["pickles"])
    right = [one.accused for one in found["leaks"]] == [("the leaker",)] and not wrong
    return Figure(
        f"a loopback author with {scale.models} unlike models of {scale.megabytes / 1000:g} GB",
        f"`watch` fetches {fetched['author'] / 1e6:.2f} MB (of one pickled model: "
        f"{fetched['pickles'] / 1e6:.2f} MB; to name a leak: {fetched['leaks'] / 1e6:.2f} MB)"
        + ("" if right else "; wrongly named"),
        "under 10 MB",
        fetched["author"] < LIMIT and right,
        {
            "bytes_fetched": fetched,
            "outcomes": {author: dict(Counter(str(one.outcome) for one in seen)) for author, seen in found.items()},
            "models": len(found["author"]),
        },
    )


def add(hub: LoopbackHub, repo: str, file: Path) -> None:
    """Adds a repo with a large file, which stays on disk."""
    with file.open("rb") as opened_:
        content = mmap.mmap(opened_.fileno(), 0, access=mmap.ACCESS_READ)
    sha = hashlib.sha256(repo.encode()).hexdigest()  # not checked here, and the true one takes seconds
    hub.store[sha] = content
    hub.add(repo, {file.name: Blob.lfs(content, sha), "config.json": b'{"model_type": "another"}'})


def _layers(width: int, megabytes: int) -> dict[str, tuple[int, ...]]:
    return {f"layers.{i}.weight": (width, width) for i in range(round(megabytes * 1e6 / (4 * width * width)))}


def _other_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(size + 1 for size in shape) for name, shape in shapes.items()}


def save_pickle(sizes: dict[str, tuple[int, ...]], file: Path) -> Path:
    """Saves a state dict of zeros with torch."""
    file.parent.mkdir()
    torch.save({name: torch.zeros(shape) for name, shape in sizes.items()}, file)
    return file


def save_sparse(sizes: dict[str, tuple[int, ...]], megabytes: int, file: Path) -> Path:
    """Writes a sparse safetensors file of this many megabytes of zeros; an extra tensor fills the rest.

    It is a matrix of an odd width: a single row as long as a model might be the model's weights, and would be read.
    """
    file.parent.mkdir()
    missing = round(megabytes * 1e6) - sum(4 * math.prod(shape) for shape in sizes.values())
    rows = missing // (4 * FILLER_WIDTH)
    sizes = sizes | ({"the.rest": (rows, FILLER_WIDTH)} if rows > 0 else {})
    header: dict[str, object] = {}
    begin = 0
    for name, shape in sizes.items():
        end = begin + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    header_bytes = _header(header)
    with file.open("wb") as stream:
        stream.write(header_bytes)
        stream.truncate(len(header_bytes) + begin)
    return file


class counted:
    """A context that lists the bytes of each response of the loopback Hub."""

    def __enter__(self) -> list[int]:
        sent: list[int] = []
        send = HubHandler.send

        def counting(handler: HubHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            if handler.command != "HEAD":
                sent.append(len(body))
            send(handler, status, body, headers)

        self._patch = patch.object(HubHandler, "send", counting)
        self._patch.start()
        return sent

    def __exit__(self, *exception: object) -> None:
        self._patch.stop()
