"""`inspect`, `trace`, `verify`, `watch` and `recipients`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import argument, option, required
from hf_fingerprint.config import FingerprintConfig


@options.expand_options
def inspect(
    model: options.Model,
    file: options.File = None,
    listed: Annotated[bool, option("--tensors", "List the tensors that carry the mark, too.")] = False,
    *,
    config: FingerprintConfig,
    files: options.ModelFiles,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a model's carriers, capacity, predicted score and certified coalition. Nothing is recorded."""
    from hf_fingerprint.checkpoints import HubOptions, open_checkpoint
    from hf_fingerprint.registration import analyze_base, predictions

    name, chosen = options.model_reference(model, file), HubOptions(**files.keywords)
    with open_checkpoint(name, options=chosen) as checkpoint, output.progress_bars() as progress:
        base = analyze_base(checkpoint, config, progress, device=device)
    output.warn_unmeasured(base)
    tensors = [(c.name, list(base.tensors[c.name].shape), base.tensors[c.name].dtype, c.eps) for c in base.carriers]
    if as_json:
        keys = ("name", "shape", "dtype", "amplitude")
        summary = {**base.describe(), **predictions(base)}
        if listed:
            summary["tensors"] = [dict(zip(keys, tensor, strict=True)) for tensor in tensors]
        output.print_json(summary)
        return
    for name, shape, dtype, amplitude in tensors if listed else ():
        output.echo(f"  {amplitude:8.3%}  {dtype:>4}  {'x'.join(map(str, shape)):>16}  {name}")
    output.print_blocks(output.describe_base(base))


MaxMb = Annotated[
    float | None, option("--max-mb", "Maximum download of a suspect on the Hub, in MB.", options.HUB, min=0)
]


@dataclass(frozen=True)
class _Suspect:
    """The suspect of `trace` and `verify`."""

    suspect: Annotated[str, argument("Folder, weight file or Hub id (org/name[@revision]) of the suspect model.")]
    file: options.File = None


@dataclass(frozen=True)
class _TraceOptions:
    """The options of `trace`, `verify` and `trace-all`."""

    vault: options.VaultFolder
    base: options.KnownBase = None
    ancestor: options.Ancestor = None
    identity: options.Identity = None
    passphrase_file: options.PassphraseFile = None
    full: Annotated[
        bool, option("--full", "Read all of a suspect on the Hub, not only up to the first accusation.")
    ] = False
    max_mb: MaxMb = None
    device: options.Device = None

    @property
    def max_bytes(self) -> int | None:
        """The maximum download, in bytes."""
        return None if self.max_mb is None else options.megabytes_to_bytes(self.max_mb)


@dataclass(frozen=True)
class _TraceOutput:
    """What `trace` and `verify` print."""

    all_scores: options.AllScores = False
    as_json: options.AsJson = False


Out = Annotated[
    Path | None,
    option(
        "--out",
        "Private folder for the results. Another run with it traces only what is left.",
    ),
]


@options.expand_options
def trace(suspect: _Suspect, chosen: _TraceOptions, files: options.ModelFiles, shown: _TraceOutput) -> int:
    """Trace a suspect model to the recipients whose copies it comes from.

    Exit code 0: somebody is accused, 1: nobody, or the model is not comparable, 2: an error, 3: not readable.
    """
    return _trace(suspect, chosen, files, shown)


@options.expand_options
def verify(
    suspect: _Suspect,
    chosen: _TraceOptions,
    files: options.ModelFiles,
    shown: _TraceOutput,
    *,
    recipient: Annotated[str, required("--recipient", "Recipient whose copy the suspect is claimed to be.")],
) -> int:
    """Test the claim that a suspect model comes from one recipient's copy. The bound covers all copies in the vault.

    Exit code 0: confirmed, 1: not confirmed, or the model is not comparable, 2: an error, 3: not readable.
    """
    return _trace(suspect, chosen, files, shown, recipient)


def _trace(
    suspect: _Suspect,
    chosen: _TraceOptions,
    files: options.ModelFiles,
    shown: _TraceOutput,
    recipient: str | None = None,
) -> int:
    from hf_fingerprint.tracing import trace as trace_suspect

    vault = options.unlocked_vault(chosen.vault, chosen.passphrase_file, chosen.identity)
    with output.progress_bars() as progress:
        result = trace_suspect(
            options.model_reference(suspect.suspect, suspect.file),
            vault,
            chosen.base,
            progress=progress,
            full=chosen.full,
            max_bytes=chosen.max_bytes,
            recipient=recipient,
            all_scores=shown.all_scores,
            ancestor=options.ancestor_input(chosen.ancestor),
            device=chosen.device,
            **files.keywords,
        )
    if shown.as_json:
        output.print_json(result.to_dict())
    else:
        output.print_result(result)
    if shown.all_scores:
        output.warn_all_scores()
    return result.outcome.exit_code


