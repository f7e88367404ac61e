import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import gettempdir
from unittest.mock import patch

import pytest
import torch

from hf_fingerprint.attacks import Cast, Compose, DummyUnits
from hf_fingerprint.attacks.attack import Attack
from hf_fingerprint.attacks.suite import SUITE, SuiteEntry
from hf_fingerprint.errors import FingerprintError, StorageError
from hf_fingerprint.evaluation import EvaluationData, Testbed, evaluate
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, COPY, PRIVATE, RESULTS, SINGLE
from tests.helpers.error_checks import refused
from tests.helpers.evaluation_runs import SETTINGS, run
from tests.helpers.small_models import save_vit


pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Zeroing(Attack):
    paper = "none"
    amount: float = 1.0

    def __call__(self, state, attacker=None):
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


@dataclass(frozen=True)
class Refusing(Attack):
    paper = "none"
    attack_step: Callable[[str], Exception] = FingerprintError

    def __call__(self, state, attacker=None):
        raise self.attack_step("This model has nothing to attack.")


@dataclass(frozen=True)
class Renaming(Attack):
    paper = "none"
    amount: float = 1.0

    def __call__(self, state, attacker=None):
        return {f"tensor{i}": tensor for i, tensor in enumerate(state.values())}


def judged(monkeypatch, stop_at=None):
    """Counts the suspects that are traced, and stops before one as a kill would."""
    seen = []
    trace_suspect = Testbed.trace_suspect

    def counting(self, state, colluders=(0,)):
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(tuple(colluders))
        return trace_suspect(self, state, colluders)

    monkeypatch.setattr(Testbed, "trace_suspect", counting)
    return seen


def test_every_suspect_is_measured_and_traced(evaluation):
    kinds = [trial.kind for trial in evaluation.trials]
    sweep = [trial.strength for trial in evaluation.sweeps["int"]]

    assert kinds == [BASE, COPY, *[SINGLE] * (len(kinds) - 3), COLLUSION]
    assert sweep == [8, 6, 5, 4, 3, 2][: len(sweep)]
    assert evaluation.copy.accused
    assert evaluation.copy.score > evaluation.copy.threshold > 4
    assert evaluation.copy.log10_bounds[0] < -6
    assert evaluation.copy.agreement == 1
    assert evaluation.unmarked.scores == ()
    assert not evaluation.unmarked.accused
    assert evaluation.sweeps["int"][-1].score < evaluation.sweeps["int"][0].score < evaluation.copy.score
    assert all(len(trial.layers) == len(evaluation.carriers) for trial in evaluation.trials)
    assert (evaluation.images, evaluation.attacker_image_count, evaluation.skipped) == (36, 4, {})


def test_those_who_mixed_copies_are_caught_and_nobody_else(evaluation):
    (mixed,) = evaluation.of(COLLUSION)

    assert mixed.caught == (True, True)
    assert mixed.shares == (0.5, 0.5)
    assert mixed.main_contributors == (True, True)
    for trial in evaluation.trials:
        assert trial.innocents == 300 + 2 - trial.colluders
        assert trial.innocents_accused == trial.unaligned[0] == 0
        assert sum(trial.histogram) == trial.innocents


def test_scores_of_those_who_are_not_accused_are_shown_to_who_asks(redacted, evaluation):
    assert not redacted.all_scores
    assert redacted.trials == tuple(trial.redacted() for trial in evaluation.trials)
    assert redacted.trials != evaluation.trials
    assert redacted.copy.scores == evaluation.copy.scores


def test_running_again_traces_nothing_again(place, evaluation, monkeypatch):
    seen = judged(monkeypatch)

    assert run(place, place / "out", all_scores=True) == evaluation
    assert seen == []


def test_an_evaluation_that_was_moved_goes_on(place, evaluation, tmp_path, monkeypatch):
    shutil.copytree(place / "out", tmp_path / "elsewhere")
    seen = judged(monkeypatch)

    assert run(place, tmp_path / "elsewhere", all_scores=True) == evaluation
    assert seen == []


