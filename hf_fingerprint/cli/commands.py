"""`inspect`, `issue`, `trace` and `recipients`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output


Model = Annotated[str, typer.Argument(help="A folder, a weight file or a Hub id.", show_default=False)]


def inspect(
    model: Model,
    max_kl: options.MaxKl = None,
    calibration: options.Calibration = None,
    coalition: options.Coalition = None,
    recipients_planned: options.Planned = None,
    alpha: options.Alpha = None,
    eps: options.Eps = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a model's carriers, capacity, predicted score and certified coalition, without recording anything."""
    from hf_fingerprint.checkpoints import digest_tensors, open_checkpoint
    from hf_fingerprint.registration import Settings, examine, predicted_score

    settings = Settings(max_kl, calibration, coalition, recipients_planned, alpha, eps)
    with open_checkpoint(model) as checkpoint, output.steps() as report:
        base = examine(checkpoint, digest_tensors(checkpoint), settings, report)
    tensors = [(c.name, list(base.tensors[c.name].shape), base.tensors[c.name].dtype, c.eps) for c in base.carriers]
    if as_json:
        keys = ("name", "shape", "dtype", "eps")
        listed = [dict(zip(keys, tensor, strict=True)) for tensor in tensors]
        output.print_json({**base.describe(), "predicted_score": predicted_score(base), "tensors": listed})
        return
    for name, shape, dtype, eps in tensors:
        output.say(f"  {eps:8.3%}  {dtype:>4}  {'x'.join(map(str, shape)):>16}  {name}")
    for line in output.describe_base(base):
        output.say(line)


def issue(
    model: Model,
    recipient: Annotated[
        list[str], typer.Option("--recipient", help="Whose copy; several times for several.", show_default=False)
    ],
    vault: options.VaultFolder,
    out: Annotated[
        Path,
        typer.Option("--out", help="The copy's folder; with several recipients DIR/NAME each.", show_default=False),
    ],
    max_kl: options.MaxKl = None,
    calibration: options.Calibration = None,
    coalition: options.Coalition = None,
    recipients_planned: options.Planned = None,
    alpha: options.Alpha = None,
    eps: options.Eps = None,
    as_json: options.AsJson = False,
) -> None:
    """Issue one marked copy per recipient, registering the base at the first."""
    from hf_fingerprint.issuing import Issuer
    from hf_fingerprint.registration import Settings
    from hf_fingerprint.vault import Vault

    settings = Settings(max_kl, calibration, coalition, recipients_planned, alpha, eps)
    names = list(dict.fromkeys(recipient))
    with output.steps() as report:
        issuer = Issuer(model, Vault(vault), settings, report)
    issued = []
    with issuer, output.progress("issuing", issuer.copy_bytes * len(names)) as advance:
        if len(names) == 1:
            issued = [issuer.issue(names[0], out, advance)]
        else:
            issued = list(issuer.issue_all(names, out, advance))
    if as_json:
        output.print_json([copy.to_dict() for copy in issued])
        return
    for copy in issued:
        output.say(f"{copy.recipient}: {copy.path}" + ("" if copy.new else " (issued before, found whole)"))
    for name in dict.fromkeys(name for copy in issued for name in copy.left_out):
        output.remark(f"left out of the copies, since it holds the weights unmarked: {name}")
    output.say(
        f"{len(issued)} of base {issuer.base.base_id}; certified against {issuer.base.certified} colluders among "
        f"{issuer.base.recipients_planned:,} recipients (by {issuer.base.certified_by.split(',')[0]})"
    )


def trace(
    suspect: Annotated[str, typer.Argument(help="A folder, a weight file or a Hub id.", show_default=False)],
    vault: options.VaultFolder,
    base: Annotated[str | None, typer.Option("--base", help="Where the base is, if it moved, or which one.")] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", help="The tracing identity, if it isn't in the vault's folder.")
    ] = None,
    passphrase_file: options.PassphraseFile = None,
    as_json: options.AsJson = False,
) -> int:
    """Trace a suspect to the recipients it came from. Exit code 0: someone is accused, 1: nobody, 2: an error."""
    from hf_fingerprint.tracing import trace as trace_suspect
    from hf_fingerprint.vault import Vault, find_passphrase

    opened = Vault(vault)
    opened.unlock(find_passphrase(passphrase_file), identity)
    with output.stages() as advance:
        result = trace_suspect(suspect, opened, base, advance=advance)
    if as_json:
        output.print_json(result.to_dict())
    else:
        output.print_trace(result)
    return 0 if result.accused else 1


def recipients(vault: options.VaultFolder, as_json: options.AsJson = False) -> None:
    """List who got which copy, and when."""
    from hf_fingerprint.vault import Vault

    copies = Vault(vault).copies()
    if as_json:
        output.print_json([copy.describe() for copy in copies])
        return
    for copy in copies:
        output.say(f"{copy.created}  {copy.state:8}  base {copy.base_id}  {copy.recipient}  {copy.out}")
    output.say(f"{len(copies)} copies, {len({copy.recipient for copy in copies})} recipients")
