"""What commands print: tables and progress for people, JSON for programs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_fingerprint.cli import terminal
from hf_fingerprint.cli.terminal import console, remark, say


if TYPE_CHECKING:
    from hf_fingerprint.blackbox import Proven, QueryResult
    from hf_fingerprint.vault import Base

__all__ = ["console", "remark", "say"]


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    for line in json.dumps(value, indent=2, allow_nan=False, default=str).split("\n"):
        say(line)


def print_line(value: Any) -> None:
    """One JSON value on a line of stdout, at once, for whoever reads along."""
    say(json.dumps(value, allow_nan=False, default=str))
    terminal.flush()


def warn_all_scores() -> None:
    """Says on stderr why the scores of those who are not accused stay in the house."""
    remark(
        "Warning: Scores of recipients who are not accused help an attacker to build a suspect that accuses one of "
        "them: do not publish them."
    )


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that names the step under way; silent where nobody watches."""
    from rich.text import Text

    place = console(stderr=True)
    if not place.is_terminal:
        yield lambda step: None
        return
    with place.status("working") as status:
        yield lambda step: status.update(Text(step))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, told how much was done."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    percentage = TextColumn("{task.percentage:>3.0f}%", markup=False)
    columns = (BarColumn(), percentage, TimeElapsedColumn(), TextColumn("left", markup=False), TimeRemainingColumn())
    with terminal.progress_bars(*columns) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars for several steps, each told `(step, done, total)`."""
    with terminal.progress_bars() as bar:
        tasks: dict[str, Any] = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.advance(tasks[step], done)

        yield advance


def describe_base(base: "Base") -> list[str]:
    """A base in a few lines."""
    from hf_fingerprint.registration import averaging_coalition, predicted_score

    lines = [
        f"{base.source}  (base {base.base_id})" + (f" at revision {base.revision}" if base.revision else ""),
        f"carriers: {len(base.carriers)} of {len(base.tensors)} tensors, {base.carrier_weights:,} weights",
        f"code: {base.family}, {base.length:,} positions, {base.carrier_weights // base.length} weights each, "
        f"designed for {base.coalition} colluders",
    ]
    lines.append(describe_output(base))
    if base.replaces is not None:
        lines.append(f"replaces record {base.replaces} of the same weights for new copies; copies of both trace")
    if base.copy_of is not None:
        lines.append(f"is a copy of base {base.copy_of}, registered as a base: its copies carry the marks of both")
    lines.append(f"predicted score of one leaked copy after a drift of 2 %: {predicted_score(base):.0f}")
    if base.compact is not None:
        lines.append(
            f"compact: {base.compact.share:.1%} of the bytes differ between copies; spread over all layers the score "
            f"would be {base.compact.spread_score:.0f}"
        )
    lines.append(
        f"certified coalition: {base.certified} among {base.recipients_planned:,} recipients at alpha {base.alpha:.0e}"
    )
    lines.append(f"  by {base.certified_by}")
    lines.append(f"  against averaging alone: {averaging_coalition(base)}, by formula")
    return lines


def warn_unmeasured(base: "Base") -> None:
    """Says on stderr what is not known of a base that was registered at a fixed strength without measuring it."""
    if base.calibration.kl is None:
        share = max(carrier.eps for carrier in base.carriers)
        remark(
            f"Warning: nothing is known about what the mark does to the output of {base.source}: it could not be "
            f"measured, and each marked row changes by {share:.1%} of its size. Compare a copy with the base yourself "
            f"before you hand it out."
        )


def describe_output(base: "Base") -> str:
    """What the mark was measured to do, in a line."""
    found = base.calibration
    share = max(carrier.eps for carrier in base.carriers)
    if found.kl is None:
        return f"output: not measured; the mark has {share:.1%} of each row's size"
    on = f"{found.images:,} " * (found.output is None or found.output in ("dense", "features"))
    on += "images" if found.inputs == "images" else "synthetic images"
    spread = "" if found.kl_low is None else f" ({found.kl_low:.1e} to {found.kl_high:.1e})"
    allowed = f"of {found.max_kl:.0e} allowed" if found.eps is None else f"at a fixed strength of {found.eps:.1%}"
    name = "" if found.output is None else f" ({found.output.replace('_', ' ')})"
    told = f"output{name}: {'1 - cosine' if found.output == 'features' else 'KL'} {found.kl:.1e}{spread} {allowed}"
    if found.kl_scatter is not None and found.kl:
        told += f", one copy's own +- {found.kl_scatter / found.kl:.0%}"
    if found.agreement is None:
        return f"{told}, mean cosine {1 - found.kl:.6f} on {on}"
    what = {"multi_label": "all labels agree on", "dense": "agreement of positions"}.get(
        found.output or "", "top-1 agreement"
    )
    if found.decisions is None or found.agreeing is None:
        return f"{told}, {what} {found.agreement:.1%} on {on}"
    interval = f"{found.agreement_low:.1%} to {found.agreement_high:.1%}"
    return f"{told}, {what} {found.agreeing:,} of {found.decisions:,} ({interval}) on {on}"


def print_query(result: "QueryResult") -> None:
    """What a suspect's answers say, as a table and a verdict in words."""
    from rich.table import Column, Table
    from rich.text import Text

    place, went, several = console(), result.questioning, len(result.base_ids) > 1
    place.print(Text(f"{result.suspect} asked about base{'s' * several} {', '.join(result.base_ids)}"))
    before = f", {went.resumed} of these in the transcript before" if went.resumed else ""
    again = f", {went.retries} requests made again" if went.retries else ""
    place.print(
        f"{went.asked} images asked{before}, {went.decoys_asked} decoys among them; {went.answered} answered{again}"
    )
    if result.scores:
        columns = ["base"] * several + ["answers that agree", "bound on a false accusation", "verdict"]
        table = Table(Column("made for", overflow="fold"), *columns)
        for score in result.scores:
            agree, bound = f"{score.agreeing} of {score.counted}", power_of_ten(score.log10_bound)
            verdict = "ACCUSED" if score.accused else "-"
            table.add_row(Text(score.recipient), *[score.base_id] * several, agree, bound, verdict)
        place.print(table)
    made = (f"the copy made for {score.recipient} ({score.copy_id}, {score.state})" for score in result.accused)
    names = ", ".join(dict.fromkeys(made))
    stopped = {"proven": "at the proof", "budget": "at the budget", "all asked": "as nothing is left to ask"}
    verdict = f"accused: {names}" if names else "nobody is accused"
    if result.reason is not None:
        verdict = f"not readable: {result.reason}"
    place.print(
        Text(
            f"{verdict}. {result.copies:,} copies tested; any innocent accused with probability at most "
            f"{result.alpha:.0e}; stopped {stopped[went.stopped]}, after {went.asked} images"
        )
    )
    rest = "; --whole asks on, for further colluders" if went.stopped == "proven" else ""
    place.print(
        f"a model mixed from several copies answers for some of their recipients, or for none: nobody is cleared{rest}"
    )
    for left_out in result.left_out:
        place.print(Text(f"not asked about base {left_out.base_id}: {left_out.why}"))
    if result.unbound:
        shown = ", ".join(dict.fromkeys(result.unbound[:20])) + (", ..." if len(result.unbound) > 20 else "")
        place.print(
            Text(
                f"answers can't name {len(result.unbound):,} of these copies, made before the base had questions or "
                f"never bound to answer them: {shown}"
            )
        )


