"""Compares each compiled pass with numpy's, by turns, on the work that it does in issuing and tracing.

python -m examples.benchmarks.native_passes
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.speed import ratio, seconds
from hf_fingerprint.carriers import MarkDelta, TensorUpdate, deltas, projection
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.codes import Tardos, biased, scoring
from hf_fingerprint.extraction import tensor_sums
from hf_fingerprint.extraction.tensor_sums import TensorSums
from hf_fingerprint.native import passes


ROWS, COLUMNS, LENGTH, RECIPIENTS = 3072, 4096, 65_536, 256
SECRET, NAME = bytes(range(32)), "layer.weight"
USERS = deltas, projection, biased, scoring, tensor_sums


@contextlib.contextmanager
def by_numpy() -> Iterator[None]:
    """A context without the compiled passes."""
    with contextlib.ExitStack() as stack:
        for module in USERS:
            stack.enter_context(mock.patch.object(module, "passes", None))
        yield


def compared(what: str, work: Callable[[], object], pairs: int, unit: str, count: float) -> Figure:
    """The time of some work with the compiled passes, relative to that by numpy, and per unit."""
    ours, theirs = [], []
    work()
    for _ in range(pairs):
        with by_numpy():
            theirs.append(seconds(work))
        ours.append(seconds(work))
    each, before = (sorted(times)[len(times) // 2] / count for times in (ours, theirs))
    scale, name = (1e9, "ns") if each < 1e-6 else (1e6, "us")
    figure = f"{ratio(ours, theirs)}; {each * scale:.2f} and {before * scale:.2f} {name} a {unit}"
    return Figure(what, figure, "reported")


def read_tensor(place: SimpleNamespace) -> None:
    """Reads the differences of one tensor from its files."""
    sums = TensorSums(place, np.float32(1.5), None, None)  # type: ignore[arg-type]
    if not sums.add_files():
        sums.add_blocks()


def mark_tensor(raw: np.ndarray, dtype: str, amplitude: np.ndarray, codeword: np.ndarray) -> None:
    """Marks one tensor in memory, in blocks of 64 rows."""
    update = TensorUpdate(SECRET, NAME, dtype, COLUMNS, [MarkDelta(SECRET, NAME, amplitude, codeword)])
    for start in range(0, ROWS, 64):
        update(raw[start : start + 64].reshape(-1))


def main() -> None:
    """Measures each pass, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_output/native_passes"))
    parser.add_argument("--pairs", type=int, default=7)
    add_results_option(parser)
    options = parser.parse_args()
    if passes is None:
        parser.error("the package was built without a compiler: there is nothing to compare")
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    values = (0.02 * rng.standard_normal((ROWS, COLUMNS))).astype(np.float32)
    amplitude = np.full(ROWS, 2e-4, np.float32)
    for name, moved in (("ours", 0), ("theirs", 1e-4)):
        array = values + np.float32(moved) * rng.standard_normal(values.shape, dtype=np.float32)
        save_file({NAME: array}, options.out / f"{name}.safetensors")
    codebook, keys = Tardos(LENGTH, 20, SECRET), [rng.bytes(32) for _ in range(RECIPIENTS)]
    codeword = codebook.packed(keys[:1])[0]
    stream = rng.integers(0, 256, codebook.stream_bytes).astype(np.uint8)
    packed, weights = codebook.packed(keys), rng.standard_normal((2, LENGTH)).astype(np.float32)
    half = (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    compare = partial(compared, pairs=options.pairs)
    with (
        open_checkpoint(options.out / "ours.safetensors") as original,
        open_checkpoint(options.out / "theirs.safetensors", suspect=True) as suspect,
    ):
        place = SimpleNamespace(
            base=SimpleNamespace(secret=SECRET, length=LENGTH),
            carrier=SimpleNamespace(name=NAME),
            original=original,
            suspect=suspect,
            base_info=original.tensors[NAME],
            info=suspect.tensors[NAME],
            inverse=1 / amplitude,
            rows=slice(0, ROWS),
            scale=1.0,
            rescaled=lambda theirs: theirs,
        )
        figures = [
            compare("trace: read a tensor of two files", lambda: read_tensor(place), unit="weight", count=values.size),
            compare(
                "trace: pack a codeword",
                lambda: [codebook.pack_stream(stream, packed[0]) for _ in range(RECIPIENTS)],
                unit="recipient",
                count=RECIPIENTS,
            ),
            compare(
                "trace: score by two functions",
                lambda: scoring.weigh_codewords(packed, weights),
                unit="recipient",
                count=RECIPIENTS,
            ),
        ]
    for dtype, raw in (("F32", values.view(np.uint8)), ("BF16", half)):
        mark = partial(mark_tensor, raw, dtype, amplitude, codeword)
        figures.append(compare(f"issue: mark a tensor in {dtype}", mark, unit="weight", count=values.size))
    for path in options.out.glob("*.safetensors"):
        path.unlink()
    report(options, [figure_table(figures)])


if __name__ == "__main__":
    main()
