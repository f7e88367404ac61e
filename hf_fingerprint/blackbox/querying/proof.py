"""The proof of an accusation by queries, for a reader who has neither the vault nor the model.

The proof opens the accused's copy key. With it the reader derives the copy's labels, counts the responses in the
transcript that agree, and computes the bound again. The key reveals that copy's mark and nothing else.

A proof can be forged: somebody draws keys until one fits, or writes responses that fit a key. The commitment published
with the copy, which the Hub dates, shows that the key existed before, so give it to [`check_proof`]. Everything else,
[`NOT_SHOWN`], is a claim of the author of the proof.

The file is JSON: `format` (1), the heading and responses of the transcript, and the record and key of each accused. It
covers one base: alpha in its heading is this base's share of the query's, and the recipients are this base's.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.querying.e_process import log_e_value
from hf_fingerprint.blackbox.querying.query import QueryResult, QueryScore
from hf_fingerprint.blackbox.querying.query_table import proof_blocks
from hf_fingerprint.blackbox.querying.transcript import path_for_base, read_transcript
from hf_fingerprint.blackbox.trigger_set.labels import assigned_triggers, check_trigger_counts, keyed_labels
from hf_fingerprint.checkpoints.limits import (
    MAX_ACCUSED,
    MAX_PROOF,
    MAX_PROOF_LABELS,
    MAX_SUSPECT_NAME,
    MAX_TRIGGERS,
    parse_json,
    read_bounded,
)
from hf_fingerprint.codes import MAX_ALPHA
from hf_fingerprint.errors import CodeError, FingerprintError, VaultError
from hf_fingerprint.keys import SECRET_BYTES, commitment
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr
from hf_fingerprint.vault import CopyRecord, Vault, check_outside_vaults, check_recipient
from hf_fingerprint.vault.private_files import partial_file, rename_into_place, write_private
from hf_fingerprint.vault.storage import translate_disk_errors


FORMAT = 1
NOT_SHOWN = (
    "that these are the suspect's responses",
    "that the images and their order were not chosen to fit the responses",
    "how many copies were tested, and for how many bases and suspects",
    "that the base, its trigger set and the keys were fixed before the suspect was seen",
)
_HEX_DIGITS = set("0123456789abcdef")
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, CodeError, VaultError)


@dataclass(frozen=True)
class AccusationCheck:
    """One accusation of a proof, verified.

    Attributes:
        recipient (`str`): the accused.
        suspect (`str`): the suspect's name.
        commitment (`str`): what the key opens; compare it with the copy's model card.
        agreeing (`int`): responses that are the copy's labels.
        counted (`int`): responses to triggers assigned to the copy.
        copies (`int`): the copies of this base that were tested; the bound covers all of them.
        alpha (`float`): the bound that the accusation has to meet.
        log10_bound (`float`): decimal logarithm of the bound.
        opened (`bool`): whether the key opens the commitment for this recipient.
        published (`bool` or `None`): whether the commitment is one that was published; `None` if none was given.
        holds (`bool`): whether the key opens the commitment, the bound is at most alpha, alpha is at most 0.05, and
            `published` is not `False`.
    """

    recipient: str
    suspect: str
    commitment: str
    agreeing: int
    counted: int
    copies: int
    alpha: float
    log10_bound: float
    opened: bool
    published: bool | None
    holds: bool

    @property
    def outcome(self) -> Outcome:
        """Accused if it holds for a published commitment; not readable if no commitment was given."""
        if not self.holds:
            return Outcome.NOBODY
        return Outcome.ACCUSED if self.published else Outcome.NOT_READABLE

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON types, with the claims that the file does not show."""
        return {**asdict(self), "outcome": str(self.outcome), "not_shown": list(NOT_SHOWN)}


