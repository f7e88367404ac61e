"""Traces a suspect to the recipients it came from, or to nobody, with a proven bound on false accusation.

```python
vault = Vault("vault")
vault.unlock(passphrase)
result = trace("org/suspect", vault)
for accusation in result.accused:
    print(accusation.recipient, accusation.log10_false_accusation)
```

A suspect on the Hub is read by ranges, look by look, until the first look that proves an accusation. `verdict.py` has
the proof that this keeps the bound.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import (
    DownloadLimitError,
    HubOptions,
    SkippedFile,
    Source,
    find_weight_sets,
    open_checkpoint,
    open_ranged_checkpoint,
)
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.choices import did_you_mean
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome, combine_outcomes
from hf_fingerprint.progress import Progress, shows_progress
from hf_fingerprint.registration import AncestorInput
from hf_fingerprint.tracing.ancestor_files import AncestorSelection
from hf_fingerprint.tracing.conclusion import unread_result
from hf_fingerprint.tracing.local_files import trace_files
from hf_fingerprint.tracing.ranged import trace_ranges
from hf_fingerprint.tracing.result import RecipientScore, SkippedSource, TraceResult
from hf_fingerprint.tracing.trace_request import TraceRequest
from hf_fingerprint.tracing.unexplained import conclude_sets
from hf_fingerprint.tracing.vault_records import VaultRecords
from hf_fingerprint.vault import RowError, Vault, inconclusive_reasons


if TYPE_CHECKING:
    import torch


@shows_progress
def trace(
    suspect: ModelInput,
    vault: Vault | str | Path,
    base: ModelInput | None = None,
    passphrase: str | None = None,
    *,
    progress: Progress | None = None,
    full: bool = False,
    max_bytes: int | None = None,
    recipient: str | None = None,
    all_scores: bool = False,
    ancestor: AncestorInput = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> TraceResult:
    """Traces a suspect model.

    Args:
        suspect (`str`, `Path`, `torch.nn.Module` or mapping of `str` to `torch.Tensor`): a folder, a file or a Hub id,
            of which every set of weight files is read; or a module or a state dict, which is read where it is.
        vault ([`Vault`], `str` or `Path`): the unlocked vault, or its folder together with `passphrase`.
        base (`str`, `Path`, `torch.nn.Module` or mapping, *optional*): the base's id, or the base itself if it was
            registered from memory or its files have moved; by default all registered bases that the suspect may come
            from.
        passphrase (`str`, *optional*): unlocks the vault.
        progress (callable, *optional*): a [`Progress`].
        full (`bool`, *optional*, defaults to `False`): whether to download a suspect on the Hub and read all of it,
            which may show further colluders, instead of stopping at the first proof.
        max_bytes (`int`, *optional*): how many bytes of a suspect on the Hub may be fetched.
        recipient (`str`, *optional*): tests this recipient's copies alone, as one claim; see [`verify`].
        all_scores (`bool`, *optional*, defaults to `False`): whether the result includes the scores of recipients who
            are not accused. Don't publish them: they help an attacker to build a suspect that accuses one of them.
        ancestor (`str`, `Path`, `torch.nn.Module`, mapping or `False`, *optional*): the base's recorded ancestor, if
            its files have moved; `False` to leave it out. By default it is opened where it was recorded from, and the
            result says if it can't be.
        device (`str` or `torch.device`, *optional*): where the base and the suspect run if that is needed to align
            their weights, such as `"cuda"`. Defaults to the CPU. Only the CPU was tested.
        revision, token, cache_dir, subfolder, variant (*optional*): which files of the suspect, and how to reach them;
            see [`HubOptions`]. The token and the cache hold for the bases too.

    Returns:
        [`TraceResult`]

    Raises:
        [`FingerprintError`]: if the suspect, the vault or the base can't be read, or `ancestor` is not the recorded
            one.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    options = HubOptions.for_model(suspect, revision, token, cache_dir, subfolder, variant)
    ancestors = AncestorSelection(vault, ancestor, options.access)
    request = TraceRequest(VaultRecords(vault), base, recipient, all_scores, progress, options, device, ancestors)
    return run_request(request, suspect, full, max_bytes)


def run_request(
    request: TraceRequest, suspect: ModelInput, full: bool = False, max_bytes: int | None = None
) -> TraceResult:
    """Traces a suspect as [`trace`] does, against records that may be open already."""
    vault, recipient = request.vault, request.recipient
    known = [base.base_id for base in request.rows.bases]
    if recipient is not None and not vault.has_copy(recipient, known):
        unusable = f" {RowError(request.rows.faults[0])}" if request.rows.faults else ""
        names = [copy.recipient for copy in request.rows.copies]
        hint = did_you_mean(recipient, names, "see `hf-fingerprint recipients` for the names")
        raise VaultError(f"{vault.folder} has no copy for {recipient}{hint}{unusable}")
    with vault.keep_open(), request.ancestors or nullcontext():
        return _apply_faults(_trace(request, suspect, full, max_bytes), request)


