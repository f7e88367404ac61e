import re
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from hf_fingerprint.attacks import STRATEGIES, SUITE, Collusion, Compose, FineTuning, attack_names, attack_sweep
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
    given = [slightly_different(state, i) for i in range(3)] if SUITE[name].group == "collusion" else state
    before = [dict(each) for each in given] if isinstance(given, list) else dict(state)
    kept = [{n: t.clone() for n, t in each.items()} for each in (before if isinstance(before, list) else [before])]

    after = quick(step)(given, attacker)

    now = given if isinstance(given, list) else [given]
    assert all(same(a, b) for a, b in zip(now, kept, strict=True))
    attacker.model(after)
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
        assert re.search("no batch normalization|no stack of blocks", str(error))
    else:
        assert not same(state, after)


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
    for name in attack_names("single"):
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

    assert len(found) == 4 * len(STRATEGIES)
    firsts = [step.steps[0] if isinstance(step, Compose) else step for step in found]
    assert all(isinstance(first, Collusion) for first in firsts)
    assert {first.strategy for first in firsts} == set(STRATEGIES)


def test_changing_a_sweep_changes_nothing_in_the_suite():
    attack_sweep("prune").clear()

    assert attack_sweep("prune")


def test_an_unknown_attack_is_an_error():
    with pytest.raises(FingerprintError, match=r"no attack called magic.*prune"):
        attack_sweep("magic")
