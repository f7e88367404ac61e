"""Designs a code for a coalition: the shortest of each family that accuses all colluders, by simulation."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hf_fingerprint.choices import FORGERIES, Strategy, wrong_choice
from hf_fingerprint.codes.bounds import check_alpha
from hf_fingerprint.codes.coalition import accusation_threshold, expected_score
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.collusion import forge
from hf_fingerprint.codes.decoding import Decoding, decode
from hf_fingerprint.codes.fair_signs import FairSigns
from hf_fingerprint.codes.nuida import MAX_COALITION, Nuida
from hf_fingerprint.codes.tardos import Tardos
from hf_fingerprint.errors import CodeError
from hf_fingerprint.progress import Progress, shows_progress, silent
from hf_fingerprint.tables import Block, PrintableResult, Table, one_line_repr


WEIGHTS_PER_POSITION = 40
LENGTHS = tuple(64 << i for i in range(11))
MAX_WEIGHTS_PER_POSITION = WEIGHTS_PER_POSITION << 10
TRIALS = 2
STRATEGIES: tuple[Strategy, ...] = (
    "average",
    "random pick",
    "minority",
    "median",
    "min-max",
    "minimum",
    "random extreme",
)
_SECRET = bytes(32)
_MIN_EXPECTED_SHARE = 0.8  # of the threshold: codes with lower expected scores are not simulated


@dataclass(frozen=True)
class CodeOption:
    """A code that withstands the coalition.

    Attributes:
        family (`str`): its family.
        length (`int`): V.
        weights (`int`): N, the number of carrier weights that it needs.
        threshold (`float`): the score that accuses, for a typical signal.
        scores (`dict[str, float]`): for each strategy, the mean over the colluders of their strongest scores.
    """

    family: str
    length: int
    weights: int
    threshold: float
    scores: dict[str, float]


@dataclass(frozen=True)
class CodeDesign(PrintableResult):
    """The requirements, and the codes that meet them.

    Attributes:
        recipients (`int`): n, how many recipients the bound covers.
        coalition (`int`): c, the number of colluders.
        alpha (`float`): the bound on the probability of accusing any innocent.
        drift (`float`): standard deviation of the noise in each weight, in units of the mark's amplitude.
        options (`tuple[CodeOption, ...]`): at most one of each family, by fewest weights and then by widest margin.
    """

    recipients: int
    coalition: int
    alpha: float
    drift: float
    options: tuple[CodeOption, ...]

    @property
    def best(self) -> CodeOption | None:
        """The code that needs fewest weights, or `None` if none withstands the coalition."""
        return self.options[0] if self.options else None

    def to_dict(self) -> dict[str, Any]:
        """The design as JSON types."""
        return asdict(self)

    def blocks(self) -> Iterator[Block]:
        """The line and the tables that show the design."""
        wanted = (
            f"{self.coalition} colluders among {self.recipients:,} recipients at alpha {self.alpha:.0e}, drift "
            f"{self.drift:g} amplitudes a weight"
        )
        best = self.best
        if best is None:
            yield f"no code catches all of {wanted}, whatever the model's size"
            return
        size = f"{best.length:,} positions, in {best.weights:,} carrier weights or more"
        yield f"best for {wanted}: {best.family}, {size}"
        columns = ("code", "positions", "carrier weights", "accuses at")
        rows = ((c.family, f"{c.length:,}", f"{c.weights:,}", f"{c.threshold:.1f}") for c in self.options)
        yield Table(columns, tuple(rows))
        strategies = tuple(best.scores)
        scores = ((name, *(f"{code.scores[name]:.1f}" for code in self.options)) for name in strategies)
        yield Table(("mean score by strategy", *(c.family for c in self.options)), tuple(scores))
        yield (
            f"a smaller model can have a code that is designed for {self.coalition} colluders, too, but is certified "
            "against fewer: of larger coalitions than those, some may stay unnamed, and the innocent are as safe"
        )

    def __repr__(self) -> str:
        best = None if self.best is None else (self.best.family, self.best.length, self.best.weights)
        return one_line_repr(self, recipients=self.recipients, coalition=self.coalition, alpha=self.alpha, best=best)


@shows_progress
def design_code(
    recipients: int,
    coalition: int,
    alpha: float = 1e-6,
    drift: float = 5.0,
    strategies: Sequence[str] = STRATEGIES,
    progress: Progress | None = None,
) -> CodeDesign:
    """Finds, for each family, the smallest size at which two simulations of every strategy accuse every colluder.

    Sizes double: up to 65,536 positions of 40 weights each, then 65,536 positions of up to 40,960 weights each.

    Args:
        recipients (`int`): n.
        coalition (`int`): c, up to n.
        alpha (`float`, *optional*, defaults to 1e-6): the bound on accusing any innocent, at most 0.05.
        drift (`float`, *optional*, defaults to 5): standard deviation of the noise in each weight, in units of the
            mark's amplitude; 5 is a drift of 2 % of the weights' size at an amplitude of 0.4 %.
        strategies (sequence of `str`, *optional*): from `FORGERIES`; by default all distinct ones with equal shares.
        progress (callable, *optional*): a [`Progress`].

    Raises:
        [`CodeError`]: if a number is out of range, or a strategy is unknown.
    """
    if not 1 <= coalition <= recipients:
        raise CodeError(f"`coalition` must be from 1 to the number of recipients, {recipients}, got {coalition}.")
    check_alpha(alpha)
    if not (np.isfinite(drift) and drift >= 0):
        raise CodeError(f"`drift` must be finite and at least 0, got {drift}.")
    if not strategies:
        raise CodeError(f"`strategies` is empty: choose from {', '.join(FORGERIES)}.")
    for unknown in set(strategies) - set(FORGERIES):
        raise CodeError(wrong_choice("strategies", unknown, FORGERIES))
    families = [FairSigns.family, Tardos.family] + [Nuida.family] * (coalition <= MAX_COALITION)
    required = CodeDesign(recipients, coalition, alpha, drift, ())
    found = (_smallest_option(family, required, strategies, progress or silent) for family in families)
    options = [option for option in found if option is not None]
    options.sort(key=lambda option: (option.weights, option.threshold - min(option.scores.values())))
    return replace(required, options=tuple(options))


def _smallest_option(
    family: str, required: CodeDesign, strategies: Sequence[str], progress: Progress
) -> CodeOption | None:
    """The smallest size of a family that withstands every strategy; the one that beat the last size runs first."""
    order = list(strategies)
    sizes = [(length, WEIGHTS_PER_POSITION) for length in LENGTHS]
    while sizes[-1][1] < MAX_WEIGHTS_PER_POSITION:
        sizes.append((LENGTHS[-1], 2 * sizes[-1][1]))
    for length, weights in sizes:
        progress(f"{family}, {length * weights:,} weights", 0, None)
        codebook = _codebook(family, length, required.coalition)
        threshold = accusation_threshold(codebook, required.recipients, required.alpha)
        noise = required.drift / weights**0.5
        if expected_score(codebook, required.coalition, noise) < _MIN_EXPECTED_SHARE * threshold:
            continue
        scores: dict[str, float] = {}
        for strategy in order:
            trials = [_simulate_collusion(required, codebook, strategy, weights, trial) for trial in range(TRIALS)]
            if any(len(trial.accused) < required.coalition for trial in trials):
                order.insert(0, order.pop(order.index(strategy)))
                break
            scores[strategy] = float(np.mean([trial.scores.mean() for trial in trials]))
        else:
            return CodeOption(family, length, length * weights, threshold, {s: scores[s] for s in strategies})
    return None


def _codebook(family: str, length: int, coalition: int) -> Codebook:
    if family == FairSigns.family:
        return FairSigns(length)
    return (Nuida if family == Nuida.family else Tardos)(length, coalition, _SECRET)


def _simulate_collusion(required: CodeDesign, codebook: Codebook, strategy: str, weights: int, trial: int) -> Decoding:
    """Decodes one simulated collusion. The bound pays for all recipients, though no innocents are drawn."""
    count, mass = required.coalition, np.ones(codebook.length)
    keys = [hashlib.sha256(f"designed for {trial} {i}".encode()).digest() for i in range(count)]
    copies = 2.0 * np.unpackbits(codebook.packed(keys), axis=1) - 1
    extracted, _ = forge(strategy, copies, weights, required.drift, np.random.default_rng([trial, count]))
    return decode(codebook, keys, extracted, mass, required.alpha, recipients=required.recipients)
