"""The proof of an accusation by queries, for somebody who has neither the vault nor the model.

It opens the accused's copy key, so that whoever reads it can derive the labels that the copy was made to answer by,
count how many answers in the transcript agree, and work the bound out again. The commitment in the copy's model card,
which the Hub dates, shows that the key was not made up afterwards. What the key gives away is that copy's mark alone.
That the suspect gave these answers, and how many copies were tested, is the word of whoever wrote the proof.

A JSON file: `format` (1), the transcript's heading and answers, and of each accused its record and key.
"""

import json
import math
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.answers import keyed_labels, owned_questions
from hf_fingerprint.blackbox.evidence import log_stake
from hf_fingerprint.blackbox.querying import QueryResult
from hf_fingerprint.blackbox.transcript import read_transcript
from hf_fingerprint.checkpoints import sync
from hf_fingerprint.errors import CodeError, FingerprintError, VaultError
from hf_fingerprint.keys import commitment
from hf_fingerprint.vault import Vault, check_outside_vaults, check_recipient
from hf_fingerprint.vault.database import write_private


FORMAT = 1
MOST_QUESTIONS = 1 << 16  # that a proof may name: more would fill the memory of whoever checks it


@dataclass(frozen=True)
class Proven:
    """One accusation, worked out again.

    Attributes:
        recipient (`str`): who is accused.
        suspect (`str`): what answered.
        commitment (`str`): what the key opens: compare it with the copy's model card.
        agreeing, counted (`int`): answers that are the copy's labels, of those to questions that it owns.
        copies (`int`): how many were tested: the bound is over all of them.
        alpha (`float`): the bound that was to be met.
        log10_bound (`float`): decimal logarithm of the bound.
        opened (`bool`): whether the key opens the commitment, for this recipient.
        holds (`bool`): whether it does and the bound is at most alpha.
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
    holds: bool


def write_proof(path: str | Path, transcript: str | Path, result: QueryResult, vault: Vault) -> None:
    """Writes the proof of a query's accusations; the vault must be unlocked.

    Raises:
        [`FingerprintError`]: if nobody is accused, or the file is there already.
    """
    path = Path(path)
    if not result.accused:
        raise FingerprintError(f"Nobody is accused, so there is nothing to prove in {path}.")
    heading, answers = read_transcript(transcript)
    records = {record.copy_id: record for record in vault.copies(result.base_id)}
    opened = []
    for score in result.accused:
        record = records[score.copy_id]
        opened.append(
            {
                "recipient": record.recipient,
                "content_hash": record.content_hash,
                "commitment": record.commitment,
                "copy_key": vault.copy_key(record).hex(),
            }
        )
    told = [[question, answer] for question, answer in answers.items()]
    document = {"format": FORMAT, "heading": asdict(heading), "answers": told, "accused": opened}
    check_free(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_private(beside, json.dumps(document, indent=1).encode())
        beside.rename(path)
        sync(path.parent)
    except OSError as error:
        raise FingerprintError(f"{path} can't be written ({error.strerror}): choose another place.") from None
    finally:
        beside.unlink(missing_ok=True)


def check_free(path: str | Path) -> None:
    """Refuses a place for a proof that isn't free, or that is in a vault: a proof is handed on.

    Raises:
        [`FingerprintError`]: if there is a file, or a vault around it.
    """
    check_outside_vaults(Path(path))
    if Path(path).exists():
        raise FingerprintError(f"{path} is there already: name another file for the proof.")


def check_proof(path: str | Path) -> tuple[Proven, ...]:
    """Works out again what a proof says; needs nothing but the file. A proof that was tampered with doesn't hold.

    Raises:
        [`FingerprintError`]: if it is no proof.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        if document["format"] != FORMAT:
            raise FingerprintError(f"{path} has format {document['format']}: take a version that reads it.")
        return tuple(_worked_out(_checked(document), opened) for opened in document["accused"])
    except OSError as error:
        raise FingerprintError(f"{path} can't be read ({error.strerror}): name the proof's file.") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, CodeError, VaultError):
        raise FingerprintError(f"{path} is no proof, or is damaged: ask for it again.") from None


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    heading = document["heading"]
    numbers = [heading[name] for name in ("questions", "classes", "recipients")]
    if any(type(number) is not int or number < 1 for number in numbers) or numbers[0] > MOST_QUESTIONS:
        raise ValueError
    if not 0 < heading["alpha"] < 1 or not heading["suspect"].isprintable():
        raise ValueError
    return document


def _worked_out(document: dict[str, Any], opened: dict[str, str]) -> Proven:
    heading, key = document["heading"], bytes.fromhex(opened["copy_key"])
    recipient, promised, alpha = opened["recipient"], opened["commitment"], heading["alpha"]
    check_recipient(recipient)
    genuine = commitment(key, recipient, opened["content_hash"]) == promised
    asked = {question: answer for question, answer in document["answers"] if answer is not None}
    if len(asked) < sum(answer is not None for _, answer in document["answers"]):
        raise ValueError
    told = np.array([asked.get(question, -1) for question in range(heading["questions"])])
    labels = keyed_labels([key], heading["questions"], heading["classes"])[0]
    own = owned_questions([key], heading["questions"], heading["share"])[0] & (told >= 0)
    agreeing, counted = int((own & (labels == told)).sum()), int(own.sum())
    stake = float(log_stake(np.array([agreeing]), counted, heading["classes"])[0])
    bound = min(0.0, (math.log(heading["recipients"]) - stake) / math.log(10))
    holds = genuine and bound <= math.log10(alpha)
    copies = heading["recipients"]
    return Proven(recipient, heading["suspect"], promised, agreeing, counted, copies, alpha, bound, genuine, holds)
