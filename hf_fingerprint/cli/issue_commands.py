"""`issue`, `push` and `hash`: copies into folders and onto the Hub."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_fingerprint.cli import options, output
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    from hf_fingerprint.checkpoints import SkippedFile
    from hf_fingerprint.config import PublishConfig
    from hf_fingerprint.hub import Assignment
    from hf_fingerprint.issuing import Issuer
    from hf_fingerprint.vault import Vault


Public = Annotated[bool, typer.Option("--public", help="Public variant repos; private ones by default.")]
IncludeCode = Annotated[bool, typer.Option("--include-code", help="Hand the model's .py files on with the copies.")]


def issue(
    model: options.Model,
    vault: options.VaultFolder,
    recipient: Annotated[
        list[str] | None, typer.Option("--recipient", help="Whose copy; several times for several.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The copy's folder; with several recipients DIR/NAME each.")
    ] = None,
    file: options.File = None,
    push_to: Annotated[
        list[str] | None, typer.Option("--push-to", help="The variant repo, org/name; one for each --recipient.")
    ] = None,
    account: Annotated[
        list[str] | None, typer.Option("--account", help="The recipient's Hub account; one for each --recipient.")
    ] = None,
    recipients: Annotated[
        Path | None,
        typer.Option("--recipients-file", help="CSV file with the columns name, repo and, optionally, account."),
    ] = None,
    reissue_from: Annotated[
        str | None,
        typer.Option(
            "--reissue-from",
            help="Replace the published copies of this older base, in the variant repo of each recipient.",
        ),
    ] = None,
    public: Public = False,
    gated: options.Gated = None,
    disclose: options.Disclose = False,
    base_model: options.BaseModel = None,
    max_kl: options.MaxKl = None,
    calibration: options.Calibration = None,
    coalition: options.Coalition = None,
    expected_recipients: options.ExpectedRecipients = None,
    alpha: options.Alpha = None,
    amplitude: options.Amplitude = None,
    carriers: options.Carriers = None,
    code: options.Code = None,
    include_code: IncludeCode = False,
    output_kind: options.OutputKind = None,
    calibration_images: options.CalibrationImages = None,
    as_base: options.AsBase = False,
    as_json: options.AsJson = False,
) -> None:
    """Issue one marked copy per recipient, into folders or variant repos on the Hub, registering the base at the
    first."""
    from hf_fingerprint.config import FingerprintConfig, PublishConfig
    from hf_fingerprint.issuing import Issuer
    from hf_fingerprint.vault import Vault, canonical_recipient

    names, opened = list(dict.fromkeys(map(canonical_recipient, recipient or []))), Vault(vault)
    pushed = bool(push_to or recipients or reissue_from)
    if pushed == (out is not None):
        raise FingerprintError(
            "Say where the copies go: --out for folders, or --push-to, --recipients-file or --reissue-from."
        )
    assignments = _assignments(recipient or [], push_to or [], account or [], recipients, reissue_from, opened)
    if not names and not assignments:
        raise FingerprintError("Say whose copies to make: --recipient NAME, or --recipients-file FILE.")
    publish_config = PublishConfig(not public, gated, disclose, base_model)
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
    known = {base.base_id for base in opened.bases()}
    with output.progress_bars() as progress:
        issuer = Issuer(options.model_reference(model, file), opened, config, progress, include_code, as_base)
    if issuer.base.base_id not in known:
        output.echo_err(output.describe_output(issuer.base))
        output.warn_unmeasured(issuer.base)
    with issuer:
        if out is None:
            _issue_to_hub(issuer, assignments, publish_config, reissue_from is not None, as_json)
        else:
            _issue_to_folders(issuer, names, out, as_json)


def push(
    copy: Annotated[Path, typer.Argument(help="The folder of a copy on record.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="The variant repo, org/name.", show_default=False)],
    vault: options.VaultFolder,
    account: Annotated[str | None, typer.Option("--account", help="The recipient's Hub account.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the recipient's older copy there.")] = False,
    public: Public = False,
    gated: options.Gated = None,
    disclose: options.Disclose = False,
    base_model: options.BaseModel = None,
    include_code: IncludeCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Push a copy that is in its folder already, issued or trained, to a variant repo."""
    from hf_fingerprint.config import PublishConfig
    from hf_fingerprint.hub import Publisher
    from hf_fingerprint.vault import Vault

    publish_config = PublishConfig(not public, gated, disclose, base_model)
    done = Publisher(Vault(vault), publish_config, include_code=include_code).push(copy, repo, account, replace)
    if as_json:
        output.print_json(done.to_dict())
    else:
        output.echo(f"{done.recipient}: {done.repo}@{done.revision}")
        _print_left_out(done.left_out)


