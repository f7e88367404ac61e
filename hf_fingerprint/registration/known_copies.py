"""Detects that a model to be registered is a copy of a base on record, unchanged or changed since.

An unchanged copy is known by its content hash. One that was saved again, cast, or given a new head is known by its
mark. This needs no copy key, since all weights of a position carry the same bit. With `x = (w - w_base) / a`, clipped
and weighted by a function of |x| alone, the base's keyed signs s, and

    y_i = sum of s_k x_k,   v_i = sum of x_k^2   over the weights k of position i,

a copy has `y_i^2` near `m v_i`, where m is the number of weights of a position. A model that was made without the
base's secret has an x that does not depend on the signs, whatever its drift. So each `y_i` is a Rademacher sum, its
square is dominated by a normal number's, and

    P(sum of y_i^2 - v_i >= z) <= exp(-l z) times the product of exp(-l v_i) / sqrt(1 - 2 l v_i)   for every l >= 0.

The bound assumes only that the keyed generator is pseudo-random. At 1e-12 or less the model is a copy.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.carriers import TensorProjection, fold
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.errors import FingerprintWarning
from hf_fingerprint.registration.content import open_local_base
from hf_fingerprint.registration.same_weights import find_recorded_copies
from hf_fingerprint.vault import Base, Carrier, Vault


MAX_LOG_FALSE_MATCH = math.log(1e-12)  # bound on refusing a model made without the secret, for each base on record
EARLY_STOP_FACTOR = 4.0  # reading stops once a copy would be expected to reach this many times the bound
MAX_WEIGHTS, MIN_PER_POSITION = 1 << 22, 4
SAMPLED_ROWS = 4
CLIP_DEVIATIONS, MIN_CLIP, MAX_CLIP = 3.0, 1.5, 1e6
MIN_DRIFT = 0.01  # variance of an average of 100 copies; below it weights count as nearly equal
_MAD = 1.4826
Matches = dict[str, TensorInfo]


@dataclass(frozen=True)
class Origin:
    """The base that a model is a copy of.

    Attributes:
        base ([`Base`]): its record.
        recipient (`str` or `None`): the copy's recipient, if its content hash is on record.
    """

    base: Base
    recipient: str | None = None

    def refusal(self, where: str) -> str:
        """The error message: why the model can't be a base, and what to do."""
        named = f"base {self.base.base_id} ({self.base.source})"
        changed = f"carries the mark of {named}, so it is a changed copy"
        what = changed if self.recipient is None else f"is {self.recipient}'s copy of {named}"
        return f"{where} {what}: give that base itself, or register the copy as a base with --as-base (as_base=True)."


def find_origin(model: Checkpoint, vault: Vault, digests: Mapping[str, str] | None = None) -> Origin | None:
    """Finds the base on record that a model is a copy of, or carries the mark of; `None` if there is none.

    Bases whose files are not on this machine, or have changed, are left out with a [`FingerprintWarning`] that names
    them. At most 4 million weights of a base are read, and only a few rows if its weights are far from the model's.

    Args:
        model ([`Checkpoint`]): the open model, which is no registered base.
        vault ([`Vault`]): the vault; it may be locked.
        digests (mapping of `str` to `str`, *optional*): the SHA-256 of each tensor, if it is known.

    Raises:
        [`VaultError`]: if the model is a copy on record, but its base's record can't be used.
    """
    bases, copies = vault.bases(), vault.copies()
    for copy in find_recorded_copies(model, bases, copies, digests):
        return Origin(vault.base(copy.base_id), copy.recipient)
    base = _find_marked_base(model, bases, vault)
    return None if base is None else Origin(base)


def _find_marked_base(model: Checkpoint, bases: Sequence[Base], vault: Vault) -> Base | None:
    """The base whose mark shows most clearly, or `None` if none does."""
    namesakes = Namesakes(model.tensors)
    records_by_hash: dict[str, list[tuple[Base, Matches]]] = defaultdict(list)
    for base in bases:
        matches = namesakes.find_shaped(base.carrier_shapes)
        if len(matches) >= len(base.carriers) / 2:
            records_by_hash[base.content_hash].append((base, matches))
    found, lowest = None, MAX_LOG_FALSE_MATCH
    unread: list[Base] = []
    for records in records_by_hash.values():  # records of the same weights share the files
        original = next(filter(None, (open_local_base(base, vault, model.source.access) for base, _ in records)), None)
        if original is None:
            unread += [base for base, _ in records]
            continue
        with original:
            for base, matches in records:
                log_bound = log_false_match_bound(base, original, model, matches)
                if log_bound <= lowest:
                    found, lowest = base, log_bound
    if unread and found is None:
        named = ", ".join(f"{base.base_id} ({base.source})" for base in unread)
        message = (
            f"{model.source.name} could not be compared with base {named}, whose files are missing or have changed: "
            f"make sure that it is no copy of it."
        )
        warnings.warn(message, FingerprintWarning, stacklevel=2)
    return found


