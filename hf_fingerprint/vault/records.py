"""What the vault remembers: bases and copies, as frozen dataclasses. Secrets never show in a `repr`."""

import unicodedata
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hf_fingerprint.codes import Codebook, make_codebook
from hf_fingerprint.errors import VaultError


MAX_RECIPIENT = 255  # characters, as many as a folder's name has bytes


def check_recipient(recipient: str) -> None:
    """Refuses what can't be a recipient's name."""
    if not recipient.strip() or len(recipient) > MAX_RECIPIENT or not recipient.isprintable():
        raise VaultError(f"A recipient's name must have 1 to {MAX_RECIPIENT} printable characters.")


def canonical_recipient(recipient: str) -> str:
    """A recipient's name as it is recorded: composed (NFC), since keyboards and file systems spell one name in several
    ways, and without blanks around it.

    Raises:
        [`VaultError`]: if it can't be a name.
    """
    check_recipient(recipient)
    return normalize_recipient(recipient)


def normalize_recipient(recipient: str) -> str:
    """The one spelling of a name; see [`canonical_recipient`]."""
    return unicodedata.normalize("NFC", recipient).strip()


def same_recipient(one: str, other: str) -> bool:
    """Whether two names are one recipient's, however they are spelled."""
    return one == other or normalize_recipient(one) == normalize_recipient(other)


def recipient_spellings(recipient: str) -> tuple[str, ...]:
    """The spellings of a name, without blanks around it, that records from before [`canonical_recipient`] may have."""
    forms = (recipient, *(unicodedata.normalize(form, recipient) for form in ("NFC", "NFD")))
    return tuple(dict.fromkeys(form.strip() for form in forms))


