"""What a query and the check of a proof show: the agreement with each copy's labels, and the verdict."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tables import Block, Table, format_probability


if TYPE_CHECKING:
    from hf_fingerprint.blackbox.querying.proof import ProofCheck
    from hf_fingerprint.blackbox.querying.query import QueryResult


def query_blocks(result: "QueryResult") -> Iterator[Block]:
    """The lines and the table that show a query."""
    stats, several = result.stats, len(result.base_ids) > 1
    yield f"{result.suspect} queried for base{'s' * several} {', '.join(result.base_ids)}"
    before = f", {stats.resumed} of them earlier, as the transcript shows" if stats.resumed else ""
    again = f", {stats.retries} requests repeated" if stats.retries else ""
    queried = f"{stats.queried} images queried{before}, including {stats.decoys_queried} decoys"
    yield f"{queried}; {stats.answered} responses{again}"
    if result.scores:
        columns = ("made for", *["base"] * several, "matching labels", "bound on a false accusation", "verdict")
        rows = []
        for score in result.scores:
            agree, bound = f"{score.agreeing} of {score.counted}", format_probability(score.log10_bound)
            verdict = "ACCUSED" if score.accused else "-"
            rows.append((score.recipient, *[score.base_id] * several, agree, bound, verdict))
        yield Table(columns, tuple(rows))
    made = (f"the copy made for {score.recipient} ({score.copy_id}, {score.state})" for score in result.accused)
    names = ", ".join(dict.fromkeys(made))
    stop_reason = {"proven": "at the proof", "budget": "at the budget", "exhausted": "at the last image"}
    verdict = f"accused: {names}" if names else "nobody is accused"
    if result.reason is not None:
        verdict = f"not readable: {result.reason}"
    bound = f"the probability that any innocent is accused is at most {result.alpha:.0e}"
    stopped = f"stopped {stop_reason[stats.stop_reason]}, after {stats.queried} images"
    yield f"{verdict}. {result.copies:,} copies tested; {bound}; {stopped}"
    rest = "; --exhaustive queries all images, to find further colluders" if stats.stop_reason == "proven" else ""
    yield f"a mixture of several copies may show only some of their recipients, or none: nobody is cleared{rest}"
    for skipped in result.skipped:
        yield f"not queried for base {skipped.base_id}: {skipped.reason}"
    if result.non_answering:
        shown = ", ".join(dict.fromkeys(result.non_answering[:20])) + ", ..." * (len(result.non_answering) > 20)
        count = f"{len(result.non_answering):,} of these copies"
        yield f"queries can't trace {count}, which have no trigger labels: {shown}"


def proof_blocks(proof: "ProofCheck") -> Iterator[Block]:
    """The lines and the table that show the check of a proof, and what remains to be checked."""
    rows = []
    for check in proof.accusations:
        verdict = "holds" if check.holds else "no proof" if check.opened else "wrong key"
        verdict = "wrong commitment" if check.opened and check.published is False else verdict
        agree = f"{check.agreeing} of {check.counted}"
        rows.append((check.recipient, agree, format_probability(check.log10_bound), verdict))
    yield Table(("recipient", "matching labels", "bound on a false accusation", "verdict"), tuple(rows))
    for check in proof.accusations:
        if check.opened:
            published = {True: "as published", False: "not the published one", None: "not checked"}[check.published]
            yield f"{check.recipient}'s commitment: {check.commitment} ({published})"
    if proof.outcome is Outcome.NOBODY:
        yield "the proof does not hold"
        return
    first = proof.accusations[0]
    tested = f"responses of {first.suspect}, {first.copies:,} copies tested (alpha {first.alpha:.0e})"
    yield f"the proof is consistent: {tested}. It does not show, so its author vouches for it:"
    for each in proof.not_shown:
        yield f"- {each}"
    if proof.outcome is Outcome.NOT_READABLE:
        yield (
            "not checked against a published commitment, so the keys may be invented: give the commitment from the "
            "copy's model card (published with --disclose) by --commitment"
        )
    else:
        yield "the proof holds for the published commitments"