@dataclass(frozen=True)
class ProofCheck(PrintableResult):
    """A proof, verified.

    Attributes:
        accusations (`tuple[AccusationCheck, ...]`): one for each accused.
        not_shown (`tuple[str, ...]`): the claims that the proof does not show, so that its author vouches for them.
    """

    accusations: tuple[AccusationCheck, ...]
    not_shown: tuple[str, ...] = NOT_SHOWN

    @property
    def outcome(self) -> Outcome:
        """Accused only if every accusation holds for a published commitment."""
        order = (Outcome.NOBODY, Outcome.NOT_READABLE, Outcome.ACCUSED)
        return min((check.outcome for check in self.accusations), key=order.index)

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON types."""
        accusations = [check.to_dict() for check in self.accusations]
        return {"outcome": str(self.outcome), "accusations": accusations, "not_shown": list(self.not_shown)}

    def blocks(self) -> Iterator[Block]:
        """The lines and the table that show the check, and what remains to be checked."""
        return proof_blocks(self)

    def __repr__(self) -> str:
        accused = tuple(check.recipient for check in self.accusations)
        bound = max(check.log10_bound for check in self.accusations)
        return one_line_repr(self, outcome=str(self.outcome), accused=accused, log10_bound=bound)


def write_proof(path: str | Path, transcript: str | Path, result: QueryResult, vault: Vault) -> tuple[Path, ...]:
    """Writes the proof of a query's accusations.

    Args:
        path (`str` or `Path`): a new file, for the first base with an accusation. That of each other base is
            `PATH.<base id>`.
        transcript (`str` or `Path`): the transcript given to [`query`].
        result ([`QueryResult`]): its result.
        vault ([`Vault`]): it must be unlocked.

    Returns:
        `tuple[Path, ...]`: the files.

    Raises:
        [`FingerprintError`]: if nobody is accused, or a file exists or can't be written. No file is left then.
    """
    accused: dict[str, list[QueryScore]] = {}
    for score in sorted(result.accused, key=lambda score: result.base_ids.index(score.base_id)):
        accused.setdefault(score.base_id, []).append(score)
    if not accused:
        remedy = "query more images, or trace the suspect by its weights"
        raise FingerprintError(f"Nobody is accused, so {path} is not written: {remedy}.")
    proof_paths = {base_id: path_for_base(path, base_id, next(iter(accused))) for base_id in accused}
    for proof_path in proof_paths.values():
        check_proof_path(proof_path)
    documents = {}
    for base_id, scores in accused.items():
        records = {record.copy_id: record for record in vault.copies(base_id)}
        kept = path_for_base(transcript, base_id, result.base_ids[0])
        documents[proof_paths[base_id]] = _proof_document(kept, [records[score.copy_id] for score in scores], vault)
    with translate_disk_errors(f"{path} can't be written", Path(path).parent), ExitStack() as written:
        partials = {proof_path: written.enter_context(partial_file(proof_path)) for proof_path in documents}
        for proof_path, document in documents.items():  # before any rename, as a retry rejects existing files
            write_private(partials[proof_path], document)
        for proof_path, partial in partials.items():
            rename_into_place(partial, proof_path)
    return tuple(proof_paths.values())


def _proof_document(transcript: Path, accused: Sequence[CopyRecord], vault: Vault) -> bytes:
    """The proof against the accused recipients of one base."""
    heading, responses = read_transcript(transcript)
    names = ("recipient", "content_hash", "commitment")
    opened = [
        {**{name: getattr(record, name) for name in names}, "copy_key": vault.copy_key(record).hex()}
        for record in accused
    ]
    pairs = [[trigger, response] for trigger, response in responses.items()]
    document = {"format": FORMAT, "heading": asdict(heading), "answers": pairs, "accused": opened}
    return json.dumps(document, indent=1).encode()


def check_proof_path(path: str | Path) -> None:
    """Checks that a path is free for a proof and outside vaults, as proofs are handed on.

    Raises:
        [`FingerprintError`]: if it isn't.
    """
    check_outside_vaults(Path(path))
    if Path(path).exists():
        raise FingerprintError(f"{path} already exists: name another file for the proof.")


def check_proof(path: str | Path, commitments: Sequence[str] = ()) -> ProofCheck:
    """Verifies the accusations of a proof.

    Args:
        path (`str` or `Path`): the proof's file.
        commitments (sequence of `str`, *optional*): the commitments published with the copies of the accused, 64
            hexadecimal digits each, from a dated source that the author of the proof doesn't control.

    Returns:
        [`ProofCheck`]

    Raises:
        [`FingerprintError`]: if the file is not a proof, or a commitment is not valid.
    """
    given = [each.strip().lower() for each in commitments]
    for each, as_given in zip(given, commitments, strict=True):
        if len(each) != 64 or set(each) - _HEX_DIGITS:
            problem = f"{ascii(as_given)[:80]} is not a commitment"
            raise FingerprintError(f"{problem}: give the 64 hexadecimal digits from the model card.")
    try:
        content = read_bounded(path, MAX_PROOF, "a proof", FingerprintError, allow_pipe=True)
        document = _validate(parse_json(content, strict=True), path)
        predicted = np.full(document["heading"]["questions"], -1)
        for trigger, response in document["answers"]:
            if trigger < len(predicted) and response is not None:
                predicted[trigger] = response
        published = _match_published(given, document["accused"])
        heading, accused = document["heading"], document["accused"]
        return ProofCheck(tuple(_check_accusation(heading, predicted, opened, published) for opened in accused))
    except OSError as error:
        raise FingerprintError(f"{path} can't be read ({error.strerror}): name the proof's file.") from None
    except _DAMAGED:
        raise FingerprintError(f"{path} is not a proof, or is damaged: ask for it again.") from None


def _validate(document: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The document, if it is a proof; raises any of the errors caught above if not."""
    if document["format"] != FORMAT:
        found = f"{path} has format {ascii(document['format'])[:80]}"
        raise FingerprintError(f"{found}, and this version reads {FORMAT}: upgrade hf-fingerprint.")
    heading, responses, accused = document["heading"], document["answers"], document["accused"]
    counts = ("questions", "decoys", "classes", "recipients")
    triggers, decoys, classes, recipients = (_check_count(heading[name]) for name in counts)
    keys = {opened["copy_key"].lower() for opened in accused}
    if not 1 <= triggers <= MAX_TRIGGERS or not 1 <= len(keys) == len(accused) <= recipients:
        raise ValueError
    if len(accused) > MAX_ACCUSED or len(accused) * triggers > MAX_PROOF_LABELS:
        problem = f"{path} accuses {len(accused)} recipients by {triggers} triggers, which takes too long to verify"
        raise FingerprintError(f"{problem}: ask for a proof against fewer of them.")
    suspect = heading["suspect"]
    if not 0 < heading["alpha"] < 1 or not suspect.isprintable() or len(suspect) > MAX_SUSPECT_NAME:
        raise ValueError
    check_trigger_counts(triggers, classes, heading["share"])
    if len({_check_count(trigger) for trigger, _ in responses}) < len(responses):
        raise ValueError
    for trigger, response in responses:
        if trigger >= triggers + decoys or (response is not None and _check_count(response) >= classes):
            raise ValueError
    return document


