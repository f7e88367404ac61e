import json

import pytest
import torch

from examples.benchmarks import schemes_report as report
from examples.benchmarks.schemes import select_jobs, trains_model
from examples.benchmarks.schemes_trial import BATCH, names_only, train_mark
from examples.reproduction.arms import ArmVerdict, DesignArm, ToolboxArm
from hf_fingerprint.attacks import SUITE
from hf_fingerprint.attacks.suite import attack_names
from hf_fingerprint.evaluation.planning import plan_jobs
from tests.helpers.processes import run_here


pytestmark = pytest.mark.integration
ATTACKS = ("half", "shuffle-channels", "average")


def row(scheme, attack="prune", step=0, colluders=1, **changes):
    values = {"what": attack, "strength": 0.5, "outcome": report.READ, "accuracy": 0.9, "score": 1.0}
    kind = "collusion" if SUITE[attack].group == "collusion" else "single"
    decoders = [name for name, of in report.SCHEME_OF.items() if of == scheme and name != report.TOOLBOX]
    values |= {"named": dict.fromkeys(decoders, (0,)), "innocents": dict.fromkeys(decoders, 0), "wrong": 0, "bits": 31}
    return report.Row(scheme, kind, attack, step=step, colluders=colluders, **(values | changes))


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 4),
    )


def noise():
    torch.manual_seed(1)
    return torch.randn(BATCH, 3, 8, 8), torch.randint(4, (BATCH,))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    chosen = ["resnet", "--scale", 0.01, "--coalitions", 2, "--out", out, "--bases-folder", out, "--attacks", *ATTACKS]
    printed, _ = run_here("benchmarks.schemes", out, *chosen)
    return out / "resnet", json.loads(printed)


@pytest.mark.slow
def test_one_command_attacks_three_schemes_and_writes_their_table(compared):
    out, summary = compared
    rows = [report.Row(**values) for values in json.loads((out / "results.json").read_text())["rows"]]
    found = {(r.scheme, r.attack, r.step): r for r in rows}

    assert summary["copies"]["deepmarks"]["right"] == [True, True]
    assert summary["copies"]["toolbox"]["carriers"] == ["conv1.0.weight"]
    assert summary["kept"]["single"]["spread"] == {"kept": 1, "of": 1}
    assert summary["kept"]["symmetries"]["spread"] == {"kept": 3, "of": 3}
    assert summary["kept"]["symmetries"][report.PAPERS]["kept"] < 3
    assert summary["kept"]["collusion"]["spread"] == {"kept": 1, "of": 1}
    assert report.TOOLBOX not in summary["kept"]["collusion"]
    assert found["deepmarks", "half", 0].wrong == 0
    assert found["deepmarks", "shuffle-channels", max(s for _, a, s in found if a == "shuffle-channels")].wrong > 0
    assert found["deepmarks", "the base, unmarked", 0].named == {report.PAPERS: [], report.SOFT: []}
    assert summary["innocents_named"] == {"spread": 0, report.PAPERS: 0, report.SOFT: 0}
    table = (out / "table.md").read_text()
    assert all(f"\n| {attack} | " in table for attack in (*ATTACKS, "the base, unmarked", "a copy as issued"))


@pytest.mark.slow
def test_every_suspect_is_a_line_on_the_disk(compared):
    out, _ = compared
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]

    assert len({line["key"] for line in lines}) == len(lines) == 2 * (2 + 1 + 3) + 1
    assert {line["colluders"] for line in lines if line["attack"] == "average"} == {2}


@pytest.mark.parametrize(
    "arm", [lambda m: DesignArm(m, 0, False), lambda m: ToolboxArm(m, 0)], ids=["design", "toolbox"]
)
def test_a_mark_is_trained_in_until_it_reads_right(arm):
    base = small()
    made = arm(base)

    state, steps = train_mark(made, base, 0, noise(), 100)

    model = small()
    model.load_state_dict(state)
    assert not names_only(made.decode_suspect(base), 0)
    assert names_only(made.decode_suspect(model), 0)
    assert 200 <= steps < 1200
    assert steps % 100 == 0


def test_a_copy_is_its_users_if_each_decoder_names_nobody_else():
    assert names_only(ArmVerdict({"a": (3,), "b": (3,)}, 20, 31, 1.0), 3)
    assert not names_only(ArmVerdict({"a": (3,), "b": ()}, 20, 31, 1.0), 3)
    assert not names_only(ArmVerdict({"a": (3,), "b": (2, 3)}, 20, 31, 1.0), 3)
    assert names_only(ArmVerdict({"toolbox": ()}, 0, 31, 1.0), 0)
    assert not names_only(ArmVerdict({"toolbox": ()}, 1, 31, 1.0), 0)


def test_attacks_that_train_take_minutes():
    found = {name for name in attack_names() if trains_model(SUITE[name].attacks[0])}

    assert {"finetune", "finetune-other-data", "remove", "distill", "prune-then-finetune"} <= found
    assert {"average-then-finetune", "finetune-then-rename"} <= found
    assert not found & {"prune", "reset", "shuffle-channels", "average", "average-then-prune", "batch-norm"}


