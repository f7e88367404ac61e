"""From a suspect to the recipients it came from, or to nobody, with a proven bound on false accusation.

```python
result = trace("org/suspect", vault)     # the vault unlocked
for accusation in result.accused:
    print(accusation.recipient, accusation.log10_false_accusation)
```

A suspect on the Hub is read by ranges, look by look, and no further than to the first look that proves an accusation;
`reading/verdict.py` says why that keeps the bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from hf_fingerprint.checkpoints import Checkpoint, RangedCheckpoint, open_checkpoint, open_ranges
from hf_fingerprint.errors import VaultError
from hf_fingerprint.reading import (
    Candidates,
    Looks,
    Reading,
    RecipientScore,
    TraceResult,
    judge,
    names_tell,
    read_suspect,
)
from hf_fingerprint.tracing.finding import CLEARLY, Records, find_base
from hf_fingerprint.vault import Vault, copies_in_training


__all__ = ["RecipientScore", "TraceResult", "trace", "verify"]
DRIFTED = 0.05
Advance = Callable[[str, int, int], None]


def trace(
    suspect: str | Path,
    vault: Vault | str | Path,
    base: str | Path | None = None,
    passphrase: str | None = None,
    advance: Advance | None = None,
    whole: bool = False,
    max_bytes: int | None = None,
    recipient: str | None = None,
) -> TraceResult:
    """Traces a suspect model.

    Args:
        suspect (`str` or `Path`): a folder, a file or a Hub id.
        vault ([`Vault`], `str` or `Path`): the vault, unlocked, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): where the base is, if not where it was registered from, or its id if the
            vault has several alike; by default the registered base that the suspect resembles most.
        passphrase (`str`, *optional*): unlocks the vault.
        advance (callable, *optional*): told `(step, done, total)`.
        whole (`bool`, *optional*, defaults to `False`): whether a suspect on the Hub is downloaded and read whole,
            which may show further colluders, instead of up to the first proof.
        max_bytes (`int`, *optional*): how many bytes of a suspect may be fetched by ranges.
        recipient (`str`, *optional*): tests this recipient's copies alone, as one claim.

    Returns:
        [`TraceResult`]

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way; nobody is accused by an error.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    if recipient is not None and not vault.copies(recipient=recipient):
        raise VaultError(f"{vault.folder} has no copy for {recipient}: see `hf-fingerprint recipients` for the names.")
    looks = 0
    ranged = None if whole else open_ranges(suspect, max_bytes)
    if ranged is not None:
        with ranged:
            result, looks = _trace_by_looks(vault, base, ranged, recipient, advance)
        if result is not None:
            return result
        suspect = f"hf-hub:{ranged.source.name}@{ranged.source.revision}"
    with open_checkpoint(suspect, weights_only=True) as opened:
        records, original = find_base(vault, base, opened)
        with original:
            tested = _candidates(vault, records, recipient)
            readings = _readings(tested, original, opened, advance)
            stage = _stage(advance, "scoring", sum(len(each.keys) for each in tested))
            perhaps = any(_perhaps_disguised(each) for each in readings)
            result = judge(opened, readings, tested, looks + 1 if looks or perhaps else None, stage)
            if perhaps and not result.accused:
                readings = _readings(tested, original, opened, advance, aligned="always")
                result = judge(opened, readings, tested, looks + 2, stage)
        return result


def verify(
    suspect: str | Path,
    recipient: str,
    vault: Vault | str | Path,
    base: str | Path | None = None,
    passphrase: str | None = None,
    advance: Advance | None = None,
    whole: bool = False,
    max_bytes: int | None = None,
) -> TraceResult:
    """Tests one claim: that a suspect comes from a recipient's copy. Nobody else is scored, and the bound is that of
    one claim: an innocent recipient is accused with probability at most alpha.

    Args:
        suspect (`str` or `Path`): a folder, a file or a Hub id.
        recipient (`str`): whose copy it is said to be.
        vault ([`Vault`], `str` or `Path`): see [`trace`], as for the rest.

    Returns:
        [`TraceResult`]: the claim is confirmed if somebody is accused.

    Raises:
        [`VaultError`]: if the vault has no copy for the recipient.
    """
    return trace(suspect, vault, base, passphrase, advance, whole, max_bytes, recipient)


def _readings(
    tested: Sequence[Candidates],
    original: Checkpoint,
    suspect: Checkpoint,
    advance: Advance | None,
    aligned: bool | Literal["always"] = True,
) -> list[Reading]:
    found = []
    for each in tested:
        told, total = advance if each is tested[0] else None, each.base.carrier_weights
        reading, aligning = (_stage(told, step, total) for step in ("reading", "aligning"))
        found.append(read_suspect(each.base, original, suspect, reading, aligned, aligning))
    return found


def _perhaps_disguised(reading: Reading) -> bool:
    """Whether a suspect that lines up drifted so far that a small change of basis could be what moved it."""
    return reading.lineage.descends and reading.lineage.drift > DRIFTED and not reading.aligned


def _trace_by_looks(
    vault: Vault,
    place: str | Path | None,
    suspect: RangedCheckpoint,
    recipient: str | None,
    advance: Advance | None,
) -> tuple[TraceResult | None, int]:
    """Reads a suspect on the Hub up to the first look that accuses somebody.

    Returns:
        `(result, looks)`: nothing, if names don't tell which tensor is which and the whole is needed to find out; and
        how many looks were judged.
    """
    bases = vault.bases()
    if bases and not any(names_tell(base, suspect) for base in bases):
        return None, 0
    records, original = find_base(vault, place, suspect)
    with original:
        if not names_tell(records[0], suspect):
            return None, 0
        tested = _candidates(vault, records, recipient)
        looks = Looks([each.base for each in tested], original, suspect)
        total, copies = tested[0].base.carrier_weights, sum(len(each.keys) for each in tested)
        seen = suspect.max_bytes is not None
        for look, readings in enumerate(looks.readings(_stage(advance, "reading", total)), 1):
            result = judge(suspect, readings, tested, look, _stage(advance, f"scoring, look {look}", copies))
            if result.accused:
                break
            if result.weights_read and not seen and not result.lineage.descends:
                return None, look  # a stranger, or a copy whose tensors were given each other's names
            seen |= result.weights_read > 0
        if not result.accused and suspect.max_bytes is None and result.lineage.cosine < CLEARLY:
            return None, look  # perhaps its channels stand in another order, which the whole would show
    result = replace(
        result,
        bytes_fetched=suspect.bytes_fetched,
        bytes_total=suspect.total_bytes,
        requests=suspect.requests,
        complete=looks.complete,
    )
    return result, look


def _candidates(vault: Vault, records: Records, recipient: str | None) -> list[Candidates]:
    """The copies to test of each record of a base, and of a base without copies its first record."""
    training = copies_in_training(vault)  # their checkpoints may have left the house before they are recorded
    found = []
    for base in records:
        copies = [c for c in vault.copies(base.base_id, recipient) if c.state != "begun" or c.copy_id in training]
        found.append(Candidates(base, copies, vault.copy_keys(copies)))
    if recipient is not None and not any(each.copies for each in found):
        raise VaultError(
            f"{vault.folder} has no copy of base {records[0].base_id} for {recipient}, and this suspect resembles "
            f"that base: see `hf-fingerprint recipients`, or give another --base."
        )
    return [each for each in found if each.copies] or found[:1]


def _stage(advance: Advance | None, step: str, total: int) -> Callable[[int], None] | None:
    return None if advance is None else lambda done: advance(step, done, total)