@options.expand_options
def trace_all(
    listed: Annotated[Path, argument("File with the path or Hub id of one suspect on each line.")],
    chosen: _TraceOptions,
    *,
    out: Out = None,
    token_env: options.TokenEnv = None,
    cache_dir: options.CacheDir = None,
) -> int:
    """Trace many suspects, and print one line of JSON for each.

    Processes that `accelerate launch -m hf_fingerprint trace-all ... --out FOLDER` starts share the list. Exit code 0:
    somebody is accused, 1: nobody, 2: an error, or only errors, 3: a suspect is not readable. Several processes exit
    with 0 once all is traced.
    """
    from hf_fingerprint.outcomes import joint_exit_code
    from hf_fingerprint.tracing import trace_all as trace_suspects

    suspects = options.read_lines(listed)
    opened = options.unlocked_vault(chosen.vault, chosen.passphrase_file, chosen.identity)
    outcomes, accused = [], False
    with output.progress_bars() as progress:
        for result in trace_suspects(
            suspects,
            opened,
            chosen.base,
            out=out,
            progress=progress,
            full=chosen.full,
            max_bytes=chosen.max_bytes,
            ancestor=options.ancestor_input(chosen.ancestor),
            device=chosen.device,
            **options.ModelFiles(token_env=token_env, cache_dir=cache_dir).access,
        ):
            output.print_shared_line(result.to_dict())
            outcomes.append(result.outcome)
            accused = accused or bool(result.accused)
    return output.shared_exit_code(joint_exit_code(outcomes, accused))


def watch(
    names: Annotated[list[str], argument("Hub ids (org/name), or authors, for all models of an author.")],
    vault: options.VaultFolder,
    since: Annotated[
        str | None, option("--since", "Skip models that have not changed since then: 2026-11-01, 7d, 12h.")
    ] = None,
    max_mb: Annotated[float, option("--max-mb", "Maximum download of each model, in MB.", options.HUB, min=0)] = 100,
    out: Out = None,
    token_env: options.TokenEnv = None,
    cache_dir: options.CacheDir = None,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
) -> int:
    """Trace models on the Hub, and print one line of JSON for each.

    Recorded variants are traced too, and marked as expected if they trace to the recorded copy alone. Exit code 0:
    somebody is accused by a model that is not an expected variant, 1: nobody, 2: an error, or only errors, 3: a model
    is not readable. Processes that `accelerate launch -m hf_fingerprint watch ... --out FOLDER` starts share the
    models, and exit with 0 once all are traced.
    """
    from hf_fingerprint.hub.watch import parse_since, watch_exit_code
    from hf_fingerprint.hub.watch import watch as watch_models

    since_time = None if since is None else parse_since(since)
    opened, results = options.unlocked_vault(vault, passphrase_file, identity), []
    access = options.ModelFiles(token_env=token_env, cache_dir=cache_dir).access
    for result in watch_models(names, opened, since_time, options.megabytes_to_bytes(max_mb), out=out, **access):
        output.print_shared_line(result.to_dict())
        results.append(result)
    if not results:
        output.echo_err(f"No model was traced: none has changed since {since}.")
    return output.shared_exit_code(watch_exit_code(results))


def recipients(vault: options.VaultFolder, as_json: options.AsJson = False) -> None:
    """List the copies in the vault, with their recipients and dates."""
    from hf_fingerprint.vault import Vault, arrivals, delivery_state, publications

    opened = Vault(vault)
    copies, pushed = opened.copies(), {found.copy_id: found for found in publications(opened)}
    arrived, listed = arrivals(opened), []
    for copy in copies:
        at = pushed.get(copy.copy_id)
        state, came = delivery_state(copy, at), arrived.get(copy.copy_id)
        if as_json:
            published = {} if at is None else at.describe()
            listed.append(copy.describe() | {"state": state, "arrived": came} | published)
        else:
            place, arrival = copy.out if at is None else at.place, f"  arrived {came}" if came is not None else ""
            output.echo(f"{copy.recipient}  {place}{arrival}")
            output.echo(f"  {state} {copy.created}  copy {copy.copy_id} of base {copy.base_id}")
    if as_json:
        output.print_json(listed)
    else:
        output.echo(f"{len(copies)} copies, {len({copy.recipient for copy in copies})} recipients")