class TensorRecord(NamedTuple):
    """A tensor of a base as it was registered."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Carrier:
    """A tensor that holds the mark.

    Attributes:
        name (`str`): its name in the base's files.
        eps (`float`): amplitude relative to the rows' root mean square.
        amplitude (`np.ndarray` of shape `(rows,)`): the mark's size in each output channel, `float32`.
    """

    name: str
    eps: float
    amplitude: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Calibration:
    """What the mark does to the output, measured once when the base was registered.

    Attributes:
        inputs (`str`): `"images"` (the user's), `"synthetic"`, or `"none"` when the output could not be measured.
        images (`int`): how many.
        max_kl (`float`): the budget, in nats.
        kl (`float` or `None`): measured mean divergence between base and marked copies, for its kind of output.
        agreement (`float` or `None`): measured share of equal decisions.
        output (`str` or `None`): the kind of output that was measured; `None` in records made before there were kinds,
            when every output counted as the logits of a softmax.
        decisions, agreeing (`int` or `None`): how many decisions were compared, and how many are the same.
        kl_low, kl_high, agreement_low, agreement_high (`float` or `None`): 95 % intervals.
        kl_scatter (`float` or `None`): standard deviation of one copy's divergence about the mean.
        eps (`float` or `None`): the fixed strength that was asked for instead of a budget.
    """

    inputs: str
    images: int
    max_kl: float
    kl: float | None
    agreement: float | None
    output: str | None = None
    decisions: int | None = None
    agreeing: int | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    kl_scatter: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    eps: float | None = None


@dataclass(frozen=True)
class CompactMark:
    """A mark in few tensors that lie together.

    Attributes:
        share (`float`): the share of the weights' bytes that may differ between copies.
        spread_score (`float`): the score that a leak of the same model marked everywhere is expected to have after a
            drift of 2 %, by formula.
    """

    share: float
    spread_score: float


@dataclass(frozen=True)
class Base:
    """A registered model: everything that its copies share.

    Attributes:
        base_id (`str`): the first 8 digits of its content hash, and 4 that tell this registration from another
            issuer's of the same model.
        source (`str`): the path or Hub id it was registered from.
        revision (`str` or `None`): the pinned commit, for a model from the Hub.
        content_hash (`str`): see [`content_hash`].
        tensors (`dict[str, TensorRecord]`): all its tensors.
        carriers (`tuple[Carrier, ...]`): those that hold the mark.
        family (`str`): the code's family.
        length (`int`): V.
        coalition (`int`): the number of colluders that the code is designed for.
        certified (`int`): the coalition size that it withstands.
        certified_by (`str`): how that is known.
        alpha (`float`): the bound on accusing any innocent, for each trace.
        recipients_planned (`int`): the number of recipients that `certified` was worked out for.
        calibration ([`Calibration`]): what the mark does to the output.
        secret (`bytes`): the model secret.
        compact ([`CompactMark`] or `None`): if it is marked in few tensors only.
        replaces (`str` or `None`): the id of the record of the same weights that this one replaces for new copies.
        copy_of (`str` or `None`): the id of the base that these weights are a copy of, if a copy was registered as a
            base on purpose. Its copies carry the marks of both.
    """

    base_id: str
    source: str
    revision: str | None
    content_hash: str
    tensors: dict[str, TensorRecord] = field(repr=False)
    carriers: tuple[Carrier, ...] = field(repr=False)
    family: str
    length: int
    coalition: int
    certified: int
    certified_by: str
    alpha: float
    recipients_planned: int
    calibration: Calibration
    secret: bytes = field(repr=False)
    compact: CompactMark | None = None
    replaces: str | None = None
    copy_of: str | None = None

    def codebook(self) -> Codebook:
        """The code of this base."""
        return make_codebook(self.family, self.length, self.coalition, self.secret)

    @property
    def carrier_weights(self) -> int:
        """N, the number of weights that hold the mark."""
        return sum(int(np.prod(self.tensors[carrier.name].shape)) for carrier in self.carriers)

    def describe(self) -> dict[str, Any]:
        """What may be shown of it: no secret, no amplitudes."""
        measured = asdict(self.calibration)
        optional: dict[str, Any] = {} if self.compact is None else {"compact": asdict(self.compact)}
        if self.replaces is not None:
            optional["replaces"] = self.replaces
        if self.copy_of is not None:
            optional["copy_of"] = self.copy_of
        return {
            "base": self.base_id,
            "source": self.source,
            "revision": self.revision,
            "content_hash": self.content_hash,
            "carriers": len(self.carriers),
            "carrier_weights": self.carrier_weights,
            "code": self.family,
            "length": self.length,
            "coalition_designed": self.coalition,
            "coalition_certified": self.certified,
            "certified_by": self.certified_by,
            "alpha": self.alpha,
            "recipients_planned": self.recipients_planned,
            "calibration_inputs": measured.pop("inputs"),
            "calibration_images": measured.pop("images"),
            "fixed_eps": measured.pop("eps"),
            **measured,
            **optional,
        }


@dataclass(frozen=True)
class CopyRecord:
    """Who got what.

    Attributes:
        copy_id (`str`): random, 16 hexadecimal digits.
        base_id (`str`): the base it was made from.
        recipient (`str`): whose it is.
        state (`str`): `"begun"`, `"written"` (complete, not yet in its place) or `"issued"`.
        out (`str`): where it was written.
        content_hash (`str` or `None`): the hash of its weights, once written.
        commitment (`str` or `None`): see [`commitment`].
        created (`str`): UTC, ISO 8601.
        sealed (`bytes`): the copy key, sealed to the tracing identity.
    """

    copy_id: str
    base_id: str
    recipient: str
    state: str
    out: str
    content_hash: str | None
    commitment: str | None
    created: str
    sealed: bytes = field(repr=False)

    def describe(self) -> dict[str, Any]:
        """What may be shown of it."""
        return {
            "recipient": self.recipient,
            "copy": self.copy_id,
            "base": self.base_id,
            "state": self.state,
            "out": self.out,
            "created": self.created,
            "content_hash": self.content_hash,
            "commitment": self.commitment,
        }
