import re
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from hf_fingerprint.attacks import (
    STRATEGIES,
    SUITE,
    Collusion,
    Compose,
    Distillation,
    FineTuning,
    attack_names,
    attack_sweep,
)
from hf_fingerprint.attacks.suite import GROUPS
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, VIT, fresh, make_attacker, same


pytestmark = pytest.mark.integration


QUICK = {"steps": 2, "repair": 1, "rounds": 1, "queries": 8, "times": 2}


def quick(step):
    """The same, with as few steps of training and as few marks as will do."""
    if isinstance(step, Compose):
        return Compose(*map(quick, step.steps))
    if not is_dataclass(step):
        return step
    return replace(step, **{f.name: QUICK[f.name] for f in fields(step) if f.name in QUICK})


def slightly_different(state, seed):
    torch.manual_seed(seed)
    return {n: t + 0.003 * t.abs() * torch.randn_like(t) if t.is_floating_point() else t for n, t in state.items()}


def attacked(name, architecture, step):
    state = fresh(architecture)
    attacker = replace(make_attacker(architecture, 16), batch=8, base=fresh(architecture, 1))
    attacker = replace(attacker, ancestor={n: t for n, t in fresh(architecture, 2).items() if "head" not in n})
    given = [slightly_different(state, i) for i in range(3)] if SUITE[name].takes_copies else state
    before = [dict(each) for each in given] if isinstance(given, list) else dict(state)
    kept = [{n: t.clone() for n, t in each.items()} for each in (before if isinstance(before, list) else [before])]

    after = quick(step)(given, attacker)

    now = given if isinstance(given, list) else [given]
    assert all(same(a, b) for a, b in zip(now, kept, strict=True))
    attacker.model(after)
    if not name.startswith("slice-stream"):
        assert after.keys() == state.keys() or (name.startswith("drop-blocks") and after.keys() < state.keys())
    assert all(tensor.isfinite().all() for tensor in after.values())
    return state, after


@pytest.mark.parametrize("architecture", [CNN, VIT])
@pytest.mark.parametrize("name", attack_names("single") + attack_names("collusion"))
def test_every_attack_runs_and_what_it_leaves_loads(name, architecture):
    steps = attack_sweep(name)
    try:
        state, after = attacked(name, architecture, steps[len(steps) // 2])
    except FingerprintError as error:
        assert re.search("no batch normalization|no stack of blocks|no patch_embed", str(error))
    else:
        assert not same(state, after)


@pytest.mark.parametrize("name", [name for name in attack_names("ancestor") if "-then-" not in name])
def test_attacks_with_the_ancestor_run_at_their_ends_and_what_they_leave_loads(name):
    for step in (attack_sweep(name)[0], attack_sweep(name)[-1]):
        state, after = attacked(name, CNN, step)
        assert not same(state, after)


@pytest.mark.parametrize("name", ["delta-rank", "delta-dare", "merge-ties"])
def test_attacks_with_the_ancestor_need_no_batch_normalization(name):
    state, after = attacked(name, VIT, attack_sweep(name)[0])

    assert not same(state, after)


def test_attacks_with_the_ancestor_run_alone_on_averages_and_before_each_follow_up():
    follow_ups = ("-then-finetune", "-then-retrain", "-then-distill", "-then-int8")
    deltas = [name for name in attack_names("ancestor") if name.startswith("delta-") and "-then-" not in name]

    assert len(deltas) == 12
    for name in deltas:
        for each in (name, f"average-then-{name}"):
            alone, after = SUITE[each], [SUITE[each + more] for more in follow_ups]
            assert (alone.control, alone.in_quick, len(alone.attacks)) == (
                "ancestor-weights",
                True,
                len(SUITE[name].attacks),
            )
            assert [entry.control for entry in after] == [f"ancestor-weights{more}" for more in follow_ups]
            assert not any(entry.in_quick for entry in after)
            strengths = {step.strength for step in alone.attacks}
            assert {step.strength for entry in after for step in entry.attacks} <= strengths
    assert SUITE["average-then-delta-rank"].takes_copies
    assert not SUITE["delta-rank"].takes_copies


def test_a_control_has_the_follow_up_of_its_attacks_and_none_of_their_weights():
    for entry in (SUITE[name] for name in attack_names("ancestor")):
        if entry.control is not None:
            (control,) = SUITE[entry.control].attacks
            assert SUITE[entry.control].control is None
            assert "AncestorControl()" in repr(control)
            for step in entry.attacks:
                assert trained_steps(step) == trained_steps(control)


def trained_steps(step):
    """What trains in an attack, and for how long."""
    if isinstance(step, Compose):
        return [each for part in step.steps for each in trained_steps(part)]
    if isinstance(step, Distillation):
        return [("distillation", step.steps, step.lr)]
    return [(type(step).__name__, step.steps, step.lr)] if isinstance(step, FineTuning) else []


@pytest.mark.parametrize(
    "name", [name for name in attack_names("single") if not attack_sweep(name)[-1].needs_attacker]
)
def test_ruinous_strengths_leave_numbers_too(name):
    attacked(name, CNN, attack_sweep(name)[-1])


def test_names_are_short_lower_case_words_with_hyphens():
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+){0,5}", name) for name in SUITE)
    assert [name for group in GROUPS for name in attack_names(group)] == attack_names() == list(SUITE)


def test_every_step_says_where_it_comes_from_and_how_strong_it_is():
    for name in SUITE:
        for step in attack_sweep(name):
            assert len(step.paper) > 10, name
            assert step.strength >= 0
    reprs = [repr(step) for name in SUITE for step in attack_sweep(name)]
    assert len(reprs) == len(set(reprs))


def test_a_sweep_goes_one_way():
    for name in attack_names("single") + attack_names("ancestor"):
        strengths = [step.strength for step in attack_sweep(name)]
        assert strengths in (sorted(strengths), sorted(strengths, reverse=True)), name


def test_what_leaves_the_function_unchanged_is_there_after_fine_tuning_too_in_all_its_strengths():
    plain = [name for name in attack_names("symmetries") if not name.startswith("finetune-then-")]

    assert attack_names("symmetries") == plain + [f"finetune-then-{name}" for name in plain]
    for name in plain:
        after = attack_sweep(f"finetune-then-{name}")
        assert [step.steps[-1] for step in after] == attack_sweep(name)
        assert [step.strength for step in after] == [step.strength for step in attack_sweep(name)]
        assert {repr(step.steps[0]) for step in after} == {repr(FineTuning(1e-3))}


def test_every_strategy_is_there_alone_and_followed():
    found = [attack_sweep(name)[0] for name in attack_names("collusion")]

    assert len(found) == 4 * len(STRATEGIES) + 1  # the average is also trained with ten times the learning rate
    assert attack_sweep("average-then-retrain") == [Compose(Collusion("average"), FineTuning(1e-3))]
    firsts = [step.steps[0] if isinstance(step, Compose) else step for step in found]
    assert all(isinstance(first, Collusion) for first in firsts)
    assert {first.strategy for first in firsts} == set(STRATEGIES)


def test_changing_a_sweep_changes_nothing_in_the_suite():
    attack_sweep("prune").clear()

    assert attack_sweep("prune")


def test_an_unknown_attack_is_an_error():
    with pytest.raises(FingerprintError, match=r"no attack called magic.*prune"):
        attack_sweep("magic")
