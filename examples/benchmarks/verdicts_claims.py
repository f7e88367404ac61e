"""Measures two risks for innocents: verifying the top scorer of a trace, and an attacker who frames one of them."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.progress import track
from safetensors.numpy import load_file, save_file

from examples._common.real_inputs import save_timm
from examples._common.results import Figure
from examples.benchmarks.verdicts_scale import AMPLITUDE, Scale, drifted, new_vault, opened, record
from hf_fingerprint import TraceResult, Vault, trace, verify
from hf_fingerprint.outcomes import Outcome


ALPHA = 0.05
PROBES = 70  # probes for each step of the attacker
Arrays = dict[str, np.ndarray]


def small_vault(work: Path, recipients: int, alpha: float | None = None) -> tuple[Vault, Arrays]:
    """Returns a vault with one small base and innocent recipients, and the public weights of the base."""
    torch.manual_seed(0)
    folder = save_timm(timm.create_model("test_vit"), work / "base")
    vault = new_vault(work / "vault")
    with opened(folder, vault, recipients, alpha) as issuer:
        record(vault, issuer.base, [f"innocent-{i:04}" for i in range(recipients)])
    return vault, load_file(folder / "model.safetensors")


def claims_figure(work: Path, scale: Scale) -> Figure:
    """Returns how often `verify` confirms the top scorer of a suspect that holds no copy."""
    vault, public = small_vault(work, scale.recipients, ALPHA)
    rng = np.random.default_rng(1)
    suspect, accused, confirmed = work / "suspect.safetensors", 0, 0
    for _ in track(range(scale.suspects), "verifying top scorers", transient=True):
        save_file(drifted(public, rng, 0.001, 0.03), suspect)
        result = trace(suspect, vault, all_scores=True)
        accused += result.outcome is Outcome.ACCUSED
        top = max(result.scores, key=lambda score: score.score).recipient
        confirmed += verify(suspect, top, vault).outcome is Outcome.ACCUSED
    share = confirmed / scale.suspects
    return Figure(
        f"`verify` of the top scorer of a trace, alpha {ALPHA:g}, {scale.recipients:,} recipients, "
        f"{scale.suspects:,} suspects that hold no copy",
        f"confirmed in {confirmed} of {scale.suspects:,} ({share:.1%}); traces that accuse: {accused}",
        "confirmed in <= 5 %",
        share <= ALPHA and accused <= ALPHA * scale.suspects,
        {"suspects": scale.suspects, "confirmed": confirmed, "accused_by_trace": accused},
    )


def adaptive_attacker_figure(work: Path, scale: Scale) -> Figure:
    """Returns whether an adaptive attacker frames a chosen innocent, with the default output and with all scores.

    The attacker probes with noisy versions of the public base and climbs along the figures of the output.
    """
    vault, public = small_vault(work, scale.recipients)
    target, file = f"innocent-{scale.recipients // 2:04}", work / "suspect.safetensors"

    def score_of_target(result: TraceResult) -> dict[str, float]:
        return {"score": next(each.score for each in result.scores if each.recipient == target)}

    with_scores = HillClimber(public, vault, file, score_of_target, all_scores=True)
    with_scores.climb(scale.queries, ways=(1,), until=target)
    framed = with_scores.accused.get(target)
    blind = HillClimber(public, vault, file, lambda result: dict(figures_of(result)))
    blind.climb(scale.queries)
    framed_text = "not accused" if framed is None else f"accused after {framed}"
    return Figure(
        f"adaptive attacker with all that the default output gives, {blind.queries:,} queries",
        f"{len(blind.accused)} innocents accused; with `all_scores` the chosen one is {framed_text}",
        "no innocent accused",
        not blind.accused and framed is not None,
        {
            "queries": blind.queries,
            "figures_seen": sorted(blind.kinds),
            "innocents_accused": blind.accused,
            "all_scores": {"queries_until_accused": framed, "accused": with_scores.accused},
        },
    )


class HillClimber:
    """An attacker who knows the base and the strength of marks, has no copy, and sees the output of traces.

    Args:
        public (`dict`): the base's weights.
        vault ([`Vault`]): the vault that traces its suspects.
        file (`Path`): the file for suspects.
        read_figures (callable): returns the figures that the attacker uses from a result, by kind.
        all_scores (`bool`, *optional*, defaults to `False`): whether results have all scores.

    Attributes:
        queries (`int`): number of suspects traced.
        kinds (`set[str]`): the kinds of figures that differed between suspects.
        accused (`dict[str, int]`): the first query that accused a recipient.
    """

    def __init__(
        self,
        public: Arrays,
        vault: Vault,
        file: Path,
        read_figures: Callable[[TraceResult], dict[str, float]],
        all_scores: bool = False,
    ):
        self._public, self._vault, self._file = public, vault, file
        self._read_figures, self._all_scores = read_figures, all_scores
        self._names = [name for name, array in public.items() if array.ndim >= 2]
        self._size = np.concatenate([_rows(public[name]).ravel() for name in self._names])
        self._rng = np.random.default_rng(2)
        self.queries = 0
        self.kinds: set[str] = set()
        self.accused: dict[str, int] = {}

    def climb(self, queries: int, ways: Sequence[int] = (1, -1), until: str | None = None) -> None:
        """Traces this many suspects, or fewer if `until` is accused earlier.

        Each step probes at random around the current point and sums the probes, weighted by each figure that differs.
        It continues from the point where a figure moved furthest, up for a way of 1, down for -1. With both ways it
        alternates, each from its own point.
        """
        here = {way: np.zeros_like(self._size) for way in ways}
        for way in itertools.cycle(ways):
            probes = [self._rng.standard_normal(len(self._size), dtype=np.float32) for _ in range(PROBES)]
            figures = [self._query(here[way] + probe) for probe in probes[: queries - self.queries]]
            furthest, best = -math.inf, here[way]
            for kind in sorted(set[str]().union(*figures)):
                values = np.array([each.get(kind, 0.0) for each in figures])
                if np.ptp(values) > 0 and self.queries < queries:
                    self.kinds.add(kind)
                    weights = (values - values.mean()) / values.std()
                    rise = sum(w * probe for w, probe in zip(weights, probes[: len(figures)], strict=True))
                    there = here[way] + way * _unit(rise)
                    gone = way * (self._query(there).get(kind, 0.0) - values.mean()) / values.std()
                    furthest, best = max((furthest, best), (gone, there), key=lambda pair: pair[0])
            if self.queries >= queries or until in self.accused:
                return
            here[way] = _unit(best)

    def _query(self, change: np.ndarray) -> dict[str, float]:
        """Traces a suspect, notes the accused, and returns the figures."""
        result = self._trace_change(change)
        for score in result.accused:
            self.accused.setdefault(score.recipient, self.queries)
        return self._read_figures(result)

    def _trace_change(self, change: np.ndarray) -> TraceResult:
        """Traces the base with a change of a mark's size in this direction."""
        self.queries += 1
        change, begin, arrays = AMPLITUDE * _unit(change) * self._size, 0, dict(self._public)
        for name in self._names:
            array = self._public[name]
            arrays[name] = array + change[begin : begin + array.size].reshape(array.shape).astype(array.dtype)
            begin += array.size
        save_file(arrays, self._file)
        return trace(self._file, self._vault, all_scores=self._all_scores)


def _rows(array: np.ndarray) -> np.ndarray:
    """Returns the root mean square of each weight's row."""
    rows = np.sqrt((array.reshape(len(array), -1) ** 2).mean(1))
    return np.broadcast_to(rows[:, None], (len(array), array[0].size))


def figures_of(result: TraceResult) -> Iterator[tuple[str, float]]:
    """Yields all figures of a trace's default output: JSON values by path, numbers of the text by order."""
    yield from _flat("", result.to_dict())
    text = str(result)
    for i, number in enumerate(re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)):
        yield f"text {i}", float(number)
    yield "length of text", float(len(text))


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{name}/{key}", each)
    elif isinstance(value, list | tuple):
        yield f"{name}/count", float(len(value))
        for i, each in enumerate(value):
            yield from _flat(f"{name}/{i}", each)
    elif isinstance(value, bool | int | float):
        yield name, float(value)
    elif isinstance(value, str):
        yield f"{name}/length", float(len(value))


def _unit(noise: np.ndarray) -> np.ndarray:
    """Returns the direction with mean square 1, or zeros."""
    size = float(np.sqrt(np.mean(noise.astype(np.float64) ** 2)))
    return noise / size if size else noise
