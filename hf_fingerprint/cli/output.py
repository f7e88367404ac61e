"""Output of the commands: text, tables, progress and JSON."""

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hf_fingerprint.cli import terminal
from hf_fingerprint.cli.terminal import console, echo, echo_err
from hf_fingerprint.launcher import is_first_launched, process_count
from hf_fingerprint.progress import Progress, progress_disabled, show_progress


if TYPE_CHECKING:
    from hf_fingerprint.tables import Block, PrintableResult
    from hf_fingerprint.vault import Ancestor, Base

__all__ = ["console", "echo", "echo_err"]


def print_json(value: Any) -> None:
    """Prints a JSON value to stdout."""
    for line in json.dumps(value, indent=2, allow_nan=False, default=str).split("\n"):
        echo(line)


def print_json_line(value: Any) -> None:
    """Prints a JSON value to stdout, on one line, and flushes."""
    echo(json.dumps(value, allow_nan=False, default=str))
    terminal.flush()


def print_shared_line(value: Any) -> None:
    """Prints a result that all processes of a launch have: the first one prints it."""
    if is_first_launched():
        print_json_line(value)


def shared_exit_code(code: int) -> int:
    """The exit code of a command that several processes share: a launcher stops them all at any other than 0."""
    return code if process_count() == 1 else 0


def warn_all_scores() -> None:
    """Warns on stderr not to publish the scores of recipients who are not accused."""
    echo_err(
        "Warning: Scores of recipients who are not accused help an attacker to build a suspect that accuses one of "
        "them: do not publish them."
    )


def progress_bars() -> AbstractContextManager[Progress]:
    """Shows progress on stderr: a bar for each step, or lines where stderr is no terminal; see [`show_progress`].

    If `HF_HUB_DISABLE_PROGRESS_BARS` is set, the lines are logged instead.
    """
    return show_progress(None if progress_disabled() else echo_err)


def describe_base(base: "Base") -> list[str]:
    """Describes a base in a few lines."""
    from hf_fingerprint.registration import predictions

    predicted = predictions(base)
    lines = [
        f"{base.source}  (base {base.base_id})" + (f" at revision {base.revision}" if base.revision else ""),
        f"carriers: {len(base.carriers)} of {len(base.tensors)} tensors, {base.carrier_weights:,} weights",
        f"code: {base.family}, {base.length:,} positions, {base.carrier_weights // base.length} weights each, "
        f"designed for {base.coalition} colluders",
        describe_output(base),
        *describe_strength(base, predicted),
    ]
    if base.ancestor is not None:
        lines.append(describe_ancestor(base.ancestor))
    if base.replaces is not None:
        lines.append(
            f"replaces record {base.replaces} of the same weights for new copies; copies of both can be traced"
        )
    if base.copy_of is not None:
        lines.append(f"is a copy of base {base.copy_of}, registered as a base: its copies carry the marks of both")
    if base.compact is not None:
        lines.append(
            f"compact: {base.compact.share:.1%} of the bytes differ between copies; spread over all layers the score "
            f"would be {base.compact.spread_score:.0f}"
        )
    certified = f"{base.certified} among {base.expected_recipients:,} recipients at alpha {base.alpha:.0e}"
    averaging = f"  against averaging alone: {predicted['predicted_coalition']}, by formula"
    averaging += _compared(predicted, "predicted_coalition")
    lines += [f"certified coalition: {certified}", f"  by {base.certified_by}", averaging]
    return [*lines, explain_certified(base)]


def describe_ancestor(ancestor: "Ancestor") -> str:
    """Describes the recorded ancestor of a base, in one line."""
    return f"ancestor: {ancestor.place}"


