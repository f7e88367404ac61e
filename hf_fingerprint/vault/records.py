"""Bases and records of copies, as frozen dataclasses. No `repr` shows a secret."""

import unicodedata
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np

from hf_fingerprint.codes import Codebook, make_codebook
from hf_fingerprint.errors import VaultError
from hf_fingerprint.tables import one_line_repr


MAX_RECIPIENT = 255  # characters; a folder's name may have as many bytes


def check_recipient(recipient: str) -> None:
    """Raises an error if a name can't be a recipient's."""
    if not recipient.strip() or len(recipient) > MAX_RECIPIENT or not recipient.isprintable():
        raise VaultError(f"A recipient's name must have 1 to {MAX_RECIPIENT} printable characters.")


def canonical_recipient(recipient: str) -> str:
    """A recipient's name as it is recorded: in Unicode form NFC, since keyboards and file systems encode a name in
    several ways, and stripped.

    Raises:
        [`VaultError`]: if it can't be a name.
    """
    check_recipient(recipient)
    return normalize_recipient(recipient)


def normalize_recipient(recipient: str) -> str:
    """[`canonical_recipient`] without the check."""
    return unicodedata.normalize("NFC", recipient).strip()


def same_recipient(one: str, other: str) -> bool:
    """Whether two names are the same after normalization."""
    return one == other or normalize_recipient(one) == normalize_recipient(other)


def recipient_spellings(recipient: str) -> tuple[str, ...]:
    """The encodings of a name, stripped, that old records may have; see [`canonical_recipient`]."""
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
        eps (`float`): the amplitude relative to the rows' root mean square.
        amplitude (`np.ndarray` of shape `(rows,)`): the amplitude in each output channel, `float32`.
    """

    name: str
    eps: float
    amplitude: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Calibration:
    """The effect of the mark on the output, measured when the base was registered.

    Attributes:
        inputs (`str`): `"images"` (the user's), `"synthetic"`, or `"none"` if the output could not be measured.
        images (`int`): the number of images.
        max_kl (`float`): the budget, in nats.
        kl (`float` or `None`): the mean divergence between the base and marked copies, for its kind of output.
        agreement (`float` or `None`): the share of equal decisions.
        output (`str` or `None`): the kind of output; `None` in old records, which took any output for softmax logits.
        decisions, agreeing (`int` or `None`): the number of decisions, and of equal ones.
        kl_low, kl_high, agreement_low, agreement_high (`float` or `None`): 95 % intervals.
        kl_scatter (`float` or `None`): the standard deviation of single copies' divergences.
        eps (`float` or `None`): the fixed relative amplitude, if one was chosen instead of a budget.
        min_agreement (`float` or `None`): the smallest share of equal decisions that the budget allows, if it has one.
        predicted_agreement, predicted_agreement_low (`float` or `None`): the agreement by extrapolation, which has
            less sampling noise than a count, and its lower limit (97.5 %).
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
    min_agreement: float | None = None
    predicted_agreement: float | None = None
    predicted_agreement_low: float | None = None


@dataclass(frozen=True)
class CompactMark:
    """A mark in few tensors that are adjacent in the file.

    Attributes:
        share (`float`): the share of the weights' bytes that may differ between copies.
        spread_score (`float`): the expected score, by formula, of a leaked, fully marked copy after a drift of 2 %.
    """

    share: float
    spread_score: float


@dataclass(frozen=True)
class Ancestor:
    """The public model that a base was fine-tuned from.

    Attributes:
        source (`str`): the path or Hub id it was recorded from.
        revision (`str` or `None`): the pinned commit, for a model from the Hub.
        content_hash (`str`): see [`content_hash`].
    """

    source: str
    revision: str | None
    content_hash: str

    @property
    def place(self) -> str:
        """The source with its revision, to show."""
        return self.source if self.revision is None else f"{self.source}@{self.revision}"


@dataclass(frozen=True)
class Base:
    """A registered model: everything that its copies share.

    Attributes:
        base_id (`str`): the first 8 digits of its content hash, and 4 that distinguish registrations of one model.
        source (`str`): the path or Hub id it was registered from.
        revision (`str` or `None`): the pinned commit, for a model from the Hub.
        content_hash (`str`): see [`content_hash`].
        tensors (`dict[str, TensorRecord]`): all tensors.
        carriers (`tuple[Carrier, ...]`): the tensors that hold the mark.
        family (`str`): the code's family.
        length (`int`): the code's length V.
        coalition (`int`): the number of colluders that the code is designed for.
        certified (`int`): the coalition size that it withstands.
        certified_by (`str`): how `certified` was determined.
        alpha (`float`): the bound on accusing any innocent recipient, per trace.
        expected_recipients (`int`): the number of recipients that `certified` holds for.
        calibration ([`Calibration`]): the effect of the mark on the output.
        secret (`bytes`): the model secret.
        compact ([`CompactMark`] or `None`): set if only few tensors are marked.
        replaces (`str` or `None`): the id of the record of the same weights that this one replaces for new copies.
        copy_of (`str` or `None`): the id of the base that these weights are a copy of, if a copy was deliberately
            registered as a base. Its copies carry both marks.
        ancestor ([`Ancestor`] or `None`): the public model that it was fine-tuned from. It changes no copy, so it is
            the one field of a record that may be set later.
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
    expected_recipients: int
    calibration: Calibration
    secret: bytes = field(repr=False)
    compact: CompactMark | None = None
    replaces: str | None = None
    copy_of: str | None = None
    ancestor: Ancestor | None = None

    def __repr__(self) -> str:
        shown = {"source": self.source, "revision": self.revision, "code": self.family, "certified": self.certified}
        return one_line_repr(self, base_id=self.base_id, **shown)

    def codebook(self) -> Codebook:
        """The code of this base."""
        return make_codebook(self.family, self.length, self.coalition, self.secret)

    @property
    def carrier_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the carriers, by their names."""
        return {carrier.name: self.tensors[carrier.name].shape for carrier in self.carriers}

    @property
    def carrier_weights(self) -> int:
        """The number N of weights that hold the mark."""
        return sum(map(prod, self.carrier_shapes.values()))

    def optional_fields(self) -> dict[str, Any]:
        """The fields `compact`, `replaces`, `copy_of` and `ancestor`, if set, for JSON."""
        compact = None if self.compact is None else asdict(self.compact)
        ancestor = None if self.ancestor is None else asdict(self.ancestor)
        found = {"compact": compact, "replaces": self.replaces, "copy_of": self.copy_of, "ancestor": ancestor}
        return {name: value for name, value in found.items() if value is not None}

    def describe(self) -> dict[str, Any]:
        """The fields to show: no secret, no amplitudes."""
        measured = asdict(self.calibration)
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
            "expected_recipients": self.expected_recipients,
            "calibration_inputs": measured.pop("inputs"),
            "calibration_images": measured.pop("images"),
            "fixed_amplitude": measured.pop("eps"),
            **measured,
            **self.optional_fields(),
        }


@dataclass(frozen=True)
class CopyRecord:
    """The record of a copy: who got what.

    Attributes:
        copy_id (`str`): 16 random hexadecimal digits.
        base_id (`str`): the base of the copy.
        recipient (`str`): the recipient.
        state (`str`): `"begun"`, `"written"` (complete, but not at its final path) or `"issued"`.
        out (`str`): the path of the copy.
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
        """The fields to show: no key."""
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