def _trace(request: TraceRequest, suspect: ModelInput, full: bool, max_bytes: int | None) -> TraceResult:
    """Traces a model in memory, or by ranges if that is enough, else every set of weight files."""
    if not isinstance(suspect, str | Path):
        with open_checkpoint(suspect, suspect=True) as live:
            return replace(trace_files(request, live).result, containers=(live.container,))
    looks, options = 0, request.options
    try:
        ranged = None if full else open_ranged_checkpoint(suspect, max_bytes, options=options)
    except DownloadLimitError as error:
        return _unread_result(suspect, request, str(error))
    if ranged is not None:
        with ranged:
            result, looks = trace_ranges(request, ranged)
        if result is not None:
            return _apply_unread_files(result)
        suspect, options = ranged.source.location, options.access
        max_bytes = None if max_bytes is None else max_bytes - ranged.bytes_fetched
    found = find_weight_sets(suspect, max_bytes, options=options)
    traced = []
    for source in found.sets:
        with open_checkpoint(source, suspect=True) as opened:
            one = trace_files(request, opened, looks, len(found.sets))
            result = replace(one.result, files=source.shown_files, containers=(opened.container,))
            traced.append(one._replace(result=result))
    results = conclude_sets(traced)
    if not results:
        results = [_unread_result(suspect, request, "No weight file of it can be read.")]
    return _apply_unread_files(_merge_results(results, found.unread))


def _unread_result(suspect: str | Path, request: TraceRequest, reason: str) -> TraceResult:
    """The result for a suspect without a weight file that could be opened."""
    alpha = min(base.alpha for base in request.bases)
    source = Source(str(suspect).removeprefix("hf-hub:"), Path(), (), None, None, owns_folder=False)
    return unread_result(source, Outcome.NOT_READABLE, reason, alpha, ())


def _apply_faults(result: TraceResult, request: TraceRequest) -> TraceResult:
    """The result, as not readable if nobody is accused but the leaker's record may be one that can't be used."""
    faults = request.faults(include_unread=result.outcome is Outcome.NOBODY)
    result = replace(result, rows_not_used=faults, claim=request.recipient)
    hidden = inconclusive_reasons(faults)
    if not hidden or result.outcome is Outcome.ACCUSED:
        return result
    return _as_not_readable(result, f"No recipient with a usable record is accused, and {hidden[0]}.")


def _merge_results(results: Sequence[TraceResult], unread: Sequence[SkippedFile]) -> TraceResult:
    """Merges the results of a suspect's sets of weight files: the surest accusation, or the most serious obstacle."""
    outcome = combine_outcomes(result.outcome for result in results)
    same_outcome = [result for result in results if result.outcome is outcome]
    main = min(same_outcome, key=lambda result: result.accused[0].log10_false_accusation if result.accused else 0.0)
    files = tuple(dict.fromkeys(name for result in results for name in result.files))
    containers = tuple(container for result in results for container in result.containers)
    if len(results) > 1 and main.reason is not None:
        main = replace(main, reason=f"{', '.join(main.files)}: {main.reason}")

    def best_scores(scores: Sequence[Sequence[RecipientScore]]) -> tuple[RecipientScore, ...]:
        best: dict[str, RecipientScore] = {}
        for score in sorted((score for each in scores for score in each), key=lambda s: s.log10_false_accusation):
            best.setdefault(score.copy_id, score)
        return tuple(best.values())

    if len(results) > 1:
        accused, scores = best_scores([r.accused for r in results]), best_scores([r.scores for r in results])
        main = replace(main, accused=accused, scores=scores)
    left = tuple(SkippedSource(each.name, main.suspect, each.reason) for each in unread)
    return replace(main, files=files, containers=containers, files_not_read=left)


def _apply_unread_files(result: TraceResult) -> TraceResult:
    """The result, as not readable if nobody is accused and a weight file was not read."""
    if not result.files_not_read or result.outcome is Outcome.ACCUSED:
        return result
    shown = ", ".join(f"{each.name} ({each.reason})" for each in result.files_not_read[:5])
    more = len(result.files_not_read) - 5
    shown += f" and {more} more" if more > 0 else ""
    return _as_not_readable(result, f"Not all of its weight files were read: {shown}.")


def _as_not_readable(result: TraceResult, reason: str) -> TraceResult:
    reason = reason if result.reason is None else f"{reason} {result.reason}"
    return replace(result, outcome=Outcome.NOT_READABLE, reason=reason)