def content_hash(model: options.Model, file: options.File = None) -> None:
    """Print a model's content hash, by which its holder can tell which weights they hold."""
    from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint

    with open_checkpoint(model, weights_only=True, file=file) as checkpoint:
        output.echo(content_hash(checkpoint.tensors, digest_tensors(checkpoint)))


def _assignments(
    names: list[str], repos: list[str], accounts: list[str], file: Path | None, old_base: str | None, vault: "Vault"
) -> "list[Assignment]":
    """Whose copy goes to which repo, by options, by a file, or by what is on record."""
    from hf_fingerprint.hub import Assignment, read_assignments, reissue_assignments

    if old_base is not None:
        if names or repos or file is not None:
            raise FingerprintError(
                "--reissue-from takes recipients and repos from the vault: leave out --recipient, --push-to and --recipients-file."
            )
        found = reissue_assignments(vault, old_base)
        if not found:
            raise FingerprintError(
                f"Nobody has a published copy of base {old_base}: `hf-fingerprint recipients` lists the bases."
            )
        return found
    if file is not None:
        if names or repos:
            raise FingerprintError("Give recipients either by --recipients-file FILE or by --recipient and --push-to.")
        return read_assignments(file)
    if repos and len(repos) != len(names):
        raise FingerprintError(f"There are {len(names)} --recipient and {len(repos)} --push-to: give one for each.")
    if accounts and len(accounts) != len(repos):
        raise FingerprintError(f"There are {len(repos)} --push-to and {len(accounts)} --account: give one for each.")
    if accounts:
        return [Assignment(*row) for row in zip(names, repos, accounts, strict=True)]
    return [Assignment(name, repo) for name, repo in zip(names, repos, strict=False)]  # no repos: folders


def _issue_to_folders(issuer: "Issuer", names: list[str], out: Path, as_json: bool) -> None:
    """Copies into folders."""
    issued = []
    with output.progress_bars() as progress:
        if len(names) == 1:
            issued = [issuer.issue(names[0], out, progress)]
        else:
            issued = list(issuer.issue_all(names, out, progress))
    if as_json:
        output.print_json([copy.to_dict() for copy in issued])
        return
    for copy in issued:
        output.echo(f"{copy.recipient}: {copy.path}" + ("" if copy.new else " (issued before, found whole)"))
    _print_left_out(each for copy in issued for each in copy.left_out)
    _print_summary(issuer, len(issued))


def _issue_to_hub(
    issuer: "Issuer", assignments: "list[Assignment]", publish_config: "PublishConfig", update: bool, as_json: bool
) -> None:
    """Copies into variant repos, each told as it is confirmed, so that an interruption loses no line."""
    from huggingface_hub.utils import disable_progress_bars

    from hf_fingerprint.hub import Publisher

    if len(assignments) > 1:
        disable_progress_bars()  # one bar for all
    done = []
    with output.progress_bars() as progress:
        try:
            for copy in Publisher(issuer.vault, publish_config).issue_all(issuer, assignments, update):
                done.append(copy)
                if not as_json:
                    before = "" if copy.new else " (published before)"
                    output.echo(f"{copy.recipient}: {copy.repo}@{copy.revision}{before}")
                progress("publishing", len(done), len(assignments))
        except FingerprintError:
            output.echo_err(f"{len(done)} of {len(assignments)} are published")
            raise
    if as_json:
        output.print_json([copy.to_dict() for copy in done])
        return
    _print_left_out(each for copy in done for each in copy.left_out)
    new = sum(copy.new for copy in done)
    output.echo(f"{new} published, {len(done) - new} were published before")
    _print_summary(issuer, len(done))


def _print_left_out(left_out: "Iterable[SkippedFile]") -> None:
    for name, reason in dict.fromkeys(left_out):
        output.echo_err(f"left out: {name} ({reason})")


def _print_summary(issuer: "Issuer", count: int) -> None:
    base = issuer.base
    output.echo(
        f"{count} of base {base.base_id}; code {base.family}, designed for {base.coalition} colluders, certified "
        f"against {base.certified} colluders among {base.recipients_planned:,} recipients (by "
        f"{base.certified_by.split(',')[0]})"
    )
