"""From a suspect to the recipients it came from, or to nobody, with a proven bound on false accusation.

```python
result = trace("org/suspect", vault)     # the vault unlocked
for accusation in result.accused:
    print(accusation.recipient, accusation.log10_false_accusation)
```

A suspect on the Hub is read by ranges, look by look, and no further than to the first look that proves an accusation;
`verdict.py` says why that keeps the bound.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hf_fingerprint.checkpoints import LeftOut, Source, TooLarge, open_checkpoint, open_ranges, weight_sets
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome, joined
from hf_fingerprint.tracing.case import Advance, Case
from hf_fingerprint.tracing.conclusion import nothing_read
from hf_fingerprint.tracing.local_files import trace_files
from hf_fingerprint.tracing.ranged import trace_ranges
from hf_fingerprint.tracing.result import NotRead, RecipientScore, TraceResult
from hf_fingerprint.vault import RowError, Vault, hiding, same_recipient


__all__ = ["RecipientScore", "TraceResult", "trace", "verify"]


def trace(
    suspect: str | Path,
    vault: Vault | str | Path,
    base: str | Path | None = None,
    passphrase: str | None = None,
    advance: Advance | None = None,
    whole: bool = False,
    max_bytes: int | None = None,
    recipient: str | None = None,
    all_scores: bool = False,
) -> TraceResult:
    """Traces a suspect model.

    Args:
        suspect (`str` or `Path`): a folder, a file or a Hub id. Every set of weight files in a folder or repo is read.
        vault ([`Vault`], `str` or `Path`): the vault, unlocked, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): where the base is, if not where it was registered from, or its id if the
            vault has several alike; by default all registered bases that the suspect may come from.
        passphrase (`str`, *optional*): unlocks the vault.
        advance (callable, *optional*): told `(step, done, total)`.
        whole (`bool`, *optional*, defaults to `False`): whether a suspect on the Hub is downloaded and read whole,
            which may show further colluders, instead of up to the first proof.
        max_bytes (`int`, *optional*): how many bytes of a suspect on the Hub may be fetched.
        recipient (`str`, *optional*): tests this recipient's copies alone, as one claim; see [`verify`].
        all_scores (`bool`, *optional*, defaults to `False`): whether the result holds the scores of those who are not
            accused too. Don't publish them: they help an attacker to build a suspect that accuses one of them.

    Returns:
        [`TraceResult`]

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way; nobody is accused by an error.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    case = Case(vault, base, recipient, all_scores, advance)
    if recipient is not None and not any(same_recipient(copy.recipient, recipient) for copy in case.rows.copies):
        unusable = f" {RowError(case.rows.faults[0])}" if case.rows.faults else ""
        raise VaultError(
            f"{vault.folder} has no copy for {recipient}: see `hf-fingerprint recipients` for the names.{unusable}"
        )
    with vault.kept_open():
        return _with_faults(_traced(case, suspect, whole, max_bytes), case)


def _traced(case: Case, suspect: str | Path, whole: bool, max_bytes: int | None) -> TraceResult:
    """By ranges if that will do, else every set of weight files."""
    looks = 0
    try:
        ranged = None if whole else open_ranges(suspect, max_bytes)
    except TooLarge as error:
        return _unread(suspect, case, str(error))
    if ranged is not None:
        with ranged:
            result, looks = trace_ranges(case, ranged)
        if result is not None:
            return _with_unread(result)
        suspect = f"hf-hub:{ranged.source.name}@{ranged.source.revision}"
        max_bytes = None if max_bytes is None else max_bytes - ranged.bytes_fetched
    found = weight_sets(suspect, max_bytes)
    results = []
    for source in found.sets:
        with open_checkpoint(source, suspect=True) as opened:
            traced = trace_files(case, opened, looks, len(found.sets))
        names = tuple(path.name for path in source.weights)
        results.append(replace(traced, files=names))
    if not results:
        results = [_unread(suspect, case, "No weight file of it can be read.")]
    return _with_unread(_together(results, found.unread))