def print_proof(worked_out: "Sequence[Proven]") -> None:
    """A proof as it was worked out again, and what is left to check."""
    from rich.table import Column, Table
    from rich.text import Text

    from hf_fingerprint.blackbox.querying.proof import NOT_SHOWN, outcome_of_proof
    from hf_fingerprint.outcomes import Outcome

    place, outcome = console(), outcome_of_proof(worked_out)
    table = Table(Column("recipient", overflow="fold"), "answers that agree", "bound on a false accusation", "verdict")
    for proven in worked_out:
        verdict = "holds" if proven.holds else "no proof" if proven.opened else "wrong key"
        verdict = "wrong commitment" if proven.opened and proven.published is False else verdict
        agree = f"{proven.agreeing} of {proven.counted}"
        table.add_row(Text(proven.recipient), agree, power_of_ten(proven.log10_bound), verdict)
    place.print(table)
    for proven in worked_out:
        if proven.opened:
            published = {True: "as published", False: "not the published one", None: "not checked"}[proven.published]
            place.print(Text(f"{proven.recipient}'s commitment: {proven.commitment} ({published})"), soft_wrap=True)
    if outcome is Outcome.NOBODY:
        place.print("the proof does not hold")
        return
    first = worked_out[0]
    place.print(
        Text(
            f"the file works out: answers of {first.suspect}, {first.copies:,} copies tested (alpha "
            f"{first.alpha:.0e}). It does not show, and is the word of whoever wrote it:"
        )
    )
    for each in NOT_SHOWN:
        place.print(f"- {each}")
    if outcome is Outcome.NOT_READABLE:
        place.print(
            "not checked against a published commitment, so the keys may be made up: take it from the card of the "
            "copy (pushed with --disclose), and give it by --commitment"
        )
    else:
        place.print("the proof holds for what was published")


def power_of_ten(log10_bound: float) -> str:
    """A bound on a probability, as people read it."""
    return "1" if log10_bound > -0.05 else f"10^{log10_bound:.1f}"
