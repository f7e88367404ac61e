"""`inspect`, `trace`, `verify`, `watch` and `recipients`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output


def inspect(
    model: options.Model,
    file: options.File = None,
    max_kl: options.MaxKl = None,
    calibration: options.Calibration = None,
    coalition: options.Coalition = None,
    expected_recipients: options.ExpectedRecipients = None,
    alpha: options.Alpha = None,
    amplitude: options.Amplitude = None,
    carriers: options.Carriers = None,
    code: options.Code = None,
    output_kind: options.OutputKind = None,
    calibration_images: options.CalibrationImages = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a model's carriers, capacity, predicted score and certified coalition. Nothing is recorded."""
    from hf_fingerprint.checkpoints import open_checkpoint
    from hf_fingerprint.config import FingerprintConfig
    from hf_fingerprint.registration import analyze_base, predicted_score

    config = FingerprintConfig(
        max_kl,
        calibration,
        coalition,
        expected_recipients,
        alpha,
        amplitude,
        carriers,
        code,
        output_kind,
        calibration_images,
    )
    with open_checkpoint(options.model_reference(model, file)) as checkpoint, output.progress_bars() as progress:
        base = analyze_base(checkpoint, config, progress)
    output.warn_unmeasured(base)
    tensors = [(c.name, list(base.tensors[c.name].shape), base.tensors[c.name].dtype, c.eps) for c in base.carriers]
    if as_json:
        keys = ("name", "shape", "dtype", "amplitude")
        listed = [dict(zip(keys, tensor, strict=True)) for tensor in tensors]
        output.print_json({**base.describe(), "predicted_score": predicted_score(base), "tensors": listed})
        return
    for name, shape, dtype, amplitude in tensors:
        output.echo(f"  {amplitude:8.3%}  {dtype:>4}  {'x'.join(map(str, shape)):>16}  {name}")
    for line in output.describe_base(base):
        output.echo(line)


Suspect = Annotated[
    str,
    typer.Argument(
        help="Folder, weight file or Hub id (org/name[@revision]) of the suspect model.", show_default=False
    ),
]
Full = Annotated[
    bool,
    typer.Option("--full", help="Read all of a suspect on the Hub, not only up to the first accusation."),
]
MaxMb = Annotated[
    float | None, typer.Option("--max-mb", min=0, help="Maximum download of a suspect on the Hub, in MB.")
]


def trace(
    suspect: Suspect,
    vault: options.VaultFolder,
    file: options.File = None,
    base: options.KnownBase = None,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    full: Full = False,
    max_mb: MaxMb = None,
    all_scores: options.AllScores = False,
    as_json: options.AsJson = False,
) -> int:
    """Trace a suspect model to the recipients whose copies it comes from.

    Exit code 0: somebody is accused, 1: nobody, or the model is not comparable, 2: an error, 3: not readable.
    """
    suspect = options.model_reference(suspect, file)
    return _trace(suspect, vault, base, identity, passphrase_file, full, max_mb, all_scores, as_json)


def verify(
    suspect: Suspect,
    recipient: Annotated[
        str, typer.Option("--recipient", help="Recipient whose copy the suspect is claimed to be.", show_default=False)
    ],
    vault: options.VaultFolder,
    file: options.File = None,
    base: options.KnownBase = None,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    full: Full = False,
    max_mb: MaxMb = None,
    all_scores: options.AllScores = False,
    as_json: options.AsJson = False,
) -> int:
    """Test the claim that a suspect model comes from one recipient's copy. The bound covers all copies in the vault.

    Exit code 0: confirmed, 1: not confirmed, or the model is not comparable, 2: an error, 3: not readable.
    """
    suspect = options.model_reference(suspect, file)
    return _trace(suspect, vault, base, identity, passphrase_file, full, max_mb, all_scores, as_json, recipient)


def _trace(
    suspect: str,
    vault: Path,
    base: str | None,
    identity: Path | None,
    passphrase_file: Path | None,
    full: bool,
    max_mb: float | None,
    all_scores: bool,
    as_json: bool,
    recipient: str | None = None,
) -> int:
    from hf_fingerprint.cli.trace_output import print_trace
    from hf_fingerprint.tracing import trace as trace_suspect
    from hf_fingerprint.vault import Vault, find_passphrase

    opened_vault = Vault(vault)
    opened_vault.unlock(find_passphrase(passphrase_file), identity)
    max_bytes = None if max_mb is None else options.megabytes_to_bytes(max_mb)
    with output.progress_bars() as progress:
        result = trace_suspect(
            suspect,
            opened_vault,
            base,
            progress=progress,
            full=full,
            max_bytes=max_bytes,
            recipient=recipient,
            all_scores=all_scores,
        )
    if as_json:
        output.print_json(result.to_dict())
        if all_scores:
            output.warn_all_scores()
    else:
        print_trace(result, claim=recipient)
    return result.outcome.exit_code


def watch(
    names: Annotated[
        list[str],
        typer.Argument(help="Hub ids (org/name), or authors, for all models of an author.", show_default=False),
    ],
    vault: options.VaultFolder,
    since: Annotated[
        str | None, typer.Option("--since", help="Skip models that have not changed since then: 2026-11-01, 7d, 12h.")
    ] = None,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0, help="Maximum download of each model, in MB.")] = 100,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
) -> int:
    """Trace models on the Hub, and print one line of JSON for each. Recorded variants are traced too, and marked as
    expected if they trace to the recorded copy alone. Exit code 0: somebody is accused by a model that is not an
    expected variant, 1: nobody, 2: an error, or only errors, 3: a model is not readable."""
    from hf_fingerprint.hub.watch import parse_since, watch_exit_code
    from hf_fingerprint.hub.watch import watch as watch_models
    from hf_fingerprint.vault import Vault, find_passphrase

    since_time = None if since is None else parse_since(since)
    opened_vault = Vault(vault)
    opened_vault.unlock(find_passphrase(passphrase_file), identity)
    results = []
    for watch_result in watch_models(names, opened_vault, since_time, options.megabytes_to_bytes(max_mb)):
        output.print_json_line(watch_result.to_dict())
        results.append(watch_result)
    if not results:
        output.echo_err(f"No model was traced: none has changed since {since}.")
    return watch_exit_code(results)


def recipients(vault: options.VaultFolder, as_json: options.AsJson = False) -> None:
    """List the copies in the vault, with their recipients and dates."""
    from hf_fingerprint.vault import Vault, arrivals, delivery_state, publications

    opened_vault = Vault(vault)
    copies, pushed = opened_vault.copies(), {found.copy_id: found for found in publications(opened_vault)}
    arrived = arrivals(opened_vault)
    if as_json:
        shown = [(copy, pushed.get(copy.copy_id)) for copy in copies]
        output.print_json(
            [
                copy.describe()
                | {"state": delivery_state(copy, at), "arrived": arrived.get(copy.copy_id)}
                | ({} if at is None else at.describe())
                for copy, at in shown
            ]
        )
        return
    for copy in copies:
        at = pushed.get(copy.copy_id)
        place = copy.out if at is None else at.place
        state = f"{delivery_state(copy, at):9}"
        came = f"  arrived {arrived[copy.copy_id]}" if copy.copy_id in arrived else ""
        output.echo(
            f"{copy.created}  {state}  base {copy.base_id}  copy {copy.copy_id}  {copy.recipient}  {place}{came}"
        )
    output.echo(f"{len(copies)} copies, {len({copy.recipient for copy in copies})} recipients")
