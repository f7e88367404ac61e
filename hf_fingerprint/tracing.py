"""From a suspect to the recipients it came from, or to nobody, with a proven bound on false accusation.

```python
result = trace("org/suspect", vault)     # the vault unlocked
for accusation in result.accused:
    print(accusation.recipient, accusation.log10_false_accusation)
```
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints import Checkpoint, open_checkpoint
from hf_fingerprint.codes import decode
from hf_fingerprint.errors import VaultError
from hf_fingerprint.reading import (
    Lineage,
    Reading,
    match_names,
    match_tensors,
    read_suspect,
    sample_cosine,
    shapes_in_common,
)
from hf_fingerprint.registration import open_base, weights_hash
from hf_fingerprint.vault import Base, CopyRecord, Vault, copies_in_training


_TIE, _CLEARLY = 0.05, 0.9


@dataclass(frozen=True)
class RecipientScore:
    """One copy's score.

    Attributes:
        recipient (`str`): whose copy it is.
        copy_id (`str`): its record in the vault.
        score (`float`): in standard deviations of an innocent's score.
        log10_false_accusation (`float`): decimal logarithm of a bound on the probability that any innocent in the
            vault would score so high in this trace, whatever was done to the suspect.
        accused (`bool`): whether that is at most alpha.
    """

    recipient: str
    copy_id: str
    score: float
    log10_false_accusation: float
    accused: bool


@dataclass(frozen=True)
class TraceResult:
    """What a trace found.

    Attributes:
        suspect (`str`): the suspect's path or Hub id.
        revision (`str` or `None`): its commit, if it came from the Hub.
        base (`str`): the base it was read against.
        base_source (`str`): where that came from.
        accused (`tuple[RecipientScore, ...]`): those whose bound is at most alpha, surest first; often nobody.
        scores (`tuple[RecipientScore, ...]`): everybody, highest first.
        recipients_tested (`int`): copies in the vault that were tested.
        tensors_matched (`int`): carriers found in the suspect.
        tensors_marked (`int`): carriers there are.
        weights_read (`int`): weights compared.
        weights_dropped (`int`): weights that said nothing (exactly 0, or not finite).
        lineage ([`Lineage`]): whether the suspect descends from the base at all.
        alpha (`float`): the bound on accusing any innocent.
        threshold (`float`): the score from which on this suspect's reading accuses, in the first round.
        rounds (`int`): rounds of joint decoding.
    """

    suspect: str
    revision: str | None
    base: str
    base_source: str
    accused: tuple[RecipientScore, ...]
    scores: tuple[RecipientScore, ...]
    recipients_tested: int
    tensors_matched: int
    tensors_marked: int
    weights_read: int
    weights_dropped: int
    lineage: Lineage
    alpha: float
    threshold: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: numbers, strings, lists; a threshold that nothing can reach is `None`."""
        found = asdict(self)
        found["threshold"] = self.threshold if math.isfinite(self.threshold) else None
        return found