def test_an_evaluation_that_was_cut_off_goes_on_where_it_stopped(place, evaluation, monkeypatch):
    results = place / "out" / PRIVATE / RESULTS
    before = len(results.read_bytes().splitlines())
    cut = judged(monkeypatch, stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(place, place / "out", ["bf16", "fp8"])
    monkeypatch.undo()
    lines = results.read_bytes().splitlines(keepends=True)
    with results.open("ab") as stream:
        stream.write(lines[-1][:40])
    rest = judged(monkeypatch)
    found = run(place, place / "out", ["bf16", "fp8"])

    assert len(lines) == before + len(cut) == before + 2
    assert len(rest) == 1
    assert [trial.attack for trial in found.trials[2:]] == ["fp8", "fp8", "bf16"]
    assert run(place, place / "out", ["bf16", "fp8"]) == found
    assert results.read_bytes().startswith(b"".join(lines))


def test_other_images_are_another_evaluation(place, evaluation, monkeypatch):
    seen = judged(monkeypatch)
    fewer = run(place, place / "out", ["half"], images=20)

    assert len(seen) == 3
    assert fewer.images == 20
    assert fewer.copy.scores == evaluation.copy.scores


def test_tensors_may_be_given_in_place_of_a_folder(place, evaluation):
    images, labels = torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    data = EvaluationData("zeros", (images, labels), (images, labels))
    found = evaluate(place / "model", data, place / "out", ["half"], config=SETTINGS, innocents=300)

    assert found.data == "zeros"
    assert found.copy.accuracy == found.chance == 0.25


def test_a_model_that_no_library_builds_any_more_is_run_and_traced(place):
    found = run(place, place / "out", ["slice-stream"])

    assert [each.strength for each in found.sweeps["slice-stream"]] == [0.1, 0.2, 0.3]
    assert all(each.accused and each.agreement > 0 for each in found.sweeps["slice-stream"])


def test_a_classifier_of_transformers_is_evaluated_too(tmp_path):
    model = save_vit(tmp_path / "model", num_labels=4, num_hidden_layers=2)
    images, labels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    data = EvaluationData("noise", (images, labels), (images, labels))
    found = evaluate(model, data, tmp_path / "out", ["int"], config=SETTINGS, innocents=300)

    assert found.copy.accused
    assert found.unmarked.agreement >= 0.75  # of 8 answers of a model that was never trained
    assert found.sweeps["int"][0].accused
    assert min(found.copy.layers) > 4
    assert found.trials[0].innocents_accused == found.trials[1].innocents_accused == 0


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (Refusing(), "This model has nothing to attack."),
        (Refusing(StopIteration), "StopIteration: the attack does not work on this model."),
        (Renaming(), "The attack changes the model's tensors, so accuracy can't be measured."),
    ],
)
def test_a_failing_attack_is_reported_and_the_others_run(place, evaluation, attack, reason):
    with patch.dict(SUITE, {"odd": SuiteEntry("single", (attack, attack))}):
        found = run(place, place / "out", ["odd", "half"])

    assert found.skipped == {"odd": reason}
    assert list(found.sweeps) == ["half"]


def test_a_full_disk_leaves_no_attack_out(place, evaluation):
    def full(_step):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch.dict(SUITE, {"odd": SuiteEntry("single", (Refusing(full),))}):
        said = refused(run, place, place / "out", ["odd", "half"], error=StorageError)
    assert f"The disk of {gettempdir()} is full: make room" in said


def test_a_suspect_with_wider_layers_runs_unchanged(place, evaluation):
    with patch.dict(SUITE, {"wider": SuiteEntry("single", (DummyUnits(),))}):
        found = run(place, place / "out", ["wider"])

    assert found.sweeps["wider"][0].agreement == 1


@pytest.mark.parametrize("name", ["rotate-heads", "rename"])
def test_a_suspect_that_does_the_same_in_other_weights_or_names_is_tried_out(place, name):
    found = run(place, place / "out", [name])

    assert all(trial.agreement == 1 for trial in found.sweeps[name])
    assert not found.skipped


def test_the_attacker_may_have_the_base_and_that_is_another_evaluation(place, evaluation):
    alone = run(place, place / "out", ["reset"], quick=True)
    with_base = run(place, place / "out", ["reset"], quick=True, public_base=True, all_scores=True)

    assert "base" in alone.skipped["reset"]
    assert (alone.public_base, with_base.public_base, with_base.skipped) == (False, True, {})
    assert with_base.sweeps["reset"][-1].score < with_base.copy.score / 2


def test_a_sweep_ends_where_mark_and_model_are_gone(place, evaluation):
    steps = []
    with patch.dict(SUITE, {"zero": SuiteEntry("single", (Zeroing(0.5), Zeroing(1.0)))}):
        found = run(place, place / "out", ["zero"], progress=lambda *step: steps.append(step))
    (trial,) = found.sweeps["zero"]

    assert not trial.accused
    assert trial.threshold is None
    assert trial.accuracy <= found.chance
    assert [step for step in steps if step[0] == "trials"] == [("trials", done, 4) for done in (2, 3, 4)]
    assert ("zero at 0.5", 0, None) in steps and ("zero at 1", 0, None) not in steps


def test_unknown_attacks_are_refused_before_anything_is_made(place, tmp_path):
    text = refused(run, place, tmp_path / "out", ["half", "hammer"])

    assert "hammer" in text
    assert "prune" in text
    assert not (tmp_path / "out").exists()


def test_coalitions_of_other_recipients_are_traced_by_their_members(place, tmp_path, monkeypatch):
    seen = judged(monkeypatch)

    found = run(place, tmp_path / "out", ("average",), runs=3)

    mixed = found.of(COLLUSION)
    assert len({tuple(sorted(members)) for members in seen if len(members) == 2}) > 1
    assert [trial.caught for trial in mixed] == [(True, True)] * 3
    assert sum(trial.innocents_accused for trial in mixed) == 0
    assert all(trial.innocents >= 300 for trial in mixed)


def test_the_first_step_that_attacks_share_runs_once(place, tmp_path, monkeypatch):
    calls = []

    @dataclass(frozen=True)
    class Counted(Attack):
        paper = "none"
        amount: float = 1.0

        def __call__(self, state, attacker=None):
            calls.append(1)
            return {name: 0.5 * tensor for name, tensor in state.items()}

    sweep = SuiteEntry("single", (Compose(Counted(), Cast("float16")), Compose(Counted(), Cast("bfloat16"))))
    monkeypatch.setitem(SUITE, "counted", sweep)

    found = run(place, tmp_path / "out", ("counted",))

    assert len(found.of(SINGLE)) == 2
    assert len(calls) == 1
    assert len({trial.scores for trial in found.of(SINGLE)}) == 2
