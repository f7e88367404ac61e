import pytest

from hf_fingerprint.attacks.attack import Compose
from hf_fingerprint.attacks.finetuning import FineTuning
from hf_fingerprint.attacks.suite import GROUPS, SUITE, attack_names, attack_sweep
from hf_fingerprint.evaluation.planning import plan_jobs, select_attacks
from hf_fingerprint.evaluation.trials import COLLUSION, SINGLE
from tests.helpers.error_checks import refused


def test_attacks_are_chosen_by_name_and_by_group_once_each():
    assert select_attacks(["int", "prune", "int"]) == ["prune", "int"]
    assert select_attacks(["symmetries", "int"]) == ["int", *[n for n, s in SUITE.items() if s.group == "symmetries"]]
    assert select_attacks(None) == select_attacks(GROUPS) == list(SUITE)


def test_controls_come_with_their_attacks():
    assert select_attacks(["delta-rank", "int"]) == ["int", "ancestor-weights", "delta-rank"]
    assert select_attacks(["merge-ties-then-retrain"]) == ["ancestor-weights-then-retrain", "merge-ties-then-retrain"]


def test_an_unknown_name_is_refused_with_those_there_are():
    text = refused(select_attacks, ["int", "nothing"])

    assert "nothing" in text
    assert all(name in text for name in (*SUITE, *GROUPS))


def test_every_strength_of_every_attack_and_every_size_of_every_coalition_is_planned():
    jobs = plan_jobs(select_attacks(None), [3, 2, 3])
    single = [job for job in jobs if job.kind == SINGLE]
    mixed = [job for job in jobs if job.kind == COLLUSION]

    assert len(single) == sum(len(attack_sweep(name)) for name, s in SUITE.items() if not s.takes_copies)
    assert {job.colluders for job in mixed} == {2, 3}
    assert len(mixed) == 2 * sum(len(s.attacks) for s in SUITE.values() if s.takes_copies)
    assert len({(job.attack, job.what, job.colluders) for job in jobs}) == len(jobs)


def test_a_quick_plan_keeps_the_ends_of_sweeps_and_plain_mixes():
    jobs = plan_jobs(select_attacks(["prune", "collusion"]), quick=True)

    assert [job.step for job in jobs if job.attack == "prune"] == [0, 3, 6]
    assert not any(isinstance(job.attack_step, Compose) for job in jobs)
    assert {job.colluders for job in jobs if job.kind == COLLUSION} == {3}


def test_a_quick_plan_fine_tunes_for_fewer_steps_and_changes_no_other_attack():
    chosen = select_attacks(["finetune", "finetune-other-data", "prune-then-finetune", "single"])
    jobs = {quick: {(j.attack, j.step): j for j in plan_jobs(chosen, quick=quick) if j.members} for quick in (0, 1)}

    trained = {name: job.attack_step for (name, _), job in jobs[1].items()}
    assert trained["finetune"] == FineTuning(1e-2, steps=20)
    assert trained["finetune-other-data"].steps == 20
    assert trained["prune-then-finetune"].steps[1] == FineTuning(1e-4, steps=20)
    changed = {place for place, job in jobs[1].items() if job.what != jobs[0][place].what}
    assert all("steps=20" in jobs[1][place].what for place in changed)
    assert {name for name, _ in changed} == {
        name for name, _ in jobs[1] if name.startswith("finetune") or name.endswith("-then-finetune")
    }
    assert all(job.strength == jobs[0][place].strength for place, job in jobs[1].items())


@pytest.mark.parametrize("quick", [False, True])
def test_a_chosen_number_of_fine_tuning_steps_is_taken(quick):
    (*_, last) = plan_jobs(["finetune"], quick=quick, fine_tuning_steps=7)

    assert last.attack_step.steps == 7
    assert "1 step or more, not 0" in refused(plan_jobs, ["finetune"], None, quick, 1, 0)


def test_a_quick_plan_runs_attacks_with_the_ancestor_without_follow_ups():
    jobs = plan_jobs(select_attacks(["ancestor"]), quick=True)

    assert {job.attack for job in jobs[2:]} == {name for name in attack_names("ancestor") if SUITE[name].in_quick}
    assert [job.strength for job in jobs if job.attack == "average-then-delta-rank"] == [0.5, 0.05, 0.01]
    assert {job.colluders for job in jobs[2:]} == {1, 3}
    assert len(jobs) < 110


def test_a_suspects_strength_is_its_number_of_copies_or_that_of_what_was_done_to_them():
    plain, after, merge = (
        plan_jobs([name], [5])[-1] for name in ("average-then-finetune", "average-then-delta-rank", "merge-ties")
    )

    assert (plain.strength, after.strength, merge.strength) == (5, 0.01, 0.1)
    assert [job.strength for job in plan_jobs(["int"])][:3] == [0, 1, 8]


def test_strengths_beyond_the_usual_are_for_whole_plans():
    quick, whole = (
        [job.attack_step.strength for job in plan_jobs(["noise"], quick=quick)[2:]] for quick in (True, False)
    )

    assert quick == [0.003, 0.1, 0.4]
    assert whole == [0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6]


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_coalition_of_fewer_than_two_is_refused(size):
    assert "2 copies or more" in refused(plan_jobs, ["average"], [3, size])


def test_each_run_of_a_coalition_has_other_members_and_another_seed():
    jobs = [job for job in plan_jobs(["random-pick-then-prune"], [2, 3], runs=4) if job.kind == COLLUSION]
    small, large = ([job for job in jobs if job.colluders == size] for size in (2, 3))

    assert (small[0].members, large[0].members) == ((0, 1), (0, 1, 2))
    assert (len(small), len(large)) == (4, 4)
    assert len({tuple(sorted(job.members)) for job in large}) > 1
    assert all(len(set(job.members)) == job.colluders and max(job.members) < 6 for job in jobs)
    assert len({job.what for job in large}) == 4
    assert jobs == [job for job in plan_jobs(["random-pick-then-prune"], [3, 2], runs=4) if job.kind == COLLUSION]