def log_false_match_bound(base: Base, original: Checkpoint, model: Checkpoint, matches: Matches) -> float:
    """A bound on the log-probability that a model made without the secret agrees with the projection as well as this.

    It is 0 if the weights are too far from the base's for a mark to show.

    Args:
        base ([`Base`]): the record.
        original, model ([`Checkpoint`]): its open files, and the open model.
        matches (`dict[str, TensorInfo]`): the model's tensors by carrier.
    """
    pairs = [_CarrierPair(c, original, model, matches[c.name]) for c in base.carriers if c.name in matches]
    drift = {pair: pair.sample_drift() for pair in pairs}
    order = sorted(pairs, key=lambda pair: (drift[pair], -pair.weights))
    drifted = [pair for pair in order if drift[pair] >= MIN_DRIFT]
    nearly_equal = sorted((pair for pair in pairs if 0 < drift[pair] < MIN_DRIFT), key=lambda pair: -drift[pair])
    informative = weights = 0.0
    for pair in drifted:
        count = min(pair.weights, MAX_WEIGHTS - weights)
        informative, weights = informative + count / max(drift[pair], 1.0), weights + count
    if not nearly_equal and _expected_log_bound(informative, weights, base.length) > MAX_LOG_FALSE_MATCH / 2:
        return 0.0
    y, v = np.zeros((2, base.length))
    informative = weights = 0.0
    for pair in (*drifted, *nearly_equal):
        projection = TensorProjection(base.secret, pair.carrier.name, base.length)
        start = projection.offset
        for rows in block_rows(pair.base_info):
            x = pair.difference(rows)
            variance = float(np.vdot(x, x)) / x.size
            x /= max(variance, MIN_DRIFT)
            fold(np.square(x).reshape(-1), start % base.length, v)
            projection.read(x, y)
            start, weights = start + x.size, weights + x.size
            informative += x.size / max(variance, 1.0) if variance >= MIN_DRIFT else 0.0
            expected = _expected_log_bound(informative, weights, base.length)
            enough = expected <= EARLY_STOP_FACTOR * MAX_LOG_FALSE_MATCH
            if weights >= MAX_WEIGHTS or (enough and weights >= MIN_PER_POSITION * base.length):
                return _log_bound(y, v)
    return _log_bound(y, v)


def _expected_log_bound(informative: float, weights: float, length: int) -> float:
    """Approximately the bound that a copy's weights would give, of which so many are informative."""
    excess = informative / length * max(0.0, 1 - length / weights) if weights else 0.0
    return -length / 2 * (excess - math.log1p(excess))


def _log_bound(y: np.ndarray, v: np.ndarray) -> float:
    """The logarithm of the bound above, at the best l."""
    largest = float(v.max(initial=0.0))
    if not largest:
        return 0.0
    share, excess = v / largest, float((np.square(y) - v).sum()) / largest
    if excess <= 0:
        return 0.0

    def exponent(u: float) -> float:  # u = 2 l, in units of the largest v
        return -0.5 * float((u * share + np.log1p(-u * share)).sum()) - u / 2 * excess

    from scipy.optimize import minimize_scalar

    return min(0.0, float(minimize_scalar(exponent, bounds=(0, 1), method="bounded").fun))


@dataclass(frozen=True, eq=False)
class _CarrierPair:
    """A carrier, and its counterpart in the model."""

    carrier: Carrier
    original: Checkpoint
    model: Checkpoint
    info: TensorInfo

    @property
    def base_info(self) -> TensorInfo:
        return self.original.tensors[self.carrier.name]

    @property
    def weights(self) -> int:
        return self.base_info.rows * self.base_info.columns

    def sample_drift(self) -> float:
        """The mean square of the difference in a few rows, in amplitudes; 0 if there is none."""
        rows = sample_row_indices(self.base_info.rows, SAMPLED_ROWS)
        return float(np.mean(np.square(self.difference(*(slice(row, row + 1) for row in rows)))))

    def difference(self, *rows: slice) -> np.ndarray:
        """The clipped difference in amplitudes, `(rows, columns)`: 0 where weights are pruned or not finite."""
        ours, theirs = (
            to_float32(np.concatenate([_read_rows(where, info, part) for part in rows]), info.dtype)
            for where, info in ((self.original, self.base_info), (self.model, self.info))
        )
        amplitude = np.concatenate([self.carrier.amplitude[part, None] for part in rows])
        with np.errstate(all="ignore"):
            x = (theirs - ours).reshape(-1, self.base_info.columns) / amplitude
        dropped_mask = ((theirs == 0) | ~np.isfinite(theirs)).reshape(x.shape) | ~np.isfinite(x)
        x[dropped_mask] = 0
        spread = _MAD * float(np.median(np.abs(x.reshape(-1)[:: 1 + x.size // 65536])))
        clip = np.float32(np.clip(CLIP_DEVIATIONS * spread, MIN_CLIP, MAX_CLIP))
        return np.clip(x, -clip, clip, out=x)


def _read_rows(where: Checkpoint, info: TensorInfo, rows: slice) -> np.ndarray:
    return where.read(info, rows.start * info.row_bytes, rows.stop * info.row_bytes)
