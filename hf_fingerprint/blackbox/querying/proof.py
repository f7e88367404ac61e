"""The proof of an accusation by queries, for somebody who has neither the vault nor the model.

It opens the accused's copy key, so that whoever reads it can derive the labels that the copy was made to answer by,
count how many answers in the transcript agree, and work the bound out again. What the key gives away is that copy's
mark alone.

Anybody can make up a file that works out: draw keys until one fits, or write down the answers that a key gives. What
speaks against that is not in the file. The commitment that was published with the copy, which the Hub dates, shows
that the key was there before, so it has to be given to whoever checks. The rest, [`NOT_SHOWN`], is the word of whoever
wrote the proof.

A JSON file: `format` (1), the transcript's heading and answers, and of each accused its record and key. It is about
one base: the alpha in its heading is this base's share of the questioning's, and the recipients are this base's.
"""

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.querying.e_process import log_e_value
from hf_fingerprint.blackbox.querying.query import QueryResult, QueryScore
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
from hf_fingerprint.vault import CopyRecord, Vault, check_outside_vaults, check_recipient
from hf_fingerprint.vault.private_files import partial_file, rename_into_place, write_private
from hf_fingerprint.vault.storage import translate_disk_errors


FORMAT = 1
NOT_SHOWN = (
    "that the suspect gave these answers",
    "that the images, and the order they were asked in, were not chosen to fit the answers",
    "how many copies were tested, and for how many bases and suspects",
    "that the base, its questions and the keys were fixed before the suspect was seen",
)
_HEX_DIGITS = set("0123456789abcdef")


@dataclass(frozen=True)
class AccusationCheck:
    """One accusation, worked out again.

    Attributes:
        recipient (`str`): who is accused.
        suspect (`str`): what answered.
        commitment (`str`): what the key opens: compare it with the copy's model card.
        agreeing, counted (`int`): answers that are the copy's labels, of those to questions that it owns.
        copies (`int`): how many of this base were tested: the bound is over all of them.
        alpha (`float`): the bound that was to be met.
        log10_bound (`float`): decimal logarithm of the bound.
        opened (`bool`): whether the key opens the commitment, for this recipient.
        published (`bool` or `None`): whether the commitment is one that was published; `None` if none was given.
        holds (`bool`): whether the key opens it, the bound is at most alpha, alpha is at most 0.05, and the commitment
            is no other than the published one.
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
        """Accused, if it holds for a published commitment; not readable, if it was not compared with one."""
        if not self.holds:
            return Outcome.NOBODY
        return Outcome.ACCUSED if self.published else Outcome.NOT_READABLE

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON, with what the file alone does not show."""
        return {**asdict(self), "outcome": self.outcome, "not_shown": list(NOT_SHOWN)}


def proof_outcome(checks: Sequence[AccusationCheck]) -> Outcome:
    """What a proof comes to: every accusation in it has to hold, and to be for a published commitment."""
    order = (Outcome.NOBODY, Outcome.NOT_READABLE, Outcome.ACCUSED)
    return min((check.outcome for check in checks), key=order.index)


def write_proof(path: str | Path, transcript: str | Path, result: QueryResult, vault: Vault) -> tuple[Path, ...]:
    """Writes the proof of a query's accusations; the vault must be unlocked.

    Args:
        path (`str` or `Path`): a new file for the accused of one base; those of each further base get
            `FILE.<base id>`.
        transcript (`str` or `Path`): what was given to [`query`].
        result ([`QueryResult`]): its result.
        vault ([`Vault`]): the vault.

    Returns:
        `tuple[Path, ...]`: the files.

    Raises:
        [`FingerprintError`]: if nobody is accused, or a file is there already or can't be written; none is left then.
    """
    accused: dict[str, list[QueryScore]] = {}
    for score in sorted(result.accused, key=lambda score: result.base_ids.index(score.base_id)):
        accused.setdefault(score.base_id, []).append(score)
    if not accused:
        raise FingerprintError(f"Nobody is accused, so there is nothing to prove in {path}.")
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
        for (
            proof_path,
            document,
        ) in documents.items():  # all before the first has its name, which refuses a new attempt
            write_private(partials[proof_path], document)
        for proof_path, partial in partials.items():
            rename_into_place(partial, proof_path)
    return tuple(proof_paths.values())


def _proof_document(transcript: Path, accused: Sequence[CopyRecord], vault: Vault) -> bytes:
    """The proof against recipients of one base."""
    heading, responses = read_transcript(transcript)
    opened = []
    for record in accused:
        opened.append(
            {
                "recipient": record.recipient,
                "content_hash": record.content_hash,
                "commitment": record.commitment,
                "copy_key": vault.copy_key(record).hex(),
            }
        )
    predicted_labels = [[trigger, response] for trigger, response in responses.items()]
    document = {"format": FORMAT, "heading": asdict(heading), "answers": predicted_labels, "accused": opened}
    return json.dumps(document, indent=1).encode()


def check_proof_path(path: str | Path) -> None:
    """Refuses a place for a proof that isn't free, or that is in a vault: a proof is handed on.

    Raises:
        [`FingerprintError`]: if there is a file, or a vault around it.
    """
    check_outside_vaults(Path(path))
    if Path(path).exists():
        raise FingerprintError(f"{path} is there already: name another file for the proof.")