def verify(
    suspect: str | Path,
    recipient: str,
    vault: Vault | str | Path,
    base: str | Path | None = None,
    passphrase: str | None = None,
    advance: Advance | None = None,
    whole: bool = False,
    max_bytes: int | None = None,
    all_scores: bool = False,
) -> TraceResult:
    """Tests one claim: that a suspect comes from a recipient's copy. Nobody else is scored.

    The bound pays for all copies in the vault, as a trace does: a claim that was chosen after a trace, as that of its
    highest scorer, is confirmed for an innocent with probability at most alpha all the same.

    Args:
        suspect (`str` or `Path`): a folder, a file or a Hub id.
        recipient (`str`): whom the copy is said to have been made for.
        vault ([`Vault`], `str` or `Path`): see [`trace`], as for the rest.

    Returns:
        [`TraceResult`]: the claim is confirmed if somebody is accused.

    Raises:
        [`VaultError`]: if the vault has no copy for the recipient.
    """
    return trace(suspect, vault, base, passphrase, advance, whole, max_bytes, recipient, all_scores)


def _unread(suspect: str | Path, case: Case, reason: str) -> TraceResult:
    """The result for a suspect of which no weight file was opened."""
    alpha = min(base.alpha for base in case.bases)
    source = Source(str(suspect).removeprefix("hf-hub:"), Path(), (), None, None, whole_folder=False)
    return nothing_read(source, Outcome.NOT_READABLE, reason, alpha, ())


def _with_faults(result: TraceResult, case: Case) -> TraceResult:
    """A result that says nobody only if the leaker's record can't be among those that can't be used."""
    faults = case.faults(every=result.outcome is Outcome.NOBODY)
    result = replace(result, rows_not_used=faults)
    hidden = hiding(faults)
    if not hidden or result.outcome is Outcome.ACCUSED:
        return result
    reason = f"Nobody is accused of those whose records can be used, and {hidden[0]}."
    if result.reason is not None:
        reason += f" {result.reason}"
    return replace(result, outcome=Outcome.NOT_READABLE, reason=reason)


def _together(results: Sequence[TraceResult], unread: Sequence[LeftOut]) -> TraceResult:
    """One result of all sets of a suspect's weight files: that of the surest accusation, or what stands in the way."""
    outcome = joined(result.outcome for result in results)
    alike = [result for result in results if result.outcome is outcome]
    main = min(alike, key=lambda result: result.accused[0].log10_false_accusation if result.accused else 0.0)
    files = tuple(dict.fromkeys(name for result in results for name in result.files))
    if len(results) > 1 and main.reason is not None:
        main = replace(main, reason=f"{', '.join(main.files)}: {main.reason}")

    def of_all(scores: Sequence[Sequence[RecipientScore]]) -> tuple[RecipientScore, ...]:
        surest: dict[str, RecipientScore] = {}
        for score in sorted((score for each in scores for score in each), key=lambda s: s.log10_false_accusation):
            surest.setdefault(score.copy_id, score)
        return tuple(surest.values())

    if len(results) > 1:
        accused, scores = of_all([r.accused for r in results]), of_all([r.scores for r in results])
        main = replace(main, accused=accused, scores=scores)
    left = tuple(NotRead(each.name, main.suspect, each.reason) for each in unread)
    return replace(main, files=files, files_not_read=left)


def _with_unread(result: TraceResult) -> TraceResult:
    """A result that says nobody only if no weight file was left unread."""
    if not result.files_not_read or result.outcome is Outcome.ACCUSED:
        return result
    shown = ", ".join(f"{each.name} ({each.reason})" for each in result.files_not_read[:5])
    more = len(result.files_not_read) - 5
    reason = f"Not all of its weight files were read: {shown}{f' and {more} more' if more > 0 else ''}."
    if result.reason is not None:
        reason += f" {result.reason}"
    return replace(result, outcome=Outcome.NOT_READABLE, reason=reason)
