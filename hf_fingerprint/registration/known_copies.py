"""Whether a model that is to be registered is a copy of a base on record, as it was issued or changed since.

A copy as it was issued is known by its content hash. One that was saved again, cast, or given a new head is known by
its mark, and no copy key is needed for that: all weights of a position carry the same bit. With
`x = (w - w_base) / a`, clipped and weighted by what the sizes of x alone say, s the base's keyed signs and

    y_i = sum of s_k x_k,   v_i = sum of x_k^2   over the weights k of position i,

a copy has `y_i^2` near `m v_i`, m being the weights of a position. A model that was made without the base's secret has
an x that does not depend on the signs, whatever its drift, so each `y_i` is a Rademacher sum, its square is no more
than a normal number's, and

    P(sum of y_i^2 - v_i >= z) <= exp(-l z) times the product of exp(-l v_i) / sqrt(1 - 2 l v_i)   for every l >= 0.

The bound rests on the keyed generator being pseudo-random, and on nothing else. At 1e-12 or less the model is a copy.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from hf_fingerprint.carriers import TensorProjection, fold
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import FingerprintWarning
from hf_fingerprint.registration.content import open_local_base, weights_hash
from hf_fingerprint.vault import Base, Carrier, Vault


MAX_LOG_FALSE_MATCH = math.log(1e-12)  # of refusing a model that was made without the secret, for each base on record
EARLY_STOP_FACTOR = 4.0  # times LOG_CHANCE: weights are read until a copy would show that clearly
MAX_WEIGHTS, MIN_PER_POSITION = 1 << 22, 4
SAMPLED_ROWS = 4
CLIP_DEVIATIONS, MIN_CLIP, MAX_CLIP = 3.0, 1.5, 1e6
MIN_DRIFT = 0.01  # a variance below that of an average of 100 copies
_MAD = 1.4826
Matches = dict[str, TensorInfo]


@dataclass(frozen=True)
class Origin:
    """The base that a model is a copy of.

    Attributes:
        base ([`Base`]): its record.
        recipient (`str` or `None`): whose copy it is, where its content hash is on record.
    """

    base: Base
    recipient: str | None = None

    def refusal(self, where: str) -> str:
        """Why the model can't be a base, and what to do."""
        named = f"base {self.base.base_id} ({self.base.source})"
        what = f"carries the mark of {named}, so it is a copy that was changed"
        if self.recipient is not None:
            what = f"is {self.recipient}'s copy of {named}"
        return (
            f"{where} {what}: give that base itself, or register the copy as a base all the same with --as-base "
            f"(as_base=True)."
        )


def find_origin(model: Checkpoint, vault: Vault) -> Origin | None:
    """The base on record that a model is a copy of, or carries the mark of; `None` if there is none.

    Bases whose files are not on this machine, or are no longer what was registered, are left out with a
    [`FingerprintWarning`] that names them. At most 4 million weights of a base are read, and a few rows of one whose
    weights are too far from the model's.

    Args:
        model ([`Checkpoint`]): the open model, whose content hash is no base's.
        vault ([`Vault`]): the vault; it need not be unlocked.

    Raises:
        [`VaultError`]: if it is a copy on record whose base's record can't be used.
    """
    model_hash = weights_hash(model, vault)
    for copy in vault.copies():
        if copy.content_hash == model_hash:
            return Origin(vault.base(copy.base_id), copy.recipient)
    base = _find_marked_base(model, vault.bases(), vault)
    return None if base is None else Origin(base)


def _find_marked_base(model: Checkpoint, bases: Sequence[Base], vault: Vault) -> Base | None:
    """The base whose mark shows most clearly, if any does."""
    by_name = {normalize_name(name): info for name, info in model.tensors.items() if info.dtype in READABLE}
    records_by_hash: dict[str, list[tuple[Base, Matches]]] = defaultdict(list)
    for base in bases:
        matches = _match(base, by_name)
        if len(matches) >= len(base.carriers) / 2:
            records_by_hash[base.content_hash].append((base, matches))
    found, lowest = None, MAX_LOG_FALSE_MATCH
    unread: list[Base] = []
    for records in records_by_hash.values():  # of the same weights: one look at the files serves all
        original = next(filter(None, (open_local_base(base, vault) for base, _ in records)), None)
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
        warnings.warn(
            f"{model.source.name} could not be compared with base {named}, whose files are not here or have changed: "
            f"make sure that it is no copy of it.",
            FingerprintWarning,
            stacklevel=2,
        )
    return found


def _match(base: Base, by_name: Matches) -> Matches:
    """Carriers to the model's tensors of the same normalised name and the same shape."""
    found = {carrier.name: by_name.get(normalize_name(carrier.name)) for carrier in base.carriers}
    return {name: info for name, info in found.items() if info is not None and info.shape == base.tensors[name].shape}


def log_false_match_bound(base: Base, original: Checkpoint, model: Checkpoint, matches: Matches) -> float:
    """A bound on the log-probability that a model made without the base's secret agrees with its projection as well
    as this one; 0 where the weights are too far apart for a mark to be seen.

    Args:
        base ([`Base`]): the record.
        original ([`Checkpoint`]): its open files.
        model ([`Checkpoint`]): the open model.
        matches (`dict[str, TensorInfo]`): the model's tensors by the names of their carriers.
    """
    pairs = [_CarrierPair(c, original, model, matches[c.name]) for c in base.carriers if c.name in matches]
    drift = {pair: pair.sample_drift() for pair in pairs}
    drifted = sorted(
        (pair for pair in pairs if drift[pair] >= MIN_DRIFT), key=lambda pair: (drift[pair], -pair.weights)
    )
    nearly_equal = sorted((pair for pair in pairs if 0 < drift[pair] < MIN_DRIFT), key=lambda pair: -drift[pair])
    informative_weights = weights = 0.0
    for pair in drifted:
        count = min(pair.weights, MAX_WEIGHTS - weights)
        informative_weights, weights = informative_weights + count / max(drift[pair], 1.0), weights + count
    if not nearly_equal and _expected_log_bound(informative_weights, weights, base.length) > MAX_LOG_FALSE_MATCH / 2:
        return 0.0
    y, v = np.zeros(base.length), np.zeros(base.length)
    informative_weights = weights = 0.0
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
            informative_weights += x.size / max(variance, 1.0) if variance >= MIN_DRIFT else 0.0
            enough = weights >= MIN_PER_POSITION * base.length
            if weights >= MAX_WEIGHTS or (
                enough
                and _expected_log_bound(informative_weights, weights, base.length)
                <= EARLY_STOP_FACTOR * MAX_LOG_FALSE_MATCH
            ):
                return _log_bound(y, v)
    return _log_bound(y, v)


def _expected_log_bound(informative_weights: float, weights: float, length: int) -> float:
    """About the bound that a copy's weights would give: of so many weights, as many as so many that did not drift."""
    excess = informative_weights / length * max(0.0, 1 - length / weights) if weights else 0.0
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
        rows = sorted({int(row) for row in np.linspace(0, self.base_info.rows - 1, SAMPLED_ROWS)})
        return float(np.mean(np.square(self.difference(*(slice(row, row + 1) for row in rows)))))

    def difference(self, *rows: slice) -> np.ndarray:
        """Some rows' difference in amplitudes, clipped: `float32` of shape `(rows, columns)`; 0 where the model's
        weights are pruned or not numbers."""
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
    """The bytes of some rows."""
    return where.read(info, rows.start * info.row_bytes, rows.stop * info.row_bytes)
