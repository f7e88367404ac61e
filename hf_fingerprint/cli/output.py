"""Output of the commands: text, tables, progress and JSON."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_fingerprint.cli import terminal
from hf_fingerprint.cli.terminal import console, echo, echo_err
from hf_fingerprint.progress import Progress


if TYPE_CHECKING:
    from rich.progress import TaskID

    from hf_fingerprint.blackbox import AccusationCheck, QueryResult
    from hf_fingerprint.vault import Base

__all__ = ["console", "echo", "echo_err"]


def print_json(value: Any) -> None:
    """Prints a JSON value to stdout."""
    for line in json.dumps(value, indent=2, allow_nan=False, default=str).split("\n"):
        echo(line)


def print_json_line(value: Any) -> None:
    """Prints a JSON value to stdout, on one line, and flushes."""
    echo(json.dumps(value, allow_nan=False, default=str))
    terminal.flush()


def warn_all_scores() -> None:
    """Warns on stderr not to publish the scores of recipients who are not accused."""
    echo_err(
        "Warning: Scores of recipients who are not accused help an attacker to build a suspect that accuses one of "
        "them: do not publish them."
    )


@contextmanager
def progress_bars(announce: bool = False) -> Iterator[Progress]:
    """Shows progress on stderr, a bar for each step; silent if stderr is no terminal.

    Args:
        announce (`bool`, *optional*, defaults to `False`): whether to print the name of each step that can't be
            counted, once, if stderr is no terminal.
    """
    with terminal.progress_bars() as bars:
        tasks: dict[str, TaskID] = {}
        uncounted: list[str] = []

        def show(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                while uncounted:  # the step before is over
                    bars.remove_task(tasks.pop(uncounted.pop()))
                tasks[step] = bars.add_task(step, total=total)
                if total is None:
                    uncounted.append(step)
                    if announce and bars.disable:
                        echo_err(step)
            bars.update(tasks[step], completed=done, total=total)

        yield show


def describe_base(base: "Base") -> list[str]:
    """Describes a base in a few lines."""
    from hf_fingerprint.registration import predicted_coalition, predicted_score

    lines = [
        f"{base.source}  (base {base.base_id})" + (f" at revision {base.revision}" if base.revision else ""),
        f"carriers: {len(base.carriers)} of {len(base.tensors)} tensors, {base.carrier_weights:,} weights",
        f"code: {base.family}, {base.length:,} positions, {base.carrier_weights // base.length} weights each, "
        f"designed for {base.coalition} colluders",
        describe_output(base),
    ]
    if base.replaces is not None:
        lines.append(
            f"replaces record {base.replaces} of the same weights for new copies; copies of both can be traced"
        )
    if base.copy_of is not None:
        lines.append(f"is a copy of base {base.copy_of}, registered as a base: its copies carry the marks of both")
    lines.append(f"predicted score of one leaked copy after a drift of 2 %: {predicted_score(base):.0f}")
    if base.compact is not None:
        lines.append(
            f"compact: {base.compact.share:.1%} of the bytes differ between copies; spread over all layers the score "
            f"would be {base.compact.spread_score:.0f}"
        )
    certified = f"{base.certified} among {base.expected_recipients:,} recipients at alpha {base.alpha:.0e}"
    averaging = f"  against averaging alone: {predicted_coalition(base)}, by formula"
    return [*lines, f"certified coalition: {certified}", f"  by {base.certified_by}", averaging]


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
    names = {"multi_label": "all labels agree on", "dense": "agreement of positions"}
    what = names.get(found.output or "", "top-1 agreement")
    if found.decisions is None or found.agreeing is None:
        return f"{text}, {what} {found.agreement:.1%} on {on}"
    interval = f"{found.agreement_low:.1%} to {found.agreement_high:.1%}"
    return f"{text}, {what} {found.agreeing:,} of {found.decisions:,} ({interval}) on {on}"


def print_query(result: "QueryResult") -> None:
    """Prints the result of a query: a table and a verdict."""
    from rich.table import Column, Table
    from rich.text import Text

    screen, stats, several = console(), result.stats, len(result.base_ids) > 1
    screen.print(Text(f"{result.suspect} queried for base{'s' * several} {', '.join(result.base_ids)}"))
    before = f", {stats.resumed} of them earlier, as the transcript shows" if stats.resumed else ""
    again = f", {stats.retries} requests repeated" if stats.retries else ""
    queried = f"{stats.queried} images queried{before}, including {stats.decoys_queried} decoys"
    screen.print(f"{queried}; {stats.answered} responses{again}")
    if result.scores:
        columns = ["base"] * several + ["matching labels", "bound on a false accusation", "verdict"]
        table = Table(Column("made for", overflow="fold"), *columns)
        for score in result.scores:
            agree, bound = f"{score.agreeing} of {score.counted}", format_probability(score.log10_bound)
            verdict = "ACCUSED" if score.accused else "-"
            table.add_row(Text(score.recipient), *[score.base_id] * several, agree, bound, verdict)
        screen.print(table)
    made = (f"the copy made for {score.recipient} ({score.copy_id}, {score.state})" for score in result.accused)
    names = ", ".join(dict.fromkeys(made))
    stop_reason = {"proven": "at the proof", "budget": "at the budget", "exhausted": "at the last image"}
    verdict = f"accused: {names}" if names else "nobody is accused"
    if result.reason is not None:
        verdict = f"not readable: {result.reason}"
    bound = f"the probability that any innocent is accused is at most {result.alpha:.0e}"
    stopped = f"stopped {stop_reason[stats.stop_reason]}, after {stats.queried} images"
    screen.print(Text(f"{verdict}. {result.copies:,} copies tested; {bound}; {stopped}"))
    rest = "; --exhaustive queries all images, to find further colluders" if stats.stop_reason == "proven" else ""
    screen.print(
        f"a mixture of several copies may show only some of their recipients, or none: nobody is cleared{rest}"
    )
    for skipped in result.skipped:
        screen.print(Text(f"not queried for base {skipped.base_id}: {skipped.reason}"))
    if result.non_answering:
        shown = ", ".join(dict.fromkeys(result.non_answering[:20])) + ", ..." * (len(result.non_answering) > 20)
        count = f"{len(result.non_answering):,} of these copies"
        screen.print(Text(f"queries can't trace {count}, which have no trigger labels: {shown}"))


def print_proof(checks: "Sequence[AccusationCheck]") -> None:
    """Prints the result of a check of a proof, and what remains to be checked."""
    from rich.table import Column, Table
    from rich.text import Text

    from hf_fingerprint.blackbox.querying.proof import NOT_SHOWN, proof_outcome
    from hf_fingerprint.outcomes import Outcome

    screen, outcome = console(), proof_outcome(checks)
    table = Table(Column("recipient", overflow="fold"), "matching labels", "bound on a false accusation", "verdict")
    for check in checks:
        verdict = "holds" if check.holds else "no proof" if check.opened else "wrong key"
        verdict = "wrong commitment" if check.opened and check.published is False else verdict
        agree = f"{check.agreeing} of {check.counted}"
        table.add_row(Text(check.recipient), agree, format_probability(check.log10_bound), verdict)
    screen.print(table)
    for check in checks:
        if check.opened:
            published = {True: "as published", False: "not the published one", None: "not checked"}[check.published]
            screen.print(Text(f"{check.recipient}'s commitment: {check.commitment} ({published})"), soft_wrap=True)
    if outcome is Outcome.NOBODY:
        screen.print("the proof does not hold")
        return
    first = checks[0]
    tested = f"responses of {first.suspect}, {first.copies:,} copies tested (alpha {first.alpha:.0e})"
    screen.print(Text(f"the proof is consistent: {tested}. It does not show, so its author vouches for it:"))
    for each in NOT_SHOWN:
        screen.print(f"- {each}")
    if outcome is Outcome.NOT_READABLE:
        screen.print(
            "not checked against a published commitment, so the keys may be invented: give the commitment from the "
            "copy's model card (published with --disclose) by --commitment"
        )
    else:
        screen.print("the proof holds for the published commitments")


def format_probability(log10_bound: float) -> str:
    """Formats a bound on a probability."""
    return "1" if log10_bound > -0.05 else f"10^{log10_bound:.1f}"
