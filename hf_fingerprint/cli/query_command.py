"""`query` and `check-proof`: trace a model behind an API, and check the proof of an accusation."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hf_fingerprint.choices import RequestFormat
from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import argument, option
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    from hf_fingerprint.blackbox.client.class_names import Labels
    from hf_fingerprint.blackbox.client.suspects import SuspectClient
    from hf_fingerprint.vault import Vault


def query(
    suspect: Annotated[
        str, argument("URL (https://...), hf:org/name, pipeline:FOLDER or python:MODULE_OR_FILE:FUNCTION.")
    ],
    vault: options.VaultFolder,
    base: options.KnownBase = None,
    labels: Annotated[
        Path | None, option("--labels", "File with the class names in order. Defaults to the base's config.")
    ] = None,
    request_format: Annotated[
        RequestFormat, option("--request-format", "How the service takes an image: raw, json or multipart.")
    ] = "raw",
    field: Annotated[
        str | None, option("--field", "Path to the class in the service's response, such as result.top.")
    ] = None,
    token_env: Annotated[
        str | None, option("--token-env", "Environment variable that holds the access token.")
    ] = None,
    user_agent: Annotated[
        str | None, option("--user-agent", "User-Agent header. Defaults to that of the HTTP library.")
    ] = None,
    rate: Annotated[
        float | None, option("--rate", "Maximum number of requests a second. Defaults to 5.", min=0)
    ] = None,
    budget: Annotated[
        int | None, option("--budget", "Maximum number of images to query. Defaults to all.", min=1)
    ] = None,
    exhaustive: Annotated[
        bool, option("--exhaustive", "Query on after the first accusation, to find further colluders.")
    ] = False,
    transcript: Annotated[
        Path | None, option("--transcript", "Append each response to this file. Run the command again to resume.")
    ] = None,
    proof: Annotated[
        Path | None,
        option(
            "--proof",
            "File for the proof, if somebody is accused. Without --transcript, the transcript is FILE.transcript.",
        ),
    ] = None,
    alpha: options.Alpha = None,
    all_scores: options.AllScores = False,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    as_json: options.AsJson = False,
) -> int:
    """Trace a model behind an API by its predictions on trigger images, of all bases that have a trigger set or of
    --base.

    Exit code 0: somebody is accused, 1: nobody, 2: an error, 3: not readable.
    """
    if token_env is not None and not suspect.startswith(("http://", "https://", "hf:")):
        raise FingerprintError("--token-env is only for a URL or hf:org/name: leave it out.")
    token = options.read_token(token_env)
    from hf_fingerprint.blackbox import query as run_query
    from hf_fingerprint.blackbox.querying.proof import check_proof_path, write_proof
    from hf_fingerprint.vault import Vault

    if proof is not None:
        check_proof_path(proof)
        transcript = transcript or proof.with_name(f"{proof.name}.transcript")
    opened_vault = Vault(vault)
    names = load_base_labels(labels, opened_vault, base)
    client = open_suspect(suspect, names, request_format, field, token, rate, user_agent)
    options.unlock(opened_vault, passphrase_file, identity)
    with output.progress_bars() as progress:
        result = run_query(
            client,
            opened_vault,
            base,
            budget=budget,
            transcript=transcript,
            alpha=alpha,
            exhaustive=exhaustive,
            all_scores=all_scores,
            progress=progress,
        )
    if all_scores:
        output.warn_all_scores()
    if as_json:
        output.print_json(result.to_dict())
    else:
        output.print_result(result)
    if proof is not None and transcript is not None and result.accused:
        for place in write_proof(proof, transcript, result, opened_vault):
            output.echo_err(
                f"proof: {place}; it reveals the copy keys of the accused, so give it only to those who check it"
            )
    return result.outcome.exit_code


def check_proof(
    proof: Annotated[Path, argument("File that `query --proof` wrote.")],
    commitment: Annotated[
        list[str] | None,
        option(
            "--commitment",
            "Commitment from the model card of the accused's copy. Repeat the option for several copies.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Check a proof, without a vault or a model.

    Exit code 0: it holds for the published commitments, 1: it does not, 2: an error, 3: not checked against a
    published commitment.
    """
    from hf_fingerprint.blackbox.querying.proof import check_proof as run_check

    found = run_check(proof, commitment or ())
    if as_json:
        output.print_json([check.to_dict() for check in found.accusations])
    else:
        output.print_result(found)
    return found.outcome.exit_code