def trace(
    suspect: str | Path,
    vault: Vault | str | Path,
    base: str | Path | None = None,
    passphrase: str | None = None,
    advance: Callable[[str, int, int], None] | None = None,
) -> TraceResult:
    """Traces a suspect model.

    Args:
        suspect (`str` or `Path`): a folder, a file or a Hub id.
        vault ([`Vault`], `str` or `Path`): the vault, unlocked, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): where the base is, if not where it was registered from, or its id if the
            vault has several alike; by default the registered base that the suspect resembles most.
        passphrase (`str`, *optional*): unlocks the vault.
        advance (callable, *optional*): told `(step, done, total)`.

    Returns:
        [`TraceResult`]

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way; nobody is accused by an error.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    with open_checkpoint(suspect, weights_only=True) as opened:
        record, original = _find_base(vault, base, opened)
        with original:
            reading = read_suspect(record, original, opened, _stage(advance, "reading", record.carrier_weights))
        training = copies_in_training(vault)  # their checkpoints may have left the house before they are recorded
        copies = [c for c in vault.copies(record.base_id) if c.state != "begun" or c.copy_id in training]
        keys = vault.copy_keys(copies)
        return judge(record, opened, reading, copies, keys, advance)


def judge(
    base: Base,
    suspect: Checkpoint,
    reading: Reading,
    copies: Sequence[CopyRecord],
    keys: Sequence[bytes],
    advance: Callable[[str, int, int], None] | None = None,
) -> TraceResult:
    """Turns a reading into a verdict on each copy.

    Args:
        base ([`Base`]): the base.
        suspect ([`Checkpoint`]): where the reading is from.
        reading ([`Reading`]): the reading.
        copies (sequence of [`CopyRecord`]): the copies to test.
        keys (sequence of `bytes`): their copy keys.
        advance (callable, *optional*): told `(step, done, total)`.
    """
    stage = _stage(advance, "scoring", len(keys))
    decoded = decode(base.codebook(), keys, reading.values, reading.mass, base.alpha, advance=stage)
    accused = set(decoded.accused)
    scores = [
        RecipientScore(
            copy.recipient,
            copy.copy_id,
            float(decoded.scores[i]),
            float(decoded.log_bounds[i] / math.log(10)),
            i in accused,
        )
        for i, copy in enumerate(copies)
    ]
    ranked = tuple(sorted(scores, key=lambda s: (s.log10_false_accusation, -s.score)))
    return TraceResult(
        suspect=suspect.source.name,
        revision=suspect.source.revision,
        base=base.base_id,
        base_source=base.source,
        accused=tuple(score for score in ranked if score.accused),
        scores=ranked,
        recipients_tested=len(copies),
        tensors_matched=reading.tensors_matched,
        tensors_marked=len(base.carriers),
        weights_read=reading.weights_read,
        weights_dropped=reading.weights_dropped,
        lineage=reading.lineage,
        alpha=base.alpha,
        threshold=decoded.threshold,
        rounds=decoded.rounds,
    )


def _find_base(vault: Vault, place: str | Path | None, suspect: Checkpoint) -> tuple[Base, Checkpoint]:
    bases = vault.bases()
    if not bases:
        raise VaultError(f"{vault.folder} holds no base: nothing was issued from it, so nobody can be traced.")
    if place is not None:
        return _named_base(bases, vault, place)
    shares = [
        max(len(match_names(base, suspect)), shapes_in_common(base, suspect)) / len(base.carriers) for base in bases
    ]
    likely = [base for base, share in zip(bases, shares, strict=True) if share >= max(shares) - _TIE]
    if len(likely) == 1:
        return likely[0], open_base(likely[0], vault)
    return _closest(likely, vault, suspect)


def _named_base(bases: Sequence[Base], vault: Vault, place: str | Path) -> tuple[Base, Checkpoint]:
    """The base with this id, or whose weights are at this place."""
    named = [base for base in bases if base.base_id == str(place)]
    if named:
        return named[0], open_base(named[0], vault)
    original = open_checkpoint(place, weights_only=True)
    found = weights_hash(original, vault)
    registered = next((base for base in bases if base.content_hash == found), None)
    if registered is None:
        original.close()
        raise VaultError(
            f"{place} is not a base of {vault.folder}: its weights' hash is not on record; give the base itself."
        )
    return registered, original


def _closest(bases: Sequence[Base], vault: Vault, suspect: Checkpoint) -> tuple[Base, Checkpoint]:
    """Of several bases of one architecture, the one whose weights the suspect's are most like.

    One whose files are gone can't be compared; that is an error unless another is clearly the one.
    """
    likeness: dict[str, float] = {}
    gone: list[VaultError] = []
    for base in bases:
        try:
            with open_base(base, vault) as original:
                matches = match_tensors(base, original, suspect)
                likeness[base.base_id] = sample_cosine(base, original, matches, suspect)
        except VaultError as error:
            gone.append(error)
    if gone and max(likeness.values(), default=0.0) < _CLEARLY:
        raise gone[0]
    best = max(bases, key=lambda base: likeness.get(base.base_id, -2.0))
    return best, open_base(best, vault)


def _stage(advance: Callable[[str, int, int], None] | None, step: str, total: int) -> Callable[[int], None] | None:
    return None if advance is None else lambda done: advance(step, done, total)
