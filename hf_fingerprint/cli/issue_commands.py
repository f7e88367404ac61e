"""`issue`, `push` and `hash`: make copies and publish them."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import argument, option
from hf_fingerprint.config import FingerprintConfig, PublishConfig
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    from hf_fingerprint.checkpoints import SkippedFile
    from hf_fingerprint.choices import Gating
    from hf_fingerprint.hub import Assignment, Publisher
    from hf_fingerprint.issuing import Issuer
    from hf_fingerprint.vault import Vault


Public = Annotated[
    bool, option("--public", "Make the variant repos public. They are private by default.", options.HUB)
]
IncludeCode = Annotated[bool, option("--include-code", "Include the model's .py files in the copies.")]


@options.expand_options
def issue(
    model: options.Model,
    vault: options.VaultFolder,
    recipient: Annotated[
        list[str] | None, option("--recipient", "Recipient name. Repeat the option for several recipients.")
    ] = None,
    out: Annotated[
        Path | None, option("--out", "Folder for the copies: each is a subfolder with the recipient's name.")
    ] = None,
    file: options.File = None,
    push_to: Annotated[
        list[str] | None, option("--push-to", "Variant repo, org/name. Give one for each --recipient.", options.HUB)
    ] = None,
    account: Annotated[
        list[str] | None,
        option("--account", "Hub account of the recipient. Give one for each --recipient.", options.HUB),
    ] = None,
    recipients: Annotated[
        Path | None,
        option(
            "--recipients-file",
            "CSV file with a column name, instead of --recipient. Without --out, copies are published: the "
            "column repo names each variant repo, and the optional column account the recipient's Hub account.",
        ),
    ] = None,
    reissue_from: Annotated[
        str | None,
        option(
            "--reissue-from",
            "Replace the published copies of this older base, in the variant repo of each recipient.",
            options.HUB,
        ),
    ] = None,
    public: Public = False,
    gated: options.Gated = None,
    disclose: options.Disclose = False,
    base_model: options.BaseModel = None,
    publish_config_file: options.PublishConfigFile = None,
    *,
    config: FingerprintConfig,
    files: options.ModelFiles,
    device: options.Device = None,
    include_code: IncludeCode = False,
    as_base: options.AsBase = False,
    ancestor: options.Ancestor = None,
    as_json: options.AsJson = False,
) -> None:
    """Issue one marked copy for each recipient, into folders or variant repos on the Hub. The first copy registers the
    base."""
    from hf_fingerprint.hub import Publisher, read_recipients
    from hf_fingerprint.issuing import Issuer
    from hf_fingerprint.vault import Vault, canonical_recipient

    opened = Vault(vault)
    pushed = bool(push_to or reissue_from)
    if (pushed and out is not None) or not (pushed or recipients or out):
        raise FingerprintError(
            "Give either --out, for folders, or one of --push-to, --recipients-file and --reissue-from, for the Hub."
        )
    if out is not None and account:
        raise FingerprintError("--account gives access to a variant repo: leave it out, or give --push-to, not --out.")
    if recipients is not None and (recipient or push_to):
        raise FingerprintError("--recipients-file can't be combined with --recipient or --push-to: use one of them.")
    names, assignments = recipient or [], []
    if out is None:
        assignments = _assignments(names, push_to or [], account or [], recipients, reissue_from, opened)
    elif recipients is not None:
        names = read_recipients(recipients)
    names = list(dict.fromkeys(map(canonical_recipient, names)))
    if not names and not assignments:
        raise FingerprintError("No recipient is given: add --recipient NAME or --recipients-file FILE.")
    publish_config = _publish_config(publish_config_file, files.access, public, gated, disclose, base_model)
    known = {base.base_id for base in opened.bases()}
    with output.progress_bars() as progress:
        chosen = {"include_code": include_code, "as_base": as_base, "device": device} | files.keywords
        chosen["ancestor"] = options.ancestor_input(ancestor)
        issuer = Issuer(options.model_reference(model, file), opened, config, progress, **chosen)
    if issuer.base.base_id not in known:
        for line in (output.describe_output(issuer.base), *output.describe_strength(issuer.base)):
            output.echo_err(line)
        if issuer.base.ancestor is not None:
            output.echo_err(output.describe_ancestor(issuer.base.ancestor))
        output.warn_unmeasured(issuer.base)
    with issuer:
        if out is None:
            publisher = Publisher(opened, publish_config, token=files.access["token"])
            _issue_to_hub(issuer, publisher, assignments, reissue_from is not None, as_json)
        else:
            _issue_to_folders(issuer, names, out, as_json)


def push(
    copy: Annotated[Path, argument("Folder of a recorded copy.")],
    repo: Annotated[str, argument("Variant repo, org/name.")],
    vault: options.VaultFolder,
    account: Annotated[str | None, option("--account", "Hub account of the recipient.", options.HUB)] = None,
    replace: Annotated[bool, option("--replace", "Replace the recipient's older copy in the repo.")] = False,
    public: Public = False,
    gated: options.Gated = None,
    disclose: options.Disclose = False,
    base_model: options.BaseModel = None,
    token_env: options.TokenEnv = None,
    publish_config_file: options.PublishConfigFile = None,
    include_code: IncludeCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Push an existing copy, issued or trained, to a variant repo."""
    from hf_fingerprint.hub import Publisher
    from hf_fingerprint.vault import Vault

    token = options.read_token(token_env)
    publish_config = _publish_config(publish_config_file, {"token": token}, public, gated, disclose, base_model)
    publisher = Publisher(Vault(vault), publish_config, include_code=include_code, token=token)
    done = publisher.push(copy, repo, account, replace)
    if as_json:
        output.print_json(done.to_dict())
    else:
        output.echo(f"{done.recipient}: {done.repo}@{done.revision}")
        _print_left_out(done.left_out)