def describe_strength(base: "Base", predicted: Mapping[str, Any] | None = None) -> list[str]:
    """Describes in a few lines what limits the strength of a base's mark, and what the strength yields.

    Args:
        base ([`Base`]): the base.
        predicted (mapping, *optional*): [`predictions`] of it, if the caller has them.
    """
    from hf_fingerprint.registration import predictions

    found, predicted = base.calibration, predicted or predictions(base)
    limits = {"kl": "the KL", "agreement": "the agreement", "amplitude": "the largest amplitude that a budget allows"}
    lines = []
    if predicted["limited_by"] is not None:
        share = max(carrier.eps for carrier in base.carriers)
        advice = ""
        if found.inputs == "synthetic" and predicted["limited_by"] != "amplitude":
            advice = "; on images of your own (--calibration) it may be stronger"
        limit = limits[str(predicted["limited_by"])]
        lines.append(f"strength: up to {share:.1%} of each row's root mean square, limited by {limit}{advice}")
    scores = [predicted[f"predicted_score{name}"] for name in ("_as_issued", "", "_large_drift")]
    issued, small, large = (f"{score:.0f}" for score in scores)
    lines.append(
        f"predicted score of one leaked copy: {issued} as issued, {small} after a drift of 2 %, {large} after 20 %"
        + _compared(predicted, "predicted_score_large_drift")
    )
    return lines


def _compared(predicted: Mapping[str, Any], name: str) -> str:
    """The same figure at the small budget, if it is lower."""
    this, small = (f"{predicted[each]:.0f}" for each in (name, f"{name}_small_budget"))
    return "" if float(small) >= float(this) else f" (at a KL of 1e-04: {small})"


def explain_certified(base: "Base") -> str:
    """Explains the two numbers of colluders of a base, in one sentence."""
    planned, certified = base.coalition, base.certified
    return (
        f"designed for {planned}, certified against {certified}: the code's bits are drawn for mixtures of {planned} "
        f"copies, and simulations of a mark of this strength accuse every one of up to {certified} colluders; of "
        "more, some may stay unnamed, while the innocent are as safe"
    )


def warn_unmeasured(base: "Base") -> None:
    """Warns on stderr if the effect of a base's mark on the output was not measured."""
    if base.calibration.kl is None:
        share = max(carrier.eps for carrier in base.carriers)
        echo_err(
            f"Warning: the effect of the mark on the output of {base.source} could not be measured. Each marked row "
            f"changes by {share:.1%} of its root mean square: compare a copy with the base before you release it."
        )


def describe_output(base: "Base") -> str:
    """Describes the measured effect of the mark on the output, in one line."""
    found = base.calibration
    share = max(carrier.eps for carrier in base.carriers)
    if found.kl is None:
        return f"output: not measured; amplitude {share:.1%} of each row's root mean square"
    on = f"{found.images:,} " * (found.output is None or found.output in ("dense", "features"))
    on += "images" if found.inputs == "images" else "synthetic images"
    spread = "" if found.kl_low is None else f" ({found.kl_low:.1e} to {found.kl_high:.1e})"
    allowed = f"of {found.max_kl:.0e} allowed" if found.eps is None else f"at a fixed amplitude of {found.eps:.1%}"
    name = "" if found.output is None else f" ({found.output.replace('_', ' ')})"
    text = f"output{name}: {'1 - cosine' if found.output == 'features' else 'KL'} {found.kl:.1e}{spread} {allowed}"
    if found.kl_scatter is not None and found.kl:
        text += f"; single copies vary by {found.kl_scatter / found.kl:.0%}"
    if found.agreement is None:
        return f"{text}, mean cosine {1 - found.kl:.6f} on {on}"
    if found.predicted_agreement is not None:
        required = "" if found.min_agreement is None else f" of {found.min_agreement:.1%} required"
        low = f"{found.predicted_agreement_low:.2%} or more"
        predicted = f"; predicted {found.predicted_agreement:.2%} ({low}){required}"
    else:
        predicted = ""
    names = {"multi_label": "all labels agree on", "dense": "agreement of positions"}
    what = names.get(found.output or "", "top-1 agreement")
    if found.decisions is None or found.agreeing is None:
        return f"{text}, {what} {found.agreement:.1%} on {on}"
    interval = f"{found.agreement_low:.1%} to {found.agreement_high:.1%}"
    return f"{text}, {what} {found.agreeing:,} of {found.decisions:,} ({interval}) on {on}{predicted}"


def print_result(result: "PrintableResult") -> None:
    """Prints the lines and tables of a result to stdout."""
    print_blocks(result.blocks())


def print_blocks(blocks: "Iterable[Block]") -> None:
    """Prints lines and tables to stdout."""
    from hf_fingerprint import tables

    tables.print_blocks(blocks, console())
