"""What commands print: tables and progress for people, JSON for programs."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_fingerprint.blackbox import Proven, QueryResult
    from hf_fingerprint.vault import Base


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def print_line(value: Any) -> None:
    """One JSON value on a line of stdout, at once, for whoever reads along."""
    sys.stdout.write(json.dumps(value, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """A line for a person, on stdout."""
    sys.stdout.write(line + "\n")


def remark(line: str) -> None:
    """A line for a person, on stderr, out of the way of results."""
    sys.stderr.write(line + "\n")


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that names the step under way; silent where nobody watches."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    with console.status("working") as status:
        yield lambda step: status.update(escape(step))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, told how much was done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        "{task.percentage:>3.0f}%",
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
    )
    from rich.console import Console

    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars for several steps, each told `(step, done, total)`."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
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
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console, went = Console(), result.questioning
    console.print(Text(f"{result.suspect} asked about base {result.base_id}"))
    before = f", {went.resumed} of these in the transcript before" if went.resumed else ""
    again = f", {went.retries} requests made again" if went.retries else ""
    console.print(
        f"{went.asked} images asked{before}, {went.decoys_asked} decoys among them; {went.answered} answered{again}"
    )
    table = Table(Column("recipient", overflow="fold"), "answers that agree", "bound on a false accusation", "verdict")
    for score in result.scores:
        agree, bound = f"{score.agreeing} of {score.counted}", power_of_ten(score.log10_bound)
        table.add_row(Text(score.recipient), agree, bound, "ACCUSED" if score.accused else "-")
    console.print(table)
    if result.copies > len(result.scores):
        console.print(f"and {result.copies - len(result.scores):,} more, none accused")
    names = ", ".join(dict.fromkeys(score.recipient for score in result.accused))
    stopped = {"proven": "at the proof", "budget": "at the budget", "all asked": "as nothing is left to ask"}
    console.print(
        Text(
            f"{f'accused: {names}' if names else 'nobody is accused'}. {result.copies:,} copies tested; any innocent "
            f"accused with probability at most {result.alpha:.0e}; stopped {stopped[went.stopped]}, after "
            f"{went.asked} images"
        )
    )
    rest = "; --whole asks on, for further colluders" if went.stopped == "proven" else ""
    console.print(
        f"a model mixed from several copies answers for some of their recipients, or for none: nobody is cleared{rest}"
    )
    if result.unbound:
        shown = ", ".join(dict.fromkeys(result.unbound[:20])) + (", ..." if len(result.unbound) > 20 else "")
        console.print(
            Text(
                f"answers can't name {len(result.unbound):,} of these copies, made before the base had questions or "
                f"never bound to answer them: {shown}"
            )
        )


def print_proof(worked_out: "Sequence[Proven]") -> None:
    """A proof as it was worked out again, and what is left to check."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    table = Table(Column("recipient", overflow="fold"), "answers that agree", "bound on a false accusation", "verdict")
    for proven in worked_out:
        verdict = "holds" if proven.holds else "no proof" if proven.opened else "wrong key"
        agree = f"{proven.agreeing} of {proven.counted}"
        table.add_row(Text(proven.recipient), agree, power_of_ten(proven.log10_bound), verdict)
    console.print(table)
    for proven in worked_out:
        if proven.opened:
            console.print(Text(f"{proven.recipient}'s commitment: {proven.commitment}"), soft_wrap=True)
    holding = [proven for proven in worked_out if proven.holds]
    if not holding or len(holding) < len(worked_out):
        console.print("the proof does not hold")
        return
    console.print(
        Text(
            f"the proof holds, if {holding[0].suspect} gave these answers, {holding[0].copies:,} copies were tested "
            f"(alpha {holding[0].alpha:.0e}) and the commitment was made before; the card of a copy that was pushed "
            f"with --disclose dates it"
        )
    )


def power_of_ten(log10_bound: float) -> str:
    """A bound on a probability, as people read it."""
    return "1" if log10_bound > -0.05 else f"10^{log10_bound:.1f}"
