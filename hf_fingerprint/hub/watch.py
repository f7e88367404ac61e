"""Models on the Hub looked at as they turn up: a list of ids, or all that an author has.

Each is traced by ranges, so a look costs a few megabytes, and never more than a limit. A repo that is on record as the
variant of a copy is traced like any other: a record, which a colleague may have added, hides nothing. If the trace
accuses that very copy and no other, the repo is what it is on record for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from hf_fingerprint.checkpoints.hub_client import hub_errors
from hf_fingerprint.errors import FingerprintError, HubError
from hf_fingerprint.hub.api import translate_errors, with_retries
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing import RecipientScore, trace
from hf_fingerprint.vault import Publication, Vault, publications


MAX_BYTES = 10**8


@dataclass(frozen=True)
class WatchResult:
    """What was found of one model.

    Attributes:
        model (`str`): its Hub id.
        revision (`str` or `None`): the commit that was read.
        modified (`str` or `None`): when the repo last changed, UTC, ISO 8601.
        accused (`tuple[str, ...]`): recipients for whom copies were made that it comes from, each with a bound of at
            most the base's alpha for this model.
        accusations (`tuple[RecipientScore, ...]`): the same with each copy's record, base, state and bound.
        log10_false_accusation (`float` or `None`): the surest one's bound.
        base (`str` or `None`): the base it was read against.
        bytes_fetched (`int`): of its weights.
        outcome (`str` or `None`): which of the four ways the trace ended in, see [`Outcome`]; `None` after an error.
        reason (`str` or `None`): one sentence, where nothing can be said of it: why, and the way out.
        error (`str` or `None`): one sentence, if it could not be looked at.
        variant_of (`tuple[str, ...]`): the recipients whose copies are on record as published in this repo; of one
            that was updated, several.
        expected (`bool`): whether it is what it is on record for: the trace accuses a copy on record there, and no
            other.
        note (`str` or `None`): one sentence, if a variant on record is not that, or is public.
    """

    model: str
    revision: str | None
    modified: str | None
    accused: tuple[str, ...] = ()
    log10_false_accusation: float | None = None
    base: str | None = None
    bytes_fetched: int = 0
    outcome: str | None = None
    reason: str | None = None
    error: str | None = None
    accusations: tuple[RecipientScore, ...] = ()
    variant_of: tuple[str, ...] = ()
    expected: bool = False
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        found = asdict(self)
        lists = ("accused", "accusations", "variant_of")
        return {**found, **{name: list(found[name]) for name in lists}}


def watch(
    names: Sequence[str], vault: Vault, since: datetime | None = None, max_bytes: int | None = MAX_BYTES
) -> Iterator[WatchResult]:
    """Traces models, yielding each as it is done; one that can't be read is told of and doesn't end it.

    alpha bounds false accusations for each model, so watching m of them accuses an innocent with probability at most
    `m * alpha`.

    Args:
        names (sequence of `str`): Hub ids `org/name`, and authors, whose models are all looked at.
        vault ([`Vault`]): unlocked.
        since (`datetime`, *optional*): passes over what did not change since.
        max_bytes (`int`, *optional*, defaults to 100 MB): how many bytes are fetched of each model at most.

    Raises:
        [`HubError`]: if an author's models can't be listed, or there are none to look at.
    """
    publications_on_record, seen = publications(vault), set[str]()
    for name in names:
        for listed in [_ListedModel(name, None, None)] if "/" in name else _list_models(name):
            if listed.model in seen:
                continue
            seen.add(listed.model)
            watch_result = _trace_listed(listed, vault, since, max_bytes)
            if watch_result is not None:
                yield _compare_with_record(watch_result, listed.private, publications_on_record)


def watch_exit_code(results: Iterable[WatchResult]) -> int:
    """The exit code of a watch: 0 if somebody is accused, other than by a variant that is what it is on record for;
    else 2 if nothing could be looked at, for errors; else 3 if of some model nothing can be said; else 1."""
    found = list(results)
    if any(each.accused and not each.expected for each in found):
        return 0
    failed = [each.error is not None for each in found]
    if failed and all(failed):
        return 2
    return 3 if any(failed) or any(each.outcome == Outcome.NOT_READABLE for each in found) else 1


def parse_since(text: str) -> datetime:
    """A time from `2026-11-01`, `2026-11-01T12:00` (UTC unless it says otherwise) or `7d`, `12h` ago.

    Raises:
        [`HubError`]: if it is neither.
    """
    number, unit = text[:-1], {"d": "days", "h": "hours"}.get(text[-1:])
    try:
        if unit is not None and number.isdigit():
            return datetime.now(UTC) - timedelta(**{unit: int(number)})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise HubError(f"{text} is no time: give a date such as 2026-11-01, or 7d or 12h for as long ago.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class _ListedModel(NamedTuple):
    """A model to look at, and what a listing says of it."""

    model: str
    modified: datetime | None
    private: bool | None


def _list_models(author: str) -> list[_ListedModel]:
    from huggingface_hub import HfApi

    with translate_errors(author):
        listed = list(HfApi().list_models(author=author, full=True))  # the client tries again by itself
    if not listed:
        raise HubError(f"{author} has no models on the Hub that this account may see: check the spelling.")
    return [_ListedModel(info.id, info.last_modified, info.private) for info in listed]


def _compare_with_record(
    watch_result: WatchResult, private: bool | None, publications_on_record: Iterable[Publication]
) -> WatchResult:
    """A sighting with what is on record of its repo."""
    repo = watch_result.model.removeprefix("hf-hub:").partition("@")[0].lower()  # the Hub takes any case
    matching = [found for found in publications_on_record if found.repo.lower() == repo]
    if not matching:
        return watch_result
    recipients = tuple(dict.fromkeys(found.recipient for found in matching))
    accused = {score.copy_id for score in watch_result.accusations}
    expected = bool(accused) and accused <= {found.copy_id for found in matching}
    note, variant = None, f"It is on record as the variant of {', '.join(recipients)}"
    if watch_result.error is None and not expected:
        note = f"{variant}, and does not trace to that copy alone: look at what it holds."
    elif private is False:
        note = f"{variant}, and everybody may read it: make it private if that is not meant."
    return replace(watch_result, variant_of=recipients, expected=expected, note=note)


def _trace_listed(
    listed: _ListedModel, vault: Vault, since: datetime | None, max_bytes: int | None
) -> WatchResult | None:
    from huggingface_hub import HfApi

    model, modified = listed.model, listed.modified
    try:
        if since is not None and modified is None:
            name, _, at = model.partition("@")
            with translate_errors(model), hub_errors(name, at or None):
                modified = with_retries(lambda: HfApi().model_info(name, revision=at or None)).last_modified
        if since is not None and modified is not None and modified < since:
            return None
        result = trace(model if model.startswith("hf-hub:") else f"hf-hub:{model}", vault, max_bytes=max_bytes)
    except FingerprintError as error:
        return WatchResult(model, None, _isoformat(modified), error=str(error))
    lowest_bound = result.accused[0].log10_false_accusation if result.accused else None
    accused = tuple(dict.fromkeys(score.recipient for score in result.accused))
    return WatchResult(
        model,
        result.revision,
        _isoformat(modified),
        accused,
        lowest_bound,
        result.base,
        result.bytes_fetched,
        str(result.outcome),
        result.reason,
        accusations=result.accused,
    )


def _isoformat(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat(timespec="seconds")
