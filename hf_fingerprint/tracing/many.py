"""Traces a list of suspects: the vault's records are opened once, and several processes share the list.

```python
for result in trace_all(paths, vault, out="results"):
    print(result.suspect, result.outcome or result.error)
```
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hf_fingerprint
from hf_fingerprint.checkpoints import NO_OPTIONS, HubOptions
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.progress import Progress, counting, shows_progress, silent
from hf_fingerprint.registration import AncestorInput
from hf_fingerprint.sharing import do_jobs, job_key
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr
from hf_fingerprint.tracing.ancestor_files import AncestorSelection
from hf_fingerprint.tracing.result import TraceResult
from hf_fingerprint.tracing.trace import run_request
from hf_fingerprint.tracing.trace_request import TraceRequest
from hf_fingerprint.tracing.vault_records import VaultRecords
from hf_fingerprint.vault import Vault, check_outside_vaults


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SuspectResult(PrintableResult):
    """The result for one of many suspects.

    Attributes:
        suspect (`str`): the suspect's path or Hub id.
        found (`dict` or `None`): its [`TraceResult.to_dict`]; `None` after an error.
        error (`str` or `None`): the error that stopped the trace.
    """

    suspect: str
    found: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def outcome(self) -> Outcome | None:
        """How the trace ended; `None` after an error."""
        return None if self.found is None else Outcome(self.found["outcome"])

    @property
    def accused(self) -> tuple[str, ...]:
        """The recipients who are accused, surest first."""
        return tuple(dict.fromkeys(each["recipient"] for each in (self.found or {}).get("accused", ())))

    @property
    def is_final(self) -> bool:
        """Whether another trace of the same files would end in the same way: not after an error, nor if the suspect
        was not readable."""
        return self.outcome not in (None, Outcome.NOT_READABLE)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the trace's result, or the error, for JSON."""
        return {"suspect": self.suspect, "error": self.error} if self.found is None else dict(self.found)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SuspectResult":
        """The result that [`SuspectResult.to_dict`] wrote. Raises `TypeError`, `KeyError` or `ValueError` for
        anything else."""
        found = {name: value for name, value in values.items() if name != "key"}
        if "error" in found:
            return cls(found["suspect"], None, str(found["error"]))
        Outcome(found["outcome"])
        return cls(found["suspect"], found)

    def blocks(self) -> Iterator[Block]:
        """One line."""
        names = f": {', '.join(self.accused)}" if self.accused else ""
        yield f"{self.suspect}: {self.error or self.outcome}{names}"

    def __repr__(self) -> str:
        return one_line_repr(self, suspect=self.suspect, outcome=self.outcome, accused=self.accused, error=self.error)


@shows_progress
def trace_all(
    suspects: Sequence[str | Path],
    vault: Vault | str | Path,
    base: str | Path | None = None,
    passphrase: str | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    full: bool = False,
    max_bytes: int | None = None,
    ancestor: str | Path | Literal[False] | None = None,
    device: "str | torch.device | None" = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Iterator[SuspectResult]:
    """Traces many suspects, and yields the result of each. A suspect that can't be read yields an error.

    Several processes that are launched with the same `out`, as by `accelerate launch`, share the suspects, and each
    yields all results. alpha bounds false accusations for each suspect, so the probability that tracing m of them
    accuses an innocent is at most `m * alpha`.

    Args:
        suspects (sequence of `str` or `Path`): folders, files or Hub ids; see [`trace`].
        vault ([`Vault`], `str` or `Path`): the unlocked vault, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): see [`trace`].
        passphrase (`str`, *optional*): unlocks the vault.
        out (`str` or `Path`, *optional*): a private folder for the results. A later call with the same folder traces
            what has no result there, or an error, or was not readable; and everything if the vault has changed. Take
            a new folder if suspects have changed.
        progress (callable, *optional*): a [`Progress`], which counts suspects.
        full, max_bytes, ancestor, device, token, cache_dir (*optional*): see [`trace`].

    Raises:
        [`FingerprintError`]: if the vault can't be used, or the folder `out`.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    vault.age_identity()  # raises before anything is traced if the vault is locked
    folder = None if out is None else Path(out)
    if folder is not None:
        check_outside_vaults(folder)
    records, options = VaultRecords(vault), HubOptions(token=token, cache_dir=cache_dir)
    names, how = list(map(str, suspects)), (base, full, max_bytes, ancestor)
    state = records.refresh()
    version = hf_fingerprint.__version__
    keys = [job_key(version=version, suspect=name, how=str(how), vault=state) for name in names]

    def trace_one(index: int) -> SuspectResult:
        records.refresh()
        try:
            found = trace_with(records, names[index], base, full, max_bytes, ancestor, device, options)
        except FingerprintError as error:
            return SuspectResult(names[index], None, str(error))
        return SuspectResult(names[index], found.to_dict() | {"suspect": names[index]})

    count = counting(progress, "suspects", len(names))
    for result in do_jobs(keys, trace_one, folder, SuspectResult.from_dict, lambda result: result.is_final):
        count(1)
        yield result


def trace_with(
    records: VaultRecords,
    suspect: ModelInput,
    base: ModelInput | None = None,
    full: bool = False,
    max_bytes: int | None = None,
    ancestor: AncestorInput = None,
    device: "str | torch.device | None" = None,
    options: HubOptions = NO_OPTIONS,
) -> TraceResult:
    """Traces a suspect against records that may be open already; see [`trace`]."""
    ancestors = AncestorSelection(records.vault, ancestor, options)
    request = TraceRequest(records, base, None, False, silent, options, device, ancestors)
    return run_request(request, suspect, full, max_bytes)