def open_suspect(
    text: str,
    labels: "Labels",
    request_format: RequestFormat,
    field: str | None,
    token: str | None,
    rate: float | None,
    user_agent: str | None = None,
) -> "SuspectClient":
    """The client for a suspect that is named on the command line.

    Raises:
        [`FingerprintError`]: if the name is not valid, or the suspect can't be queried.
    """
    from hf_fingerprint.blackbox.client.remote import from_inference_client, from_url
    from hf_fingerprint.blackbox.client.retries import RATE, RetryPolicy
    from hf_fingerprint.blackbox.client.suspects import from_callable, from_folder

    retry_policy = RetryPolicy(RATE if rate is None else rate)
    kind, _, rest = text.partition(":")
    if kind in ("http", "https"):
        return from_url(
            text, labels, token, field, request_format=request_format, retry_policy=retry_policy, user_agent=user_agent
        )
    if kind == "hf" and rest:
        return from_inference_client(rest, labels, token, retry_policy=retry_policy, user_agent=user_agent)
    if kind == "pipeline" and rest:
        return from_folder(rest, labels)
    if kind == "python" and rest:
        return from_callable(_load_function(rest), labels, text)
    forms = "https://..., hf:org/name, pipeline:FOLDER or python:MODULE_OR_FILE:FUNCTION"
    raise FingerprintError(f"{_redact_suspect(text)} is not a suspect: give {forms}.")


def _load_function(text: str) -> Callable[[Any], Any]:
    """Imports the user's function from a module or file."""
    where, _, name = text.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            if spec is None or spec.loader is None:
                raise ImportError
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        elif where:
            if "" not in sys.path:
                sys.path.insert(0, "")  # a console script does not search the current folder
            module = importlib.import_module(where)
        else:
            raise ImportError
    except Exception as error:
        forms = "python:MODULE:FUNCTION or python:FILE.py:FUNCTION"
        reason = type(error).__name__
        raise FingerprintError(f"python:{text} can't be imported ({reason}): give {forms}.") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise FingerprintError(f"{where} has no function {name}: give a function that takes a PIL image.")
    return found


def load_base_labels(path: Path | None, vault: "Vault", base: str | None) -> "Labels":
    """The class names from a file, or else from the base's config.

    Raises:
        [`FingerprintError`]: if there are none, or the bases differ.
    """
    from hf_fingerprint.blackbox.client.class_names import Labels, read_labels
    from hf_fingerprint.checkpoints.source import resolve

    if path is not None:
        return read_labels(path)
    bases = vault.bases()
    named = [each for each in bases if base in (None, each.base_id, each.source)]
    known = [each for each in named if vault.trigger_set(each) is not None] or named
    places = {each.source + (f"@{each.revision}" if each.revision else "") for each in known}
    if base is not None and not known:
        places = {base}
    found: dict[tuple[str, ...], Labels] = {}
    for place in sorted(places):
        try:
            config = resolve(place).folder / "config.json"
            if config.is_file():
                labels = read_labels(config)
                found[labels.names] = labels
        except FingerprintError:  # the base moved, or its config has no class names
            pass
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise FingerprintError(
            f"The bases of {vault.folder} have {len(found)} different sets of class names: give those of the suspect "
            f"by --labels, or choose a base by --base."
        )
    remedy = "give them by --labels, or the base's folder by --base"
    raise FingerprintError(f"The class names of the base are not found from {vault.folder}: {remedy}.")


def _redact_suspect(text: str) -> str:
    """A mistyped suspect, without parts that may hold a password."""
    return text.partition("://")[0] if "@" in text or "?" in text else text