def _check_count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError
    return number


def _check_accusation(
    heading: dict[str, Any], predicted: np.ndarray, opened: dict[str, str], given: dict[str, bool | None]
) -> AccusationCheck:
    key = bytes.fromhex(opened["copy_key"])
    recipient, claimed, alpha = opened["recipient"], opened["commitment"], heading["alpha"]
    check_recipient(recipient)
    if len(key) != SECRET_BYTES or len(bytes.fromhex(opened["content_hash"])) != sha256().digest_size:
        raise ValueError  # with other lengths a commitment would have several openings
    opens = commitment(key, recipient, opened["content_hash"]) == claimed
    labels = keyed_labels([key], heading["questions"], heading["classes"])[0]
    own = assigned_triggers([key], heading["questions"], heading["share"])[0] & (predicted >= 0)
    agreeing, counted = int((own & (labels == predicted)).sum()), int(own.sum())
    log_wealth = float(log_e_value(np.array([agreeing]), counted, heading["classes"])[0])
    bound = min(0.0, (math.log(heading["recipients"]) - log_wealth) / math.log(10))
    published = given[claimed]
    holds = opens and bound <= math.log10(alpha) and alpha <= MAX_ALPHA and published is not False
    evidence = agreeing, counted, heading["recipients"], alpha, bound
    return AccusationCheck(recipient, heading["suspect"], claimed, *evidence, opens, published, holds)


def _match_published(given: Sequence[str], accused: Sequence[dict[str, str]]) -> dict[str, bool | None]:
    """Whether each claimed commitment is one of those given; `None` if every one given is another accused's."""
    claimed = {opened["commitment"] for opened in accused}
    unmatched = None if set(given) <= claimed else False
    return {each: True if each in set(given) else unmatched for each in claimed}