def check_proof(path: str | Path, commitments: Sequence[str] = ()) -> tuple[AccusationCheck, ...]:
    """Works out again what a proof says. A proof that was tampered with doesn't hold.

    Args:
        path (`str` or `Path`): the proof's file.
        commitments (sequence of `str`, *optional*): what was published with the copies of the accused, 64 hexadecimal
            digits each, from wherever it is dated: not from whoever wrote the proof.

    Returns:
        `tuple[Proven, ...]`: one for each accused.

    Raises:
        [`FingerprintError`]: if it is no proof, or what was given is no commitment.
    """
    given = [each.strip().lower() for each in commitments]
    for each, as_given in zip(given, commitments, strict=True):
        if len(each) != 64 or set(each) - _HEX_DIGITS:
            raise FingerprintError(
                f"{ascii(as_given)[:80]} is no commitment: give the 64 hexadecimal digits from the copy's model card."
            )
    try:
        content = read_bounded(path, MAX_PROOF, "a proof", FingerprintError, allow_pipe=True)
        document = _validate(parse_json(content, strict=True), path)
        predicted_labels = np.full(document["heading"]["questions"], -1)
        for trigger, response in document["answers"]:
            if trigger < len(predicted_labels) and response is not None:
                predicted_labels[trigger] = response
        published = _match_published(given, document["accused"])
        return tuple(
            _check_accusation(document["heading"], predicted_labels, opened, published)
            for opened in document["accused"]
        )
    except OSError as error:
        raise FingerprintError(f"{path} can't be read ({error.strerror}): name the proof's file.") from None
    except (
        *(ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError),
        *(CodeError, VaultError),
    ):
        raise FingerprintError(f"{path} is no proof, or is damaged: ask for it again.") from None


def _validate(document: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The document, if it is one; any of the errors above if not."""
    if document["format"] != FORMAT:
        raise FingerprintError(f"{path} has format {ascii(document['format'])[:80]}: take a version that reads it.")
    heading, responses, accused = document["heading"], document["answers"], document["accused"]
    triggers, decoys, classes, recipients = (
        _check_count(heading[name]) for name in ("questions", "decoys", "classes", "recipients")
    )
    keys = {opened["copy_key"].lower() for opened in accused}
    if not 1 <= triggers <= MAX_TRIGGERS or not 1 <= len(keys) == len(accused) <= recipients:
        raise ValueError
    if len(accused) > MAX_ACCUSED or len(accused) * triggers > MAX_PROOF_LABELS:
        raise FingerprintError(
            f"{path} accuses {len(accused)} by {triggers} questions, which takes too long to work out: ask for a "
            f"proof against each of them, or fewer."
        )
    if not 0 < heading["alpha"] < 1 or not heading["suspect"].isprintable():
        raise ValueError
    if len(heading["suspect"]) > MAX_SUSPECT_NAME:
        raise ValueError
    check_trigger_counts(triggers, classes, heading["share"])
    if len({_check_count(trigger) for trigger, _ in responses}) < len(responses):
        raise ValueError
    for trigger, response in responses:
        if not 0 <= trigger < triggers + decoys or (
            response is not None and not 0 <= _check_count(response) < classes
        ):
            raise ValueError
    return document


def _check_count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError
    return number


def _check_accusation(
    heading: dict[str, Any], predicted_labels: np.ndarray, opened: dict[str, str], given: dict[str, bool | None]
) -> AccusationCheck:
    key = bytes.fromhex(opened["copy_key"])
    recipient, claimed_commitments, alpha = opened["recipient"], opened["commitment"], heading["alpha"]
    check_recipient(recipient)
    if len(key) != SECRET_BYTES or len(bytes.fromhex(opened["content_hash"])) != sha256().digest_size:
        raise ValueError  # of other lengths, one commitment would have several openings
    genuine = commitment(key, recipient, opened["content_hash"]) == claimed_commitments
    labels = keyed_labels([key], heading["questions"], heading["classes"])[0]
    own = assigned_triggers([key], heading["questions"], heading["share"])[0] & (predicted_labels >= 0)
    agreeing, counted = int((own & (labels == predicted_labels)).sum()), int(own.sum())
    log_wealth = float(log_e_value(np.array([agreeing]), counted, heading["classes"])[0])
    bound = min(0.0, (math.log(heading["recipients"]) - log_wealth) / math.log(10))
    published = given[claimed_commitments]
    holds = genuine and bound <= math.log10(alpha) and alpha <= MAX_ALPHA and published is not False
    return AccusationCheck(
        recipient,
        heading["suspect"],
        claimed_commitments,
        agreeing,
        counted,
        heading["recipients"],
        alpha,
        bound,
        genuine,
        published,
        holds,
    )


def _match_published(given: Sequence[str], accused: Sequence[dict[str, str]]) -> dict[str, bool | None]:
    """Of each commitment whether it is one of those given; not known, if each of those is another accused's."""
    claimed_commitments = {opened["commitment"] for opened in accused}
    unmatched = None if set(given) <= claimed_commitments else False
    return {each: True if each in set(given) else unmatched for each in claimed_commitments}
