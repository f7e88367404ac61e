import re
from dataclasses import replace

import pytest

from hf_fingerprint.extraction import Lineage
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing import ComparedBase, RecipientScore, RecordedCopy, SkippedSource, TraceResult


def result(accused: list[str] = (), innocent: list[str] = (), **changes: object) -> TraceResult:
    colluders = tuple(
        RecipientScore(name, f"{i:016x}", 60.0, -300.0, True, "0123456789ab", "pushed")
        for i, name in enumerate(accused)
    )
    others = tuple(
        RecipientScore(name, f"{i:016x}", -0.4, 0.0, False, "0123456789ab", "written")
        for i, name in enumerate(innocent)
    )
    made = TraceResult(
        suspect="org/suspect",
        revision="c0ffee",
        base="0123456789ab",
        base_source="org/base",
        outcome=Outcome.ACCUSED if accused else Outcome.NOT_READABLE,
        accused=colluders,
        scores=colluders + others,
        recipients_tested=len(colluders + others),
        recipients_covered=len(colluders + others),
        tensors_matched=16,
        tensors_marked=17,
        weights_read=131_000,
        weights_dropped=328,
        lineage=Lineage(True, 0.998, 0.0123),
        alpha=1e-6,
        threshold=6.5,
        rounds=2,
    )
    return replace(made, **changes)


def text(shown: TraceResult) -> str:
    """What is printed, lines joined."""
    return " ".join(str(shown).split())


def test_a_verdict_names_the_accused_and_says_how_sure_it_is():
    said = text(result(["alice", "bob"], ["carol"]))

    assert "org/suspect@c0ffee against base 0123456789ab (org/base)" in said
    assert "16 of 17 marked tensors matched, 131,000 weights read, 328 dropped" in said
    assert "descends from the base (cosine 0.998, drift 1.2%)" in said
    assert said.count("ACCUSED") == 2
    assert "10^-300.0" in said
    assert (
        "accused: the copy made for alice (0000000000000000, pushed), the copy made for bob (0000000000000001" in said
    )
    assert "3 copies tested; the probability that any innocent is accused is at most 1e-06" in said


def test_a_verdict_on_nobody_says_so():
    other = {"outcome": Outcome.NOT_COMPARABLE, "reason": "Another model."}
    said = text(result([], ["carol"], revision=None, lineage=Lineage(False, 0.01, 1.4), **other))

    assert "org/suspect against" in said
    assert "does not look like a descendant" in said
    assert "ACCUSED" not in said
    assert "not comparable: nobody is accused, and nobody is cleared. 1 copies tested" in said
    assert said.endswith("Another model.")
    assert "nobody is accused. 1 copies tested" in text(result([], ["carol"], outcome=Outcome.NOBODY))


@pytest.mark.parametrize(
    "name", ["[bold]x", "[/]", "[red]a[/red]", "[link=http://evil]y", ":smile:", "a[b]c", "\\[x]"]
)
def test_names_are_printed_as_they_are(name):
    said = str(result([name], [], suspect=f"/tmp/{name}", base_source=f"/base/{name}"))

    assert re.sub(r"[\s│]", "", said).count(name) >= 3  # a long one is folded in the table
    assert "\x1b" not in said


def test_long_names_are_not_cut():
    name = "x" * 150

    joined = re.sub(r"[\s│┃|]", "", str(result([name], ["y" * 200])))

    assert "accused:thecopymadefor" + name in joined
    assert "…" not in joined


def test_all_the_accused_are_shown_and_of_the_others_some():
    said = text(result([f"colluders{i}" for i in range(30)], [f"innocent{i}" for i in range(50)]))

    assert said.count("ACCUSED") == 30
    assert "innocent0 " not in said
    assert "and 50 more, none accused" in said
    assert "and 30 more, none accused" in text(result([], [f"innocent{i}" for i in range(50)]))


def test_two_copies_of_one_recipient_are_distinguished():
    said = text(result(["alice", "alice"]))

    assert "the copy made for alice (0000000000000000, pushed), the copy made for alice (0000000000000001" in said


def test_a_copy_that_was_never_finished_is_said_to_be_a_trainings_checkpoint():
    found = result(["alice"])
    begun = tuple(replace(score, state="begun") for score in found.accused)
    said = text(replace(found, accused=begun, scores=begun))

    assert "made for alice (0000000000000000, begun, unfinished: a checkpoint of a training)" in said
    assert "leaked" not in said


def test_what_was_not_read_is_named():
    read = (ComparedBase("b1", "org/one", 20, "a share of 0.98"), ComparedBase("b2", "org/two", 5, "a share of 0.21"))
    unread = tuple(SkippedSource(f"c{i}", "org/three", "a share of 0.00") for i in range(9))
    files = (SkippedSource("model.onnx", "org/suspect", "not read: convert it"),)
    recorded = (RecordedCopy("alice", "f" * 16, "b1", "pushed", "2026-01-01"),)
    changes = {"bases_read": read, "bases_not_read": unread, "files_not_read": files, "on_record": recorded}
    said = text(result(["alice"], files=("model.safetensors",), tensors_left_out=3, **changes))

    assert "compared with base b2 (org/two), 5 copies: a share of 0.21" in said
    assert "not compared with base c4 (org/three): a share of 0.00" in said
    assert "and 4 more bases not compared" in said
    assert "not read: model.onnx (not read: convert it)" in said
    assert "weight files read: model.safetensors" in said
    assert "3 unreadable tensors left out" in said
    assert "its content hash is that of copy ffffffffffffffff, made for alice" in said


def test_a_claim_says_for_how_many_its_bound_pays():
    said = text(result([], [], outcome=Outcome.NOBODY, recipients_tested=1, recipients_covered=1000, claim="bob"))

    assert "not confirmed: a copy made for bob. 1 copies tested, and the bound covers all 1,000 in the vault" in said