def test_skip_mild_training_skips_the_mildest_slow_attacks_and_the_toolbox_has_no_colluders():
    jobs = plan_jobs(
        ["finetune", "prune", "prune-2-of-4-then-finetune", "finetune-then-rename", "average"], (3,), quick=True
    )
    design, toolbox = DesignArm(small(), 0, False), ToolboxArm(small(), 0)

    def steps(arm, attack, skip_mild_training):
        return [job.step for job in select_jobs(arm, jobs, skip_mild_training) if job.attack == attack]

    assert [len(steps(design, "finetune", skip_mild_training)) for skip_mild_training in (False, True)] == [3, 2]
    assert steps(design, "finetune", True) == steps(design, "finetune", False)[1:]
    assert steps(design, "prune-2-of-4-then-finetune", True) == [1, 2]
    assert steps(design, "prune", True) == steps(design, "prune", False)
    assert steps(design, "finetune-then-rename", True) == [0]
    assert steps(design, "average", True) == [0]
    assert steps(toolbox, "average", True) == []
    ordered = [trains_model(job.attack_step) for job in select_jobs(design, jobs, True)]
    assert ordered == sorted(ordered)


def test_a_mark_is_kept_if_the_colluders_are_named_and_nobody_else():
    assert row("deepmarks").keeps(report.PAPERS)
    assert not row("deepmarks", named={report.PAPERS: ()}).keeps(report.PAPERS)
    assert not row("deepmarks", innocents={report.PAPERS: 1}).keeps(report.PAPERS)
    assert not row("deepmarks", outcome=report.UNREADABLE).keeps(report.SOFT)
    assert [row("toolbox", wrong=wrong).keeps("toolbox") for wrong in (0, 2, 3)] == [True, True, False]


def test_schemes_are_counted_over_the_suspects_that_all_of_them_tried():
    rows = [row(scheme, step=step) for scheme in ("spread", "deepmarks", "toolbox") for step in range(3)]
    rows = [r for r in rows if (r.scheme, r.step) != ("spread", 2)]
    rows += [row("toolbox", "fp8", outcome=report.FAILED), row("deepmarks", "fp8"), row("spread", "fp8")]
    rows += [
        row("spread", "average", colluders=3),
        row("deepmarks", "average", colluders=3, innocents={report.PAPERS: 0, report.SOFT: 2}),
    ]

    found = report.summarize(rows)

    assert found["single"] == {name: {"kept": 2, "of": 2} for name in report.SCHEME_OF}
    assert found["collusion"] == {
        "spread": {"kept": 1, "of": 1},
        report.PAPERS: {"kept": 1, "of": 1},
        report.SOFT: {"kept": 0, "of": 1},
    }
    assert report.innocents_named(rows) == {"spread": 0, report.PAPERS: 0, report.SOFT: 2}


def test_an_attacks_strengths_are_side_by_side_and_what_was_not_measured_is_a_dash():
    rows = [
        row("spread", step=0, score=242.3),
        row("spread", step=2, named={"spread": ()}),
        row("deepmarks", step=0, innocents={report.PAPERS: 2, report.SOFT: 1}),
        row("deepmarks", step=2, named={report.PAPERS: (), report.SOFT: ()}),
        row("toolbox", step=2, wrong=7),
    ]
    mixed = [row("spread", "average", colluders=3, named={"spread": (0, 2)}), row("deepmarks", "average", colluders=3)]

    assert report.cells("prune", {(r.scheme, r.suspect): r for r in rows})[3:] == [
        "242 / nobody",
        "yes, 2 innocents / no",
        "yes, 1 innocent / no",
        "- / 7",
    ]
    assert report.cells("average", {(r.scheme, r.suspect): r for r in mixed})[3:] == [
        "1 (2 of 3)",
        "1 of 3",
        "1 of 3",
        "-",
    ]


def test_a_scheme_that_reads_nothing_says_so_once():
    rows = [row("deepmarks", step=step, outcome=report.UNREADABLE) for step in (0, 1)] + [row("toolbox", step=1)]

    cells = report.cells("prune", {(r.scheme, r.suspect): r for r in rows})

    assert cells[2:] == ["-", "-", "unreadable", "unreadable", "- / 0"]


def test_rows_are_kept_between_processes_and_a_truncated_line_is_dropped(tmp_path):
    file = tmp_path / "rows.jsonl"
    kept, lost = row("deepmarks"), row("toolbox", outcome=report.UNREADABLE, accuracy=None)
    rows = report.Rows(file)
    rows.add("a", kept)
    rows.add("b", lost)
    file.write_bytes(file.read_bytes()[:-5])

    again = report.Rows(file)

    assert list(again.known) == ["a"]
    assert again.known["a"].named == {name: [0] for name in kept.named}
    again.add("b", lost)
    assert list(report.Rows(file).known) == ["a", "b"]
