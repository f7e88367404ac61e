"""Traces models on the Hub: those given by id, or all models of an author.

Each model is read by byte ranges, up to a limit, which takes a few megabytes. A repo that the vault records as a
variant is traced too, since anybody who writes to the vault can add a record. If the trace accuses the recorded copy
and no other, the result is marked as expected.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import hf_fingerprint
from hf_fingerprint.checkpoints import HubOptions
from hf_fingerprint.checkpoints.hub_client import hub_errors
from hf_fingerprint.errors import FingerprintError, HubError
from hf_fingerprint.hub.api import translate_errors, with_retries
from hf_fingerprint.outcomes import Outcome, joint_exit_code
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.sharing import do_jobs, job_key
from hf_fingerprint.tables import Block, PrintableResult, Table, format_probability, one_line_repr
from hf_fingerprint.tracing import RecipientScore
from hf_fingerprint.tracing.many import trace_with
from hf_fingerprint.tracing.vault_records import VaultRecords
from hf_fingerprint.vault import Publication, Vault, publications


MAX_BYTES = 10**8


@dataclass(frozen=True)
class WatchResult(PrintableResult):
    """The result for one model.

    Attributes:
        model (`str`): the model's Hub id.
        revision (`str` or `None`): the commit that was read.
        modified (`str` or `None`): when the repo last changed, in UTC, ISO 8601.
        accused (`tuple[str, ...]`): the recipients whose copies the model comes from. The probability of a false
            accusation is at most the base's alpha for each model.
        accusations (`tuple[RecipientScore, ...]`): the same, with the record, base, state and bound of each copy.
        log10_false_accusation (`float` or `None`): the lowest bound of the accusations.
        base (`str` or `None`): the base that the model was compared with.
        bytes_fetched (`int`): how many bytes of the weights were downloaded.
        outcome (`str` or `None`): how the trace ended, see [`Outcome`]; `None` after an error.
        reason (`str` or `None`): why the trace gives no result, and what to do.
        error (`str` or `None`): the error that stopped the trace.
        variant_of (`tuple[str, ...]`): the recipients whose copies the vault records as published in this repo.
        expected (`bool`): whether the trace accuses only copies that the vault records as published in this repo.
        note (`str` or `None`): a remark on a recorded variant that is not as expected, or is public.
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
        """A dictionary for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def is_final(self) -> bool:
        """Whether another trace of the same files would end in the same way: not after an error, nor if the model was
        not readable."""
        return self.error is None and self.outcome != Outcome.NOT_READABLE

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WatchResult":
        """The result that [`WatchResult.to_dict`] wrote. Raises `TypeError` or `KeyError` for anything else."""
        found: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        return cls(**found | {"accusations": tuple(RecipientScore(**each) for each in found["accusations"])})

    def blocks(self) -> Iterator[Block]:
        """The lines and the table that show the result."""
        at = f"@{self.revision}" if self.revision else ""
        yield f"{self.model}{at}: {self.outcome or 'error'}" + " (expected)" * self.expected
        if self.accusations:
            columns = ("made for", "copy", "base", "state", "bound on a false accusation")
            rows = tuple(
                (each.recipient, each.copy_id, each.base, each.state, format_probability(each.log10_false_accusation))
                for each in self.accusations
            )
            yield Table(columns, rows)
        for line in (self.reason, self.error, self.note):
            if line is not None:
                yield line

    def __repr__(self) -> str:
        found = {"model": self.model, "outcome": self.outcome, "accused": self.accused}
        return one_line_repr(self, **found, log10_false_accusation=self.log10_false_accusation)


def watch(
    names: Sequence[str],
    vault: Vault,
    since: datetime | None = None,
    max_bytes: int | None = MAX_BYTES,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Iterator[WatchResult]:
    """Traces models one after another, and yields the result of each. A model that can't be read yields an error.

    Several processes that are launched with the same `out` share the models, and each yields all results.

    alpha bounds false accusations for each model, so the probability that watching m models accuses an innocent is at
    most `m * alpha`.

    Args:
        names (sequence of `str`): Hub ids `org/name`, or authors, for all models of an author.
        vault ([`Vault`]): the vault, unlocked.
        since (`datetime`, *optional*): skips models that have not changed since then.
        max_bytes (`int`, *optional*, defaults to 100 MB): the maximum download for each model.
        out (`str` or `Path`, *optional*): a private folder for the results. A later call with the same folder traces
            only what is new: models without a result, or with an error, or not readable; listed models that have
            changed; and all of them if the vault has.
        progress (callable, *optional*): a [`Progress`], which counts models.
        token, cache_dir (*optional*): see [`HubOptions`].

    Raises:
        [`HubError`]: if an author's models can't be listed, or there are none.
        [`FingerprintError`]: if the folder `out` can't be used.
    """
    recorded, records = publications(vault), VaultRecords(vault)
    access = HubOptions(token=token, cache_dir=cache_dir)
    listed = _list_changed(names, since, token)
    same = {"version": hf_fingerprint.__version__, "vault": records.refresh(), "max_bytes": max_bytes}
    keys = [job_key(model=each.model, modified=str(each.modified), **same) for each in listed]

    def trace_one(index: int) -> WatchResult:
        records.refresh()
        result = _trace_listed(listed[index], records, max_bytes, access)
        return _compare_with_record(result, listed[index].private, recorded)

    count = counting(progress, "models", len(listed))
    folder = None if out is None else Path(out)
    for result in do_jobs(keys, trace_one, folder, WatchResult.from_dict, lambda result: result.is_final):
        count(1)
        yield result


def watch_exit_code(results: Iterable[WatchResult]) -> int:
    """The exit code of `watch`: 0 if somebody is accused, other than by an expected variant; else 2 if every model
    failed with an error; else 3 if a model is not readable; else 1."""
    found = list(results)
    accused = any(each.accused and not each.expected for each in found)
    return joint_exit_code([None if each.error is not None else each.outcome for each in found], accused)


def parse_since(text: str) -> datetime:
    """Parses a date or time (`2026-11-01`, `2026-11-01T12:00`, UTC by default) or an age (`7d`, `12h`).

    Raises:
        [`HubError`]: if the text is neither.
    """
    number, unit = text[:-1], {"d": "days", "h": "hours"}.get(text[-1:])
    try:
        if unit is not None and number.isdigit():
            return datetime.now(UTC) - timedelta(**{unit: int(number)})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise HubError(f"{text} is not a time: give a date such as 2026-11-01, or an age such as 7d or 12h.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class _ListedModel(NamedTuple):
    """A model and its metadata from a listing."""

    model: str
    modified: datetime | None
    private: bool | None


def _list_models(author: str, token: str | bool | None) -> list[_ListedModel]:
    from huggingface_hub import HfApi

    with translate_errors(author, token):
        listed = list(HfApi(token=token).list_models(author=author, full=True))  # the client retries by itself
    if not listed:
        raise HubError(f"{author} has no models on the Hub that this account can read: check the spelling.")
    return [_ListedModel(info.id, info.last_modified, info.private) for info in listed]


def _compare_with_record(result: WatchResult, private: bool | None, recorded: Iterable[Publication]) -> WatchResult:
    """Adds what the vault records about the repo."""
    repo = result.model.removeprefix("hf-hub:").partition("@")[0].lower()  # the Hub ignores case
    matching = [found for found in recorded if found.repo.lower() == repo]
    if not matching:
        return result
    recipients = tuple(dict.fromkeys(found.recipient for found in matching))
    accused = {score.copy_id for score in result.accusations}
    expected = bool(accused) and accused <= {found.copy_id for found in matching}
    note, variant = None, f"The vault records this repo as the variant of {', '.join(recipients)}"
    if result.error is None and not expected:
        note = f"{variant}, but it does not trace to that copy alone: check what it holds."
    elif private is False:
        note = f"{variant}, and the repo is public: make it private unless that is intended."
    return replace(result, variant_of=recipients, expected=expected, note=note)


def _list_changed(names: Sequence[str], since: datetime | None, token: str | bool | None) -> list[_ListedModel]:
    """The models of these names, each once, without those that have not changed since."""
    listed: dict[str, _ListedModel] = {}
    for name in names:
        for each in [_ListedModel(name, None, None)] if "/" in name else _list_models(name, token):
            if each.model not in listed:
                listed[each.model] = each if since is None else _with_time(each, token)
    return [each for each in listed.values() if since is None or each.modified is None or each.modified >= since]


def _with_time(listed: _ListedModel, token: str | bool | None) -> _ListedModel:
    """The model with the time of its last change; without it if that can't be had, which its trace will report."""
    from huggingface_hub import HfApi

    name, _, at = listed.model.partition("@")
    if listed.modified is not None:
        return listed
    try:
        with translate_errors(listed.model, token), hub_errors(name, at or None, token):
            api = HfApi(token=token)
            return listed._replace(
                modified=with_retries(lambda: api.model_info(name, revision=at or None)).last_modified
            )
    except FingerprintError:
        return listed


def _trace_listed(
    listed: _ListedModel, records: VaultRecords, max_bytes: int | None, access: HubOptions
) -> WatchResult:
    model, modified = listed.model, _isoformat(listed.modified)
    suspect = model if model.startswith("hf-hub:") else f"hf-hub:{model}"
    try:
        result = trace_with(records, suspect, max_bytes=max_bytes, options=access)
    except FingerprintError as error:
        return WatchResult(model, None, modified, error=str(error))
    lowest_bound = result.accused[0].log10_false_accusation if result.accused else None
    accused = tuple(dict.fromkeys(score.recipient for score in result.accused))
    read = (result.revision, modified, accused, lowest_bound, result.base, result.bytes_fetched)
    return WatchResult(model, *read, str(result.outcome), result.reason, accusations=result.accused)


def _isoformat(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat(timespec="seconds")