def _publish_config(
    file: str | None,
    access: "Mapping[str, Any]",
    public: bool,
    gated: "Gating | None",
    disclose: bool,
    base_model: str | None,
) -> PublishConfig:
    """The configuration of the options that are given, and of the saved one for the others."""
    given = {"private": False if public else None, "gated": gated, "disclose": disclose or None}
    return options.load_config(PublishConfig, file, access, **given, base_model=base_model)


@options.expand_options
def content_hash(model: options.Model, file: options.File = None, *, files: options.ModelFiles) -> None:
    """Print a model's content hash, which identifies its weights."""
    from hf_fingerprint.checkpoints import HubOptions, content_hash, digest_tensors, open_checkpoint

    chosen = HubOptions(**files.keywords)
    with open_checkpoint(model, weights_only=True, file=file, options=chosen) as checkpoint:
        output.echo(content_hash(checkpoint.tensors, digest_tensors(checkpoint)))


def _assignments(
    names: list[str], repos: list[str], accounts: list[str], file: Path | None, old_base: str | None, vault: "Vault"
) -> "list[Assignment]":
    """The recipients and their variant repos, from options, a file or the vault."""
    from hf_fingerprint.hub import Assignment, read_assignments, reissue_assignments

    if old_base is not None:
        if names or repos or file is not None:
            others = "--recipient, --push-to and --recipients-file"
            raise FingerprintError(f"--reissue-from takes recipients and repos from the vault: leave out {others}.")
        found = reissue_assignments(vault, old_base)
        if not found:
            raise FingerprintError(
                f"Base {old_base} has no published copies: list the copies with `hf-fingerprint recipients`."
            )
        return found
    if file is not None:
        return read_assignments(file)
    if repos and len(repos) != len(names):
        raise FingerprintError(f"There are {len(names)} --recipient and {len(repos)} --push-to: give one for each.")
    if accounts and len(accounts) != len(repos):
        raise FingerprintError(f"There are {len(repos)} --push-to and {len(accounts)} --account: give one for each.")
    rows = zip_longest(names, repos, accounts)  # with as many repos as names, and as many accounts or none
    return [Assignment(*row) for row in rows]


def _issue_to_folders(issuer: "Issuer", names: list[str], out: Path, as_json: bool) -> None:
    """Issues copies into folders."""
    with output.progress_bars() as progress:
        issued = list(issuer.issue_all(names, out, progress))
    if as_json:
        output.print_json([copy.to_dict() for copy in issued])
        return
    for copy in issued:
        output.echo(f"{copy.recipient}: {copy.path}" + ("" if copy.new else " (issued before, complete)"))
    _print_left_out(each for copy in issued for each in copy.left_out)
    _print_summary(issuer, len(issued))


def _issue_to_hub(
    issuer: "Issuer", publisher: "Publisher", assignments: "list[Assignment]", update: bool, as_json: bool
) -> None:
    """Publishes copies in variant repos, and prints each once it is confirmed."""
    from huggingface_hub.utils import disable_progress_bars

    if len(assignments) > 1:
        disable_progress_bars("huggingface_hub")  # ours is one for all
    done = []
    with output.progress_bars() as progress:
        try:
            for copy in publisher.issue_all(issuer, assignments, update):
                done.append(copy)
                if not as_json:
                    before = "" if copy.new else " (published before)"
                    output.echo(f"{copy.recipient}: {copy.repo}@{copy.revision}{before}")
                progress("publishing", len(done), len(assignments))
        except FingerprintError:
            output.echo_err(f"{len(done)} of {len(assignments)} copies are published")
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
    among = f"certified among {base.expected_recipients:,} recipients by {base.certified_by.split(',')[0]}"
    output.print_blocks(
        [f"{count} of base {base.base_id}; code {base.family}, {among}", output.explain_certified(base)]
    )
